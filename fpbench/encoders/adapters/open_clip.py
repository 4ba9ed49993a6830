"""The image tower of any open_clip model: ``open_clip:NAME``, ``open_clip:NAME/TAG`` as one of its published weights was trained, or
``open_clip:PATH.json`` of a config file (open_clip's own, or a repository's with ``model_cfg`` and ``preprocess_cfg``).

A TAG decides activation, mean, std and resize, for the weights that it downloads and for a file alike: QuickGELU and GELU have the
same tensors. What no TAG says is assumed, and told. Slow under bfloat16 on a CPU (``nn.MultiheadAttention``); use float32 there.
"""

import json
import math
import os
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
from open_clip.model import resize_pos_embed
from open_clip.pretrained import get_pretrained_cfg
from torch import Size, Tensor

from fpbench.encoders import Plan, length
from fpbench.encoders.adapters import timm
from fpbench.encoders.checkpoint import Layout, renamed
from fpbench.encoders.tables import resizable
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths
from fpbench.images import Geometry

RESIZE = {"shortest": "resize_crop", "squash": "squash", "longest": "pad_square"}
SAID = ("mean", "std", "interpolation", "resize_mode")  # by a TAG or a config file, of preprocessing


def plan(architecture: str, weights: str, pooling: str, options: dict, ignore: tuple[str, ...], prefix: str) -> Plan:
    """Return the tower, filled with the weights of TAG if ``weights`` is "hub"."""
    try:
        return _plan(architecture, weights, pooling, options)
    except Exception as error:  # of a foreign file, anything
        if not architecture.endswith(".json") or isinstance(error, InputError | MissingError):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0][:300]
        what = f"expected a config that open_clip {open_clip.__version__} can build"
        raise InputError(f"open_clip:{architecture}: {what}, found one of which it says: {said}") from None


def _plan(architecture: str, weights: str, pooling: str, options: dict) -> Plan:
    content: dict = {}
    name, _, tag = architecture.partition("/")
    if architecture.endswith(".json"):
        name, tag, content = "", "", _config(architecture)
    elif name not in open_clip.list_models():
        raise InputError(
            f"open_clip has no model {name!r}: see open_clip.list_models(), or name a config file, PATH.json"
        )
    if pooling:
        raise InputError(f"open_clip:{architecture} has one pooling, its own: leave pooling={pooling!r} out")
    tags = open_clip.list_pretrained_tags_by_model(name) if name else []
    if tag not in tags and (tag or weights == "hub"):
        wanted = (
            f"expected open_clip:{name}/TAG with a TAG of {', '.join(tags)}"
            if tags
            else "expected weights: FILE, it has no TAG"
        )
        raise InputError(f"open_clip:{architecture}: {wanted}")
    known = get_pretrained_cfg(name, tag) if tag else content.get("preprocess_cfg", {})
    said = {key: known[key] for key in SAID if known.get(key) is not None}
    options = dict(options)
    quick = _activation(architecture, known, tag, name, options)
    how = {"pretrained": tag if weights == "hub" else None, "force_preprocess_cfg": said, **options}
    model_config = content.get("model_cfg", content) or open_clip.get_model_config(name)
    model = _create(name, model_config, **how, force_quick_gelu=quick)
    config = open_clip.get_model_preprocess_cfg(model)
    size = config["size"][0] if isinstance(config["size"], (tuple, list)) else config["size"]
    layout = Layout(renamed((r"^", "visual.")), "visual.", adapt=partial(resized, model.visual))
    geometry = Geometry(RESIZE[config["resize_mode"]], size, config["interpolation"])
    hub = f"open_clip {architecture}" if weights == "hub" else ""
    unsaid = {key: config[key] for key in ("mean", "std", "resize_mode") if key not in said}
    known_gelu = content or tag or model_config.get("quick_gelu")
    notes = (
        () if tag else _assumed({**({} if known_gelu else {"activation": "QuickGELU" if quick else "GELU"}), **unsaid})
    )
    dim = length(model.visual, size) if content else model_config["embed_dim"]  # of a foreign file it has to be tried
    mean, std = _scale(architecture, config)
    return Plan(
        model.visual,
        (layout,),
        dim,
        geometry,
        mean,
        std,
        "projected",
        hub=hub,
        notes=notes,
        config={"config": content} if content else {},
    )


def _config(file: str) -> dict:
    """Return what a config file says; InputError if it is none of open_clip's."""
    if not os.path.isfile(path := paths.expand(file)):
        raise MissingError(f"expected a config file of open_clip at {path}, found nothing: check the path in the study")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path}: expected a config of open_clip in JSON, found {error}: is it the right file?"
        ) from None
    inner = content.get("model_cfg", content) if isinstance(content, dict) else {}
    if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in inner]:
        raise InputError(
            f"{path}: expected a config of open_clip, embed_dim, vision_cfg and text_cfg; {', '.join(missing)} missing"
        )
    return content


def _activation(architecture: str, known: dict, tag: str, name: str, options: dict) -> bool:
    """Return whether the tower has QuickGELU, as the TAG says, else the options or the model; InputError if they disagree."""
    own = bool(name and open_clip.get_model_config(name).get("quick_gelu"))
    asked = options.pop("force_quick_gelu", None)
    if not tag:
        return own or bool(asked)
    trained = bool(known.get("quick_gelu"))
    if (asked is not None and bool(asked) != trained) or (own and not trained):
        two = ("QuickGELU", "GELU") if trained else ("GELU", "QuickGELU")
        raise InputError(
            f"open_clip:{architecture} was trained with {two[0]}, found {two[1]}: take force_quick_gelu or -quickgelu out"
        )
    return trained


def _scale(architecture: str, config: dict) -> Any:
    """Return mean and std of the three channels; InputError if they are none."""
    mean, std = (tuple(map(float, config[key])) for key in ("mean", "std"))
    if not len(mean) == len(std) == 3 or not all(map(math.isfinite, (*mean, *std))) or 0 in std:
        found = f"mean {config['mean']}, std {config['std']}"
        raise InputError(
            f"open_clip:{architecture}: expected mean and std of three channels, no std of 0; found {found:.200}"
        )
    return mean, std


def _create(name: str, config: dict, **how: Any) -> Any:
    """Build a model of open_clip; one of a config file under a name of its own, so that it replaces none that open_clip knows."""
    if name:
        return open_clip.create_model(name, **how)
    with tempfile.TemporaryDirectory() as folder:
        own = f"fpbench-{artifacts.digest(config)[:16]}"
        path = Path(folder) / f"{own}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)
        return open_clip.create_model(own, **how)


def _assumed(facts: dict) -> tuple[str, ...]:
    """Return one line on what nobody said of the weights in a file."""
    told = (f"{key} {tuple(value) if isinstance(value, list) else value}" for key, value in facts.items())
    return (f"assumed, as no TAG says it: {', '.join(told)}",) if facts else ()


def resized(tower: Any, name: str, tensor: Tensor, shape: Size) -> Tensor:
    """Return a position table for the tower's grid as open_clip (of a timm trunk: timm) resizes it; any other tensor as it is."""
    if name.startswith("trunk."):
        return timm.resized(tower.trunk, name.removeprefix("trunk."), tensor, shape)
    if name != "positional_embedding" or not resizable(name, tensor, shape, 1):
        return tensor
    content = {f"visual.{name}": tensor.float()}
    resize_pos_embed(content, SimpleNamespace(visual=tower))
    return content[f"visual.{name}"]
