"""Any image model of transformers: ``hf:NAME``, a repository of the hub or a folder that ``save_pretrained`` wrote."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from fpbench.encoders import Plan, length
from fpbench.encoders.checkpoint import Content, complaint, matches, opened
from fpbench.encoders.tables import TABLES, resizable, resized, told
from fpbench.errors import InputError, MissingError
from fpbench.images import Geometry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig  # so called since transformers 5

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
POOLINGS = ("pooler", "cls", "mean")


class Pooled(nn.Module):
    """A transformers model that returns one vector: its own pooler's, the first token, or the mean over tokens."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model: Any = model
        self.pooling = pooling
        if masks(model):
            config: Any = model.config
            config.mask_ratio = 0.0

    def run(self, x: Tensor) -> Any:
        """Return what the model makes of pictures; a masked autoencoder of all patches, in order."""
        more = {}
        if masks(self.model):
            patches = self.model.embeddings.patch_embeddings.projection
            count = math.prod(side // step for side, step in zip(x.shape[-2:], patches.stride, strict=True))
            more["noise"] = torch.arange(count, dtype=torch.float32, device=x.device).expand(len(x), -1)
        return self.model(pixel_values=x, **more)

    def features(self, x: Tensor) -> Tensor:
        """Return the last tokens (B, N, C), or a map (B, H, W, C)."""
        found = self.run(x).last_hidden_state
        return found.permute(0, 2, 3, 1) if found.ndim == 4 else found

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) from (B, 3, S, S)."""
        if self.pooling == "pooler":
            return self.run(x).pooler_output.flatten(1)
        tokens = self.features(x).flatten(1, -2)
        return tokens[:, 0] if self.pooling == "cls" else tokens.mean(1)


def masks(model: nn.Module) -> bool:
    """Return whether a model hides patches at random even in eval mode: ViTMAEModel does."""
    return hasattr(getattr(model, "embeddings", None), "random_masking")


def plan(architecture: str, weights: str, pooling: str, options: dict, ignore: tuple[str, ...], prefix: str) -> Plan:
    """Return the model, filled by transformers, which renames many tensors; no code of a repository is executed.

    Of a model with two towers (CLIP, SigLIP), ``options: {part: vision}`` takes the tower of pictures.
    """
    logging.disable_progress_bar()
    options = dict(options)
    part, name = options.pop("part", ""), f"hf:{architecture}"
    pooling = pooling or ("pooler" if part else "cls")
    if pooling not in POOLINGS:
        raise InputError(f"{name}: unknown pooling {pooling!r}: expected one of {', '.join(POOLINGS)}")
    try:
        facts = ImageProcessingMixin.get_image_processor_dict(architecture)[0]
        config = _config(architecture, part, options)
        model, left_out, notes = _model(architecture, config, weights, pooling, ignore, prefix, bool(part))
    except (InputError, MissingError):
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}") from None
    module, geometry = Pooled(model.float(), pooling).eval(), _geometry(facts)
    if side := options.get("image_size"):
        geometry = replace(geometry, size=side)
    if pooling == "cls" and part and _first(model) == 0:
        raise InputError(f"{name}: this model has no class token: expected pooling pooler or mean, found cls")
    dim, hub = length(module, geometry.size), architecture if weights == "hub" else ""
    mean, std = tuple(facts.get("image_mean") or (0.0,) * 3), tuple(facts.get("image_std") or (1.0,) * 3)
    return Plan(module, (), dim, geometry, mean, std, pooling, hub=hub, ignored=left_out, notes=notes)


def _config(architecture: str, part: str, options: dict) -> "PreTrainedConfig":
    """Return the configuration of what is meant, ``options`` put in; InputError where it has two towers and none is named."""
    config = AutoConfig.from_pretrained(architecture, **({} if part else options))
    vision, name = getattr(config, "vision_config", None), f"hf:{architecture}"
    if part not in ("", "vision") or (part and vision is None):
        raise InputError(
            f"{name}: expected options part: vision, of a model with two towers, or none; found part: {part}"
        )
    if not part and vision is not None:
        write = "write `options: {part: vision}` into the study for the tower of pictures"
        raise InputError(
            f"{name} sees pictures and reads text ({config.model_type}): {write}, or use open_clip:NAME/TAG"
        )
    if unknown := [key for key in options if part and not hasattr(vision, key)]:
        raise InputError(
            f"{name}: unknown options {unknown} of its tower of pictures: see vision_config in its config.json"
        )
    for key, value in options.items() if part else ():
        setattr(vision, key, value)
    return vision if part else config


def _model(
    architecture: str,
    config: "PreTrainedConfig",
    weights: str,
    pooling: str,
    ignore: tuple[str, ...],
    prefix: str,
    part: bool,
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Return the model, what of its file was left out, and what was changed."""
    model = AutoModel.from_config(config)
    if weights == "random":
        return model, (), ()
    how: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    content = Content({})
    if weights == "hub":
        model, info = type(model).from_pretrained(architecture, config=config, **how)
    else:
        content = opened(Path(weights), prefix)
        model, info = type(model).from_pretrained(None, config=config, state_dict=dict(content.tensors), **how)
    others = ("text_model.*", "*_projection.*", "logit_*") if part else ()
    hidden = ("decoder.*",) if masks(model) else ()
    unused = ("classifier.*", *others, *hidden, *(() if pooling == "pooler" else ("pooler.*",)), *ignore)
    kinds = ("missing_keys", "unexpected_keys")
    wrong = [sorted(name for name in info[kind] if not matches(name, unused)) for kind in kinds]
    stock = content.tensors or (_stock(architecture, model, part) if info["mismatched_keys"] else {})
    notes, shapes = _resize(model, info["mismatched_keys"], stock)
    if any(wrong) or shapes:
        missing, unexpected = wrong
        own = [*model.state_dict()]  # transformers renames: only a file that lacks most is judged by its names
        wanted = own if content.tensors and len(missing) > len(own) / 2 else ()
        raise InputError(
            complaint(f"hf:{architecture} from {weights}", missing, unexpected, shapes, content.tensors, wanted)
        )
    return model, (*sorted(info["unexpected_keys"]), *content.ignored), (*content.notes, *notes)


