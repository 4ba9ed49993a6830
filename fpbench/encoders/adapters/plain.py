"""Vision transformers that timm builds as they are: the catalogue says which, and how their authors' files name the tensors."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import timm
from torch import Size, Tensor, nn

from fpbench.encoders.adapters.timm import resized
from fpbench.encoders.adapters.tower import ClassToken, Mean, Tower, pooled
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
    projection: str = "",
    length: int = 0,
    mean_then_norm: bool = False,
    **options: Any,
) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return the tower and the layouts of its files.

    Tokens pass the final norm before they are pooled: ``cls``, ``patch_mean`` or ``cls+mean``; ``projected`` is the class token in the
    space that a CLIP model shares with texts, ``pooler`` the attention pool that SigLIP was trained with.

    Parameters
    ----------
    model, small
        timm's name, and the sizes of the miniature.
    roots
        Before the names of the tensors in a file; the one that fits is taken, and what stands outside it is left out.
    left_out
        Patterns of other names below the root: a decoder, a mask token.
    projection, length
        Its name in the file, and the length of the projected embedding.
    mean_then_norm
        ``patch_mean`` is taken before a norm of its own: the file's ``fc_norm``, or a plain one where it holds none.
    """
    trunk: Any = timm.create_model(model, num_classes=0, img_size=size, **{**options, **(small if mini else {})})
    attention, trunk.attn_pool = trunk.attn_pool, None
    unused = [*left_out, *(["attn_pool.*"] if pooling != "pooler" else [])]
    if pooling == "pooler":
        pool: nn.Module = attention
    elif pooling == "projected":
        pool = nn.Sequential(ClassToken(), nn.Linear(trunk.embed_dim, length, bias=False))
    elif pooling == "patch_mean" and mean_then_norm:
        norm, trunk.norm = trunk.norm, nn.Identity()
        pool = nn.Sequential(Mean(trunk.num_prefix_tokens), norm)
        unused += ["norm.*"]
    else:
        pool = pooled(pooling, trunk.num_prefix_tokens)
        unused += ["fc_norm.*"] if mean_then_norm else []
    layouts = []
    for root in roots:
        prefix = f"{projection.partition('.')[0]}." if projection else root
        out = [root + pattern for pattern in unused] + ([projection] if pooling != "projected" else [])
        about: dict[str, Any] = {"prefix": prefix, "left_out": tuple(out), "adapt": partial(_resized, trunk)}
        if pooling == "patch_mean" and mean_then_norm:
            layouts.append(Layout(renamed((r"^trunk\.", root)), fresh=("pool.1.*",), **about))
        names = (r"^pool\.1\.weight$", projection) if projection else (r"^pool\.1\.", f"{root}fc_norm.")
        names = (r"^pool\.", f"{root}attn_pool.") if pooling == "pooler" else names
        layouts.append(Layout(renamed((r"^trunk\.", root), names), **about))
    return Tower(trunk, pool), tuple(layouts)


def _resized(trunk: nn.Module, name: str, tensor: Tensor, shape: Size) -> Tensor:
    """Return a position table of another input size as timm resizes it; any other tensor as it is."""
    return resized(trunk, name.removeprefix("trunk."), tensor, shape) if name.startswith("trunk.") else tensor
