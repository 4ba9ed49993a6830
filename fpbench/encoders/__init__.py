"""Image encoders behind one protocol.

An ``Encoder`` takes pictures and returns one vector each: ``embed(pictures) -> (B, D) float32``. Its ``module`` maps
normalised float tensors (B, 3, S, S) to (B, D) and is what fine-tuning trains. ``load_encoder`` takes a name of the
catalogue (``"usfm"``), its miniature (``"usfm-mini"``), or any model of a library (``"timm:NAME"``, ``"open_clip:NAME"``,
``"hf:NAME"``); ``register_encoder`` adds one of your own.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fpbench.encoders import catalogue, miniatures
from fpbench.encoders.catalogue import Entry
from fpbench.errors import InputError
from fpbench.files import transfer
from fpbench.images import Geometry, to_array

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from fpbench.encoders.checkpoint import Layout

# each a module with ``plan(architecture, weights, pooling, options, ignore, prefix) -> Plan``
FAMILIES = ("timm", "open_clip", "hf")
MINI = "-mini"  # of a catalogue name: the same code, some ten thousand numbers


@dataclass(frozen=True)
class Weights:
    """Which numbers an encoder was filled with."""

    source: str  # file | hub | random
    location: str  # file name, hub name, or the seed
    sha256: str  # of all tensors: name, shape and values, whatever file they came from
    licence: str = "unknown"
    file_sha256: str = ""  # of the file, if there is one
    ignored: tuple[str, ...] = ()  # tensors of the file that were left out on purpose
    notes: tuple[str, ...] = ()  # what else a reader must know: a table resized, one of several sets, facts assumed
    saw: dict[str, str] = field(
        default_factory=dict
    )  # population -> did its pretraining see it, as far as this program made it

    @property
    def label(self) -> str:
        """Return a word for tables: random weights are always called so."""
        return "random weights" if self.source == "random" else self.location.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Encoder:
    """A frozen-by-default image encoder, on one device, in eval mode."""

    name: str  # as in the study
    model: str  # name in the catalogue, or family:architecture
    dim: int  # length of an embedding
    geometry: Geometry
    mean: tuple[float, float, float]  # of channels scaled to [0, 1]
    std: tuple[float, float, float]
    pooling: str  # what the module returns: avg, token, ...
    weights: Weights
    module: "torch.nn.Module" = field(repr=False)
    options: dict = field(default_factory=dict)  # passed to the architecture

    def to(self, device: str) -> "Encoder":
        """Move the module; returns the encoder itself."""
        self.module.to(device)
        return self

    @property
    def device(self) -> "torch.device":
        """Return where the weights are."""
        import torch

        return next((tensor.device for tensor in self.module.parameters()), torch.device("cpu"))

    def colours(self, pictures: "torch.Tensor") -> "torch.Tensor":
        """Return float32 in [0, 1], (B, 1, S, S) from uint8 (B, S, S) or (B, 3, S, S) from (B, S, S, 3), on the device."""
        x = pictures.to(self.device)
        return (x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]).float().div_(255)

    def standardise(self, x: "torch.Tensor") -> "torch.Tensor":
        """Return what the module takes, (B, 3, S, S), from the result of ``colours``."""
        import torch

        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return x.expand(-1, 3, -1, -1).sub(mean).div_(std)  # in place: memory costs more than arithmetic

    def normalise(self, pictures: "torch.Tensor") -> "torch.Tensor":
        """Return float32 (B, 3, S, S) from uint8 (B, S, S) grey or (B, S, S, 3) RGB, on the encoder's device."""
        return self.standardise(self.colours(pictures))

    def autocast(self, bf16: bool) -> "torch.autocast":
        """Return a context that computes in bfloat16 if ``bf16``."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def prepare(self, pictures: Image.Image | Sequence | np.ndarray) -> np.ndarray:
        """Return a uint8 batch, (B, S, S) or (B, S, S, 3), of pictures in any form that ``embed`` takes."""
        batch, size = pictures, self.geometry.size
        if not isinstance(batch, np.ndarray):
            batch = [batch] if isinstance(batch, Image.Image) else batch
            arrays = [self.geometry(to_array(p) if isinstance(p, Image.Image) else p) for p in batch]
            if any(array.ndim == 3 for array in arrays):
                arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, -1) for array in arrays]
            batch = np.stack(arrays) if arrays else np.zeros((0, size, size), np.uint8)
        if batch.dtype != np.uint8 or batch.shape[1:] not in ((size, size), (size, size, 3)):
            raise InputError(f"{self.name}: expected uint8 (B, {size}, {size}[, 3]), found {batch.dtype} {batch.shape}")
        return batch

    def embed(self, pictures: Image.Image | Sequence | np.ndarray, bf16: bool = False) -> np.ndarray:
        """Return the embeddings of pictures.

        Parameters
        ----------
        pictures
            A PIL image; a list of PIL images or uint8 arrays (H, W[, 3]) of any size; or a prepared batch, uint8,
            (B, S, S) grey or (B, S, S, 3) RGB, S = ``geometry.size``.
        bf16
            Compute under bfloat16 autocast. The result is float32 either way.

        Returns
        -------
        numpy.ndarray
            (B, dim) float32; (dim,) for a single PIL image.
        """
        import torch

        batch = self.prepare(pictures)
        if not len(batch):
            return np.zeros((0, self.dim), np.float32)
        with torch.inference_mode(), self.autocast(bf16):
            values = self.module(self.normalise(torch.from_numpy(np.array(batch)))).float().cpu().numpy()
        if values.shape != (len(batch), self.dim):
            raise InputError(f"{self.name}: expected embeddings ({len(batch)}, {self.dim}), found {values.shape}")
        return values[0] if isinstance(pictures, Image.Image) else values

    def identity(self) -> dict:
        """Return everything that an embedding depends on, as JSON-like values: the encoder's part of a cache key."""
        return {
            "model": self.model, "weights": self.weights.sha256, "geometry": asdict(self.geometry), "mean": list(self.mean),
            "std": list(self.std), "pooling": self.pooling, "dim": self.dim, "options": self.options,
        }  # fmt: skip

    @cached_property
    def fingerprint(self) -> dict:
        """Return a few numbers that say what the encoder does, as it was loaded (``encoders.fingerprint``)."""
        from fpbench.encoders.fingerprint import fingerprint

        return fingerprint(self)

    def parameters(self) -> int:
        """Return how many numbers the module trains."""
        return sum(tensor.numel() for tensor in self.module.parameters())


