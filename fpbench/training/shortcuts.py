"""Shortcuts: what do the frozen embeddings know besides anatomy, and how much of the score could it explain?

Every question is asked by the same probe on the same embeddings, and answered by predictions files like any other, which lie
apart (``results.path``): another target (machine, operator, picture size, country), training without one machine, pictures with
their corners blackened, and a model that sees nothing of a picture but its size and borders. What is set beside the probe of whole
pictures chooses among the same strengths; the others, which are set beside one another, among ``recipe.COARSE``.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import predictions, splits
from fpbench.cohorts import Cohort
from fpbench.files import artifacts
from fpbench.images import BORDERS
from fpbench.recipe import COARSE
from fpbench.splits import Fold
from fpbench.tasks import Task
from fpbench.training.bench import Bench
from fpbench.training.embeddings import embed_cohort
from fpbench.training.probing import run_probe

TARGETS = ("machine", "operator", "size", "centre")  # columns of a cohort's frame; size is width x height
MASK = 0.2  # share of width and height blackened in each corner
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
            task = Task(column, column, values, train=name)
            cut = splits.make_splits(cohort, task, "crossval", folds, bench.study.seed)
            key = artifacts.digest([bench.key, name, column, cut.digest()])
            asked = replace(bench, task=task, home=cohort, external=(), splits=cut, key=key, strengths=COARSE)
            found[name, column] = task, run_probe(asked, "logistic", question=f"{name}-{column}")
    return found


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
            question = f"{trained} {value}"
            asked = replace(bench, external=(), key=artifacts.digest([bench.key, question]), strengths=COARSE)
            files = run_probe(asked, "logistic", folds, re.sub(r"\W+", "-", question))
            parts.append(predictions.read(files, bench.task).assign(**{column: value, "trained": trained}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


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
    return run_probe(
        replace(bench, encoder="size and borders", embeddings=seen, key=key), "logistic", question="borders"
    )


def masked(bench: Bench, mask: float = MASK) -> dict[str, list[Path]]:
    """Answer with blackened corners: by the probe of whole pictures, and by one that was trained on such pictures."""
    spec = bench.spec
    seen = {c.name: embed_cohort(bench.model, c, spec.batch_size, spec.bf16, mask) for c in bench.cohorts}
    tested = replace(bench, shown=seen, key=artifacts.digest([bench.key, "masked test", mask]))
    trained = replace(bench, embeddings=seen, key=artifacts.digest([bench.key, "masked", mask]))
    return {
        "masked in the test": run_probe(tested, "logistic", question="masked-test"),
        "masked throughout": run_probe(trained, "logistic", question="masked"),
    }
