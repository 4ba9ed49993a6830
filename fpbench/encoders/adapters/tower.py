"""A trunk that makes tokens or maps, and a pool that makes one vector of them: what every adapter returns."""

import math

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """``trunk`` then ``pool``; ``features`` gives what the pool sees, for pictures of attention and for tests."""

    def __init__(self, trunk: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.trunk, self.pool = trunk, pool

    def features(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C), class token first, or a map (B, H, W, C)."""
        return getattr(self.trunk, "forward_features", self.trunk)(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (B, D) of normalised pictures (B, 3, S, S)."""
        return self.pool(self.features(x))


def grid(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return the last features that lie on a grid, (B, h, w, C), of any module; None if it does not show them."""
    if (features := getattr(module, "features", None)) is not None:
        found = features(x)
    elif (features := getattr(module, "forward_features", None)) is not None:
        found = features(x)
        if found.ndim == 4 and getattr(module, "output_fmt", "NCHW") == "NCHW":
            found = found.permute(0, 2, 3, 1)
    else:
        return None
    return on_grid(found)


def on_grid(features: Tensor) -> Tensor:
    """Return tokens (B, N, C) as a map (B, h, w, C), which stays as it is."""
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1])  # what is left over stands first: class token and registers
    return features[:, features.shape[1] - side * side :].unflatten(1, (side, side))


class ClassToken(nn.Module):
    """The first token."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, C) from (B, N, C)."""
        return tokens[:, 0]


class Mean(nn.Module):
    """The mean over all positions, the first ``skip`` tokens left out."""

    def __init__(self, skip: int = 0) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C) from (B, N, C) or (B, H, W, C)."""
        return features.flatten(1, -2)[:, self.skip :].mean(1)


class Both(nn.Module):
    """The first token, then the mean over those of the grid, before which ``skip`` tokens stand."""

    def __init__(self, skip: int) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, 2 C) from (B, N, C)."""
        return torch.cat([tokens[:, 0], tokens[:, self.skip :].mean(1)], 1)


def pooled(name: str, skip: int) -> nn.Module:
    """Return a pool of tokens without numbers of its own: cls, patch_mean or cls+mean."""
    return {"cls": ClassToken(), "patch_mean": Mean(skip), "cls+mean": Both(skip)}[name]
