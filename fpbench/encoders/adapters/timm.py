"""Any timm model, ``timm:NAME``, with timm's own preprocessing facts; and the catalogue's two convolutional networks."""

from typing import Any

import timm
from torch import nn

from fpbench.encoders import Plan
from fpbench.encoders.checkpoint import Layout
from fpbench.errors import InputError
from fpbench.images import Geometry

CROP_MODES = {"center": "resize_crop", "squash": "squash", "border": "pad_square"}
# name in the catalogue -> architecture with its weights tag, sizes of the miniature
CNNS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet50.a1_in1k", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8}),
    "efficientnetv2_s": ("tf_efficientnetv2_s.in21k_ft_in1k", {"channel_multiplier": 0.125, "depth_multiplier": 0.2}),
}


def build(name: str, size: int, pooling: str, mini: bool, **options: Any) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return a network of the catalogue and the layout of timm's file."""
    architecture, small = CNNS[name]
    module = timm.create_model(architecture, num_classes=0, **options, **(small if mini else {}))
    return module, (_layout(module),)


def plan(architecture: str, weights: str, pooling: str, options: dict, ignore: tuple[str, ...]) -> Plan:
    """Return a timm model without its classifier, filled if ``weights`` is "hub"."""
    if not timm.is_model(architecture):
        close = ", ".join(timm.list_models(f"*{architecture.split('.')[0]}*")[:5])
        raise InputError(f"timm has no model {architecture!r}" + (f": did you mean {close}?" if close else ""))
    pool: dict[str, Any] = {"global_pool": pooling} if pooling else {}
    module = timm.create_model(architecture, pretrained=weights == "hub", num_classes=0, **options, **pool)
    config: Any = module.pretrained_cfg
    dim: Any = getattr(module, "head_hidden_size", module.num_features)
    facts, layouts = (_geometry(config), config["mean"], config["std"], _pooling(module)), (_layout(module),)
    hub = (config.get("hf_hub_id") or config.get("url", "")) if weights == "hub" else ""
    return Plan(module, layouts, dim, *facts, config.get("license", "unknown"), hub)


def _layout(module: nn.Module) -> Layout:
    config: Any = module.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = [heads] if isinstance(heads, str) else heads
    return Layout(str, left_out=tuple(f"{head}.*" for head in heads))


def _pooling(module: nn.Module) -> str:
    pool = getattr(module, "global_pool", None) or getattr(getattr(module, "head", None), "global_pool", "avg")
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", "avg")


def _geometry(config: dict) -> Geometry:
    kind = CROP_MODES[config.get("crop_mode", "center")]
    crop = config["crop_pct"] if kind == "resize_crop" else 1.0
    return Geometry(kind, config["input_size"][-1], config["interpolation"], crop)
