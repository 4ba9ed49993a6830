"""The facts of each encoder: where its weights are, what it expects, what it returns, what it was trained on.

The facts themselves are data, in `catalogue.yaml`; MODELS.md is written from them. What we could not verify is marked:
``confirmed=False`` on a hash, "unknown" on a fact.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fpbench.errors import InputError
from fpbench.images import Geometry

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Source:
    """Where a weights file is published."""

    kind: str  # hub | drive | drive-folder | url | package (shipped with fpbench)
    address: str  # repository, file id, folder id, URL
    file: str  # name under <weights>/<encoder>/
    size: int | None = None  # bytes
    sha256: str = ""  # of the file; empty: pinned on first use
    confirmed: bool = False  # did anyone hash the file at its address, as far as we know
    revision: str = "main"  # of a hub repository; "main" is resolved and pinned on first use

    @property
    def url(self) -> str:
        """Return an address for a browser."""
        return {
            "hub": f"https://huggingface.co/{self.address}/blob/{self.revision}/{self.file}",
            "drive": f"https://drive.google.com/file/d/{self.address}/view",
            "drive-folder": f"https://drive.google.com/drive/folders/{self.address}",
            "url": self.address,
            "package": "shipped with fpbench",
        }[self.kind]


@dataclass(frozen=True)
class Entry:
    """One encoder."""

    name: str
    adapter: str | Callable  # module with build(name, size, pooling, mini, **options), or such a function
    architecture: str
    geometry: Geometry  # the authors' own preprocessing
    mean: tuple[float, float, float]  # of channels in [0, 1]
    std: tuple[float, float, float]
    poolings: dict[str, int]  # name -> length of the embedding; the first is the default
    sides: str = "fixed"  # fixed | multiples of 16 | any: input sides that work
    mini: int = 64  # side of the miniature's input, pixels
    parameters: float = 0.0  # of the encoder, millions
    gmacs: str = ""  # per image, attention counted
    held: tuple[float, float] = (
        0.0,
        0.0,
    )  # MB per image, float32: kept for a backward pass (of LoRA); at most alive in a forward pass
    source: Source | None = None
    licence: str = "unknown"
    gated: str = "no"  # no | unknown | how
    trained_on: str = "unknown"
    saw_spain: str = "unknown"  # yes | no | unknown: the pretraining data hold the cohort
    saw_africa: str = "unknown"
    evidence: str = ""  # for the two above
    paper: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no text where text is due: YAML reads a plain no as False and a plain 4.1 as a number."""
        for field in fields(self):
            if field.type is str and not isinstance(found := getattr(self, field.name), str):
                raise InputError(f"{self.name}: {field.name}: expected text, found {found!r}: put it in quotes")


CATALOGUE: dict[str, Entry] = {}


def add(entry: Entry) -> None:
    """Add an entry; InputError if its name is taken or cannot be one."""
    if entry.name in CATALOGUE or not entry.name.replace("_", "").isalnum():
        known = ", ".join(CATALOGUE)
        raise InputError(f"encoder name {entry.name!r}: expected letters, digits and '_', and none of {known}")
    CATALOGUE[entry.name] = entry


def find(model: str) -> tuple[Entry, bool]:
    """Return the entry of a name, and whether its miniature is meant."""
    name = model.removesuffix("-mini")
    if name not in CATALOGUE:
        known = f"{', '.join(CATALOGUE)} (or one of these + '-mini'), or timm:NAME, open_clip:NAME, hf:NAME"
        raise InputError(f"unknown encoder {model!r}: expected one of {known}")
    return CATALOGUE[name], name != model


def builder(entry: Entry) -> Callable:
    """Return the function that builds the entry's module and layouts."""
    return (
        entry.adapter if callable(entry.adapter) else import_module(f"fpbench.encoders.adapters.{entry.adapter}").build
    )


for _facts in yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text()):
    _parts = {"geometry": Geometry(**_facts["geometry"]), "source": Source(**_facts["source"])}
    add(Entry(**_facts | _parts | {name: tuple(_facts[name]) for name in ("mean", "std", "held")}))


def published() -> list[Entry]:
    """Return the encoders of the paper: the entries whose weights somebody publishes."""
    return [entry for entry in CATALOGUE.values() if entry.source]


def table() -> "pd.DataFrame":
    """Return the facts of the paper's encoders, one row each; GMACs per image, ``saw``: does the pretraining hold the cohort."""
    import pandas as pd

    return pd.DataFrame(
        {
            "encoder": e.name,
            "architecture": e.architecture,
            "input": f"{e.geometry.describe()} ({e.sides})",
            "mean; std": "; ".join(", ".join(f"{v:.4g}" for v in values) for values in (e.mean, e.std)),
            "pooling: dim (first is the default)": ", ".join(f"{name}: {dim}" for name, dim in e.poolings.items()),
            "parameters (M)": e.parameters,
            "GMACs": e.gmacs,
            "licence": e.licence.split(" (")[0],
            "saw Spain": e.saw_spain,
            "saw Africa": e.saw_africa,
        }
        for e in published()
    )
