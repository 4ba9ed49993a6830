"""Label efficiency: how many patients per class does a linear probe need?

For k patients per class, k patient groups are drawn for each class among the fold's training groups that have it, and the
images of that class in those groups train. Draws are nested: the groups of k are among those of 2k. All draws, sizes and folds of an
encoder are solved as one batch; the strength is chosen on the fold's validation rows, as everywhere.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import predictions, recipe
from fpbench.cohorts import Cohort
from fpbench.files import artifacts
from fpbench.splits import Fold
from fpbench.training.bench import Bench, answered, write
from fpbench.training.probes import heads, logistic

SIZES = (1, 2, 4, 8, 16, 32)
VERSION = 2  # raise it when its predictions change


def draw(bench: Bench, fold: Fold, size: int, seed: int) -> np.ndarray:
    """Return the training rows of ``size`` patient groups per class, fewer where the fold has fewer; sorted."""
    groups, labels = bench.home.frame["group"].to_numpy()[fold.train], bench.labels[fold.train]
    chosen = []
    for k in range(bench.classes):
        there = np.unique(groups[labels == k])
        taken = np.random.default_rng([bench.study.seed, seed, fold.number, k]).permutation(there)[:size]
        chosen.append(fold.train[(labels == k) & np.isin(groups, taken)])
    return np.sort(np.concatenate(chosen))


def _note(shown: list[tuple[Cohort, np.ndarray]], classes: int, cohort: Cohort, rows: np.ndarray) -> np.ndarray:
    """Add a cohort and its rows to what is ``shown``; return answers (n, K) that will be replaced."""
    shown.append((cohort, rows))
    return np.zeros((len(rows), classes))


def run(bench: Bench, sizes: Sequence[int] = SIZES, draws: int = 10) -> list[Path]:
    """Write one predictions file per fold: protocol ``k per class``, the number of the draw in the column seed."""
    started, key = time.perf_counter(), artifacts.digest([bench.key, "efficiency", VERSION, list(sizes), draws])
    files = [bench.path("logistic", n, "efficiency") for n in range(bench.splits.folds)]
    todo = [bench.splits.fold(n) for n, path in enumerate(files) if not predictions.is_current(path, key)]
    cells = [(size, seed) for size in sizes for seed in range(draws)]
    train = {(fold.number, *cell): draw(bench, fold, *cell) for fold in todo for cell in cells}
    different = list({mine.tobytes(): mine for mine in train.values()}.values())  # those of every group are the same
    paths = (
        logistic.fit_paths(bench.features, bench.labels, different, bench.classes, recipe.COARSE) if different else []
    )
    fitted = {mine.tobytes(): path for mine, path in zip(different, paths, strict=True)}
    for fold in todo:
        shown: list[tuple[Cohort, np.ndarray]] = []  # of a table; draws differ in what is replaced below
        table = answered(bench, "", fold, partial(_note, shown, bench.classes))
        tables = []
        for size, seed in cells:
            mine = train[fold.number, size, seed]
            path = fitted[mine.tobytes()]
            i = heads.choose(path, bench.features[fold.validation], bench.labels[fold.validation]).index
            logits = np.concatenate([path.logits(bench.embeddings[c.name][at], i) for c, at in shown])
            patients = bench.home.frame["patient"].iloc[mine].nunique()
            about = {"protocol": f"{size} per class", "n_patients": patients, "seed": seed}
            answers = dict(zip(bench.task.columns(), logits.astype(np.float32).T, strict=True))
            tables.append(table.assign(**about, **answers))
        about = {"key": key, "chosen": {"sizes": list(sizes), "draws": draws}, "seconds": time.perf_counter() - started}
        write(bench, files[fold.number], pd.concat(tables), about)
    return files
