"""Phantom cohorts: synthesised ultrasound-like images in the exact on-disk layout of the two public archives.

Task
    Everything downstream (loaders, audit, splits, notebooks, CI) must run offline, in minutes, on the bytes that it
    will meet in the real archives. This module writes such bytes. It is a tour and a regression fixture, never evidence: each
    picture says PHANTOM in its lower left corner, and `phantom.json` beside the table says who made it.

Conventions
    A picture is drawn on the *beam grid* of its probe, shape (DEPTHS, BEAMS), and scan-converted last; so shadows
    follow the beams and speckle broadens with depth, as in a scanner. Lengths are in units of the image height, x to the right
    and y down from the middle of the upper edge. Brightness is a log-compressed echo: 0 is black, 1 is white, sums are
    gains, and fluid is simply below 0. A scene depends on (seed, cohort, patient, plane) and an image on its number as
    well, so images of one patient resemble each other, and adding patients changes no other image.

Causes of the African shift, each switchable alone (all four by default; with none, African images of the four planes
come from the Spanish generator at the centre's image size):

    prior       one image per plane and patient, brain always trans-thalamic; without it the Spanish proportions
    gain        the centre's brightness, contrast and loss with depth
    resolution  the centre's probe: broader beam, its own curvature, opening and zoom
    marks       the centre's on-screen marks (calipers on the anatomy, logos) instead of the Spanish ones, tied to class

Contents
    `ensure`, `planted`; `SPAIN_COUNTS`, `AFRICA_COUNTS`: what the defaults hold. The tables are in `tables.yaml`.
"""

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml
from PIL import Image, ImageFont
from PIL.ImageDraw import Draw, ImageDraw

from fpbench.artifacts import lock
from fpbench.cohorts import africa, register_cohort, spain
from fpbench.cohorts.source import Source
from fpbench.errors import InputError
from fpbench.images import workers
from fpbench.progress import Progress

VERSION = 1  # raise it whenever a byte of the output changes
CAUSE_FIELDS = {  # of `Setting`
    "gain": ("gain", "contrast", "fade"),
    "resolution": ("beam", "face", "opening", "zoom", "cardiac"),
    "marks": ("marks",),
}
CAUSES = frozenset({"prior", *CAUSE_FIELDS})
DEPTHS, BEAMS = 192, 208  # samples of the beam grid
FLUID, BONE = -0.25, 1.05  # brightness of what does not scatter, and of what reflects everything


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
    return Setting(**{field: tuple(value) if isinstance(value, list) else value for field, value in facts.items()})


TABLES = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text())
KINDS, MENU = TABLES["kinds"], TABLES["patients"]
PLANES = {letter: Plane(*row) for letter, row in TABLES["planes"].items()}
MACHINES = {name: _setting(facts) for name, facts in TABLES["machines"].items()}
CENTRES = {name: Centre(**facts | {"setting": _setting(facts["setting"])}) for name, facts in TABLES["centres"].items()}


