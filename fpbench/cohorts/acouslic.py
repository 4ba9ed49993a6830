"""ACOUSLIC-AI: blind sweeps over the maternal abdomen, six in a stack, by novices in Sierra Leone (Sappia et al., 2025).

The training set: a table with the abdominal circumference (AC) of every sweep that was annotated, a stack of frames for every case
(``uuid``), and a mask of the same shape: 1 where a frame shows an optimal plane, 2 a sub-optimal one. A sweep is a sixth of its stack.

An image is a frame of an annotated sweep, ``stack.mha#k``. What nobody has annotated is no negative: such sweeps are in ``sweeps`` alone,
and so are an AC without a mask and a mask without an AC. What the mask says of its frames is kept in the cache by the hash of the file,
so that a mask is inflated once. Folders may be spelt as in PLACES.

Contents: ``read`` (frames), ``sweeps``, ``mask_of``.
"""

import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fpbench import images
from fpbench.cohorts.download import ACOUSLIC, FACTS
from fpbench.cohorts.source import COLUMNS, published, read_table, rows_error
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths
from fpbench.files.progress import Progress
from fpbench.images import decoding, walking
from fpbench.tasks import QUALITIES

LABELS = FACTS["acouslic"]["labels"]
AC = LABELS["columns"][2:]  # columns of the table, one per sweep, mm
CSV = FACTS["acouslic"]["cohort"]["csv"]
STACKS, MASKS = "stacked_fetal_ultrasound", "stacked_fetal_abdomen"
PLACES = {  # what lies where, as archive, container of the challenge and other people spell it
    STACKS: [f"images/{name}" for name in (STACKS, STACKS.replace("_", "-"))],
    MASKS: [f"{top}/{name}" for top, name in product(("masks", "images", "images/masks"), (MASKS, MASKS.replace("_", "-")))],
}  # fmt: skip
FURTHER = ("case", "case_row", "sweep", "position", "quality", "usable", "optimal", "area")
VERSION = 1  # of what is kept of a mask; raise it when it changes


class Case(NamedTuple):
    """One row of the table, and what its mask says."""

    uuid: str
    subject: str
    row: int  # of the table, from 0
    ac: np.ndarray  # (6,), mm; NaN: nobody has annotated the sweep
    counts: np.ndarray  # (6, frames of a sweep, 2): pixels of an optimal, of a sub-optimal plane
    pixels: int  # of a frame

    @property
    def quality(self) -> np.ndarray:
        """Return (6, frames of a sweep): place in QUALITIES."""
        return np.where(self.counts[..., 0] > 0, 2, self.counts[..., 1] > 0)

    def frames(self) -> tuple[np.ndarray, ...]:
        """Return of each frame of the annotated sweeps: row of the case, sweep and position from 0, quality, share under the mask."""
        sweep, position = np.nonzero(np.broadcast_to(~np.isnan(self.ac)[:, None], self.quality.shape))
        area = self.counts[sweep, position].sum(axis=1) / self.pixels
        return np.full(len(sweep), self.row), sweep, position, self.quality[sweep, position], area


