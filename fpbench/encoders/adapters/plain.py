"""Vision transformers that timm builds as they are: the catalogue says which, and how their authors' files name the tensors."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import timm
from torch import nn

from fpbench.encoders.adapters.timm import resized
from fpbench.encoders.adapters.tower import Tower, pooled
from fpbench.encoders.checkpoint import Layout, renamed


def build(
    name: str,
    size: int,
    pooling: str,
    mini: bool,
    model: str,
    small: dict[str, Any],
    roots: Iterable[str] = ("",),
    left_out: Iterable[str] = (),
    **options: Any,
) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return the tower and the layouts of its files.

    Tokens pass the final norm before they are pooled: ``cls``, ``patch_mean`` or ``cls+mean``; ``pooler`` is the attention pool that
    SigLIP was trained with.

    Parameters
    ----------
    model, small
        timm's name, and the sizes of the miniature.
    roots
        Before the names of the tensors in a file; the one that fits is taken, and what stands outside it is left out.
    left_out
        Patterns of other names below the root: a decoder, a mask token.
    """
    trunk: Any = timm.create_model(model, num_classes=0, img_size=size, **options, **(small if mini else {}))
    attention, trunk.attn_pool = trunk.attn_pool, None
    pool = attention if pooling == "pooler" else pooled(pooling, trunk.num_prefix_tokens)
    unused = (*left_out, *(("attn_pool.*",) if pooling != "pooler" else ()))
    layouts = (
        Layout(
            renamed((r"^trunk\.", root), (r"^pool\.", f"{root}attn_pool.")),
            prefix=root,
            left_out=tuple(root + pattern for pattern in unused),
            adapt=partial(_resized, trunk),
        )
        for root in roots
    )
    return Tower(trunk, pool), tuple(layouts)


def _resized(trunk: nn.Module, name: str, tensor: Any, shape: Any) -> Any:
    """Return a position table of another input size as timm resizes it; any other tensor as it is."""
    return resized(trunk, name.removeprefix("trunk."), tensor, shape) if name.startswith("trunk.") else tensor