def _rng(*key) -> np.random.Generator:
    """Return the random numbers of a key, the same on every machine."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "big"))


# The beam grid


class Frame(NamedTuple):
    """Coordinates of a structure on the beam grid, in units of its size."""

    u: np.ndarray
    w: np.ndarray
    size: float  # image heights

    def at(self, u: float, w: float, turn: float = 0.0, size: float = 1.0) -> "Frame":
        """Return the frame of a part: its middle, its turn (radians) and its size in units of this one."""
        size, du, dw = float(size), self.u - float(u), self.w - float(w)  # numpy scalars would turn float32 to float64
        c, s = float(np.cos(turn)) / size, float(np.sin(turn)) / size
        return Frame(du * c + dw * s, dw * c - du * s, self.size * size)

    def oval(self, u: float, w: float, a: float, b: float, bumps: Iterable[float] = ()) -> np.ndarray:
        """Return the distance to an oval in image heights, negative inside; ``bumps`` deform it."""
        x, y = (self.u - float(u)) / float(a), (self.w - float(w)) / float(b)
        q = np.hypot(x, y)
        if len(bumps):
            turn = power = (x + 1j * y) / np.maximum(q, 1e-6)
            wave = np.ones_like(q)
            for k, bump in enumerate(bumps, 2):
                power = power * turn
                wave += (power * complex(bump * np.exp(99j * k * bumps[0]))).real
            q *= wave
        return (q - 1) * (float(min(a, b)) * self.size)

    def path(self, *points: tuple[float, float]) -> np.ndarray:
        """Return the distance to a chain of straight lines, image heights."""
        best = np.float32(np.inf)
        for (u0, w0), (u1, w1) in pairwise(np.array(points, float).tolist()):
            du, dw, u, w = u1 - u0, w1 - w0, self.u - u0, self.w - w0
            t = np.clip((u * du + w * dw) / (du * du + dw * dw), 0, 1)
            best = np.minimum(best, (u - t * du) ** 2 + (w - t * dw) ** 2)
        return np.sqrt(best) * self.size


class View:
    """A picture while it is drawn: brightness and loss on the beam grid."""

    def __init__(self, setting: Setting, near: float, opening: float, apex: float, far: float, shift: np.ndarray):
        """Place the probe: radii of its face and of the deepest echo, half opening, apex; and the image's own shift."""
        self.setting, self.opening, self.apex, self.near = setting, opening, apex, near
        r = np.linspace(near, far, DEPTHS, dtype=np.float32)[:, None]
        t = np.linspace(-opening, opening, BEAMS, dtype=np.float32)[None]
        self.depth, self.step = np.broadcast_to(r - near, (DEPTHS, BEAMS)), (far - near) / (DEPTHS - 1)
        middle = Frame(r * np.sin(t), apex + r * np.cos(t), 1.0)
        self.frame = self.target = middle.at(shift[0], 0.5 + shift[1], shift[2], 1 + shift[3])
        self.level, self.loss = np.zeros((2, DEPTHS, BEAMS), np.float32)

    def fill(self, d: np.ndarray, level: float | np.ndarray, soft: float = 0.004) -> np.ndarray:
        """Paint where ``d`` is negative; return how much of each sample was covered."""
        cover = 1 / (1 + np.exp(np.clip(d / soft, -30, 30)))
        self.level += cover * (level - self.level)
        return cover

    def wall(self, d: np.ndarray, level: float, width: float = 0.008, facing: float = 0.0, loss: float = 0.0) -> None:
        """Paint a reflector where ``d`` is near 0: dim where it does not face the beam, shadows behind it."""
        line = np.exp(-np.minimum((d / width) ** 2, 30)).astype(np.float32)
        if facing:
            line *= np.clip(np.abs(np.gradient(d, self.step, axis=0)) * 1.15, 0.25, 1) ** facing
        self.level = np.maximum(self.level, self.level + line * (float(level) - self.level))
        self.loss += float(loss) * line

    def organ(self, d: np.ndarray, level: float | np.ndarray, *rim: float) -> None:
        """Paint an organ and, given what `wall` takes, its rim. Behind fluid all is brighter."""
        cover = self.fill(d, level)
        if np.ndim(level) == 0 and level < 0:
            self.loss -= 0.25 * cover
        if rim:
            self.wall(d, *rim)

    def locate(self, f: Frame, u: float, w: float) -> tuple[float, float]:
        """Return where a point of a frame lies: x, y in pixels."""
        row, beam = np.unravel_index(np.argmin((f.u - u) ** 2 + (f.w - w) ** 2), f.u.shape)
        r, t = self.near + row * self.step, self.opening * (2 * beam / (BEAMS - 1) - 1)
        width, height = self.setting.size
        return width / 2 + height * r * np.sin(t), height * (self.apex + r * np.cos(t))

    def develop(self, g: np.random.Generator) -> np.ndarray:
        """Return the picture, uint8 of shape (height, width): loss, speckle, display curve, scan conversion."""
        s, (width, height) = self.setting, self.setting.size
        beam = {"ksize": (0, 0), "sigmaX": s.beam[1], "sigmaY": s.beam[0]}
        noise = g.standard_normal((2, DEPTHS, BEAMS), np.float32)
        speckle = np.hypot(cv2.GaussianBlur(noise[0], **beam), cv2.GaussianBlur(noise[1], **beam))
        speckle /= np.sqrt(np.mean(speckle**2))
        shadow = cv2.GaussianBlur(np.cumsum(self.loss, axis=0), (0, 0), 2.5, sigmaY=0.5) * self.step
        grey = (cv2.GaussianBlur(self.level, **beam) - shadow - 0.4) * s.contrast + 0.4 + s.gain
        grey += 0.24 * np.log10(speckle + 0.03) - s.fade * (self.depth - 0.4)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        x, y = (x - width / 2) / height, y / height - np.float32(self.apex)
        row = ((np.hypot(x, y) - self.near) / self.step).astype(np.float32)
        column = (np.arctan2(x, y) / self.opening + 1) * ((BEAMS - 1) / 2)
        lit = np.clip(grey, 0.0, 1.0) ** 1.25 * 255
        return np.rint(cv2.remap(lit, column, row, cv2.INTER_LINEAR, borderValue=0)).astype(np.uint8)


