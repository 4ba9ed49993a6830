"""The image tower of any open_clip model: ``open_clip:NAME``, or ``open_clip:NAME/TAG`` for one of its published weights.

Slow under bfloat16 on a CPU (``nn.MultiheadAttention``); use float32 there.
"""

import open_clip

from fpbench.encoders import Plan
from fpbench.encoders.checkpoint import Layout, renamed
from fpbench.errors import InputError
from fpbench.images import Geometry

RESIZE = {"shortest": "resize_crop", "squash": "squash", "longest": "pad_square"}


def plan(architecture: str, weights: str, pooling: str, options: dict, ignore: tuple[str, ...]) -> Plan:
    """Return the tower, filled with the weights of TAG if ``weights`` is "hub"."""
    name, _, tag = architecture.partition("/")
    if name not in open_clip.list_models():
        raise InputError(f"open_clip has no model {name!r}: see open_clip.list_models()")
    if pooling:
        raise InputError(f"open_clip:{name} has one pooling, its own: leave pooling={pooling!r} out")
    if weights == "hub" and tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        raise InputError(f"open_clip:{name}: expected open_clip:{name}/TAG with a TAG of {', '.join(tags)}")
    model = open_clip.create_model(name, pretrained=tag if weights == "hub" else None, **options)
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"][0] if isinstance(config["size"], (tuple, list)) else config["size"]
    layout, dim = Layout(renamed((r"^", "visual.")), "visual."), open_clip.get_model_config(name)["embed_dim"]
    geometry = Geometry(RESIZE[config["resize_mode"]], size, config["interpolation"])
    hub = f"open_clip {architecture}" if weights == "hub" else ""
    return Plan(model.visual, (layout,), dim, geometry, config["mean"], config["std"], "projected", hub=hub)
