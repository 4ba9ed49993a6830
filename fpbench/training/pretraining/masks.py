"""Patches that the student does not see: which ones, and one hook that hides them.

A mask is (B, N) bool over the patches of B crops, row by row of their grid.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from fpbench.errors import InputError

LEAST, TRIES = 4, 10  # patches of a block, blocks tried in vain
LONGEST = math.log(1 / 0.3)  # of a side of a block over the other


def draw(crops: int, grid: tuple[int, int], masked: float, share: list[float], rng: np.random.Generator) -> np.ndarray:
    """Return a mask (crops, patches): of a part of the crops, blocks that together cover a share of the patches.

    The shares are spread evenly from ``share[0]`` to ``share[1]`` over the masked crops; which crops are masked is drawn.
    """
    found = np.zeros((crops, *grid), bool)
    count = round(masked * crops)
    wanted = np.linspace(share[0], share[1], count)
    for crop, part in zip(rng.permutation(crops)[:count], wanted, strict=True):
        blocks(found[crop], max(1, round(part * found[crop].size)), rng)
    return found.reshape(crops, -1)


def blocks(grid: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Mask ``count`` patches of a grid (h, w) by blocks, the last places one by one."""
    vain = 0
    while (left := count - int(grid.sum())) >= LEAST and vain < TRIES:
        area, aspect = rng.uniform(LEAST, left), math.exp(rng.uniform(-LONGEST, LONGEST))
        height, width = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        vain += 1
        if height > grid.shape[0] or width > grid.shape[1]:
            continue
        top, side = rng.integers(grid.shape[0] - height + 1), rng.integers(grid.shape[1] - width + 1)
        new = height * width - int(grid[top : top + height, side : side + width].sum())
        if 0 < new <= left:
            grid[top : top + height, side : side + width], vain = True, 0
    free = np.flatnonzero(~grid)
    grid.flat[rng.permutation(free)[: count - int(grid.sum())]] = True


class Masking(nn.Module):
    """A learnt token in the place of masked patches, before anything is added to them: a hook on ``patch_embed``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        found = [module for name, module in body.named_modules() if name.rpartition(".")[2] == "patch_embed"]
        if len(found) != 1:
            what = type(body).__name__
            raise InputError(f"{what}: iBOT needs a network that cuts patches (one patch_embed): write `ibot: 0.0`")
        self.mask: Tensor | None = None  # (B, N) for the next pass; None: nothing is hidden
        self.grid, self.dim = (0, 0), 0  # of the last pass
        self.token = nn.Parameter(torch.zeros(1))
        found[0].register_forward_hook(self._hide)

    def size(self, dim: int) -> None:
        """Make the token as long as a patch."""
        self.token = nn.Parameter(torch.zeros(dim, device=self.token.device))

    def _hide(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if output.ndim == 4:
            self.grid = (output.shape[1], output.shape[2])
        else:
            side = math.isqrt(output.shape[1])
            self.grid = (side, output.shape[1] // side)
        self.dim = output.shape[-1]
        if self.mask is None:
            return None
        hidden = self.mask.view(*output.shape[:-1], 1)
        return torch.where(hidden, self.token.to(output.dtype), output)