def _cloud(g: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return smooth noise on the beam grid: ``rows`` x ``columns`` knots, SD about 0.6."""
    return cv2.resize(g.standard_normal((rows, columns), np.float32), (BEAMS, DEPTHS), interpolation=cv2.INTER_CUBIC)


# The scenes: each draws one plane into a view. `g` is its generator, `age` the size of the fetus (about 1).


def _tissue(v: View, g: np.random.Generator, level: float = 0.31) -> None:
    """Paint the mother: strands along the probe's face, lanes of poor contact, bright layers near the probe."""
    v.level += level + 0.07 * _cloud(g, 44, 6) + 0.05 * _cloud(g, 20, 12) + 0.13 * _cloud(g, 4, 5)
    v.level -= 0.5 * np.clip(_cloud(g, 2, 9) - 0.8, 0, 1) * np.minimum(v.depth / 0.3, 1)
    skin = float(g.uniform(0.08, 0.16))
    v.level += 0.25 * np.exp(-v.depth / 0.03) + 0.10 * np.clip(_cloud(g, 60, 3), -1, 2) * (v.depth < skin)
    v.wall(v.depth - skin - 0.02 * _cloud(g, 2, 3), 0.70, 0.008)


def _womb(v: View, g: np.random.Generator, f: Frame, a: float, b: float) -> None:
    """Paint mother, amniotic fluid and, often, placenta around a fetal part with half axes ``a``, ``b``."""
    _tissue(v, g)
    pocket = f.at(g.uniform(-0.5, 0.5), g.uniform(-0.35, 0.35), g.uniform(-0.3, 0.3))
    d = pocket.oval(0, 0, a * g.uniform(1.0, 1.6), b * g.uniform(1.0, 1.5), g.uniform(-0.08, 0.08, 3))
    if g.random() < 0.75:
        v.organ(d, FLUID, 0.65, 0.008, 1.0)
    d = v.frame.oval(g.choice([-0.62, 0.62]), g.uniform(0.1, 0.5), 0.3, 0.36, g.uniform(-0.1, 0.1, 3))
    if g.random() < 0.5:
        v.fill(d, 0.47 + 0.04 * _cloud(g, 12, 12), 0.01)


def _pose(v: View, g: np.random.Generator, size: float, tilt: float, rise: float = 0.0) -> Frame:
    """Return the frame of the main structure, which calipers measure: near the middle, mostly one way round."""
    f = v.frame.at(g.normal(0, 0.06), g.normal(0.05, 0.04) - rise, g.normal(0, tilt), size * v.setting.zoom)
    v.target = Frame(f.u * (1 if g.random() < 0.85 else -1), f.w, f.size)
    return v.target


def _head(v: View, g: np.random.Generator, age: float, inside: Callable) -> None:
    """Paint a head cut across: skull, sulci, insula, falx, and what the plane shows ``inside``."""
    f, b = _pose(v, g, 0.42 * age, 0.17), g.normal(0.77, 0.03)
    _womb(v, g, f, 1.15, b * 1.2)
    skull = f.oval(0, 0, 1, b, g.normal(0, 0.012, 3))
    v.wall(skull - 0.03, 0.45, 0.012, 1.0)
    v.fill(skull, 0.15 + 0.06 * _cloud(g, 30, 14) + 0.05 * _cloud(g, 8, 8) - 0.12 * f.w)
    side = np.clip(1 - 1.3 * np.abs(np.gradient(skull, v.step, axis=0)), 0, 1)
    v.loss += 2.5 * side * np.exp(-np.minimum((skull / 0.02) ** 2, 30))  # where the beam only grazes the skull
    for _ in range(7):  # sulci
        turn, r, n = g.uniform(0, 2 * np.pi), g.uniform(0.6, 0.85), g.uniform(0.05, 0.12)
        u, w, rise = r * np.cos(turn), r * b * np.sin(turn), n * np.cos(turn)
        v.wall(f.path((u - n, w + rise), (u + n, w - rise)), g.uniform(0.35, 0.6), 0.006)
    v.wall(f.path((-0.30, 0.50), (-0.05, 0.43), (0.20, 0.49)), 0.55, 0.008)  # insula
    v.wall(f.path((-0.86, 0), (0.3, 0)) / np.clip(0.75 + 0.5 * _cloud(g, 2, 12), 0.1, 1), 0.72, 0.006)  # falx
    v.wall(f.path((0.58, 0), (0.88, 0)), 0.72, 0.006)
    inside(v, g, f)
    v.wall(skull, BONE, g.uniform(0.013, 0.019), 0.5, 0.6)


def _cavum(v: View, f: Frame) -> None:
    """Paint the cavum septi pellucidi: a dark box between two short lines."""
    v.fill(f.oval(0.44, 0, 0.15, 0.06), FLUID)
    for w in (-0.07, 0.07):
        v.wall(f.path((0.30, w), (0.58, w)), 0.78, 0.007)


def _thalami(v: View, g: np.random.Generator, f: Frame, u: float = -0.02, size: float = 1.0) -> None:
    """Paint the thalami and, at full size, the cisterns around the midbrain."""
    _cavum(v, f)
    for side in (-1, 1):
        v.organ(f.at(u, 0.15 * side * size, 0.35 * side).oval(0, 0, 0.25 * size, 0.13 * size), 0.03, 0.36)
        if size == 1:
            v.wall(f.path((-0.27, 0.03 * side), (-0.40, 0.17 * side), (-0.52, 0.22 * side)), 0.62, 0.009)
    v.wall(f.path((u - 0.2, 0), (u + 0.2, 0)), 0.55, 0.005)


def _ventricle(v: View, g: np.random.Generator, f: Frame) -> None:
    """Paint the lateral ventricles with their choroid plexus; the near one is hidden by the skull."""
    _cavum(v, f)
    for side, seen in ((1, 1.0), (-1, 0.2)):
        part = f.at(-0.30, 0.30 * side, -0.22 * side)
        d = part.oval(0, 0, 0.40, 0.135)
        v.fill(d, FLUID * seen + 0.1 * (1 - seen))
        v.wall(d + 0.4 * (part.u < -0.3), 0.25 + 0.40 * seen, 0.007, 0.7)
        v.fill(part.oval(-0.05, 0.02 * side, 0.26, 0.085, (0.05, 0.04)), 0.30 + 0.38 * seen + 0.06 * _cloud(g, 40, 40))
        v.wall(f.path((0.35, 0.12 * side), (0.52, 0.24 * side)), 0.35 + 0.35 * seen, 0.009)


def _cerebellum(v: View, g: np.random.Generator, f: Frame) -> None:
    """Paint the cerebellum, its vermis and the cisterna magna."""
    _thalami(v, g, f, 0.08, 0.75)
    v.fill(f.oval(-0.74, 0, 0.22, 0.40), FLUID, 0.006)  # cisterna magna
    lobes = np.minimum(*(f.at(-0.54, 0.19 * side, 0.35 * side).oval(0, 0, 0.16, 0.23) for side in (-1, 1)))
    v.organ(lobes, 0.28 + 0.06 * np.cos(f.w * 70) + 0.06 * _cloud(g, 50, 40), 0.62)
    v.fill(f.oval(-0.53, 0, 0.11, 0.08), 0.62, 0.008)  # vermis


def _butterfly(v: View, g: np.random.Generator, f: Frame) -> None:
    """Paint two large choroid plexuses and nothing else: a head that is none of the three standard planes."""
    for side in (-1, 1):
        plexus = f.at(g.normal(-0.05, 0.05), 0.36 * side, 0.2 * side).oval(0, 0, 0.48, 0.20, (0.05, 0.06))
        v.fill(plexus, 0.46 + 0.08 * _cloud(g, 40, 40))


def _trunk(v: View, g: np.random.Generator, size: float) -> tuple[Frame, np.ndarray]:
    """Paint a trunk cut across, its skin and spine; return its frame (spine at -u) and the distance to the skin."""
    f = _pose(v, g, size, 0.5)
    f = f.at(0, 0, g.choice([0, 0, 0, 0, 0, 0, -np.pi / 2, np.pi / 2]))
    _womb(v, g, f, 1.15, 1.15)
    d = f.oval(0, 0, 1, g.normal(0.93, 0.03), g.normal(0, 0.012, 3))
    v.organ(d, 0.39 + 0.05 * _cloud(g, 40, 40) + 0.04 * _cloud(g, 12, 12), 0.85, 0.013, 1.0, 0.15)
    v.wall(d - 0.03, 0.5, 0.010, 1.0)
    for u, w in ((-0.82, 0.0), (-0.67, 0.11), (-0.67, -0.11)):
        v.loss += 3.5 * v.fill(f.oval(u, w, 0.06, 0.052), 0.95, 0.006)
    return f, d


def _abdomen(v: View, g: np.random.Generator, age: float) -> None:
    """Paint an abdomen: stomach, umbilical vein, aorta and vena cava."""
    f, _ = _trunk(v, g, 0.36 * age)
    stomach = f.at(g.normal(-0.02, 0.06), g.normal(-0.50, 0.03), g.uniform(-0.4, 0.4))
    v.organ(stomach.oval(0, 0, g.uniform(0.20, 0.28), g.uniform(0.12, 0.18), (0.06, 0.06)), FLUID, 0.5)
    bend = g.uniform(0.9, 1.1)
    vein = f.path((0.86, 0.0), (0.50, 0.02), (0.25, 0.06 * bend), (0.08, 0.18 * bend), (0.04, 0.38 * bend))
    v.organ(vein - 0.045 * f.size, FLUID, 0.62, 0.006)
    for u, w in ((-0.44, -0.10), (-0.36, 0.16)):  # aorta, vena cava
        v.fill(f.oval(u, w, 0.07, 0.06), FLUID)


def _thorax(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a thorax: ribs and a heart of four chambers."""
    f, d = _trunk(v, g, 0.38 * age)
    v.wall(d + 0.05 + 0.5 * (np.abs(np.abs(f.w) - 0.62) > 0.26), 0.95, 0.013, 0.6, 0.5)  # a rib on either side
    heart, beat = f.at(0.20, -0.12, g.normal(-0.7, 0.12), g.uniform(0.54, 0.62)), g.uniform(0.85, 1.15)
    v.organ(heart.oval(0, 0, 1, 0.78, (0.03, 0.03)), 0.30 + 0.05 * _cloud(g, 40, 40), 0.55, 0.008, 0.8)
    for u, a, b in ((0.35, 0.37 * beat, 0.22), (-0.45, 0.27, 0.25)):  # ventricles, atria
        for side in (-1, 1):
            v.organ(heart.oval(u, 0.29 * side, a, b, g.normal(0, 0.03, 3)), FLUID)
    v.wall(heart.path((0.85, 0), (-0.12, 0)), 0.62, 0.014)
    v.wall(heart.path((-0.12, 0), (-0.75, 0)), 0.52, 0.008)
    v.wall(heart.path((-0.12, -0.52), (-0.10, 0), (-0.12, 0.52)), 0.62, 0.009)
    v.fill(f.oval(-0.46, -0.12, 0.07, 0.07), FLUID)  # descending aorta


def _femur(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a thigh with the femur, whose shadow is complete."""
    f = _pose(v, g, 0.36 * age, 0.16, 0.09)
    _womb(v, g, f, 1.5, 0.9)
    thigh, hip = f.oval(0.1, 0.12, 1.35, g.uniform(0.42, 0.55), (0.05, 0.03)), f.oval(1.3, 0.3, 0.9, 0.75, (0.04, 0.05))
    muscle = 0.26 + 0.12 * _cloud(g, 60, 6) + 0.05 * _cloud(g, 50, 50)
    v.organ(np.minimum(thigh, hip), muscle, 0.62, 0.010, 1.0)
    if g.random() < 0.35:
        v.wall(f.path((-0.75, 0.62), (0.0, 0.68), (0.8, 0.60)), 0.85, 0.014, 0.0, 0.8)  # the other leg
    for side in (-1, 1):
        v.organ(f.oval(1.14 * side, 0.04, 0.17, 0.22, (0.05, 0.05)), 0.14, 0.55, 0.010)
    for _ in range(5):
        u, w, n = g.uniform(1.0, 1.5), g.uniform(-0.3, 0.4), g.uniform(0.03, 0.10)
        v.wall(f.path((u - n, w), (u + n, w + g.uniform(-0.2, 0.2))), 0.8, 0.014, 0.0, 0.8)
    bow = g.uniform(0.03, 0.09)
    shaft = ((-1, -0.03), (-0.85, bow - 0.03), (-0.3, bow), (0.3, bow), (0.85, bow - 0.03), (1, -0.03))
    v.wall(f.path(*shaft), 1.2, g.uniform(0.013, 0.018), 0.0, 11.0)


def _cervix(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a cervix with its canal, the head above it, bladder and rectum."""
    f = Frame(v.frame.u * int(g.choice([-1, 1])), v.frame.w, 1.0)
    v.level += 0.42 + 0.05 * _cloud(g, 60, 24) + 0.08 * _cloud(g, 7, 7) + 0.45 * np.exp(-v.depth / 0.012)
    outer, inner, dip = g.uniform(-0.42, -0.32), g.uniform(0.20, 0.30), g.uniform(-0.03, 0.09)
    canal = f.path((outer, 0.02 + dip), (outer / 2, 0.07 + dip), (0.0, 0.06 + dip), (inner, -0.02 + dip))
    v.fill(canal - 0.13, 0.36 + 0.06 * _cloud(g, 60, 30), 0.02)
    v.fill(canal - 0.055, 0.25 + 0.05 * _cloud(g, 60, 30), 0.012)
    v.wall(canal - 0.055, 0.55, 0.006)
    v.fill(canal - float(g.uniform(0.006, 0.012)), -0.05)
    head = f.oval(inner + 0.42, 0.06 + dip, 0.36, g.uniform(0.30, 0.38), (0.0, 0.02))
    v.organ(head - float(g.uniform(0.02, 0.06)), FLUID)
    v.organ(head, 0.10 + 0.08 * _cloud(g, 14, 10), BONE, 0.018, 0.5, 2.5)
    bladder = f.oval(g.uniform(0.20, 0.34), -0.33, g.uniform(0.10, 0.18), g.uniform(0.04, 0.09), (0.06, 0.08))
    if g.random() < 0.7:
        v.organ(bladder, FLUID)
    rectum = f.path((-0.62, -0.25), (-0.56, 0.05 + dip), (-0.42, 0.25 + dip), (-0.1, 0.33 + dip))
    v.wall(rectum, 0.85, 0.045 + 0.012 * _cloud(g, 8, 8))


def _artery(v: View, g: np.random.Generator, age: float) -> None:
    """Paint an artery along its length under a linear probe: not a fetus at all."""
    v.level += 0.36 + 0.12 * _cloud(g, 30, 3) + 0.05 * _cloud(g, 30, 30)
    curve, (near, far) = 0.03 * _cloud(g, 2, 3), g.normal((0.30, 0.58), (0.03, 0.04)).tolist()
    near, far = near + curve, far - curve
    v.fill(np.maximum(near - v.depth, v.depth - far), FLUID, 0.006)
    for at, level, width in ((near, 0.85, 0.014), (far, 0.80, 0.007), (far + 0.03, 1.0, 0.014)):
        v.wall(v.depth - at, level, width)


def _other(v: View, g: np.random.Generator, age: float) -> None:
    """Paint one of the views that belong to no plane."""
    (_kidneys, _profile, _limbs, _sac)[g.integers(4)](v, g, age)


def _kidneys(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a trunk cut at the level of the kidneys, which is no standard plane."""
    f, _ = _trunk(v, g, 0.35 * age)
    for side in (-1, 1):
        kidney = f.at(-0.38, 0.42 * side, 0.5 * side).oval(0, 0, 0.26, 0.20, (0.04, 0.05))
        v.organ(kidney, 0.24, 0.5)
        v.fill(kidney + 0.14 * f.size, FLUID)
    for _ in range(4):
        gut = f.oval(g.uniform(-0.1, 0.7), g.uniform(-0.5, 0.5), g.uniform(0.05, 0.15), 0.07, (0.1, 0.1))
        v.fill(gut, g.uniform(0.1, 0.7))


def _profile(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a face from the side: skull, nose, lips, chin."""
    f = _pose(v, g, 0.34 * age, 0.3).at(-0.15, 0.05)
    _tissue(v, g)
    v.organ(f.oval(0.5, -0.5, 1.7, 1.05, g.uniform(-0.06, 0.06, 3)), FLUID)
    v.fill(f.oval(-0.9, 0.9, 1.1, 0.6, (0.04, 0.05)), 0.36 + 0.08 * _cloud(g, 16, 12))
    face = np.minimum(f.oval(0.62, 0.18, 0.42, 0.52), f.oval(-0.12, -0.04, 0.98, 0.78))
    for u, w, r in ((0.92, -0.26, 0.13), (0.98, 0.10, 0.11), (0.98, 0.29, 0.10), (0.88, 0.52, 0.15)):
        face = np.minimum(face, f.oval(u, w, r, r * 0.8))
    v.organ(face, 0.38 + 0.10 * _cloud(g, 26, 16), 0.75, 0.010, 0.7)
    skull = f.oval(-0.12, -0.04, 0.90, 0.70, (0.03, 0.02))
    v.organ(skull, 0.10 + 0.07 * _cloud(g, 16, 12), 0.95, 0.014, 0.8, 1.2)
    for start, end in (((0.62, -0.28), (0.88, -0.20)), ((0.50, 0.30), (0.80, 0.22)), ((0.45, 0.62), (0.78, 0.52))):
        v.wall(f.path(start, end), 0.92, 0.014, 0.0, 1.0)


def _limbs(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a forearm with its two bones, a hand, and limbs cut across, in fluid."""
    f = _pose(v, g, 0.40 * age, 0.6)
    _tissue(v, g)
    v.organ(f.oval(0.0, 0.0, 1.3, 0.95, g.uniform(-0.10, 0.10, 3)), FLUID)
    soft = 0.36 + 0.10 * _cloud(g, 26, 16)
    v.organ(f.oval(-0.75, 0.75, 0.95, 0.55, (0.06, 0.08)), soft, 0.75, 0.012, 0.8)
    v.organ(f.path((-1.1, -0.10), (-0.8, 0.22), (0.1, 0.05)) - 0.17 * f.size, soft, 0.65, 0.009, 0.7)
    for w in (-0.07, 0.08):
        v.wall(f.path((-0.75, 0.21 + w), (0.0, 0.07 + w)), 0.9, 0.010, 0.3, 2.5)
    for k in range(5):
        finger = f.path((0.22, -0.06 + 0.04 * k), (0.71 - 0.08 * abs(k - 2), -0.30 + 0.13 * k))
        v.fill(finger - 0.045 * f.size, 0.42)
        v.wall(finger + 0.05 * np.clip(np.cos(40 * f.u), 0, 1), 0.9, 0.010)
    for _ in range(2):
        part = f.at(g.uniform(-0.6, 0.7), g.choice([-0.62, 0.62]), 0, g.uniform(0.16, 0.24))
        v.organ(part.oval(0, 0, 1, 0.9), 0.40, 0.7)
        v.fill(part.oval(0, 0, 0.35, 0.3), 1.0)


def _sac(v: View, g: np.random.Generator, age: float) -> None:
    """Paint an early pregnancy: a small embryo and the yolk sac in dark fluid."""
    f = _pose(v, g, 0.36 * age, 0.4)
    _tissue(v, g, 0.36)
    sac = f.oval(0, 0, g.uniform(0.9, 1.2), g.uniform(0.6, 0.8), g.uniform(-0.06, 0.06, 3))
    v.wall(sac - 0.02, 0.72, 0.03)
    v.organ(sac, FLUID)
    body = np.minimum(f.oval(-0.22, 0.2, 0.36, 0.20, (0.05, 0.05)), f.oval(0.20, 0.12, 0.24, 0.22))
    v.organ(body, 0.52 + 0.10 * _cloud(g, 30, 20), 0.8)
    v.fill(f.oval(0.22, 0.12, 0.10, 0.09), 0.05)
    v.wall(f.oval(g.choice([-0.5, 0.55]), -0.30, 0.13, 0.13), 0.75, 0.010)


SCENES: dict[str, Callable] = {"a": _abdomen, "h": _thorax, "f": _femur, "x": _cervix, "m": _artery, "o": _other}
for _letter, _inside in {"t": _thalami, "v": _ventricle, "c": _cerebellum, "b": _butterfly}.items():
    SCENES[_letter] = partial(_head, inside=_inside)


def _view(letter: str, setting: Setting, shift: np.ndarray, g: np.random.Generator) -> View:
    """Choose the probe that the plane is scanned with: vaginal for the cervix, linear for arteries, else convex."""
    if letter == "x":
        return View(setting, 0.16, g.uniform(1.0, 1.25), g.uniform(-0.02, 0.03), 0.97, shift)
    if letter == "m":
        return View(setting, 40.0, 0.0125, 0.06 - 40.0, 40.8, shift * 0.3)
    face, top = setting.face * g.uniform(0.85, 1.2), g.uniform(-0.06, 0.06)
    opening = setting.opening * (setting.cardiac if letter == "h" else 1.0) * g.uniform(0.92, 1.1)
    return View(setting, face, opening, top - face, face + g.choice([0.96, 1.3]) - top, shift)


# On-screen marks


def _text(draw: ImageDraw, x: float, y: float, words: str, fill: int, size: int = 8, align: str = "left") -> None:
    """Write lines of small text with their upper left (or right) corner at (x, y)."""
    draw.multiline_text((x, y), words, fill, ImageFont.load_default(size), align[0] + "a", 1, align)


def _cross(draw: ImageDraw, x: float, y: float) -> None:
    """Draw a caliper."""
    draw.line((x - 3, y, x + 3, y), 210)
    draw.line((x, y - 3, x, y + 3), 210)


def _mark_spain(draw: ImageDraw, w: int, h: int, letter: str, style: str, g: np.random.Generator) -> None:
    """Draw what Spanish machines show; as in the archive, some of it names the class."""
    number = int(g.integers(20, 700))
    for y in range(h // 5):
        draw.line((1, y + 2, 4, y + 2), max(255 - 5 * y, 0))
    if letter == "m":
        _mark_artery(draw, w, h, number, g)
    elif style == "aloka":
        heart = "\n2.50M\nR7.0\nG80\nC17\nA2" if letter == "h" else ""
        _text(draw, w - 3, 1, f"{number}/{number + 1}\n{number % 15 + 12}Hz{heart}", 230, 10, "right")
    else:
        preset = {"x": ("qCERVIX", "Cervix"), "h": ("Cardiac", "2. Trim.")}.get(letter, ("2. Trim.", "2+3. Trim."))
        rate = f"{number % 30 + 20}Hz/{number % 9 + 9}.6cm\n" * (style != "voluson")
        words = f"{rate}{preset[number % 2]}\nHar-mid\nGn {number % 9 - 8}\nC6 / M7\nFF2 / E3\nSRI II 3"
        _text(draw, w - 3, 2, words, 140, 7, "right")
        _text(draw, w * 0.31, 6, "Voluson" + {"voluson": "\n   E6", "s10": "\n   S10"}.get(style, ""), 170, 6)


def _mark_artery(draw: ImageDraw, w: int, h: int, number: int, g: np.random.Generator) -> None:
    """Draw preset, distances, heart beats and calipers of an arterial study."""
    words = f"16:{number % 47:02d}:07\n8LS #{number}\n8.0MHz\nVASCULAR\nGeneral\nFC= {number % 30 + 55}"
    _text(draw, w * 0.82, 2, words, 200)
    draw.rectangle((w * 0.81, h * 0.68, w - 2, h * 0.96), 90, 160)
    _text(draw, w * 0.82, h * 0.69, "\n".join(f"Dist= {v:.2f}cm" for v in g.uniform(0.03, 0.8, 4)), 220, 7)
    draw.line([(x, h * 0.93 - 10 * (x % 37 < 2) + 3 * (x % 37 == 9)) for x in range(int(w * 0.2), int(w * 0.78))], 190)
    for x in range(4):
        _cross(draw, w * 0.45 + 12 * x, h * 0.63)


def _mark_centre(draw: ImageDraw, w: int, v: View, style: str) -> None:
    """Draw what African centres show: calipers where the plane is measured, a logo, faint words, or nothing."""
    ends = [v.locate(v.target, *end) for end in ((-1, 0), (1, 0), (0, -0.85), (0, 0.85))]
    if style == "calipers":
        for end in ends:
            _cross(draw, *end)
    elif style == "tags":
        for pair in (ends[:2], ends[2:]):
            draw.point([tuple(point) for point in np.linspace(*pair, 30)], 190)
        _text(draw, max(ends[0][0] - 20, 8), ends[0][1], "GA1", 180)
    elif style == "logo":
        draw.rectangle((w * 0.18, 3, w * 0.18 + 10, 12), 190)
        _text(draw, w * 0.18 + 2, 1, "M", 20, 10)
    elif style == "faint":
        _text(draw, w * 0.12, 6, "LOGIQ\n P5", 100, 7)


def draw_plane(letter: str, setting: Setting, scene: tuple, number: int) -> Image.Image:
    """Draw one picture.

    Parameters
    ----------
    letter
        Key of `PLANES`.
    setting
        Machine or centre.
    scene
        Seed, cohort and patient: with the plane they decide the anatomy, so pictures of one patient agree.
    number
        Which picture of the patient's plane this is: decides probe movement, speckle and numbers on the screen.
    """
    pose = _rng(*scene, letter, "pose", number // 2 if letter in "om" else 0)  # what is called Other is many things
    person, now = _rng(*scene), _rng(*scene, letter, number)
    age, shine = np.clip(person.normal(1.0, 0.13), 0.72, 1.25), person.normal(0, 0.035) + now.normal(0, 0.02)
    shift = now.normal(0, 1, 4) * (0.03, 0.02, 0.07, 0.04)
    view = _view(letter, replace(setting, gain=setting.gain + shine), shift, pose)
    SCENES[letter](view, pose, age)
    picture, (w, h) = Image.fromarray(view.develop(now)), setting.size
    draw = Draw(picture)
    if setting.marks in {machine.marks for machine in MACHINES.values()}:
        _mark_spain(draw, w, h, letter, setting.marks, now)
    else:
        _mark_centre(draw, w, view, setting.marks)
    draw.rectangle((1, h - 12, 43, h - 2), 0)
    _text(draw, 3, h - 12, "PHANTOM", 110)
    return picture


# What is in a cohort


class Entry(NamedTuple):
    """One image: its file, its row in the label table, how to draw it, or which file it is a copy of."""

    path: str  # below the root
    row: tuple  # values of the label table
    patient: str
    facts: dict[str, str | None]  # counted columns -> values, in our words
    recipe: tuple  # arguments of `draw_plane`
    copy: str | None = None
    tints: tuple[float, ...] = ()  # of red, green and blue; none: a grey file


def spain_entries(seed: int = 0, patients: int = KINDS["spain"]["patients"]) -> list[Entry]:
    """Return the images of phantom Spain, in table order; ``patients`` in each half, odd numbers train.

    From 20 on, more patients change no entry (with fewer, the pair that crosses the halves may be another).
    """
    entries = [entry for n in range(1, 2 * patients + 1) for entry in _spanish_patient(seed, n)]
    twins = [j for j, (_, _, letters, *s10) in enumerate(MENU[:patients]) if letters[0] in "tv" and not s10]
    if twins:
        j = int(_rng(seed, "spain", "twins").choice(twins))
        train, test = (next(k for k, e in enumerate(entries) if e.patient == str(2 * j + half)) for half in (1, 2))
        entries[test] = entries[test]._replace(copy=entries[train].path)
    return entries


def _spanish_patient(seed: int, n: int) -> Iterator[Entry]:
    """Yield the images of one patient; in some, the last of several images of a plane is a copy of the first."""
    machine, operator, letters, *s10 = MENU[(n - 1) // 2 % len(MENU)]
    train = n % 2
    if s10 and not train:
        machine, operator = "Voluson S10", "Other"
    copied = letters[0] not in "tv" and _rng(seed, "spain", n, "copy").random() < 0.3
    numbers, first = [PLANES[letter].number for letter in letters], {}
    for i, letter in enumerate(letters):
        plane, index = PLANES[letter], letters[:i].count(letter)
        k, of = (numbers[:end].count(plane.number) for end in (i + 1, None))
        name = f"Patient{n:05d}_Plane{plane.number}_{k}_of_{of}"
        row = (name, n, plane.spain, plane.brain, operator, machine, f"{train} ")
        facts = {"official_split": "train" if train else "test", "plane": plane.name, "brain_plane": plane.sub}
        facts |= {"operator": operator, "machine": machine}
        recipe = (letter, MACHINES[machine], (seed, "spain", n), index)
        copy = first[letter] if copied and 0 < index == letters.count(letter) - 1 else None
        yield Entry(f"Images/{name}.png", row, str(n), facts, recipe, copy)
        first.setdefault(letter, f"Images/{name}.png")


def africa_entries(
    seed: int = 0, patients: int = KINDS["africa"]["patients"], causes: frozenset[str] = CAUSES
) -> list[Entry]:
    """Return the images of phantom Africa, in table order; ``patients`` in each centre, every other one train."""
    if unknown := set(causes) - CAUSES:
        raise InputError(f"unknown causes {sorted(unknown)}: expected some of {sorted(CAUSES)}")
    entries = []
    for centre, here in CENTRES.items():
        number, paths = here.first, {}
        originals = {(twin, k): (one, k) for one, twin, planes in here.copies for k in planes}
        for i in range(patients):
            number += int(_rng(seed, "africa", centre, i, "gap").integers(1, 4)) if i else 0
            for entry in _african_patient(seed, centre, i, number, causes):
                key = i, entry.path[-5]  # of "..._plane<k>.png"
                paths[key] = entry.path
                entries.append(entry._replace(copy=paths.get(originals.get(key))))
    return entries


def _african_patient(seed: int, centre: str, i: int, number: int, causes: frozenset[str]) -> Iterator[Entry]:
    """Yield the images of one patient: a Spanish machine at the centre's picture size, changed by the causes."""
    g, here = _rng(seed, "africa", centre, i), CENTRES[centre]
    machines = [machine for machine, _, letters, *_ in MENU if set(letters) & set("atfh")]
    fields = {"size", *(field for cause in CAUSE_FIELDS.keys() & causes for field in CAUSE_FIELDS[cause])}
    setting = MACHINES[machines[g.integers(len(machines))]]
    setting = replace(setting, **{field: getattr(here.setting, field) for field in fields})
    for k, letter in enumerate(here.planes if "prior" in causes else _spanish_planes(g)):
        plane = PLANES[letter]
        name = f"patient{number:03d}_{here.iso}_plane{('abdomen', 'brain', 'femur', 'thorax').index(plane.name)}"
        row = (number, plane.spain, i % 2, centre, name)
        facts = {"official_split": "train" if i % 2 else "test", "plane": plane.name, "centre": centre}
        recipe = (letter, setting, (seed, "africa", centre, number), 0)
        tints = () if centre != "Egypt" else (1.0, 1.0, 1.0) if i or k else (1.0, 0.86, 0.62)  # one is truly coloured
        yield Entry(f"{centre}/{name}.png", row, f"{centre}/{number}", facts, recipe, tints=tints)


def _spanish_planes(g: np.random.Generator) -> str:
    """Return the planes of a patient in the Spanish proportions, one of them of the brain."""
    menu = "".join(row[2] for row in MENU)
    brain = [letter for letter in menu if letter in "tvcb"]
    return "".join(c for c in "afh" if g.random() < menu.count(c) / len(brain)) + str(g.choice(brain))


def counts(entries: list[Entry]) -> dict[str, dict[str, int]]:
    """Return column -> value -> images, and "total" -> images, patients: the form of ``Source.counts``."""
    found = {"total": {"images": len(entries), "patients": len({entry.patient for entry in entries})}}
    for column in entries[0].facts:
        found[column] = dict(Counter(e.facts[column] for e in entries if e.facts[column] is not None).most_common())
    return found


SPAIN_COUNTS = counts(spain_entries())
AFRICA_COUNTS = counts(africa_entries())


# Files


def ensure(
    root: str | Path, kind: str, seed: int = 0, patients: int | None = None, causes: Iterable[str] = CAUSES
) -> dict:
    """Return the manifest of the phantom cohort in ``root``, writing the cohort if it is absent or another one.

    Parameters
    ----------
    root
        Its folder. One that holds anything but a phantom cohort is refused, never replaced.
    kind
        ``"spain"`` or ``"africa"``.
    seed, patients, causes
        As of `spain_entries` and `africa_entries`; ``causes`` concern Africa only.

    Raises
    ------
    InputError
        Unknown kind or cause, or the folder holds something else.
    """
    root, (manifest, entries) = Path(root), _plan(kind, seed, patients, causes)
    new, old = (root.with_name(f".{root.name}.{word}.tmp") for word in ("new", "old"))
    if _holds(root, manifest):  # without a lock: others may share the folder who cannot write there
        return manifest
    with lock(root):  # renamed at the end: the folder is whole or absent, also after a kill
        if _holds(root, manifest):
            return manifest
        for left in (new, old):  # of a killed process: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        _write(new, manifest, entries)
        if root.exists():
            root.rename(old)
        new.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def is_drawn(root: Path, kind: str) -> bool:
    """Return whether the folder holds the phantom that `ensure` would leave there; InputError if it would refuse."""
    return _holds(root, _plan(kind, 0, None)[0])


def planted(root: str | Path) -> list[tuple[str, str]]:
    """Return the pairs of byte-identical files of a phantom cohort: paths below ``root``, sorted within and among."""
    return [tuple(pair) for pair in json.loads((Path(root) / "phantom.json").read_text())["planted"]]


def _plan(kind: str, seed: int, patients: int | None, causes: Iterable[str] = CAUSES) -> tuple[dict, list[Entry]]:
    """Return the manifest that a cohort must have, and its images."""
    if kind not in KINDS:
        raise InputError(f"unknown phantom cohort {kind!r}: expected 'spain' or 'africa'")
    patients = patients or KINDS[kind]["patients"]
    manifest = {"version": VERSION, "kind": kind, "seed": seed, "patients": patients}
    if kind == "spain":
        entries = spain_entries(seed, patients)
    else:
        entries = africa_entries(seed, patients, frozenset(causes))
        manifest["causes"] = sorted(causes)
    pairs = sorted(sorted((entry.path, entry.copy)) for entry in entries if entry.copy)
    return manifest | {"counts": counts(entries), "planted": pairs}, entries


def _holds(root: Path, manifest: dict) -> bool:
    """Say whether a folder holds the whole cohort of a manifest; InputError if it holds anything but a phantom."""
    there, images = root / "phantom.json", manifest["counts"]["total"]["images"]
    if root.exists() and any(root.iterdir()) and not there.is_file():
        raise InputError(f"{root} holds something that is not a phantom: it is left alone; choose another folder")
    return there.is_file() and there.read_bytes() == _json(manifest) and len(list(root.glob("*/*.png"))) == images


def _json(manifest: dict) -> bytes:
    """Return the bytes of `phantom.json`."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _write(folder: Path, manifest: dict, entries: list[Entry]) -> None:
    """Write pictures, label table and manifest."""
    for parent in {(folder / entry.path).parent for entry in entries}:
        parent.mkdir(parents=True)
    drawn = [entry for entry in entries if not entry.copy]
    with ThreadPoolExecutor(workers()) as pool:
        list(Progress(pool.map(partial(_draw, folder), drawn), total=len(drawn), desc="drawing phantoms", unit="image"))
    for entry in entries:
        if entry.copy:
            shutil.copyfile(folder / entry.copy, folder / entry.path)
    kind = KINDS[manifest["kind"]]
    with open(folder / kind["file"], "w", encoding="ascii", newline="") as handle:
        table = csv.writer(handle, delimiter=kind["delimiter"], lineterminator="\n")
        table.writerows([kind["columns"], *(entry.row for entry in entries)])
    (folder / "phantom.json").write_bytes(_json(manifest))


def _draw(folder: Path, entry: Entry) -> None:
    picture = draw_plane(*entry.recipe)
    if entry.tints:
        bands = [picture.point([round(value * tint) for value in range(256)]) for tint in entry.tints]
        picture = Image.merge("RGB", bands)
    picture.save(folder / entry.path, compress_level=1)


def source(real: Source, kind: str, counts: dict[str, dict[str, int]]) -> Source:
    """Return the phantom of a real cohort: the same reader and population, its own name, counts and label."""
    drawn = replace(real, name=f"phantom-{real.name}", title=f"Phantom of {real.title.split(' (')[0]}", label="phantom")
    drawn = replace(drawn, licence="Apache-2.0", citation="Drawn by fpbench; no person was scanned.", archive=None)
    steps = {"prepare": partial(ensure, kind=kind), "prepared": partial(is_drawn, kind=kind)}
    return replace(drawn, counts=counts, csv_sha256="", **steps)


register_cohort(source(spain.SOURCE, "spain", SPAIN_COUNTS))
register_cohort(source(africa.SOURCE, "africa", AFRICA_COUNTS))