def read(path: Path, name: str = "acouslic") -> pd.DataFrame:
    """Read the frames of all annotated sweeps; at first sight of a mask it is inflated, with a bar.

    Parameters
    ----------
    path
        The table, below the root of the archive as ``CSV`` has it.
    name
        First part of every ``image_id`` and patient.

    Returns
    -------
    pandas.DataFrame
        Columns ``source.COLUMNS`` and FURTHER, cases in the order of the table, frames in that of their stack. ``case`` is the uuid,
        ``case_row`` its row from 0; ``sweep`` 1 to 6, ``position`` the frame within it from 0; ``quality`` one of QUALITIES, of which
        ``usable`` ("plane", "no plane") and ``optimal`` ("optimal", "not optimal") are the two tasks; ``area`` the share of the frame
        that its mask covers. No plane, machine, operator or split is published.

    Raises
    ------
    InputError
        Another header; a uuid twice, or with other characters than a file name has; no AC, or one that is no positive number; a stack
        without a row; a stack and its mask of two shapes, or no six sweeps; a mask of other values than 0, 1 and 2, or with 1 and 2 in
        one frame.
    MissingError
        A folder or a mask is not there. (A stack that is not there is missed like any picture, by whom reads the rows.)
    """
    folder = _place(path, STACKS).relative_to(path.parents[1]).as_posix()
    cases = _cases(path)
    parts = [case.frames() for case in cases]
    case, sweep, position, quality, area = (np.concatenate(column) for column in zip(*parts, strict=True))
    number = sweep * np.array([one.counts.shape[1] for one in cases])[case] + position  # of the frame in its stack
    uuid, subject = (
        np.array(column, object)[case] for column in zip(*((one.uuid, one.subject) for one in cases), strict=True)
    )
    unpublished = dict.fromkeys(("plane", "brain_plane", "machine", "operator", "official_split"))
    rows = pd.DataFrame(
        {
            "image_id": [f"{name}/{one}/{k:04d}" for one, k in zip(uuid, number, strict=True)],
            "path": [f"{folder}/{one}.mha#{k}" for one, k in zip(uuid, number, strict=True)],
            "patient": name + "/" + subject,
            **unpublished,
            "centre": LABELS["centre"],
            "case": uuid,
            "case_row": case,
            "sweep": sweep + 1,
            "position": position,
            "quality": np.array(QUALITIES, object)[quality],
            "usable": np.where(quality > 0, "plane", "no plane"),
            "optimal": np.where(quality > 1, "optimal", "not optimal"),
            "area": area,
        }
    )
    return rows[[*COLUMNS, *FURTHER]]


def sweeps(path: Path) -> pd.DataFrame:
    """Describe all sweeps, also those that nobody has annotated.

    Returns
    -------
    pandas.DataFrame
        One row per sweep of every case, in the order of the table: case, subject, sweep (1 to 6), ac (mm, NaN where there is none),
        annotated (there is one), frames, optimal, sub-optimal (frames), runs (of neighbouring frames with a plane).

    Raises
    ------
    InputError, MissingError
        As ``read``.
    """
    found = []
    for case in _cases(path):
        there = case.quality > 0
        starts = there & ~np.pad(there, ((0, 0), (1, 0)))[:, :-1]
        found.append(
            {
                "case": case.uuid,
                "subject": case.subject,
                "sweep": range(1, 7),
                "ac": case.ac,
                "annotated": ~np.isnan(case.ac),
                "frames": there.shape[1],
                "optimal": (case.quality == 2).sum(axis=1),
                "sub-optimal": (case.quality == 1).sum(axis=1),
                "runs": starts.sum(axis=1),
            }
        )
    return pd.concat(map(pd.DataFrame, found), ignore_index=True)


def mask_of(path: Path) -> Path:
    """Return the mask of a frame, ``MASK.mha#k``, for its ``path`` in a cohort."""
    return _place(path.parents[2] / CSV, MASKS) / path.name


def _place(path: Path, what: str) -> Path:
    """Return the folder of stacks or masks beside the table at ``path``; errors name what was looked for."""
    root = path.parents[1]
    there = [root / place for place in PLACES[what] if (root / place).is_dir()]
    if len(there) > 1:
        raise InputError(f"{root}: expected one folder {what}, found {len(there)}, {there[0]} and {there[1]}: keep one")
    if not there:
        raise MissingError(
            f"{root}: expected one of the folders {', '.join(PLACES[what])}, found none: is it complete?"
        )
    return there[0]


def _cases(path: Path) -> list[Case]:
    """Return the checked rows of the table, with what the masks say."""
    table = _table(path)
    stacks, masks = _place(path, STACKS), _place(path, MASKS)
    names = [f"{uuid}.mha" for uuid in table["uuid"]]
    if strangers := sorted({file.name for file in stacks.glob("*.mha")} - set(names)):
        listed = f"{len(strangers)} stacks of {stacks} are in no row, the first is {strangers[0]}"
        raise InputError(f"{path}: {listed}: expected one row each; is the table of this archive?")
    if lost := [masks / name for name in names if not (masks / name).is_file()]:
        raise MissingError(f"{len(lost)} masks are not in {masks}, the first is {lost[0].name}: complete the archive")
    files = [masks / name for name in names]
    shapes = [_shape(mask, stacks / mask.name) for mask in files]
    ac = table[AC].replace("", "nan").astype(float).to_numpy()
    found = []
    for row, (counts, (_, height, width)) in enumerate(zip(_looked(files, shapes), shapes, strict=True)):
        if (both := np.flatnonzero(counts.all(axis=1))).size:
            problem = f"frame {both[0]} has optimal and sub-optimal pixels, 1 and 2"
            raise InputError(f"{files[row]}: {problem}: expected one of the two in a frame")
        uuid, subject = table["uuid"].iat[row], table["subject_id"].iat[row]
        found.append(Case(uuid, subject, row, ac[row], counts.reshape(6, -1, 2), height * width))
    return found


