"""Answers of somebody else's model: a table of theirs in, predictions files out, under the protocol ``submitted``.

The table is joined with the label files of the study's cohorts, by image or, where that is asked for, by the order of rows. Only test
rows are kept: of every fold where the table names folds; otherwise it is one model, and each fold repeats it. Where the pictures of a
cohort are not there, its label file is enough: copies are not known then, and the group of a picture is its patient.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import cohorts, loading, metrics, predictions, results
from fpbench.cohorts import Cohort
from fpbench.cohorts.cells import EXCEL, PARQUET, SEPARATORS, decoded, open_table
from fpbench.cohorts.pictures import short, tidy
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, provenance
from fpbench.protocols import SUBMITTED
from fpbench.splits import Splits, make_splits
from fpbench.study import Study, check_names
from fpbench.tasks import Task

KINDS = ("logits", "probabilities")
KNOWN = (".csv", ".tsv", ".txt", *EXCEL, *PARQUET, ".json")  # suffixes
PREFIXES = ("", "logit_", "logits_", "prob_", "probability_", "p_", "score_")  # of a column named after a class
SUM = 1e-3  # how far probabilities of a row may be from 1 in sum
SMALLEST = 1e-12  # probability that is told from 0


@dataclass(frozen=True)
class Form:
    """How somebody else's table is to be read; empty fields are found by looking."""

    image: str = ""  # column that names the picture: id, path or file name, with or without suffix
    answer: str = ""  # column of answers; empty: one column per class
    kind: str = ""  # of the columns per class: logits | probabilities
    fold: str = ""  # column of fold numbers, from 0
    label: str = ""  # column of true classes, held against ours
    words: Mapping[str, str] = field(default_factory=dict)  # their words -> ours, of answers, labels and class columns
    in_order: bool = False  # no column names the picture: rows are those of the label file whose class is one of the task, in its order
    cohort: str = ""  # whose label file, of a study with several


@dataclass(frozen=True)
class Joined:
    """Their rows beside ours."""

    table: pd.DataFrame  # image_id, cohort, y_true, fold (-1: all), and answer or logit_<class>
    lines: list[str]  # what did not join, and what else a reader must know


def submit(study: Study, name: str, file: str | Path, form: Form | None = None) -> list[str]:
    """Import answers into a study, as predictions of the model ``name`` under the protocol ``submitted``.

    Parameters
    ----------
    name
        What the model is called in tables and file names.
    file
        CSV, TSV, Excel, JSON (columns, or records) or parquet.

    Returns
    -------
    list of str
        What was joined, what was not, what the answers score.

    Raises
    ------
    InputError
        No such columns, nothing that joins, an image that is answered twice, labels that are not ours, or rows of the test part
        without an answer. Nothing is written then.
    """
    form, file, task = form or Form(), Path(file), study.the_task
    check_names(name)
    theirs = read(file)
    places = [loading.where(study, spec) for spec in study.cohorts]
    opened, lines = _open(study, places)
    home = next(one for one in opened if one.source.population == task.train)
    ordered = _ordered(opened, places, form, file) if form.in_order else None
    joined = join(theirs, opened, task, form, file, ordered)
    lines += joined.lines
    splits = make_splits(home, task, study.split, study.folds, study.seed)
    answered = set(joined.table["cohort"])
    frames = _test_rows(study, name, joined.table, [one for one in opened if one.name in answered], home, splits)
    key = [artifacts.file_sha256(file), asdict(form), [one.fingerprint() for one in opened], splits.digest()]
    about = {
        "key": artifacts.digest(key),
        "study": asdict(study),
        "encoder": {"name": name, "submission": {"file": file.name, "sha256": key[0], "form": asdict(form)}},
        "chosen": {},
        "provenance": provenance.provenance(),
    }
    files = [results.path(study, name, SUBMITTED, fold) for fold in frames]
    for path, frame in zip(files, frames.values(), strict=True):
        predictions.write(path, frame, task, about)
    results.conclude(study, name, SUBMITTED, files)
    lines += [f"not answered: no row of {one.name} is in the file" for one in opened if one.name not in answered]
    return [*lines, *_scored(task, joined.table, frames), f"written: {len(files)} files in {files[0].parent}"]


