"""Position tables of another input size: what a model learned at 518 px, resized for one that runs at 224 px.

A table holds one row per position: of a grid of patches, class and register tokens first, or of the distances within a window. Each
library resizes its own, in its own way; here is what they have in common.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

TABLES = (
    "pos_embed",
    "positional_embedding",
    "position_embeddings",
    "position_embedding.weight",
    "position_bias_table",
)


def is_table(name: str) -> bool:
    """Return whether a tensor is a position table, by its name."""
    return name.endswith(TABLES) or "rel_pos" in name


def is_grid(positions: int) -> bool:
    """Return whether so many positions are a square grid."""
    return positions > 0 and math.isqrt(positions) ** 2 == positions


def resizable(name: str, table: Tensor, shape: Sequence[int], first: int) -> bool:
    """Return whether ``table`` (..., N, C) is one for another square grid than ``shape`` (..., M, C), ``first`` rows before it."""
    alike = table.ndim == len(shape) and table.shape[-1] == shape[-1] and (*table.shape[:-2], 0) == (*shape[:-2], 0)
    return name.endswith(TABLES) and alike and table.shape[-2] != shape[-2] and is_grid(table.shape[-2] - first)


def resized(table: Tensor, side: int, first: int) -> Tensor:
    """Return a table (1, first + side ** 2, C) of one for another square grid, bicubic as transformers resizes at run time."""
    tokens, grid = table[:, :first], table[:, first:].float()
    old = math.isqrt(grid.shape[1])
    square = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)
    found = functional.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([tokens, found.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], 1)


def told(name: str, before: Sequence[int], after: Sequence[int]) -> str:
    """Return words for the provenance: the grids of a table before and after."""
    return f"position table resized {' -> '.join(_sides(name, *pair) for pair in ((before, after), (after, before)))}"


def _sides(name: str, shape: Sequence[int], other: Sequence[int]) -> str:
    """Return the grid of a table as text; class and register tokens are what leaves a square in both."""
    if len(shape) == 4:
        return f"{shape[1]}x{shape[2]}"
    (rows, others), last = (one[-2] for one in (shape, other)), min(shape[-2], other[-2])
    first = next((n for n in range(last) if is_grid(rows - n) and is_grid(others - n)), None)
    if "rel_pos" in name or first is None:
        return f"{rows}"
    side = math.isqrt(rows - first)
    return f"{side}x{side}"