@dataclass(frozen=True)
class Plan:
    """What a family says of a model before weights are put in."""

    module: "torch.nn.Module"
    layouts: "tuple[Layout, ...]"  # none: the family has filled the module
    dim: int
    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    licence: str = "unknown"
    hub: str = ""  # where the module's weights came from, if the family has fetched them
    ignored: tuple[str, ...] = ()  # if the family has filled the module itself (no layouts)
    notes: tuple[str, ...] = ()  # facts of the model or its weights that were assumed or changed
    config: dict = field(default_factory=dict)  # what decides the module beside name and options, for its identity


def load_encoder(
    model: str,
    weights: str | Path = "hub",
    *,
    name: str = "",
    geometry: Geometry | dict | None = None,
    mean: tuple | None = None,
    std: tuple | None = None,
    pooling: str = "",
    seed: int = 0,
    ignore: Iterable[str] = (),
    prefix: str = "",
    options: dict | None = None,
) -> Encoder:
    """Build an encoder and fill it.

    Parameters
    ----------
    model
        A name of the catalogue (``"usfm"``), its miniature (``"usfm-mini"``), or ``family:architecture``, e.g.
        ``"timm:resnet50.a1_in1k"``.
    weights
        A file (.safetensors, .pth, .pt, .bin); ``"hub"``: for the catalogue the file that ``fpbench fetch weights`` or you
        have put below FPBENCH_WEIGHTS, for a miniature the one that is shipped, for a family the library's own download; or
        ``"random"`` (``seed`` says which).
    name
        What to call it in tables; default ``model``.
    geometry, mean, std, pooling
        Instead of the model's own; a dict of geometry fields replaces those alone.
    ignore
        Patterns of tensor names that may be missing or left out; recorded in ``Encoder.weights``.
    prefix
        Of the model's tensors in the file (``"image_encoder."``, ``"visual.trunk."``); all others are left out.
    options
        For the architecture. An input size (timm's ``img_size``, transformers' ``image_size``, open_clip's ``force_image_size``)
        other than the file's resizes its position tables as the library does; it is recorded in ``Encoder.weights``.

    Returns
    -------
    Encoder
        On the CPU, in eval mode; ``embed`` gives (B, dim) float32.

    Raises
    ------
    InputError
        Unknown encoder or setting, or weights that do not fit; the message lists the tensors.
    MissingError
        The weights file is not there.
    """
    import torch

    from fpbench.encoders.checkpoint import unfilled

    family, _, architecture = model.partition(":")
    options, weights, ignore = dict(options or {}), str(weights), tuple(ignore)
    if prefix and (weights == "random" or (weights == "hub" and ":" in model)):
        raise InputError(
            f"{name or model}: prefix={prefix!r} is of the names in a file: expected weights: FILE, found {weights}"
        )
    whole = weights != "random" and not ignore and family not in FAMILIES  # a file holds every parameter, or is refused
    with torch.random.fork_rng(devices=[]), unfilled() if whole else nullcontext(), _taken(name or model, options):
        torch.manual_seed(seed)
        if family in FAMILIES and architecture:
            fetches = (weights == "hub" or family == "hf") and not os.path.exists(architecture)
            with transfer.hub() if fetches else nullcontext():
                adapter = import_module(f"fpbench.encoders.adapters.{family}")
                plan = adapter.plan(architecture, weights, pooling, options, ignore, prefix)
            plan = replace(plan, geometry=geometry_of(plan.geometry, geometry))
        else:
            plan = _plan(model, weights, pooling, geometry, options)
    name, scale = name or model, (tuple(mean or plan.mean), tuple(std or plan.std))
    filled = _fill(plan, model, weights, seed, ignore, name, prefix)
    options |= plan.config
    return Encoder(name, model, plan.dim, plan.geometry, *scale, plan.pooling, filled, plan.module.eval(), options)