def _open(study: Study, places: list[tuple[str, Path | None]]) -> tuple[list[Cohort], list[str]]:
    """Return the cohorts of the study, and where the label file alone is known: a line each."""
    loading.sources(study)
    opened, lines = [], []
    for spec, place in zip(study.cohorts, places, strict=True):
        try:
            opened.append(cohorts.load_cohort(place[0], place[1], spec.missing))
        except MissingError:
            opened.append(cohorts.load_labels(*place))
            why = "its pictures are not all there, so its label file alone is read"
            lines.append(f"{opened[-1].name}: {why}: the group is the patient, copies are not known")
    loading.check(study, opened)
    return loading.grouped(study, opened), lines


def read(file: Path) -> pd.DataFrame:
    """Return a table as it is, cells of text where the file has no types; InputError if it is none.

    Of a text the separator is the one that its first line has most of.
    """
    kind = file.suffix.lower()
    if not os.path.isfile(file):
        raise MissingError(f"expected a table of answers at {file}, found nothing")
    if kind not in KNOWN:
        raise InputError(f"{file}: expected a file {', '.join(KNOWN)}, found {file.suffix or 'no suffix'}")
    if kind not in (".json", *PARQUET):
        first = "" if kind in EXCEL else decoded(file, "utf-8").partition("\n")[0]
        raw = open_table(file, [max(SEPARATORS, key=first.count)])
        return raw.frame(raw.header).reset_index(drop=True)
    try:
        table = pd.DataFrame(json.loads(file.read_bytes())) if kind == ".json" else pd.read_parquet(file)
    except Exception as error:  # a foreign file can raise anything
        raise InputError(f"{file}: not a table of answers ({error!r:.200})") from None
    if table.empty:
        raise InputError(f"{file}: expected rows, found none")
    return table.rename(columns=str).reset_index(drop=True)


def join(
    table: pd.DataFrame, opened: list[Cohort], task: Task, form: Form, file: Path, ordered: Cohort | None = None
) -> Joined:
    """Return the rows of their table that are of a picture of ours, of a class of the task; ``ordered``: the labels with their order."""
    for column in (form.image, form.answer, form.fold, form.label):
        _column(table, column, file)
    if ordered:
        image_id, lines = _by_order(table, ordered, task, file)
    else:
        image_id, lines = _by_image(table, opened, form, file)
    said = _answers(table, task, form, file) if form.answer else _logits(table, task, form, file)
    known = pd.concat([one.frame.assign(cohort=one.name) for one in opened]).set_index("image_id")
    known = known.assign(y_true=task.codes(known[task.label]))
    fold = pd.to_numeric(table[form.fold], errors="coerce") if form.fold else pd.Series(-1, table.index)
    if form.fold and (odd := ~((fold >= 0) & (fold % 1 == 0))).any():
        raise InputError(
            f"{file}: expected fold numbers from 0 in {form.fold!r}, found {table[form.fold][odd].iat[0]!r}"
        )
    ours = known[["cohort", "y_true"]].reindex(image_id).set_axis(table.index)
    found = pd.concat([image_id.rename("image_id"), ours, fold.astype(int).rename("fold"), said], axis=1)
    if form.label:
        _check_labels(table[form.label], found, task, form, file)
    found = found[found["y_true"].fillna(-1) >= 0]
    found = found[found[predictions.ANSWER] != ""] if form.answer else found
    if found.empty:
        raise InputError(f"{file}: expected answers to images of {', '.join(task.classes)}, found none")
    if (twice := found.duplicated(["image_id", "fold"])).any():
        first = found.loc[twice, "image_id"].iat[0]
        how = "name the column of folds" if not form.fold else "expected one row for each image and fold"
        raise InputError(f"{file}: {int(twice.sum())} images are answered twice, the first is {first}: {how}")
    if form.answer and (others := found[~found[predictions.ANSWER].isin(task.classes)]).size:
        if len(others) == len(found):
            words = ", ".join(map(repr, others[predictions.ANSWER].unique()[:8]))
            raise InputError(
                f"{file}: no answer is a class of the task, the first are {words}: say which is which with `words`"
            )
        counts = others[predictions.ANSWER].value_counts()
        told = ", ".join(f"{word} {count:,}" for word, count in counts.items())
        lines.append(f"answers that are no class of the task, so misses: {told}")
    return Joined(found.astype({"y_true": int}).reset_index(drop=True), lines)


