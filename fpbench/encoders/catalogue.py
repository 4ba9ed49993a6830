"""The facts of each encoder: where its weights are, what it expects, what it returns, what it was trained on.

The facts themselves are data: of the paper's encoders in `catalogue.yaml`, of others in `further.yaml`; MODELS.md is written from
them. What we could not verify is marked: ``confirmed=False`` on a hash, "unknown" on a fact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
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

    kind: str  # hub | drive | drive-folder | url | page (from which a person has to take it) | package (shipped with fpbench)
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
            "page": self.address,
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
    build: dict = field(
        default_factory=dict
    )  # what the adapter's ``build`` is told beside: architecture, names in the file
    sides: str = "fixed"  # fixed | multiples of N | any: input sides that work
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
    saw_acouslic: str = "unknown"
    evidence: str = ""  # for the three above
    paper: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no text where text is due: YAML reads a plain no as False and a plain 4.1 as a number."""
        for fact in fields(self):
            if fact.type is str and not isinstance(found := getattr(self, fact.name), str):
                raise InputError(f"{self.name}: {fact.name}: expected text, found {found!r}: put it in quotes")


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
    if callable(entry.adapter):
        return entry.adapter
    return partial(import_module(f"fpbench.encoders.adapters.{entry.adapter}").build, **entry.build)


def _read(file: str) -> tuple[str, ...]:
    """Add the entries of a file; return their names."""
    found = yaml.safe_load(Path(__file__).with_name(file).read_text())
    for facts in found:
        parts = {"geometry": Geometry(**facts["geometry"]), "source": Source(**facts["source"])}
        add(Entry(**facts | parts | {name: tuple(facts[name]) for name in ("mean", "std", "held")}))
    return tuple(facts["name"] for facts in found)


PAPER = _read("catalogue.yaml")
FURTHER = _read("further.yaml")
POPULATIONS = ("Spain", "Africa", "ACOUSLIC")  # of which an entry says whether the pretraining saw them


def table(names: Sequence[str] = PAPER, saw: Sequence[str] = POPULATIONS[:2]) -> "pd.DataFrame":
    """Return the facts of encoders, one row each; GMACs per image, ``saw``: does the pretraining hold the cohort."""
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
            **{f"saw {population}": getattr(e, f"saw_{population.lower()}") for population in saw},
        }
        for e in (CATALOGUE[name] for name in names)
    )