@contextmanager
def _taken(name: str, options: dict) -> Iterator[None]:
    """Turn what a library says of an option that it does not take into an InputError."""
    try:
        yield
    except TypeError as error:
        if not options or "argument" not in str(error):
            raise
        found = f"options {options}: {error}"
        raise InputError(f"{name}: expected what the architecture takes, found {found}: correct the study") from None


def _plan(model: str, weights: str, pooling: str, geometry: Geometry | dict | None, options: dict) -> Plan:
    """Build the module of a catalogue entry."""
    entry, mini, pooling, shape = settle(model, pooling, geometry)
    if fixed := sorted({*options} & {*entry.build}):
        wanted = "expected options that leave it the encoder that it is"
        raise InputError(f"{entry.name}: {wanted}, found {', '.join(fixed)}: correct the study, or take timm:NAME")
    module, layouts = catalogue.builder(entry)(name=entry.name, size=shape.size, pooling=pooling, mini=mini, **options)
    dim = length(module, shape.size) if mini else entry.poolings[pooling]
    licence = "none (miniature)" if mini else entry.licence
    return Plan(module, layouts, dim, shape, entry.mean, entry.std, pooling, licence)


def settle(model: str, pooling: str, geometry: Geometry | dict | None) -> tuple[Entry, bool, str, Geometry]:
    """Return the catalogue's entry of a model, whether its miniature is meant, and pooling and geometry, checked."""
    entry, mini = catalogue.find(model)
    pooling = pooling or next(iter(entry.poolings))
    if pooling not in entry.poolings:
        raise InputError(f"{model} has no pooling {pooling!r}: expected one of {', '.join(entry.poolings)}")
    own = replace(entry.geometry, size=entry.mini) if mini else entry.geometry
    shape = geometry_of(own, geometry)
    step = entry.sides.removeprefix("multiples of ")
    if (step == "fixed" and shape.size != own.size) or (step.isdigit() and shape.size % int(step)):
        raise InputError(f"{entry.name}: expected an input side of {own.size}, {entry.sides}; found {shape.size}")
    return entry, mini, pooling, shape


def length(module: "torch.nn.Module", size: int) -> int:
    """Return the length of a module's embedding, as one picture shows it."""
    import torch

    with torch.inference_mode():
        return module.eval()(torch.zeros(1, 3, size, size)).shape[1]


def geometry_of(own: Geometry, given: Geometry | dict | None) -> Geometry:
    """Return the model's own geometry with the given fields instead."""
    if isinstance(given, Geometry):
        return given
    known = [item.name for item in fields(Geometry)]
    if unknown := sorted({*(given or {})} - {*known}):
        raise InputError(f"unknown geometry fields {unknown}: expected {', '.join(known)}")
    crop = {"crop": 1.0} if given and given.get("kind", own.kind) != "resize_crop" else {}
    return replace(own, **{**crop, **(given or {})})