def _column(table: pd.DataFrame, name: str, file: Path) -> None:
    if name and name not in table:
        raise InputError(f"{file}: no column {name!r}: expected one of {', '.join(map(str, table.columns))}")


def _ordered(opened: list[Cohort], places: list[tuple[str, Path | None]], form: Form, file: Path) -> Cohort:
    """Return the labels of the cohort whose label file has the order of the table."""
    named = [place for one, place in zip(opened, places, strict=True) if form.cohort in ("", one.name)]
    if len(named) != 1:
        names = ", ".join(one.name for one in opened)
        raise InputError(f"expected the cohort whose label file has the order of {file.name}: name one of {names}")
    return cohorts.load_labels(*named[0])


def _by_order(table: pd.DataFrame, labels: Cohort, task: Task, file: Path) -> tuple[pd.Series, list[str]]:
    listed = labels.frame[labels.frame[task.label].isin(task.classes)].sort_values("order")
    rows = f"those of {labels.source.csv} whose {task.label} is {', '.join(task.classes)}"
    if len(listed) != len(table):
        how = "are the classes of the study's task those of the file?"
        raise InputError(f"{file}: expected {len(listed):,} rows, {rows}; found {len(table):,}: {how}")
    return pd.Series(listed["image_id"].to_numpy(), table.index), [f"joined by order: {len(table):,} rows, {rows}"]


def _by_image(table: pd.DataFrame, opened: list[Cohort], form: Form, file: Path) -> tuple[pd.Series, list[str]]:
    """Return our image_id for each row (missing where there is none): that with the longest common tail of the path."""
    if not form.image:
        names = ", ".join(map(str, table.columns))
        how = "name the column of the pictures, or ask for the order of the label file"
        raise InputError(f"{file}: which picture is a row of? {how}; found {names}")
    tails: dict[str, set[str]] = {}
    for image_id in pd.concat([one.frame["image_id"] for one in opened]):
        for tail in _tails(image_id):
            tails.setdefault(tail, set()).add(image_id)
    found, several, cells = [], 0, table[form.image].fillna("").astype(str)
    for cell in cells:
        fits = next((tails[tail] for tail in _tails(cell) if tail in tails), set())
        several += len(fits) > 1
        found.append(next(iter(fits)) if len(fits) == 1 else None)
    image_id = pd.Series(found, table.index, dtype=object)
    lost, lines = (
        cells[image_id.isna()],
        [f"joined by image: {image_id.notna().sum():,} of {len(table):,} rows"],
    )
    if len(lost) == len(table):
        ours = opened[0].frame["image_id"].iat[0]
        raise InputError(f"{file}: no row is of a picture of the study: found {lost.iat[0]!r}, ours are like {ours!r}")
    if len(lost):
        why = f", {several:,} of them fit several pictures (give more of the path)" if several else ""
        lines.append(f"not joined: {len(lost):,} rows{why}, the first is {lost.iat[0]!r}")
    return image_id, lines


def _tails(name: str) -> list[str]:
    """Return the ways in which a picture may be called, the longest first: its path without suffix, and ends of it."""
    parts = short(tidy(name.strip())).split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _answers(table: pd.DataFrame, task: Task, form: Form, file: Path) -> pd.DataFrame:
    words = table[form.answer].fillna("").astype(str).str.strip()
    return words.map(lambda word: form.words.get(word, word)).to_frame(predictions.ANSWER)