def _stock(architecture: str, model: Any, part: bool) -> dict[str, Tensor]:
    """Return the tensors of a repository's model in its own size."""
    config = AutoConfig.from_pretrained(architecture)
    own = config.vision_config if part else config
    return type(model).from_pretrained(architecture, config=own, use_safetensors=True).state_dict()


def _first(model: nn.Module) -> int | None:
    """Return how many tokens stand before the grid in the model's position table; None: it has no such table."""
    sizes = [
        tensor.shape[-2] for name, tensor in model.state_dict().items() if name.endswith(TABLES) and tensor.ndim > 1
    ]
    side, step = (getattr(model.config, name, None) for name in ("image_size", "patch_size"))
    return sizes[0] - (side // step) ** 2 if sizes and isinstance(side, int) and isinstance(step, int) else None


def _resize(model: nn.Module, mismatched: Iterable[tuple], tensors: dict) -> tuple[tuple[str, ...], list[str]]:
    """Put position tables of another input size into the model; return a line for each, and what else does not fit."""
    own, first, notes, wrong = model.state_dict(), _first(model), [], []
    for name, there, shape in mismatched:
        table = next((tensor for key, tensor in tensors.items() if key == name or key.endswith(f".{name}")), None)
        if first is None or table is None or not resizable(name, table, shape, first):
            wrong.append(f"{name} {tuple(there)} where the model has {tuple(shape)}")
            continue
        found = resized(table.reshape(1, *table.shape[-2:]), math.isqrt(shape[-2] - first), first)
        own[name].copy_(found.reshape(shape))
        notes.append(f"{name}: {told(name, there, shape)}")
    return tuple(notes), wrong


def _geometry(facts: dict) -> Geometry:
    """Return what a preprocessor_config.json says."""
    size, crop = facts.get("size", 224), facts.get("crop_size")
    interpolation = RESAMPLE[facts.get("resample", 2)]
    if isinstance(size, dict) and "shortest_edge" not in size:
        return Geometry("squash", size["height"], interpolation)
    short = size["shortest_edge"] if isinstance(size, dict) else size
    side = (crop["height"] if isinstance(crop, dict) else crop) if crop and facts.get("do_center_crop", True) else short
    return Geometry("resize_crop", side, interpolation, side / short)
