"""What is planted in the phantom cohorts: planes, machines, centres, patients and the causes of the African shift.

Causes, each switchable alone (all four by default; with none, African images of the four planes come from the Spanish
generator at the centre's image size):

    prior       one image per plane and patient, brain always trans-thalamic; without it the Spanish proportions
    gain        the centre's brightness, contrast and loss with depth
    resolution  the centre's probe: broader beam, its own curvature, opening and zoom
    marks       the centre's on-screen marks (calipers on the anatomy, logos) instead of the Spanish ones, tied to class

The tables are in `tables.yaml`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

CAUSE_FIELDS = {  # of `Setting`
    "gain": ("gain", "contrast", "fade"),
    "resolution": ("beam", "face", "opening", "zoom", "cardiac"),
    "marks": ("marks",),
}
CAUSES = frozenset({"prior", *CAUSE_FIELDS})


@dataclass(frozen=True)
class Setting:
    """How a machine, or a centre, takes and shows a picture."""

    size: tuple[int, int]  # picture width, height in pixels
    gain: float = 0.0  # added brightness
    contrast: float = 1.0  # factor on brightness about middle grey
    fade: float = 0.10  # brightness lost from the upper to the lower edge
    beam: tuple[float, float] = (0.8, 1.3)  # blur and speckle size: samples in depth, across beams
    face: float = 0.50  # radius of the probe's face, image heights
    opening: float = 0.60  # half the opening angle, radians
    zoom: float = 1.0  # size of the anatomy
    cardiac: float = 1.0  # factor on the opening when the heart is looked at
    marks: str = ""  # style of the on-screen marks


class Centre(NamedTuple):
    """A hospital of the African cohort."""

    iso: str  # country code in file names
    first: int  # number of its first patient
    setting: Setting
    planes: str  # of every patient, with the cause "prior"
    copies: list[tuple[int, int, str]]  # patient, patient whose planes copy the first's, those planes; odd = train


class Plane(NamedTuple):
    """A row of the label tables."""

    number: int  # in Spanish file names
    spain: str  # column Plane
    brain: str  # column Brain_plane
    name: str  # ours
    sub: str | None  # ours, of brain planes


def _setting(facts: dict) -> Setting:
    """Return a setting of the tables."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return Setting(**given)


TABLES = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
KINDS, MENU = TABLES["kinds"], TABLES["patients"]
PLANES = {letter: Plane(*row) for letter, row in TABLES["planes"].items()}
MACHINES = {name: _setting(facts) for name, facts in TABLES["machines"].items()}
CENTRES = {name: Centre(**facts | {"setting": _setting(facts["setting"])}) for name, facts in TABLES["centres"].items()}


def rng(*key: object) -> np.random.Generator:
    """Return the random numbers of a key, the same on every machine."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "big"))