def _logits(table: pd.DataFrame, task: Task, form: Form, file: Path) -> pd.DataFrame:
    """Return logits, in the order of the task, from one column per class."""
    called: dict[str, list[str]] = {name: [] for name in task.classes}
    for column in table:
        for prefix in PREFIXES:
            word = column.removeprefix(prefix) if column.startswith(prefix) else ""
            if (ours := form.words.get(word, word)) in called and column not in called[ours]:
                called[ours].append(column)
    if wrong := {name: columns for name, columns in called.items() if len(columns) != 1}:
        told = "; ".join(f"{name}: {', '.join(columns) or 'none'}" for name, columns in wrong.items())
        raise InputError(f"{file}: expected a column of answers, or one for each class of the task; found for {told}")
    values = table[[columns[0] for columns in called.values()]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise InputError(f"{file}: expected numbers for every class, found others in data row {row + 1}")
    sums = np.abs(values.sum(1) - 1).max() <= SUM and values.min() >= 0
    if form.kind not in ("", *KINDS):
        raise InputError(f"unknown kind {form.kind!r}: expected one of {', '.join(KINDS)}")
    if form.kind == "probabilities" and not sums:
        raise InputError(f"{file}: expected probabilities that add up to 1 over the classes of the task, found others")
    if sums and form.kind != "logits":
        values = np.log(np.maximum(values, SMALLEST))
    return pd.DataFrame(values, table.index, task.columns())


def _check_labels(theirs: pd.Series, found: pd.DataFrame, task: Task, form: Form, file: Path) -> None:
    words = theirs.fillna("").astype(str).str.strip().map(lambda word: form.words.get(word, word))
    there = found["y_true"].notna()
    codes = np.array(task.codes(words[there]))
    if len(wrong := np.flatnonzero(codes != found.loc[there, "y_true"].to_numpy(int))):
        row = found[there].iloc[wrong[0]]
        ours = [*task.classes, "no class of the task"][int(row["y_true"])]
        said = f"{row['image_id']}: {words[there].iat[wrong[0]]!r} there, {ours!r} here"
        raise InputError(
            f"{file}: {len(wrong):,} labels are not ours, the first of {said}: another order, or words to translate?"
        )


def _test_rows(
    study: Study, name: str, table: pd.DataFrame, answered: list[Cohort], home: Cohort, splits: Splits
) -> dict[int, pd.DataFrame]:
    """Return the rows of every fold's predictions file; InputError where a test row has no answer."""
    task, frames = study.the_task, {}
    columns = [predictions.ANSWER] if predictions.ANSWER in table else task.columns()
    if strangers := sorted(set(table["fold"]) - set(range(study.folds)) - {-1}):
        raise InputError(f"expected folds 0 to {study.folds - 1}, found {strangers}")
    for fold in range(study.folds):
        parts, said = [], table[table["fold"].isin([-1, fold])].set_index("image_id")[columns]
        for cohort in answered:
            codes = np.array(task.codes(cohort.frame[task.label]))
            positions = splits.fold(fold).test if cohort is home else np.flatnonzero(codes >= 0)
            ids = cohort.frame["image_id"].iloc[positions]
            if len(lacking := ids[~ids.isin(said.index)]):
                counts = cohort.frame.set_index("image_id").loc[lacking, task.label].value_counts().to_dict()
                told = ", ".join(f"{label} {count:,}" for label, count in counts.items())
                how = "answer them, or leave their classes out in a task of your own"
                raise InputError(
                    f"{name}: expected an answer to each of the {len(ids):,} test images of {cohort.name} (fold {fold}), found "
                    f"none for {len(lacking):,} ({told}), the first is {lacking.iat[0]}: {how}"
                )
            values = said.loc[ids].to_numpy()
            values = values[:, 0].astype(str) if columns == [predictions.ANSWER] else values
            run = {"fold": fold, "encoder": name, "protocol": SUBMITTED, "n_patients": 0, "seed": study.seed}
            parts.append(predictions.rows(cohort, task, positions, values, split="test", **run))
        frames[fold] = pd.concat(parts)
    return frames


def _scored(task: Task, table: pd.DataFrame, frames: dict[int, pd.DataFrame]) -> list[str]:
    """Return what the answers score: on all that joined, whoever was trained on it (one model alone), and on the test rows."""
    lines, parts = [], [("test part, mean over the folds", list(frames.values()))]
    if (table["fold"] == -1).all():
        parts = [("all that joined", [table]), *parts]
    for name in dict.fromkeys(table["cohort"]):
        for what, frames_of in parts:
            mine = [rows[rows["cohort"] == name] for rows in frames_of]
            found = [metrics.scores(y := rows["y_true"].to_numpy(), predictions.outputs(rows, task), np.unique(y).tolist(), ranked=False) for rows in mine]  # fmt: skip
            score, images = np.mean([one["macro F1"] for one in found]), len(pd.concat(mine)["image_id"].unique())
            lines.append(f"{name}, {what}: macro F1 {score:.4f} over the classes there, {images:,} images")
    return lines
