"""The phantom of blind sweeps, in the layout of ACOUSLIC-AI: who was swept, what every frame shows, and the files.

A stack is six sweeps of one length over one abdomen, frame behind frame. Its mask says of each frame of an annotated sweep whether it shows an
optimal plane (1), a sub-optimal one (2) or none (0); an annotated sweep has a circumference in the table. What the others show nobody says:
their masks are empty whatever is drawn.

All of it is decided by the seed, without drawing (``stacks``, ``counts``); `passes` draws.
"""

import csv
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fpbench.cohorts.phantoms.facts import rng
from fpbench.errors import InputError
from fpbench.files.machine import workers
from fpbench.files.progress import Progress
from fpbench.images import mha

TABLE = "circumferences/fetal_abdominal_circumferences_per_sweep.csv"
IMAGES, MASKS = "images/stacked_fetal_ultrasound", "masks/stacked_fetal_abdomen"
COLUMNS = ("uuid", "subject_id", *(f"sweep_{number}_ac_mm" for number in range(1, 7)))
STACKS, FRAMES = 60, 20  # of a cohort; of a sweep
SIZE, SPACING = (186, 140), 1.12  # of a frame: columns, rows; mm a pixel: a quarter of the real ones
NONE, OPTIMAL, SUB_OPTIMAL = 0, 1, 2  # values of a mask
QUALITY = {NONE: "none", OPTIMAL: "optimal", SUB_OPTIMAL: "sub-optimal"}
# with the first where there is none, the shares of the real 553: 237, 135, 90, 31, 47, 13 of 300 stacks
ANNOTATED = (0.715, 0.45, 0.30, 0.103, 0.157, 0.043)
TWICE = 19 / 300  # share of stacks that are the second one of their subject
MIXED, LESSER, BETTER, UNMASKED = ("both", "sub-optimal alone", "optimal alone", "a circumference without a mask")


class Sweep(NamedTuple):
    """One pass of the probe."""

    number: int  # from 1
    shown: tuple[int, ...]  # what each frame shows: a value of masks
    axes: tuple[float, float]  # half axes of the abdomen, mm
    annotated: bool  # its circumference is in the table
    masked: bool  # its planes are in the mask

    @property
    def circumference(self) -> float:
        """Return the length of the ellipse in mm, by Ramanujan's second formula."""
        a, b = self.axes
        h = ((a - b) / (a + b)) ** 2
        return float(np.pi * (a + b) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h))))


class Stack(NamedTuple):
    """One examination: a row of the table, a picture file and a mask file."""

    key: tuple  # of its random numbers
    name: str
    subject: str
    sweeps: tuple[Sweep, ...]

    @property
    def row(self) -> list[str]:
        """Return its cells; that of a sweep which is not annotated is empty."""
        return [self.name, self.subject, *(repr(s.circumference) if s.annotated else "" for s in self.sweeps)]


