"""What a pretraining may see, and the proof that it sees nothing else.

The study declares cohorts, their parts, and folders. Two rules are the program's, not the author's: no patient who is tested enters
(the published test part of the cohort that trains, and every cohort that only tests), and the validation patients of fold 0 stay
outside for the monitor. Patients are linked over all of these pictures by identical ones, so a copy under another name counts.
The cohort that trains is cut by the program; whatever else is declared and holds such a patient is refused. Of copies one enters, so
no batch holds two; near-black frames are left out. All is counted.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import cohorts, images, loading
from fpbench.cohorts import Cohort, group_patients, shown
from fpbench.cohorts.source import Source
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths
from fpbench.images import Geometry, folders
from fpbench.recipe import CorpusSpec, Pretraining
from fpbench.splits import make_splits
from fpbench.study import CohortSpec, Study
from fpbench.training.loop import number
from fpbench.training.pretraining.monitor import Monitor

VERSION = 1  # raise it when other pictures enter
DARK, LEAST = 20, 0.05  # a frame is near-black where less than this share of its pixels is brighter (of 255)
WHY = {
    "part": "another published part than the one asked for",
    "tested": "patients who are tested (the published test part, and who is linked with it)",
    "held": "validation patients of fold 0, kept for the monitor",
    "dark": "near-black frames",
    "copy": "copies of a picture that is there",
    "replaced": "replaced by test pictures",
}


class Stack:
    """Cached pictures of several cohorts as one grey array (N, S, S), read when asked for."""

    def __init__(self, arrays: list[np.ndarray], which: np.ndarray, row: np.ndarray) -> None:
        self.arrays, self.which, self.row = arrays, which, row
        self.side = arrays[0].shape[1]
        self.nbytes = len(row) * self.side**2

    def __len__(self) -> int:
        """Return N."""
        return len(self.row)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return pictures (n, S, S); of coloured ones the mean of their channels."""
        found = np.empty((len(rows), self.side, self.side), np.uint8)
        for cohort in np.unique(self.which[rows]):
            there = np.flatnonzero(self.which[rows] == cohort)
            part = self.arrays[cohort][self.row[rows[there]]]
            found[there] = part if part.ndim == 3 else part.mean(-1).astype(np.uint8)
        return found

    def only(self, rows: np.ndarray) -> "Stack":
        """Return some of the pictures."""
        return Stack(self.arrays, self.which[rows], self.row[rows])

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """Return all pictures."""
        return self[np.arange(len(self))]


@dataclass(frozen=True)
class Corpus:
    """The pictures of a pretraining."""

    name: str
    table: (
        pd.DataFrame
    )  # all pictures of the cohorts concerned: who they are, and the masks ``learns``, ``bank``, ``query``
    stack: Stack  # their pixels, in the same order
    left_out: pd.DataFrame  # cohort, why, pictures
    classes: tuple[str, ...]  # of the task
    sources: dict[str, Source]  # cohort name -> its facts
    transductive: bool = False

    @cached_property
    def learners(self) -> np.ndarray:
        """Return the rows that are learnt from."""
        return np.flatnonzero(self.table["learns"])

    def monitor(self) -> Monitor:
        """Return bank and queries; InputError where they say too little."""
        bank, queries = (np.flatnonzero(self.table[name]) for name in ("bank", "query"))
        codes = self.table["code"].to_numpy()
        return Monitor(bank, codes[bank], queries, codes[queries], self.classes)

    def digest(self) -> str:
        """Return a digest of what is learnt from and of what the monitor sees."""
        marks = self.table[["learns", "bank", "query"]].to_numpy()
        used = marks.any(1)
        rows = self.table.loc[used, ["image_id", "pixels", "code"]].to_numpy().tolist()
        return artifacts.digest([VERSION, rows, marks[used].tolist()])

    def summary(self) -> pd.DataFrame:
        """Return a row per cohort and published part: pictures, patients, and a digest of the pixels."""
        parts = self.table[self.table["learns"]].groupby(["cohort", "official_split"], sort=False)
        rows = [
            {
                "cohort": cohort,
                "part": part or "none",
                "pictures": len(rows),
                "patients": rows["patient"].nunique(),
                "pixels": artifacts.digest(sorted(rows["pixels"]))[:16],
            }
            for (cohort, part), rows in parts
        ]
        return pd.DataFrame(rows)

    def saw(self) -> dict[str, str]:
        """Return population -> what of it was seen, in words, of the populations in the corpus."""
        seen: dict[str, str] = {}
        for cohort in self.table.loc[self.table["learns"], "cohort"].unique():
            tests = self.transductive and self.table.loc[self.table["cohort"] == cohort, "tested"].any()
            seen[self.sources[cohort].population] = "yes, test pictures too" if tests else "yes"
        return seen


