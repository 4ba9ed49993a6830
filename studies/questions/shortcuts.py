"""Shortcuts: what do the frozen embeddings know besides anatomy, and how much of the score could it explain?

Every question is asked by the same probe on the same embeddings, and answered by predictions files like any other, which lie
aside (``Study.predictions``): another target (machine, operator, picture size, country), training without one machine, pictures with
their corners blackened, and a model that sees nothing of a picture but its size and borders.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import artifacts, predictions, shift, splits, statistics
from fpbench.claims import primary
from fpbench.cohorts import Cohort
from fpbench.embeddings import embed_cohort
from fpbench.images import Geometry
from fpbench.protocols import Bench, run_probe
from fpbench.splits import Fold
from fpbench.tasks import Task

TARGETS = ("machine", "operator", "size", "centre")  # columns of a cohort's frame; size is width x height
MASK = 0.2  # share of width and height blackened in each corner
BORDERS = Geometry("squash", 64)  # in which the borders are measured
DARK = 8  # grey value below which a pixel counts as black


def targets(bench: Bench) -> dict[tuple[str, str], tuple[Task, list[Path]]]:
    """Probe the embeddings of every cohort for what else they hold.

    Returns
    -------
    dict
        (population, target) -> the target as a task, and its predictions files: folds over the patient groups of that
        cohort alone. A value with fewer groups than folds is left out; a target with fewer than two values left is not asked.
    """
    found, folds = {}, max(bench.study.folds, 3)  # fewer could not train, validate and test
    for cohort in bench.cohorts:
        size = cohort.frame["width"].astype(str) + " x " + cohort.frame["height"].astype(str)
        cohort = replace(cohort, frame=cohort.frame.assign(size=size))
        for column in TARGETS:
            groups = cohort.frame.groupby(column)["group"].nunique()
            values = tuple(groups[groups >= folds].index)
            if len(values) < 2:
                continue
            name = cohort.source.population
            task = Task(column, column, column, values, name, {name: values})
            cut = splits.make_splits(cohort, task, "crossval", folds, bench.study.seed)
            key = artifacts.digest([bench.key, name, column, cut.digest()])
            asked = replace(bench, task=task, home=cohort, external=(), splits=cut, key=key)
            found[name, column] = task, run_probe(asked, "logistic", aside=f"{name}-{column}")
    return found


def knowledge(found: dict[tuple[str, str], tuple[Task, list[Path]]]) -> pd.DataFrame:
    """Return how often every target of ``targets`` is named right, beside what guessing would give.

    Columns encoder, asked (cohort and target), values, groups, accuracy as ``value`` with ``low`` and ``high`` (95 % interval
    by patient group), majority (share of the most frequent value), balanced accuracy, chance (one in values).
    """
    parts = []
    for (population, target), (task, files) in found.items():
        predicted = predictions.read(files, task)
        boot = next(statistics.samples(predicted, task))
        boot = statistics.bootstrap(boot, ["accuracy", "balanced accuracy"], statistics.RANK_RESAMPLES)
        table = statistics.intervals(boot, ["percentile"]).query("metric == 'accuracy'")
        majority = predicted.query("split == 'test'")["y_true"].value_counts(normalize=True).max()
        table = table.assign(asked=f"{population}: {target}", values=len(task.classes), majority=majority)
        parts.append(table.assign(balanced=boot.folds["balanced accuracy"].mean(), chance=1 / len(task.classes)))
    table = pd.concat(parts, ignore_index=True).rename(columns={"balanced": "balanced accuracy"})
    columns = [
        "encoder",
        "asked",
        "values",
        "groups",
        "value",
        "low",
        "high",
        "majority",
        "balanced accuracy",
        "chance",
    ]
    return table[columns]


def without_each(bench: Bench, column: str = "machine") -> pd.DataFrame:
    """Train without one machine and test on it alone, for every machine; beside it, without as many images of any machine.

    Returns
    -------
    pandas.DataFrame
        Predictions with the further columns ``machine`` and ``trained`` ("without it", "as few images"). A machine is
        left out where it took no part in training, where a class would have no image left, or where a fold tests none of it.
    """
    parts, values, rng = [], bench.home.frame[column].to_numpy(), np.random.default_rng(bench.study.seed)
    for value in sorted(bench.home.frame[column].dropna().unique()):
        own, few = [], []
        for number in range(bench.splits.folds):
            fold = bench.splits.fold(number)
            test, left = fold.test[values[fold.test] == value], fold.train[values[fold.train] != value]
            own.append(Fold(number, left, fold.validation, test))
            few.append(Fold(number, np.sort(rng.choice(fold.train, len(left), replace=False)), fold.validation, test))
        taught = min(len(np.unique(bench.labels[fold.train])) for fold in (*own, *few))
        if taught < bench.classes or not min(len(fold.test) for fold in own) or not (values[fold.train] == value).any():
            continue
        for trained, folds in (("without it", own), ("as few images", few)):
            aside = f"{trained} {value}"
            asked = replace(bench, external=(), key=artifacts.digest([bench.key, aside]))
            files = run_probe(asked, "logistic", folds, re.sub(r"\W+", "-", aside))
            parts.append(predictions.read(files, bench.task).assign(**{column: value, "trained": trained}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def unseen(benches: list[Bench]) -> pd.DataFrame:
    """Return ``shift.by_part`` of the machines of ``without_each``, open, as published; empty where none can be left out.

    Further columns: trained ("as few images", "without it"), case (machine and trained, for a figure).
    """
    left_out, parts = [frame for bench in benches if len(frame := without_each(bench))], []
    for trained in ("as few images", "without it") if left_out else ():
        rows = pd.concat([frame[frame["trained"] == trained] for frame in left_out], ignore_index=True)
        task = benches[0].task
        parts.append(shift.by_part(rows, task, task.train, "machine").assign(trained=trained))
    if not parts:
        return pd.DataFrame()
    return widest(pd.concat(parts, ignore_index=True)).assign(case=lambda f: f["part"] + "\n" + f["trained"])


def widest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``shift.by_part``, open, as published, that score a part over all the classes it has."""
    table = table.query("rule == 'open' and duplicates == 'as published'")
    table = table[table["classes"].eq(table.groupby("part")["classes"].transform("max"))]
    return table.sort_values("part", kind="stable", ignore_index=True)