def declared(model: str, pooling: str, given: dict) -> Geometry | None:
    """Return the geometry of a model as far as it is known without building it; None where its library alone knows it.

    That of the catalogue, miniatures and ``register_encoder`` is a fact of the entry. A model ``family:architecture`` says its own only
    when it is built, but for what is given: kind, size and interpolation are all of it (and the crop, where the kind crops).
    """
    if model.partition(":")[0] not in FAMILIES:
        return settle(model, pooling, given)[3]
    whole = {"kind", "size", "interpolation", *(["crop"] if given.get("kind") == "resize_crop" else [])} <= {*given}
    return geometry_of(Geometry("squash", 8), given) if whole else None


def _fill(plan: Plan, model: str, weights: str, seed: int, ignore: tuple[str, ...], name: str, prefix: str) -> Weights:
    """Put weights into the module, unless it is to stay random or its family has filled it; return which they are."""
    from fpbench.encoders.checkpoint import OWN, fill, is_own, opened, tensors_sha256
    from fpbench.encoders.fetch import locate
    from fpbench.files.artifacts import file_sha256

    if plan.hub:
        return Weights("hub", plan.hub, tensors_sha256(plan.module), plan.licence, "", plan.ignored, plan.notes)
    if weights == "random" or (weights == "hub" and ":" in model):
        return Weights("random", f"seed {seed}", tensors_sha256(plan.module), "none")
    path, ignored, notes = locate(model) if weights == "hub" else Path(weights), plan.ignored, plan.notes
    licence, saw = plan.licence, {}
    if plan.layouts:
        content = opened(path, prefix)
        layouts = (OWN,) if is_own(plan.module, content.tensors) else plan.layouts
        left_out, resized = fill(plan.module, content.tensors, layouts, ignore, f"{name} from {path}")
        ignored, notes = (*left_out, *content.ignored), (*content.notes, *resized, *notes)
    if drawn := miniatures.note(path):
        licence, notes, saw = miniatures.LICENCE, (drawn, *notes), {"spain": "no", "africa": "no"}
    return Weights("file", path.name, tensors_sha256(plan.module), licence, file_sha256(path), ignored, notes, saw)


def register_encoder(
    name: str,
    build: Callable[..., "torch.nn.Module"],
    geometry: Geometry,
    dim: int,
    mean: tuple[float, float, float] = (0.0,) * 3,
    std: tuple[float, float, float] = (1.0,) * 3,
    **facts: Any,
) -> None:
    """Add an encoder of your own: ``build()`` returns a torch module that maps (B, 3, S, S) to (B, dim).

    Parameters
    ----------
    name
        As in ``load_encoder(name, weights=...)``; the file's tensors are called as the module's.
    geometry, mean, std
        How a picture becomes the module's input; mean and std on the [0, 1] scale.
    facts
        Further fields of ``catalogue.Entry``: licence, trained_on, saw_spain, ...

    Raises
    ------
    InputError
        The name is taken.
    """

    def adapter(
        name: str, size: int, pooling: str, mini: bool, **options: Any
    ) -> "tuple[torch.nn.Module, tuple[Layout, ...]]":
        from fpbench.encoders.checkpoint import Layout

        return build(**options), (Layout(str),)

    own = {"architecture": getattr(build, "__name__", "own"), "sides": "any", "mini": geometry.size, **facts}
    catalogue.add(Entry(name, adapter, geometry=geometry, mean=mean, std=std, poolings={"own": dim}, **own))


def facts(encoders: "list[Encoder]") -> "pd.DataFrame":
    """Return one row per encoder: what a result depends on; ``mind`` where something was assumed or changed."""
    import pandas as pd

    notes = [one.weights.notes for one in encoders]
    frame = pd.DataFrame(
        {
            "encoder": one.name,
            "model": one.model,
            "weights": one.weights.label,
            "licence": one.weights.licence,
            "sha256": one.weights.sha256[:12],
            "parameters (M)": round(one.parameters() / 1e6, 2),
            "dim": one.dim,
            "pooling": one.pooling,
            "geometry": one.geometry.describe(),
        }
        for one in encoders
    )
    for population in dict.fromkeys(name for one in encoders for name in one.weights.saw):
        frame[f"saw {population}"] = [one.weights.saw.get(population, "see above") for one in encoders]
    return frame.assign(mind=list(map("; ".join, notes))) if any(notes) else frame