def gather(study: Study, name: str) -> Corpus:
    """Return the corpus that a study declares for one of its pretrainings, cut by the rules of this module.

    Raises
    ------
    InputError
        The split is not ``official``; a declared cohort tests in this study; somebody who is tested, or held for the monitor, is in
        what was declared beside the cohort that trains; nothing is left.
    """
    plan = study.pretraining[name]
    home, external = loading.load_cohorts(study)
    opened = [_open(study, spec, (home, *external)) for spec in plan.corpus]
    table, known = _together(study, home, external, opened)
    reasons: list[tuple[str, str, int]] = []

    def leave_out(mask: np.ndarray, why: str) -> None:
        gone = table["learns"] & mask
        reasons.extend((cohort, WHY[why], count) for cohort, count in table.loc[gone, "cohort"].value_counts().items())
        table.loc[gone, "learns"] = False

    for spec, cohort in zip(plan.corpus, opened, strict=True):
        here = table["cohort"] == cohort.name
        table.loc[here, "learns"] = True
        leave_out(here & bool(spec.parts) & ~table["official_split"].isin(spec.parts), "part")
        if cohort is not home:
            _refuse(table[here & table["learns"]], spec, cohort in external)
    leave_out(table["tested"], "tested")
    leave_out(table["held"], "held")
    stack = _stack(study, plan, table, known)
    looked_at = table["learns"] | (table["role"] != "")
    dark = np.zeros(len(table), bool)
    dark[looked_at] = near_black(stack, np.flatnonzero(looked_at))
    leave_out(dark, "dark")
    copies = table.sort_values("learns", ascending=False, kind="stable")["pixels"].duplicated().reindex(table.index)
    leave_out(copies, "copy")
    clear = table.loc[table["code"] >= 0].groupby("pixels")["code"].nunique()
    told = (table["code"] >= 0) & table["pixels"].map(clear).eq(1)
    table["bank"], table["query"] = table["learns"] & told, (table["role"] == "validation") & told & ~dark
    if plan.transductive:
        _leak(table, dark, home.name, plan.seed, leave_out)
    if not table["learns"].any():
        raise InputError(f"pretraining {name}: nothing is left of {', '.join(spec.title for spec in plan.corpus)}")
    left_out = pd.DataFrame(reasons, columns=["cohort", "left out", "pictures"])
    sources = {cohort.name: cohort.source for cohort in known}
    return Corpus(name, table, stack, left_out, study.the_task.classes, sources, plan.transductive)


def _open(study: Study, spec: CorpusSpec, loaded: tuple[Cohort, ...]) -> Cohort:
    """Return a part of the corpus as a cohort; one that the study itself has is that one."""
    if spec.folder:
        return _folder(paths.expand(spec.folder))
    for own, cohort in zip(study.cohorts, _in_order(study, loaded), strict=True):
        if (spec.name, spec.file) == (own.name, own.file) and spec.root in ("", own.root):
            return cohort
    return cohorts.load_cohort(*place(study, spec), spec.missing)


def _in_order(study: Study, loaded: tuple[Cohort, ...]) -> list[Cohort]:
    """Return the cohorts of a study in the order of its file."""
    by_name = {cohort.name: cohort for cohort in loaded}
    return [by_name[source.name] for source in loading.sources(study)]


def place(study: Study, spec: CorpusSpec) -> tuple[str, Path | None]:
    """Return a cohort of the corpus as ``load_cohort`` takes it: its name and folder, or the file that describes it."""
    known = {own.name: own for own in study.cohorts if own.name}
    if spec.name in known and not spec.root:
        return loading.where(study, known[spec.name])
    return loading.where(study, CohortSpec(spec.name, spec.file, spec.root))


def listed(folder: Path) -> list[Path]:
    """Return the pictures below a folder, in the order of their paths, hidden ones left out; MissingError where there are none."""
    if not (files := folders.below(folder)):
        raise MissingError(
            f"corpus: expected a folder with pictures at {folder}, found none: check the path in the study"
        )
    folders.check_names(files)
    return files


def _folder(folder: Path) -> Cohort:
    """Return the pictures of a folder as a cohort: nothing is known of them, each is taken for a patient of its own."""
    files = listed(folder)
    frame = pd.DataFrame({"image_id": [f"{folder.name}/{file.relative_to(folder)}" for file in files], "path": files})
    looked = images.scan(files)
    if (bad := looked["error"] != "").any():
        raise InputError(
            f"corpus: {bad.sum():,} unreadable pictures in {folder}, the first: {looked.loc[bad, 'error'].iat[0]}"
        )
    frame = pd.concat([frame.assign(patient=frame["image_id"], official_split=""), looked], axis=1)
    unread = lambda path, name: frame  # noqa: E731
    return Cohort(
        Source(folder.name, folder.name, folder.name, "", unread, {}, "machine", "not stated", "not stated"), frame
    )


