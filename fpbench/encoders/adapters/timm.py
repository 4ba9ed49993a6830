"""Any timm model, ``timm:NAME``, with timm's own preprocessing facts; and the catalogue's convolutional networks."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Size, Tensor, nn

from fpbench.encoders import Plan, tables
from fpbench.encoders.checkpoint import Layout, renamed
from fpbench.errors import InputError
from fpbench.images import Geometry

CROP_MODES = {"center": "resize_crop", "squash": "squash", "border": "pad_square"}


def build(
    name: str,
    size: int,
    pooling: str,
    mini: bool,
    model: str,
    small: dict[str, Any],
    root: str = "",
    length: int = 0,
    **options: Any,
) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return a network of the catalogue and the layout of its file.

    ``small`` are the sizes of its miniature, ``root`` stands before timm's names in the file, ``length`` is that of the embedding where
    the classifier is a projection that belongs to it (``projected``).
    """
    classes = length if pooling == "projected" else 0
    module = timm.create_model(model, num_classes=classes, **options, **(small if mini else {}))
    own = _layout(module)
    left_out = tuple(root + pattern for pattern in own.left_out)
    return module, (replace(own, source=renamed((r"^", root)), prefix=root, left_out=left_out),)


def plan(architecture: str, weights: str, pooling: str, options: dict, ignore: tuple[str, ...], prefix: str) -> Plan:
    """Return a timm model without its classifier, filled if ``weights`` is "hub"."""
    if not timm.is_model(architecture):
        close = ", ".join(timm.list_models(f"*{architecture.split('.')[0]}*")[:5])
        raise InputError(f"timm has no model {architecture!r}" + (f": did you mean {close}?" if close else ""))
    pool: dict[str, Any] = {"global_pool": pooling} if pooling else {}
    module = timm.create_model(architecture, pretrained=weights == "hub", num_classes=0, **options, **pool)
    config: Any = module.pretrained_cfg
    dim: Any = getattr(module, "head_hidden_size", module.num_features)
    if (side := options.get("img_size")) and not options.get("dynamic_img_size"):
        config = {**config, "input_size": (3, *(side if isinstance(side, list | tuple) else (side, side)))}
    facts, layouts = (_geometry(config), config["mean"], config["std"], _pooling(module)), (_layout(module),)
    hub = (config.get("hf_hub_id") or config.get("url", "")) if weights == "hub" else ""
    return Plan(module, layouts, dim, *facts, config.get("license", "unknown"), hub)


def _layout(module: nn.Module) -> Layout:
    config: Any = module.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = [heads] if isinstance(heads, str) else heads
    return Layout(str, left_out=tuple(f"{head}.*" for head in heads), adapt=partial(resized, module))


def resized(module: nn.Module, name: str, tensor: Tensor, shape: Size) -> Tensor:
    """Return a position table for the model's grid or window as timm resizes those that it downloads; any other tensor as it is."""
    part: Any = module.get_submodule(name.rpartition(".")[0])
    if name.endswith("relative_position_bias_table") and tensor.shape != shape:
        more = (
            3
            if part.window_size and shape[0] == (2 * part.window_size[0] - 1) * (2 * part.window_size[1] - 1) + 3
            else 0
        )
        if not tables.is_grid(tensor.shape[0] - more) or tensor.shape[1:] != shape[1:]:
            return tensor
        with warnings.catch_warnings(action="ignore"):  # torch, of a slow copy
            return resize_rel_pos_bias_table(tensor, part.window_size, tuple(shape))
    first = 0 if getattr(part, "no_embed_class", False) else getattr(part, "num_prefix_tokens", 1)
    if not hasattr(part, "patch_embed") or not tables.resizable(name, tensor, shape, first):
        return tensor
    return resample_abs_pos_embed(tensor, part.patch_embed.grid_size, num_prefix_tokens=first)


def _pooling(module: nn.Module) -> str:
    pool = getattr(module, "global_pool", None) or getattr(getattr(module, "head", None), "global_pool", "avg")
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", "avg")


def _geometry(config: dict) -> Geometry:
    kind = CROP_MODES[config.get("crop_mode", "center")]
    crop = config["crop_pct"] if kind == "resize_crop" else 1.0
    return Geometry(kind, config["input_size"][-1], config["interpolation"], crop)
