"""The views of a picture: two global and some local crops of a cached grey array, each changed in its own way, on the device.

All numbers are drawn beforehand on the CPU; a box has several candidates, since a local crop that is mostly black is drawn again.
No solarise, which would turn echoes into shadows, and no hue, which grey pictures have not.

Shapes: B pictures of side S; V views, of which the first two are global; T candidates of a box.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fpbench.recipe import Views
from fpbench.training import augmentation

GLOBAL = 2  # views
TRIES = 6  # candidates of a box
BLACK = 12 / 255  # a pixel that is darker is black
COARSE = 40  # side of the map on which black is counted
RATIO = 0.29  # log of the largest ratio of the sides of a crop, 4/3, either way


@dataclass(frozen=True)
class Numbers:
    """Everything random of the views of some pictures."""

    boxes: Tensor  # (B, V, T, 4): half width, half height, centre x, centre y in coordinates from -1 to 1
    changes: Tensor  # (B, V, columns of augmentation)
    blurs: Tensor  # (B, V) share of the blurred picture that is mixed in


def draw(settings: Views, count: int, seed: int) -> Numbers:
    """Return the numbers for ``count`` pictures."""
    views, source = GLOBAL + settings.locals, torch.Generator().manual_seed(seed)
    u = torch.rand(count, views, TRIES, 4, generator=source)
    low = torch.tensor([settings.scale[0]] * GLOBAL + [settings.local_scale[0]] * settings.locals)
    high = torch.tensor([settings.scale[1]] * GLOBAL + [settings.local_scale[1]] * settings.locals)
    area = low[:, None] + u[..., 0] * (high - low)[:, None]
    ratio = torch.exp((2 * u[..., 1] - 1) * RATIO / 2)
    half = torch.stack([area.sqrt() * ratio, area.sqrt() / ratio], -1).clamp(max=1)
    boxes = torch.cat([half, (2 * u[..., 2:] - 1) * (1 - half)], -1)
    changes = augmentation.draw(settings.change, count * views, seed).view(count, views, -1)
    blurred = torch.rand(count, views, 2, generator=source)
    return Numbers(boxes, changes, torch.where(blurred[..., 0] < settings.blur, blurred[..., 1], torch.zeros(())))


class Maker:
    """Makes views on one device."""

    def __init__(self, settings: Views, device: torch.device) -> None:
        self.settings, self.device = settings, device
        sides = {settings.size, settings.local_size}
        self.fields = {side: augmentation.speckle(side).to(device) for side in sides}

    def __call__(self, pictures: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Return global views (2 B, 1, size, size) and local ones (L B, 1, local_size, local_size) in [0, 1], view by view.

        ``pictures`` are uint8 (B, S, S).
        """
        x, boxes = pictures[:, None].float() / 255, numbers.boxes.to(self.device)
        chosen = boxes.gather(2, self.brightest(x, boxes)[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        wide = [self.view(x, chosen, numbers, view, self.settings.size) for view in range(GLOBAL)]
        near = range(GLOBAL, GLOBAL + self.settings.locals)
        narrow = [self.view(x, chosen, numbers, view, self.settings.local_size) for view in near]
        side = self.settings.local_size
        return torch.cat(wide), torch.cat(narrow) if narrow else x.new_zeros(0, 1, side, side)

    def brightest(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Return the candidate (B, V) that is taken: the first that is not too black; if all are, the one that is least so."""
        black = self.blackness(x, boxes)
        fits = black <= self.settings.black
        fits[:, :GLOBAL, 0] = True  # a global crop is taken as it is
        return torch.where(fits.any(2), fits.float().argmax(2), black.argmin(2))

    def blackness(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Return the share of black in boxes (B, V, T), from sums over a coarse map of the pictures."""
        dark = functional.adaptive_avg_pool2d((x < BLACK).float(), COARSE)
        sums = functional.pad(dark.cumsum(2).cumsum(3), (1, 0, 1, 0))
        half, centre = boxes[..., :2], boxes[..., 2:]
        (left, top), (right, bottom) = (centre - half).unbind(-1), (centre + half).unbind(-1)
        corners = torch.stack(
            [torch.stack(pair, -1) for pair in ((right, bottom), (left, bottom), (right, top), (left, top))], 2
        )
        found = functional.grid_sample(sums, corners.flatten(2, 3), align_corners=True)[:, 0].unflatten(2, (4, -1))
        inside = found[:, :, 0] - found[:, :, 1] - found[:, :, 2] + found[:, :, 3]
        return inside / (half.prod(-1) * COARSE**2)

    def view(self, x: Tensor, boxes: Tensor, numbers: Numbers, view: int, side: int) -> Tensor:
        """Return one view of every picture, (B, 1, side, side)."""
        changes = numbers.changes[:, view]
        crops = cropped(x, boxes[:, view], changes[:, :2].to(self.device), side)
        mixed = blurred(crops, numbers.blurs[:, view].to(self.device))
        return augmentation.toned(mixed, changes, self.fields[side])

    def whole(self, pictures: Tensor) -> Tensor:
        """Return the whole pictures as global views, unchanged: what the monitor looks at."""
        x = pictures[:, None].float() / 255
        full = x.new_tensor([1.0, 1, 0, 0]).expand(len(x), 4)
        return cropped(x, full, x.new_zeros(len(x), 2), self.settings.size)


def cropped(x: Tensor, boxes: Tensor, turns: Tensor, side: int) -> Tensor:
    """Return crops (B, 1, side, side): mirrored and rotated (``turns``, (B, 2)), sampled twice as finely and averaged."""
    fine = 2 * side
    middle = (2 * torch.arange(fine, device=x.device) + 1) / fine - 1  # of every pixel, from -1 to 1
    (width, height, right, down), (flip, angle) = boxes.T[:, :, None, None], turns.T[:, :, None, None]
    cos, sin, u, v = torch.cos(angle), torch.sin(angle), (1 - 2 * flip) * middle, middle[:, None]
    grid = torch.stack([width * (cos * u - sin * v) + right, height * (sin * u + cos * v) + down], -1)
    return functional.avg_pool2d(functional.grid_sample(x, grid, align_corners=False), 2)


def blurred(x: Tensor, share: Tensor) -> Tensor:
    """Return pictures mixed with their mean over 3 x 3 pixels, the near ones weighing more."""
    kernel = x.new_tensor([1.0, 2, 1])
    soft = functional.conv2d(functional.pad(x, (1, 1, 1, 1), "replicate"), (kernel[:, None] * kernel / 16)[None, None])
    return x + share.view(-1, 1, 1, 1) * (soft - x)