def _together(
    study: Study, home: Cohort, external: tuple[Cohort, ...], opened: list[Cohort]
) -> tuple[pd.DataFrame, list[Cohort]]:
    """Return all pictures concerned, linked by patient and pixels, and their cohorts; ``role``: what the study does with one."""
    known = list({id(cohort): cohort for cohort in (home, *external, *opened)}.values())
    if twice := pd.Series([cohort.name for cohort in known]).pipe(lambda names: names[names.duplicated()]).tolist():
        raise InputError(
            f"corpus: two of its parts, or of the study's cohorts, are called {twice[0]!r}: expected names of their own"
        )
    task, tables = study.the_task, []
    for number_of, cohort in enumerate(known):
        frame = cohort.frame
        part = frame[["image_id", "patient"]].assign(
            pixels=shown(frame), cohort=cohort.name, array=number_of, row=np.arange(len(frame))
        )
        part["official_split"] = frame["official_split"].fillna("")
        part["code"] = task.codes(frame[task.label]) if task.label in frame else -1
        part["role"] = "external" if cohort in external else ""
        tables.append(part)
    table = pd.concat(tables, ignore_index=True).assign(learns=False)
    splits = make_splits(home, task, study.split, study.folds, study.seed)
    part = splits.frame["part"].to_numpy()
    role = np.where(part == "test", "test", np.where(part == "fold0", "validation", ""))
    table.loc[table["cohort"] == home.name, "role"] = role
    table["group"] = group_patients(table["patient"], table["pixels"])
    published = (table["cohort"] == home.name) & (table["official_split"] == "test")
    table["tested"] = table["group"].isin(table["group"][table["role"].isin(["test", "external"]) | published])
    table["held"] = table["group"].isin(table["group"][table["role"] == "validation"])
    return table, known


def _refuse(rows: pd.DataFrame, spec: CorpusSpec, tests: bool) -> None:
    """Raise InputError for a declared cohort or folder with somebody who is tested or held."""
    if tests:
        raise InputError(f"corpus: {spec.title} tests in this study, so nobody of it may be learnt from: take it out")
    for mark, who in (("tested", "patients who are tested in this study"), ("held", "validation patients of fold 0")):
        if len(bad := rows[rows[mark]]):
            first = bad["image_id"].iat[0]
            found = f"{len(bad):,} pictures of {who}, or linked with them by an identical picture, the first is {first}"
            raise InputError(f"corpus: {spec.title}: expected none, found {found}: take them out")


def _stack(study: Study, plan: Pretraining, table: pd.DataFrame, known: list[Cohort]) -> Stack:
    """Return the pixels of all pictures, in the geometry of the encoder that is the start, at the side of the cache."""
    shape = loading.geometry(study, plan.start)
    square = Geometry(shape.kind, plan.views.cache, shape.interpolation, shape.crop)
    wanted = table.loc[table["learns"] | (table["role"] != "external"), "array"].unique()
    arrays = [
        cohort.array(square) if n in wanted else np.zeros((0, square.size, square.size), np.uint8)
        for n, cohort in enumerate(known)
    ]
    return Stack(arrays, table["array"].to_numpy(), table["row"].to_numpy())


def near_black(stack: Stack, rows: np.ndarray, block: int = 512) -> np.ndarray:
    """Return which of some pictures are near-black."""
    cuts = [rows[start : start + block] for start in range(0, len(rows), block)]
    return np.concatenate([(stack[cut] > DARK).mean((1, 2)) < LEAST for cut in cuts]) if cuts else np.zeros(0, bool)


def _leak(table: pd.DataFrame, dark: np.ndarray, home: str, seed: int, leave_out: object) -> None:
    """Put test pictures in the place of as many training pictures of the same cohort, drawn by the seed."""
    assert callable(leave_out)
    source = np.random.default_rng(number(seed, "transductive"))
    test = np.flatnonzero((table["role"] == "test") & ~dark & ~table["pixels"].duplicated())
    own = np.flatnonzero(table["learns"] & (table["cohort"] == home))
    count = min(len(test), len(own))
    mask = np.zeros(len(table), bool)
    mask[source.permutation(own)[:count]] = True
    leave_out(mask, "replaced")
    table.loc[np.sort(source.permutation(test)[:count]), "learns"] = True


def prove(corpus: Corpus) -> pd.DataFrame:
    """Count what the corpus shares with who is tested and with who is held for the monitor.

    Returns
    -------
    pandas.DataFrame
        Columns parts, shared patients, shared groups, shared images; all 0 but, in a transductive corpus, against the test part.

    Raises
    ------
    InputError
        Something is shared; it lists what.
    """
    table, rows = corpus.table, []
    learns = table[table["learns"]]
    for other, role in (
        ("tested", table["tested"] & ~table["learns"] | table["role"].isin(["test", "external"])),
        ("held", table["role"] == "validation"),
    ):
        shared = [len(set(learns[key]) & set(table.loc[role, key])) for key in ("patient", "group", "pixels")]
        rows.append((f"corpus / {'tests of the study' if other == 'tested' else 'validation of fold 0'}", *shared))
    rows.append(
        (
            "monitor: bank / queries",
            *(
                len(set(table.loc[table["bank"], key]) & set(table.loc[table["query"], key]))
                for key in ("patient", "group", "pixels")
            ),
        )
    )
    proof = pd.DataFrame(rows, columns=["parts", "shared patients", "shared groups", "shared images"])
    allowed = proof.index[:1] if corpus.transductive else []
    if len(leaks := proof.drop(allowed)[lambda found: found.iloc[:, 1:].sum(axis=1) > 0]):
        raise InputError(
            f"pretraining {corpus.name}: expected disjoint parts, found overlaps:\n{leaks.to_string(index=False)}"
        )
    return proof
