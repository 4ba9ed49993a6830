"""Patient-level folds, and the proof that nothing leaks.

``official``: the published test patients are touched by no choice; the others are cut into folds, fold k validates and the
rest trains. ``crossval``: all patients are cut into folds, fold k tests, fold k+1 validates, the rest trains. Folds are
stratified by class and never divide a group (patients linked by a pixel-identical image). A training group that is linked
to an official test group is dropped from training. The cut depends on the seed and on the labels, not on the order of rows.

``published`` is the cut of arXiv:2507.22802 for the cohort of blind sweeps, kept to compare with its numbers: one fold, by *case*. Subjects
with several cases may lie on both sides; they are counted and said, not dropped. Its cohort has the case as group (``Cohort.by_case``), as
predictions need groups of one side: whatever is resampled there is cases, which is what the unit of that publication gives.

Every part of every fold holds every class of the task. scikit-learn's cut can leave a fold without one although there are groups
enough: then the next seeds are tried in order; then cuts by the rarest class of each group, which spread what is rare, with the same
seeds. Which cut was used is told.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench.cohorts import Cohort, shown
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.splits import published
from fpbench.splits.published import PARTS
from fpbench.tasks import Task

VERSION = 1  # of the cut; raise it when folds change
SCHEMES = ("official", "crossval", "published")
TRIES = 20  # seeds, from the study's upwards
SHARED = ("shared patients", "shared groups", "shared images")  # columns of a proof
COLUMNS = ("image_id", "patient", "group", "label", "part")


@dataclass(frozen=True)
class Fold:
    """Rows of a cohort frame: who trains, who validates (every choice is made there), who tests."""

    number: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Splits:
    """The cut of one cohort for one task."""

    scheme: str
    folds: int
    frame: (
        pd.DataFrame
    )  # COLUMNS; part is fold0, ... (published: train, validation), or test, dropped, unused (no class of the task)
    seed: int = 0  # that the folds were cut with
    why: str = ""  # another seed than the study's

    def fold(self, number: int) -> Fold:
        """Return one fold as positions in the cohort's frame."""
        if not 0 <= number < self.folds:
            raise InputError(f"no fold {number}: expected 0 to {self.folds - 1}")
        part = self.frame["part"].to_numpy()
        if self.scheme == "published":
            return Fold(number, *(np.flatnonzero(part == name) for name in PARTS))
        test = part == (f"fold{number}" if self.scheme == "crossval" else "test")
        validation = part == f"fold{(number + 1) % self.folds if self.scheme == 'crossval' else number}"
        train = np.char.startswith(part.astype(str), "fold") & ~test & ~validation
        return Fold(number, *(np.flatnonzero(mask) for mask in (train, validation, test)))

    def digest(self) -> str:
        """Return a digest of the cut."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        rows = self.frame[["image_id", "group", "part"]].to_numpy().tolist()
        return artifacts.digest([self.scheme, self.folds, rows])

    def summary(self) -> str:
        """Return how many images and patients take part, and what was left out and why."""
        parts = self.frame.groupby(self.frame["part"].str.replace(r"fold\d+", "folds", regex=True))
        why = {"unused": " (no class of the task)", "dropped": " (linked to a test patient by an identical image)"}
        counts = {name: f"{len(rows):,} images, {rows['patient'].nunique():,} patients" for name, rows in parts}
        lines = [f"{name}: {count}{why.get(name, '')}" for name, count in counts.items()]
        if self.scheme == "published":
            both = ", ".join(f"{one} and {two} {count:,}" for (one, two), count in self.on_both_sides().items())
            lines.append(f"cut by case, and cases are what is resampled; patients on both sides: {both}")
        return "\n".join([*lines, f"cut with seed {self.seed}: {self.why}"] if self.why else lines)

    def on_both_sides(self) -> dict[tuple[str, str], int]:
        """Return how many patients two parts share, of a ``published`` cut."""
        patients = {name: set(self.frame.loc[self.frame["part"] == name, "patient"]) for name in PARTS}
        return {(one, two): len(patients[one] & patients[two]) for one, two in combinations(PARTS, 2)}

    def save(self, path: Path) -> None:
        """Write the cut as a CSV that people can cite."""
        with artifacts.atomic(path) as temporary:
            self.frame.to_csv(temporary, index=False)
        artifacts.commit(path, {"scheme": self.scheme, "folds": self.folds, "seed": self.seed, "why": self.why})


def load_splits(path: Path, cohort: Cohort) -> Splits:
    """Read a cut that ``Splits.save`` wrote; InputError unless it is whole and made for exactly these images."""
    about = artifacts.checked(path)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(frame.columns) != COLUMNS or frame["image_id"].tolist() != cohort.frame["image_id"].tolist():
        raise InputError(f"{path} was made for other images than {cohort.describe()}: run notebook 02 again")
    return Splits(about["scheme"], about["folds"], frame, about.get("seed", 0), about.get("why", ""))


def make_splits(cohort: Cohort, task: Task, scheme: str = "official", folds: int = 5, seed: int = 0) -> Splits:
    """Cut a cohort into patient-level folds.

    Parameters
    ----------
    cohort
        N images.
    task
        Whose classes take part; other rows are ``unused``.
    scheme
        ``"official"``, ``"crossval"`` or ``"published"``, as the module says.
    folds
        How many: 2 and more, ``crossval`` 3 and more, ``published`` 1.
    seed
        Of the cut.

    Returns
    -------
    Splits
        ``frame`` has N rows in the order of the cohort's; ``fold(k)`` gives positions in it.

    Raises
    ------
    InputError
        A class would be absent from a part, or nobody is published as test part. The message names part and class. ``published``: the
        cohort has no cases, lacks some, or its groups are not cases.
    """
    if scheme not in SCHEMES:
        raise InputError(f"unknown split {scheme!r}: expected one of {', '.join(SCHEMES)}")
    if scheme == "published":
        return _published(cohort, task, folds)
    if folds < (3 if scheme == "crossval" else 2):
        raise InputError(f"{folds} folds: 'crossval' needs at least 3 (test, validation, training), 'official' 2")
    frame = cohort.frame
    part = np.full(len(frame), "unused", dtype=object)
    usable = np.array(task.codes(frame[task.label])) >= 0
    test = usable & (frame["official_split"] == "test").to_numpy() & (scheme == "official")
    if scheme == "official":
        _check_test(frame[test], task, cohort.name)
    linked = usable & ~test & frame["group"].isin(frame["group"][test]).to_numpy()
    part[test], part[linked] = "test", "dropped"
    rows = np.flatnonzero(usable & ~test & ~linked)
    part[rows], used, why = _cut(frame.iloc[rows], task, folds, seed)
    return Splits(scheme, folds, _table(frame, task, part), used, why)


def _table(frame: pd.DataFrame, task: Task, part: np.ndarray) -> pd.DataFrame:
    """Return the frame of a cut."""
    table = frame[["image_id", "patient", "group"]].assign(label=frame[task.label].fillna(""), part=part.astype(str))
    return table.reset_index(drop=True)


def _published(cohort: Cohort, task: Task, folds: int) -> Splits:
    """Return the cut by case: training, validation and test are pieces of one permutation of the cases, as the table lists them."""
    if folds != 1:
        raise InputError(f"the published split is one fold: expected `folds: 1`, found {folds}")
    frame, side = cohort.frame, published.side(cohort)
    part = np.where(np.array(task.codes(frame[task.label])) >= 0, side, "unused")
    for name in PARTS:
        if lacking := [one for one in task.classes if one not in set(frame.loc[part == name, task.label])]:
            raise InputError(f"the published {name} part of {cohort.name} has no image of {', '.join(lacking)}")
    return Splits("published", folds, _table(frame, task, part))


def _check_test(test: pd.DataFrame, task: Task, name: str) -> None:
    if test.empty:
        raise InputError(
            f"{name} publishes no test part: write `split: crossval` into the study, or a column `split` for it"
        )
    if lacking := [one for one in task.classes if one not in set(test[task.label])]:
        how = "write `split: crossval`, or a task of your own without them (`task: {name: ..., classes: [...]}`)"
        raise InputError(f"the published test part of {name} has no image of {', '.join(lacking)}: {how}")


def _cut(frame: pd.DataFrame, task: Task, folds: int, seed: int) -> tuple[np.ndarray, int, str]:
    """Return the part of every row, the seed of the cut, and why it is not the first one."""
    labels, groups = frame[task.label].to_numpy(str), np.unique(frame["group"].to_numpy(str), return_inverse=True)[1]
    per_class = {name: len(np.unique(groups[labels == name])) for name in task.classes}
    if few := {name: count for name, count in per_class.items() if count < folds}:
        told = ", ".join(f"{name} {count}" for name, count in few.items())
        how = "cut fewer folds, train on another cohort, or leave the class out in a task of your own"
        if enough := [name for name in task.classes if name not in few]:
            how += f" (`task: {{name: mine, label: {task.label}, classes: [{', '.join(enough)}]}}`)"
        raise InputError(f"{folds} folds need at least {folds} patient groups of every class; found {told}: {how}")
    first = ""
    for way, tried in product((_by_images, _by_rarest), range(seed, seed + TRIES)):
        part = np.char.add("fold", way(labels, groups, folds, tried % 2**32).astype(str)).astype(object)
        lacking = [
            (f"fold{n}", name) for n in range(folds) for name in task.classes if name not in labels[part == f"fold{n}"]
        ]
        if not lacking:
            how = "; cut by the rarest class of each group" if way is _by_rarest else ""
            return part, tried % 2**32, f"seed {seed} leaves {first}{how}" if first else ""
        first = first or "{} without {}".format(*lacking[0])
    raise InputError(
        f"expected every class in every one of {folds} folds, found {first} with seed {seed}, and {2 * TRIES - 1} other cuts do no "
        "better: cut fewer folds, or try another `seed`"
    )


def _by_images(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row: folds have alike shares of the images of every class."""
    from sklearn.model_selection import (
        StratifiedGroupKFold,
    )  # a second for which ``doctor`` and ``status`` need not wait

    return _numbered(
        StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups), len(labels)
    )


