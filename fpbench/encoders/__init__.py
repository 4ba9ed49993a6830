"""Image encoders behind one protocol.

An ``Encoder`` takes uint8 pictures of its own geometry and returns one vector each: ``embed(pictures) -> (B, D) float32``.
Its ``module`` maps normalised float tensors (B, 3, S, S) to (B, D) and is what fine-tuning trains. A family adds one entry
to ``FAMILIES``: a function ``(model, weights, **settings) -> Encoder``; ``load_encoder("timm:resnet50", ...)`` calls the one
named before the colon.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from fpbench.errors import InputError
from fpbench.images import Geometry

if TYPE_CHECKING:
    import pandas as pd
    import torch

FAMILIES = {"timm": "fpbench.encoders.timm"}  # the module of a family has a function ``load``


@dataclass(frozen=True)
class Weights:
    """Which numbers an encoder was filled with."""

    source: str  # file | hub | random
    location: str  # path, hub name, or the seed
    sha256: str  # of all tensors: name, shape and values, whatever file they came from
    licence: str = "unknown"
    ignored: tuple[str, ...] = ()  # tensors of the file that were left out on purpose

    @property
    def label(self) -> str:
        """Return a word for tables: random weights are always called so."""
        return "random weights" if self.source == "random" else self.location.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Encoder:
    """A frozen-by-default image encoder, on one device, in eval mode."""

    name: str  # as in the study
    model: str  # family:architecture
    dim: int  # length of an embedding
    geometry: Geometry
    mean: tuple[float, float, float]  # of channels scaled to [0, 1]
    std: tuple[float, float, float]
    pooling: str  # what the module returns: avg, token, ...
    weights: Weights
    module: "torch.nn.Module" = field(repr=False)

    def to(self, device: str) -> "Encoder":
        """Move the module; returns the encoder itself."""
        self.module.to(device)
        return self

    @property
    def device(self) -> "torch.device":
        """Return where the weights are."""
        return next(self.module.parameters()).device

    def normalise(self, pictures: "torch.Tensor") -> "torch.Tensor":
        """Return float32 (B, 3, S, S) from uint8 (B, S, S) grey or (B, S, S, 3) RGB, on the encoder's device."""
        import torch

        x = pictures.to(self.device)
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None].expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x.float() / 255 - mean) / std

    def embed(self, pictures: np.ndarray, bf16: bool = False) -> np.ndarray:
        """Return the embeddings of a batch.

        Parameters
        ----------
        pictures
            uint8, (B, S, S) grey or (B, S, S, 3) RGB, S = ``geometry.size``.
        bf16
            Compute under bfloat16 autocast. The result is float32 either way.

        Returns
        -------
        numpy.ndarray
            (B, dim) float32.
        """
        import torch

        size = self.geometry.size
        if pictures.dtype != np.uint8 or pictures.shape[1:3] != (size, size):
            raise InputError(
                f"{self.name}: expected uint8 (B, {size}, {size}[, 3]), found {pictures.dtype} {pictures.shape}"
            )
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return self.module(self.normalise(torch.from_numpy(np.array(pictures)))).float().cpu().numpy()

    def identity(self) -> dict:
        """Return everything that an embedding depends on, as JSON-like values: the encoder's part of a cache key."""
        geometry = {name: getattr(self.geometry, name) for name in ("kind", "size", "interpolation", "crop")}
        return {
            "model": self.model, "weights": self.weights.sha256, "geometry": geometry, "mean": list(self.mean),
            "std": list(self.std), "pooling": self.pooling, "dim": self.dim,
        }  # fmt: skip

    def parameters(self) -> int:
        """Return how many numbers the module trains."""
        return sum(tensor.numel() for tensor in self.module.parameters())


def load_encoder(model: str, weights: str = "hub", *, name: str = "", **settings) -> Encoder:
    """Build an encoder and fill it.

    Parameters
    ----------
    model
        ``family:architecture``, e.g. ``"timm:resnet50.a1_in1k"``.
    weights
        A file (.safetensors, .pth, .pt, .bin), ``"hub"`` (the authors' location) or ``"random"`` (``seed`` says which).
    name
        What to call it in tables; default ``model``.
    settings
        Of the family: ``geometry`` (a Geometry or its fields), ``mean``, ``std``, ``pooling``, ``seed``, ``ignore``, ``options``.

    Raises
    ------
    InputError
        Unknown family or architecture, or weights that do not fit; the message lists the tensors.
    MissingError
        The weights file is not there.
    """
    family, _, architecture = model.partition(":")
    if family not in FAMILIES or not architecture:
        raise InputError(f"unknown encoder {model!r}: expected {' or '.join(f'{known}:NAME' for known in FAMILIES)}")
    load: Callable[..., Encoder] = import_module(FAMILIES[family]).load
    return load(architecture, weights, name=name or model, **settings)


def facts(encoders: "list[Encoder]") -> "pd.DataFrame":
    """Return one row per encoder: what a result depends on."""
    import pandas as pd

    rows = []
    for one in encoders:
        geometry = one.geometry
        crop = f", crop {geometry.crop:g}" if geometry.kind == "resize_crop" else ""
        rows.append(
            {
                "encoder": one.name,
                "model": one.model,
                "weights": one.weights.label,
                "licence": one.weights.licence,
                "sha256": one.weights.sha256[:12],
                "parameters (M)": round(one.parameters() / 1e6, 2),
                "dim": one.dim,
                "pooling": one.pooling,
                "geometry": f"{geometry.kind} {geometry.size}, {geometry.interpolation}{crop}",
            }
        )
    return pd.DataFrame(rows)