def _table(path: Path) -> pd.DataFrame:
    """Return the checked table, text as it stands."""
    raw = read_table(path, LABELS["separator"], LABELS["columns"])
    if raw.empty:
        raise InputError(f"{path}: expected a row for every stack, found none: is it the table of the archive?")
    for column in ("uuid", "subject_id"):
        if len(odd := raw[~raw[column].str.fullmatch(r"[\w-]+", re.ASCII)]):
            problem = f"expected letters, digits, - and _ as {column}, found {odd[column].iat[0]!r}"
            raise rows_error(path, odd, problem)
    if len(twice := raw[raw["uuid"].duplicated()]):
        raise rows_error(path, twice, f"the uuid {twice['uuid'].iat[0]} stands twice", ": expected one row each")
    for column in AC:
        if len(odd := raw[~raw[column].str.fullmatch(r"|(?=.*[1-9])[0-9]{1,4}(\.[0-9]*)?")]):
            raise rows_error(path, odd, f"expected mm above 0, or nothing, as {column}, found {odd[column].iat[0]!r}")
    if len(none := raw[(raw[AC] == "").all(axis=1)]):
        raise rows_error(path, none, "no sweep has an AC", ": expected one at least")
    return raw


def _shape(mask: Path, stack: Path) -> tuple[int, int, int]:
    """Return frames, height and width of a mask, and hold its stack, if that is there, to them."""
    shape = decoding.shape(mask)
    if stack.is_file() and (other := decoding.shape(stack)) != shape:
        said = " and ".join(f"{one[0]} frames of {one[2]} x {one[1]}" for one in (other, shape))
        raise InputError(f"{stack}: expected one shape of stack and mask, found {said}: is the archive complete?")
    if shape[0] % 6:
        raise InputError(f"{mask}: expected six sweeps of as many frames, found {shape[0]} frames: was it cut?")
    return shape


def _looked(files: list[Path], shapes: list[tuple[int, int, int]]) -> list[np.ndarray]:
    """Return what masks say: of each (frames, 2), the pixels that are 1 and those that are 2; inflated if they never were."""
    folder, found = paths.cache() / "masks", dict[int, np.ndarray]()
    sums = dict(
        zip(sorted(files), images.sha256s(sorted(files)), strict=True)
    )  # remembered as of the frames, which are sorted

    def look(group: list[int]) -> Iterator[None]:
        (row,) = group
        key = {"step": "masks", "version": VERSION, "sha256": sums[files[row]]}
        found[row] = artifacts.cached_array(folder, key, partial(_count, files[row], shapes[row][0]))
        yield

    todo = [[row] for row in range(len(files))]
    for _ in Progress(walking.walk(look, todo), total=len(todo), desc="looking at masks", unit="mask", leave=False):
        pass
    return [found[row] for row in range(len(files))]


def _count(file: Path, frames: int, target: Path) -> None:
    """Write what a mask says; one frame is in memory at a time."""
    counts = np.zeros((frames, 2), np.uint32)
    for number, frame in enumerate(decoding.frames(file)):
        if frame.max() > 2:
            raise InputError(f"{file}: expected the values 0, 1 and 2, found {frame.max()} in frame {number}")
        counts[number] = np.count_nonzero(frame == 1), np.count_nonzero(frame == 2)
    with open(target, "wb") as handle:
        np.save(handle, counts)


SOURCE = published(ACOUSLIC, read, further=FURTHER, mask_of=mask_of, sweeps=sweeps)