def stacks(seed: int = 0, number: int = STACKS, frames: int = FRAMES) -> list[Stack]:
    """Return the stacks of a cohort in table order, ``frames`` to a sweep; InputError for fewer than 5 stacks or 10 frames."""
    if number < 5 or frames < 10:
        raise InputError(f"expected 5 stacks of 10 frames a sweep or more, found {number} of {frames}")
    g = rng(seed, "acouslic")
    planned = [UNMASKED] + [LESSER] * max(1, round(number / 3)) + [BETTER] * max(1, round(number / 12))
    kinds = g.permutation(planned + [MIXED] * (number - len(planned))).tolist()
    usual = [row for row, kind in enumerate(kinds) if kind != UNMASKED]
    restless = set(g.choice(usual, max(1, number // 20), replace=False).tolist())  # the fetus moves, and is seen twice
    pairs = np.arange(1, number, 2)  # the second rows of neighbours
    second = set(g.choice(pairs, max(1, round(number * TWICE)), replace=False).tolist())
    subjects = np.cumsum([row not in second for row in range(number)]) - 1
    return [_stack(seed, row, int(subjects[row]), kinds[row], row in restless, frames) for row in range(number)]


def _stack(seed: int, row: int, subject: int, kind: str, restless: bool, frames: int) -> Stack:
    """Decide one stack; its subject decides the size of the abdomen."""
    person, g = rng(seed, "acouslic", "subject", subject), rng(seed, "acouslic", row)
    radius, ratio = np.clip(person.normal(36, 5), 27, 48), np.clip(person.normal(0.93, 0.03), 0.84, 1.0)
    annotated = g.random(6) < ANNOTATED
    annotated[0] |= not annotated.any()
    if kind == UNMASKED:
        annotated[:] = [True] + [False] * 5
    sweeps = []
    for number, known in enumerate(annotated.tolist(), 1):
        again = restless and number == 1 + int(annotated.argmax())
        shown = _shown(g, kind, again, frames) if known or g.random() < 0.5 else (NONE,) * frames
        axes = tuple((radius * np.array([1, ratio]) * g.normal(1, 0.02, 2)).tolist())
        sweeps.append(Sweep(number, shown, axes, known, known and kind != UNMASKED))
    name = str(uuid.UUID(bytes=g.bytes(16), version=4))
    return Stack((seed, "acouslic", row), name, f"{subject:03d}", tuple(sweeps))


def _shown(g: np.random.Generator, kind: str, again: bool, frames: int) -> tuple[int, ...]:
    """Place the run of usable frames: 5 to 20 % of the sweep, in its first third to its middle; ``again``: a second, short one."""
    run = _run(g, kind, int(np.clip(round(frames * (0.05 + 0.15 * g.beta(1.0, 1.6))), -(-frames // 20), frames // 5)))
    pause = [NONE] * int(g.integers(1, 1 + frames // 10))
    run += [*pause, OPTIMAL if kind == BETTER else SUB_OPTIMAL] if again else []
    start = round(frames * g.normal(0.42, 0.18) - len(run) / 2)
    start = int(np.clip(start, 0, frames - len(run)))
    return (NONE,) * start + tuple(run) + (NONE,) * (frames - start - len(run))


def _run(g: np.random.Generator, kind: str, length: int) -> list[int]:
    """Return a run: optimal frames within sub-optimal ones, or of one kind."""
    if kind == BETTER:
        return [OPTIMAL] * length
    if kind != MIXED:
        return [SUB_OPTIMAL] * length
    best = max(round(length * g.uniform(0.4, 0.8)), int(g.random() < 0.5))
    before = int(g.integers(length - best + 1))
    return [SUB_OPTIMAL] * before + [OPTIMAL] * best + [SUB_OPTIMAL] * (length - best - before)


def labels(sweep: Sweep) -> tuple[int, ...]:
    """Return the values of the mask of each frame of a sweep."""
    return sweep.shown if sweep.masked else (NONE,) * len(sweep.shown)


def counts(cohort: list[Stack]) -> dict[str, dict[str, int]]:
    """Return column -> value -> frames of annotated sweeps, and "total": the form of ``Source.counts``."""
    annotated = [sweep for stack in cohort for sweep in stack.sweeps if sweep.annotated]
    values = [QUALITY[value] for sweep in annotated for value in labels(sweep)]
    quality, subjects = Counter(values), {stack.subject for stack in cohort}
    best, usable = quality["optimal"], len(values) - quality["none"]
    total = {"images": len(values), "patients": len(subjects), "cases": len(cohort), "sweeps": len(annotated)}
    return {
        "total": total,
        "quality": {name: quality[name] for name in QUALITY.values()},
        "usable": {"plane": usable, "no plane": len(values) - usable},
        "optimal": {"optimal": best, "not optimal": len(values) - best},
    }


def write(folder: Path, cohort: list[Stack]) -> None:
    """Write pictures, masks and table."""
    for name in (IMAGES, MASKS, Path(TABLE).parent):
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor(workers()) as pool:
        drawn = pool.map(partial(_write, folder), cohort)
        list(Progress(drawn, total=len(cohort), desc="drawing phantom sweeps", unit="stack"))
    with open(folder / TABLE, "w", encoding="ascii", newline="") as handle:
        csv.writer(handle, lineterminator="\r\n").writerows([COLUMNS, *(stack.row for stack in cohort)])


def _write(folder: Path, stack: Stack) -> None:
    from fpbench.cohorts.phantoms.passes import draw_sweep  # OpenCV, which only this needs

    drawn = [draw_sweep(stack.key, sweep) for sweep in stack.sweeps]
    for name, parts in zip((IMAGES, MASKS), zip(*drawn, strict=True), strict=True):
        mha.write(folder / name / f"{stack.name}.mha", np.concatenate(parts), SPACING)
