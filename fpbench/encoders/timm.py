"""Any timm model, ``timm:NAME``, with timm's own preprocessing facts unless the study overrides them."""

from pathlib import Path

import timm
import torch

from fpbench.encoders import Encoder, Weights
from fpbench.encoders.checkpoint import fill, read, tensors_sha256
from fpbench.errors import InputError
from fpbench.images import Geometry

CROP_MODES = {"center": "resize_crop", "squash": "squash", "border": "pad_square"}


def load(
    architecture: str,
    weights: str,
    *,
    name: str,
    geometry: Geometry | dict | None = None,
    mean: tuple | None = None,
    std: tuple | None = None,
    pooling: str = "",
    seed: int = 0,
    ignore: tuple[str, ...] = (),
    options: dict | None = None,
) -> Encoder:
    """Build a timm model without its classifier; see ``encoders.load_encoder``."""
    module = _create(architecture, weights, seed, {**(options or {}), **({"global_pool": pooling} if pooling else {})})
    config = module.pretrained_cfg
    left_out: tuple[str, ...] = ()
    if weights not in ("hub", "random"):
        heads = [f"{head}.*" for head in _classifiers(config)]
        left_out = fill(module, read(Path(weights)), heads, ignore, f"{name} from {weights}")
    return Encoder(
        name=name,
        model=f"timm:{architecture}",
        dim=getattr(module, "head_hidden_size", module.num_features),
        geometry=_geometry(geometry, config),
        mean=tuple(mean or config["mean"]),
        std=tuple(std or config["std"]),
        pooling=_pooling(module),
        weights=_describe(module, config, weights, seed, left_out),
        module=module.eval(),
    )


def _create(architecture: str, weights: str, seed: int, options: dict) -> torch.nn.Module:
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture.split('.')[0]}*")[:5]
        raise InputError(
            f"timm has no model {architecture!r}" + (f": did you mean {', '.join(close)}?" if close else "")
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(architecture, pretrained=weights == "hub", num_classes=0, **options)


def _pooling(module: torch.nn.Module) -> str:
    pool = getattr(module, "global_pool", None) or getattr(getattr(module, "head", None), "global_pool", "avg")
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", "avg")


def _classifiers(config: dict) -> list[str]:
    heads = config.get("classifier") or ()
    return [heads] if isinstance(heads, str) else list(heads)


def _geometry(given: Geometry | dict | None, config: dict) -> Geometry:
    if isinstance(given, Geometry):
        return given
    if given:
        return Geometry(**given)
    kind = CROP_MODES[config.get("crop_mode", "center")]
    return Geometry(
        kind, config["input_size"][-1], config["interpolation"], config["crop_pct"] if kind == "resize_crop" else 1.0
    )


def _describe(module: torch.nn.Module, config: dict, weights: str, seed: int, ignored: tuple[str, ...]) -> Weights:
    sha256 = tensors_sha256(module)
    if weights == "random":
        return Weights("random", f"seed {seed}", sha256, "none")
    if weights == "hub":
        return Weights(
            "hub", config.get("hf_hub_id") or config.get("url", ""), sha256, config.get("license", "unknown")
        )
    return Weights("file", Path(weights).name, sha256, config.get("license", "unknown"), ignored)