def borders(cohort: Cohort) -> np.ndarray:
    """Return (N, 11): log width, log height, aspect ratio, share of black rows, columns and pixels, mean grey of each corner, of all."""
    x = cohort.array(BORDERS).astype(np.float32)
    x, (width, height) = (x.mean(axis=-1) if x.ndim == 4 else x), cohort.frame[["width", "height"]].to_numpy(float).T
    dark, side = x < DARK, round(MASK * BORDERS.size)
    corners = [x[:, rows, columns].mean((1, 2)) for rows in (slice(side), slice(-side, None)) for columns in (slice(side), slice(-side, None))]  # fmt: skip
    black = [dark.all(2).mean(1), dark.all(1).mean(1), dark.mean((1, 2))]
    size = [np.log(width), np.log(height), width / height]
    return np.column_stack([*size, *black, *corners, x.mean((1, 2))]).astype(np.float32)


def without_anatomy(bench: Bench) -> list[Path]:
    """Probe ``borders`` instead of embeddings: the score that a picture's size and borders give. The encoder does not matter."""
    seen = {cohort.name: borders(cohort) for cohort in bench.cohorts}
    key = artifacts.digest(
        [bench.splits.digest(), bench.study.seed, [cohort.fingerprint() for cohort in bench.cohorts]]
    )
    return run_probe(replace(bench, encoder="size and borders", embeddings=seen, key=key), "logistic", aside="borders")


def masked(bench: Bench, mask: float = MASK) -> dict[str, list[Path]]:
    """Answer with blackened corners: by the probe of whole pictures, and by one that was trained on such pictures."""
    spec = bench.spec
    seen = {c.name: embed_cohort(bench.model, c, spec.batch_size, spec.bf16, mask) for c in bench.cohorts}
    tested = replace(bench, shown=seen, key=artifacts.digest([bench.key, "masked test", mask]))
    trained = replace(bench, embeddings=seen, key=artifacts.digest([bench.key, "masked", mask]))
    return {
        "masked in the test": run_probe(tested, "logistic", aside="masked-test"),
        "masked throughout": run_probe(trained, "logistic", aside="masked"),
    }


def compare(conditions: dict[str, pd.DataFrame], task: Task) -> pd.DataFrame:
    """Return the headline score with interval of every encoder under every condition, in the primary view of every cohort."""
    parts = []
    for condition, predicted in conditions.items():
        boots = primary(statistics.bootstraps(predicted, task), task)
        table = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
        parts.append(table.assign(condition=condition))
    columns = ["encoder", "population", "classes", "condition", "groups", "value", "low", "high", "reason"]
    return pd.concat(parts, ignore_index=True)[columns]


def sentences(knowledge: pd.DataFrame, conditions: pd.DataFrame) -> list[str]:
    """Return what ``knowledge`` and ``compare`` support: which targets are read above guessing, and what borders alone score."""
    lines = []
    for asked, part in knowledge.groupby("asked", sort=False):
        above = part[part["low"] > part["majority"]]["encoder"]
        who = f"read above guessing from {len(above)} of {len(part)} encoders"
        lines.append(
            f"{asked}: {who} (accuracy {part['value'].min():.2f} to {part['value'].max():.2f}, guessing {part['majority'].iloc[0]:.2f})."
        )
    for population, part in conditions.groupby("population", sort=False):
        floor, rest = part[part["condition"] == "size and borders"], part[part["condition"] == "whole pictures"]
        near = rest[~(rest["low"] > floor["value"].max())]["encoder"]
        told = f"size and borders alone score {floor['value'].max():.3f}; encoders whose interval is not above that"
        lines.append(f"{population.capitalize()}: {told}: {', '.join(near) or 'none'}.")
    return lines