def _by_rarest(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row: folds have alike shares of the groups whose rarest class is the same."""
    from sklearn.model_selection import KFold, StratifiedKFold

    pairs = pd.DataFrame({"group": groups, "label": labels}).drop_duplicates()
    pairs["held by"] = pairs.groupby("label")["group"].transform("size")
    rarest = pairs.sort_values(["held by", "label"]).groupby("group")["label"].first()  # sorted by group
    cutter = StratifiedKFold if rarest.value_counts().max() >= folds else KFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer groups of a kind than folds: the caller looks
        fold = _numbered(cutter(folds, shuffle=True, random_state=seed).split(rarest, rarest), len(rarest))
    return fold[np.unique(groups, return_inverse=True)[1]]


def _numbered(cut: Iterable, rows: int) -> np.ndarray:
    fold = np.empty(rows, int)
    for number, (_, held_out) in enumerate(cut):
        fold[held_out] = number
    return fold


def prove_disjoint(splits: Splits, cohort: Cohort, external: tuple[Cohort, ...] = ()) -> pd.DataFrame:
    """Count what the parts of every fold share.

    Parameters
    ----------
    splits, cohort
        The cut, and the cohort that was cut.
    external
        Cohorts that test only.

    Raises
    ------
    InputError
        Parts share a patient, a group or an image; of a ``published`` cut a group, which is the case.

    Returns
    -------
    pandas.DataFrame
        One row per fold and pair of parts (training, validation, test, each external cohort): shared patients, groups and
        images (by their pixels, but for those of one grey value). All zero, or the function does not return; a ``published`` cut shares
        patients, and maybe images, with the parts of its cohort, which the table counts.
    """
    rows, keys = [], ["patient", "group", "pixels"]
    frame, *others = (one.frame[keys].assign(pixels=shown(one.frame)) for one in (cohort, *external))
    named = dict(zip([other.name for other in external], map(_sets, others), strict=True))
    for fold in map(splits.fold, range(splits.folds)):
        parts = {name: _sets(frame.iloc[getattr(fold, name)]) for name in PARTS} | named
        for one, two in combinations(parts, 2):
            if one in PARTS:
                both = [parts[one][key] & parts[two][key] for key in keys]
                rows.append((fold.number, f"{one} / {two}", *map(len, both)))
    proof = pd.DataFrame(rows, columns=["fold", "parts", *SHARED])
    leaks = proof[proof[list(SHARED)].sum(axis=1) > 0]
    if splits.scheme == "published":
        known = proof["parts"].isin([" / ".join(pair) for pair in combinations(PARTS, 2)])
        leaks = leaks[~known[leaks.index] | (leaks["shared groups"] > 0)]
    if len(leaks):
        raise InputError(f"expected disjoint parts, found overlaps:\n{leaks.to_string(index=False)}")
    return proof


def conclusion(proof: pd.DataFrame) -> str:
    """Return in a sentence what ``prove_disjoint`` found."""
    shared = proof[proof[list(SHARED)].sum(axis=1) > 0]
    if shared.empty:
        return f"Nothing is shared between the parts of any fold ({len(proof)} comparisons)."
    told = "; ".join(
        f"{row.iloc[1]} " + ", ".join(f"{row[name]} {name}" for name in SHARED) for _, row in shared.iterrows()
    )
    return f"No case is on both sides ({len(proof)} comparisons), but the cut is not by patient: {told}."


def _sets(frame: pd.DataFrame) -> dict[str, set]:
    return {name: set(cells) for name, cells in frame.items()}


def balance(splits: Splits) -> pd.DataFrame:
    """Count images and patients of every class in every part."""
    used = splits.frame[splits.frame["part"] != "unused"]
    table = used.pivot_table(index="part", columns="label", values="image_id", aggfunc="count", fill_value=0)
    return table.assign(images=table.sum(axis=1), patients=used.groupby("part")["patient"].nunique())
