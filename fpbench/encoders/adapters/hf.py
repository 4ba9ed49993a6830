"""Any image model of transformers: ``hf:NAME``, a repository of the hub or a folder that ``save_pretrained`` wrote."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from fpbench.encoders import Plan, length
from fpbench.encoders.checkpoint import complaint, matches, read
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
        self.model, self.pooling = model, pooling

    def features(self, x: Tensor) -> Tensor:
        """Return the last tokens (B, N, C), or a map (B, H, W, C)."""
        found = self.model(pixel_values=x).last_hidden_state
        return found.permute(0, 2, 3, 1) if found.ndim == 4 else found

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) from (B, 3, S, S)."""
        if self.pooling == "pooler":
            return self.model(pixel_values=x).pooler_output.flatten(1)
        tokens = self.features(x).flatten(1, -2)
        return tokens[:, 0] if self.pooling == "cls" else tokens.mean(1)


def plan(architecture: str, weights: str, pooling: str, options: dict, ignore: tuple[str, ...]) -> Plan:
    """Return the model, filled by transformers, which renames many tensors; no code of a repository is executed."""
    logging.disable_progress_bar()
    pooling = pooling or "cls"
    if pooling not in POOLINGS:
        raise InputError(f"hf:{architecture}: unknown pooling {pooling!r}: expected one of {', '.join(POOLINGS)}")
    try:
        facts = ImageProcessingMixin.get_image_processor_dict(architecture)[0]
        config = AutoConfig.from_pretrained(architecture, **options)
        model, left_out = _model(architecture, config, weights, pooling, ignore)
    except (InputError, MissingError):
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"hf:{architecture}: {str(error).splitlines()[0]}") from None
    module, geometry = Pooled(model.float(), pooling).eval(), _geometry(facts)
    dim, hub = length(module, geometry.size), architecture if weights == "hub" else ""
    mean, std = tuple(facts.get("image_mean") or (0.0,) * 3), tuple(facts.get("image_std") or (1.0,) * 3)
    return Plan(module, (), dim, geometry, mean, std, pooling, hub=hub, ignored=left_out)


def _model(
    architecture: str, config: "PreTrainedConfig", weights: str, pooling: str, ignore: tuple[str, ...]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model, and what of its file was left out."""
    model = AutoModel.from_config(config)
    if weights == "random":
        return model, ()
    how: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    if weights == "hub":
        model, info = AutoModel.from_pretrained(architecture, config=config, **how)
    else:
        model, info = type(model).from_pretrained(None, config=config, state_dict=read(Path(weights)), **how)
    unused = ("classifier.*", *(() if pooling == "pooler" else ("pooler.*",)), *ignore)
    kinds = ("missing_keys", "unexpected_keys")
    wrong = [sorted(name for name in info[kind] if not matches(name, unused)) for kind in kinds]
    wrong.append([str(entry) for entry in info["mismatched_keys"]])
    if any(wrong):
        raise InputError(complaint(f"hf:{architecture} from {weights}", *wrong))
    return model, tuple(sorted(info["unexpected_keys"]))


def _geometry(facts: dict) -> Geometry:
    """Return what a preprocessor_config.json says."""
    size, crop = facts.get("size", 224), facts.get("crop_size")
    interpolation = RESAMPLE[facts.get("resample", 2)]
    if isinstance(size, dict) and "shortest_edge" not in size:
        return Geometry("squash", size["height"], interpolation)
    short = size["shortest_edge"] if isinstance(size, dict) else size
    side = (crop["height"] if isinstance(crop, dict) else crop) if crop and facts.get("do_center_crop", True) else short
    return Geometry("resize_crop", side, interpolation, side / short)
