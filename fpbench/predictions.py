"""Predictions: what crosses from compute to analysis.

One parquet file per encoder, protocol, fold and seed: one row per image, validation and test rows, with the logits of every class
of the task. A JSON sidecar says where they come from. Every score, interval, table and most figures are functions of these
files alone, so the analysis can be rebuilt anywhere without an image or a GPU.

Answers of somebody else's model (``submissions``) may come without logits: the column ``answer`` stands in their place, a class of the
task or any other word, which is a miss. ``outputs`` gives what a model said as arrays.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fpbench import metrics
from fpbench.cohorts import Cohort, distinct
from fpbench.cohorts.source import check_plain
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts
from fpbench.files.fingerprints import same
from fpbench.tasks import Task

IDENTITY = ("image_id", "patient", "group", "centre")  # of the image, as in its cohort
RUN = ("cohort", "population", "split", "fold", "encoder", "protocol", "target", "n_patients", "seed")
COLUMNS = (*IDENTITY, "distinct", *RUN, "y_true")  # then logit_<class> in the order of the task, or ANSWER
ANSWER = "answer"
KINDS = {"distinct": "boolean"} | dict.fromkeys(("fold", "n_patients", "seed", "y_true"), "integer")  # others: text
SPLITS = ("val", "test")
SIDECAR = ("key", "study", "encoder", "chosen", "provenance")


def rows(cohort: Cohort, task: Task, positions: np.ndarray, said: np.ndarray, **run: object) -> pd.DataFrame:
    """Return the rows of one model on some images of a cohort.

    Parameters
    ----------
    positions
        (n,) rows of ``cohort.frame``, all of them of a class of the task.
    said
        Logits (n, K), in the order of ``task.classes``; or answers (n,), words.
    run
        ``split``, ``fold``, ``encoder``, ``protocol``, ``n_patients`` (that trained), ``seed``.
    """
    frame, said = cohort.frame.iloc[positions], np.asarray(said)
    names = task.columns() if said.ndim == 2 else [ANSWER]
    values = np.asarray(said, np.float32).T if said.ndim == 2 else [said]
    known = {
        "distinct": distinct(cohort.frame, task.label)[positions],
        "cohort": cohort.name,
        "population": cohort.source.population,
        "target": task.name,
        "y_true": np.array(task.codes(frame[task.label]), np.int16),
        **dict(zip(names, values, strict=True)),
    }
    known |= dict(frame[list(IDENTITY)].items()) | run
    return pd.DataFrame({name: known[name] for name in (*COLUMNS, *names)}, index=frame.index)


def outputs(frame: pd.DataFrame, task: Task) -> np.ndarray:
    """Return what a model said: logits (N, K), or, where it gave no more than answers, class indices (N,), ``metrics.NONE`` for other words.

    Raises
    ------
    InputError
        Some of the rows have logits and some have none: they are of several models.
    """
    alone = frame[ANSWER].notna().to_numpy() if ANSWER in frame else np.zeros(len(frame), bool)
    if not alone.any():
        return frame[task.columns()].to_numpy()
    if not alone.all():
        raise InputError(f"expected rows of one model, found {alone.sum():,} of {len(frame):,} without logits")
    assert metrics.NONE == -1  # as Task.codes has it
    return np.array(task.codes(frame[ANSWER]))


def with_logits(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the rows that have logits: the others take no part in what needs probabilities."""
    return frame[frame[ANSWER].isna()].drop(columns=ANSWER) if ANSWER in frame else frame


def write(path: Path, frame: pd.DataFrame, task: Task, about: dict) -> None:
    """Validate and write a predictions file, then its sidecar ``about`` (SIDECAR and whatever else is known)."""
    frame = frame.reset_index(drop=True).astype({"fold": "int16", "seed": "int64", "n_patients": "int32"})
    validate(frame, task, str(path))
    if absent := [name for name in SIDECAR if name not in about]:
        raise InputError(f"{path}: the sidecar must say {', '.join(absent)}")
    with artifacts.atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)
    artifacts.commit(path, about)


def is_current(path: Path, key: str) -> bool:
    """Return whether a whole, undamaged predictions file of this very run is there."""
    return artifacts.whole(path).get("key") == key


