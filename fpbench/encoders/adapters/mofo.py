"""MOFO's image encoder: a cross-shaped-window transformer, written anew from its published shapes and key names.

Four stages of blocks at 1/4 to 1/32 of the input. In a block one half of the channels attends within vertical stripes, the
other within horizontal ones; the last stage attends everywhere. Each stripe adds a depth-wise convolution of its values.
Maps are (B, H, W, C). The authors' GPL code was not used.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpbench.encoders.adapters.tower import Mean, Tower
from fpbench.encoders.checkpoint import NAMES, Layout, renamed

MINI: dict[str, Any] = {"stem": 8, "dims": (8, 16, 32, 48), "depths": (1, 1, 1, 2), "heads": (2, 2, 2, 4), "stripes": (1, 2, 2, 2), "side": 16}  # fmt: skip


class Stripes(nn.Module):
    """Attention within windows of (height, width), plus a convolution of the values inside each."""

    def __init__(self, dim: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (B, H, W, C) from three of that shape."""
        batch, height, width, dim = q.shape
        rows, columns = height // self.window[0], width // self.window[1]
        grid = (batch, rows, self.window[0], columns, self.window[1])
        parts = (x.view(*grid, self.heads, -1).permute(0, 1, 3, 5, 2, 4, 6) for x in (q, k, v))
        images = v.view(*grid, dim).permute(0, 1, 3, 5, 2, 4).reshape(-1, dim, *self.window)
        local = self.get_v(images).flatten(2).transpose(1, 2)
        q, k, v = (x.flatten(4, 5).flatten(0, 2) for x in parts)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        out = (out.transpose(1, 2).flatten(2) + local).view(batch, rows, columns, *self.window, dim)
        return out.transpose(2, 3).reshape(batch, height, width, dim)


class Block(nn.Module):
    """x + proj(attention(norm x)), then x + mlp(norm x)."""

    def __init__(self, dim: int, heads: int, stripe: int, side: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        windows = [(side, side)] if stripe == side else [(side, stripe), (stripe, side)]
        share = len(windows)
        self.attns = nn.ModuleList(Stripes(dim // share, heads // share, window) for window in windows)
        parts = {"fc1": nn.Linear(dim, 4 * dim), "act": nn.GELU(), "fc2": nn.Linear(4 * dim, dim)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape (B, H, W, C)."""
        parts = [part.chunk(len(self.attns), -1) for part in self.qkv(self.norm1(x)).chunk(3, -1)]
        x = x + self.proj(torch.cat([attend(*qkv) for attend, *qkv in zip(self.attns, *parts, strict=True)], -1))
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Halve the sides with a convolution, then normalise the channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, 2, 1), nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H/2, W/2, after) from (B, H, W, before)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Encoder(nn.Module):
    """(B, 3, S, S) in [0, 1] to the last stage's map (B, S/32, S/32, C), not normalised."""

    def __init__(
        self,
        stem: int = 32,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 32, 2),
        heads: Sequence[int] = (2, 4, 8, 16),
        stripes: Sequence[int] = (1, 2, 7, 7),
        side: int = 56,
    ) -> None:
        super().__init__()
        first, second, sharpen = nn.Conv2d(3, stem, 3, 2, 1), nn.Conv2d(stem, stem, 3, 1, 1), nn.InstanceNorm2d(stem)
        self.stage0_conv_embed = nn.Sequential(first, sharpen, nn.LeakyReLU(0.01), second, sharpen, nn.LeakyReLU(0.01))
        for stage, (before, dim) in enumerate(zip((stem, *dims), dims, strict=False)):
            self.add_module(f"merge{stage}", Merge(before, dim))
            blocks = (Block(dim, heads[stage], stripes[stage], side >> stage) for _ in range(depths[stage]))
            self.add_module(f"stage{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return the last map."""
        x = self.stage0_conv_embed(x).permute(0, 2, 3, 1)
        for stage in range(4):
            x = getattr(self, f"stage{stage + 1}")(getattr(self, f"merge{stage}")(x))
        return x


def build(name: str, size: int, pooling: str, mini: bool) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return the tower and the layout of the authors' file."""
    plain = nn.LayerNorm(MINI["dims"][-1] if mini else 512, elementwise_affine=False)
    pool = nn.Sequential(Mean(), plain) if pooling == "mean_norm" else Mean()
    layout = Layout(renamed((r"^trunk\.", "_backbone_encoder.")), left_out=NAMES["mofo_others"])
    return Tower(Encoder(**(MINI if mini else {})), pool), (layout,)
