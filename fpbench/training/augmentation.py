"""Random changes of training pictures, per picture, on the device where the network is.

The random numbers of an epoch are drawn beforehand for all its pictures, on the CPU, from (seed, epoch). So neither device nor
batch size nor the order of work has a say in them, and an interrupted epoch goes on as if nothing had been.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fpbench.encoders import Encoder
from fpbench.recipe import Augmentation

COLUMNS = ("flip", "rotate", "y", "x", "scale", "gain", "contrast", "gamma", "speckle", "field", "down", "right")
FIELDS = 8  # noise fields to choose from, each shifted at random


def draw(settings: Augmentation, count: int, seed: int) -> Tensor:
    """Return the numbers for ``count`` pictures, (count, len(COLUMNS)) float32, on the CPU."""
    u = torch.rand(count, len(COLUMNS), generator=torch.Generator().manual_seed(seed))
    s = settings
    spread = torch.tensor([s.rotate * torch.pi / 180, s.shift * 2, s.shift * 2, s.scale, s.gain, s.contrast, s.gamma])
    u[:, 0] = (u[:, 0] < s.flip).float()
    u[:, 1:8] = (2 * u[:, 1:8] - 1) * spread
    u[:, 8] *= s.speckle
    return u


def speckle(size: int) -> Tensor:
    """Return the noise fields, (FIELDS, size, size): smooth over a few pixels, mean 0, SD 1."""
    noise = torch.randn(FIELDS, 1, size, size, generator=torch.Generator().manual_seed(0))
    smooth = functional.avg_pool2d(functional.pad(noise, (1, 1, 1, 1), mode="circular"), 3, 1)[:, 0]
    return (smooth - smooth.mean()) / smooth.std()


def apply(pictures: Tensor, numbers: Tensor, fields: Tensor) -> Tensor:
    """Return changed pictures.

    Parameters
    ----------
    pictures
        (B, C, S, S) float in [0, 1].
    numbers
        (B, len(COLUMNS)), rows of ``draw``.
    fields
        ``speckle(S)``, on the device of the pictures.

    Returns
    -------
    torch.Tensor
        Same shape, in [0, 1].
    """
    return toned(moved(pictures, numbers), numbers, fields)


def moved(pictures: Tensor, numbers: Tensor, mode: str = "bilinear") -> Tensor:
    """Return pictures flipped, turned, shifted and scaled, black where nothing was; ``nearest`` for masks, which so stay with theirs."""
    flip, rotate, y, x, scale = numbers.T[:5].to(pictures.device)
    cos, sin = torch.cos(rotate) / (1 + scale), torch.sin(rotate) / (1 + scale)
    mirror = 1 - 2 * flip
    affine = torch.stack([torch.stack([mirror * cos, -sin, x], -1), torch.stack([mirror * sin, cos, y], -1)], 1)
    grid = functional.affine_grid(affine, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, mode=mode, align_corners=False)


def toned(pictures: Tensor, numbers: Tensor, fields: Tensor) -> Tensor:
    """Return pictures with gain, contrast, gamma and speckle changed; arguments as of ``apply``."""
    gain, contrast, gamma, strength, which, down, right = numbers.T[5:].to(pictures.device)
    noise = _shifted(fields, which, down, right)[:, None]
    column = (slice(None), None, None, None)
    changed = pictures * (1 + gain[column]) * (1 + strength[column] * noise)
    mean = changed.mean((1, 2, 3), keepdim=True)
    changed = ((changed - mean) * (1 + contrast[column]) + mean).clamp(0, 1)
    return changed ** torch.exp(gamma[column])


def examples(encoder: Encoder, pictures: Sequence[np.ndarray], settings: Augmentation, seed: int = 0) -> np.ndarray:
    """Return pictures (B, S, S, C) in [0, 1] as training shows them to an encoder, each changed once."""
    x = encoder.colours(torch.from_numpy(encoder.prepare(pictures).copy())).cpu()
    changed = apply(x, draw(settings, len(x), seed), speckle(encoder.geometry.size))
    return changed.permute(0, 2, 3, 1).numpy()


def _shifted(fields: Tensor, which: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return one field per picture, (B, S, S), each turned around its edges by its own shift."""
    size = fields.shape[-1]
    place = torch.arange(size, device=fields.device)
    rows = (place + (down[:, None] * size).long()) % size
    columns = (place + (right[:, None] * size).long()) % size
    chosen = (which * len(fields)).long().clamp(max=len(fields) - 1)
    return fields[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