def read(files: Iterable[Path], task: Task) -> pd.DataFrame:
    """Read and validate predictions files.

    Parameters
    ----------
    files
        Parquet files, each with its sidecar, of one study.
    task
        Whose K classes name the logit columns.

    Returns
    -------
    pandas.DataFrame
        One row per image x fold, validation and test: COLUMNS, then K logits (not probabilities). Where a file has answers alone, a
        column ``answer`` stands before the logits: missing where there are logits, and these where there is an answer.

    Raises
    ------
    MissingError
        No files, or one is not there.
    InputError
        A file is damaged, is no table of the task, holds a row twice, has a group in validation and test of one fold, or its
        encoder has another fingerprint than in the other files; the message names the file.
    """
    frames: list[tuple[Path, pd.DataFrame]] = []
    first: dict[
        tuple, tuple[dict, Path]
    ] = {}  # encoder (and the seed it was pretrained with) -> its fingerprint and where it stood
    for path in sorted(files):
        try:
            encoder: Any = artifacts.checked(path).get("encoder")
        except FileNotFoundError:
            raise MissingError(f"expected a predictions file with its sidecar at {path}: run notebook 04") from None
        try:
            run = "submission" not in encoder  # else nothing was run here, and there is no fingerprint
            whose = (encoder["name"], encoder.get("seed")) if run else ()
            known, other = first.setdefault(whose, (encoder["fingerprint"], path)) if run else ({}, path)
            equal, frame = not run or same(known, encoder["fingerprint"]), pd.read_parquet(path)
        except Exception as error:  # a foreign file can raise anything
            raise InputError(f"{path}: no predictions file and its sidecar ({error!r:.200}): delete both") from None
        if not equal:
            raise InputError(
                f"{path}: expected {encoder['name']} with the fingerprint that {other} has, found another one: adapter, "
                "library or weights changed between the two; delete the older and run again"
            )
        if not len(frame) or not frame.dtypes.equals(frames[0][1].dtypes if frames else None):
            validate(frame, task, str(path))  # those that look like the first are held to the rules together with it
        frames.append((path, frame))
    if not frames:
        raise MissingError("expected predictions files, found none: run notebook 04 first")
    together = pd.concat([frame for _, frame in frames], ignore_index=True)
    if ANSWER in together:
        if not set(task.columns()) & set(together):
            together = together.assign(**dict.fromkeys(task.columns(), np.float32(np.nan)))
        together = together[[*COLUMNS, ANSWER, *task.columns()]]
    try:
        validate(together, task, "these files together")
    except InputError:  # which of them?
        for path, frame in frames:
            validate(frame, task, str(path))
        raise
    return together


def validate(frame: pd.DataFrame, task: Task, where: str) -> None:
    """Raise InputError unless the frame is a predictions table of the task: with logits, with answers, or of both kinds (``read``)."""
    logits = task.columns()
    has_logits = ANSWER not in frame or bool(set(logits) & set(frame))
    expected = [*COLUMNS, *([ANSWER] if ANSWER in frame else []), *(logits if has_logits else [])]
    if list(frame.columns) != expected:
        raise InputError(f"{where}: expected the columns {expected}, found {list(frame.columns)}")
    for name in expected:
        kind = KINDS.get(name, "floating" if name in logits else "string")
        found = pd.api.types.infer_dtype(frame[name], skipna=name in ("centre", ANSWER))  # a cohort may know none
        if found not in (kind, "empty"):
            raise InputError(f"{where}: expected {kind} values in the column {name}, found {found}")
    check_plain(frame[[name for name in expected if name not in (*KINDS, *logits)]], where)
    if not set(frame["split"]) <= set(SPLITS) or not len(frame):
        raise InputError(
            f"{where}: expected rows with split {' or '.join(SPLITS)}, found {sorted(set(frame['split']))}"
        )
    alone = frame[ANSWER].notna() if ANSWER in frame else pd.Series(False, frame.index)
    if has_logits and not np.isfinite(frame.loc[~alone, logits].to_numpy()).all():
        raise InputError(f"{where}: expected finite logits, found NaN or infinity")
    if not has_logits and not alone.all():
        raise InputError(f"{where}: expected an answer in every row, found {int((~alone).sum())} without")
    if not frame["y_true"].between(0, len(task.classes) - 1).all():
        raise InputError(
            f"{where}: expected y_true from 0 to {len(task.classes) - 1}, found {sorted(set(frame['y_true']))}"
        )
    _refuse_twice(frame, where)
    sides = frame.groupby(["encoder", "protocol", "fold", "group"])["split"].nunique()
    if (sides > 1).any():
        raise InputError(
            f"{where}: group {sides.idxmax()[-1]} is in validation and test of one fold: expected disjoint groups"
        )


def _refuse_twice(frame: pd.DataFrame, where: str) -> None:
    key = ["image_id", "fold", "split", "encoder", "protocol", "target", "n_patients", "seed"]
    if (twice := frame.duplicated(key)).any():
        raise InputError(
            f"{where}: {int(twice.sum())} rows stand twice, the first is {frame.loc[twice, 'image_id'].iloc[0]}"
        )
