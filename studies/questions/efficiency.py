"""Label efficiency: how many patients per class does a linear probe need?

For k patients per class, k patient groups are drawn for each class among the fold's training groups that have it, and the
images of that class in those groups train. Draws are nested: the groups of k are among those of 2k. All draws, sizes and folds of an
encoder are solved as one batch; the strength is chosen on the fold's validation rows, as everywhere.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import artifacts, predictions, probing, statistics
from fpbench.protocols import Bench, answered, write
from fpbench.splits import Fold
from fpbench.tables import view_title
from fpbench.tasks import Task

SIZES = (1, 2, 4, 8, 16, 32)
STRENGTHS = probing.GRID[::3]  # half a decade apart, for a third of the heads
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


def run(bench: Bench, sizes: Sequence[int] = SIZES, draws: int = 10) -> list[Path]:
    """Write one predictions file per fold: protocol ``k per class``, the number of the draw in the column seed."""
    started, key = time.perf_counter(), artifacts.digest([bench.key, "efficiency", VERSION, list(sizes), draws])
    files = [bench.study.predictions(bench.encoder, "logistic", n, "efficiency") for n in range(bench.splits.folds)]
    todo = [bench.splits.fold(n) for n, path in enumerate(files) if not predictions.is_current(path, key)]
    cells = [(size, seed) for size in sizes for seed in range(draws)]
    train = {(fold.number, *cell): draw(bench, fold, *cell) for fold in todo for cell in cells}
    different = list({mine.tobytes(): mine for mine in train.values()}.values())  # those of every group are the same
    paths = probing.fit_paths(bench.features, bench.labels, different, bench.classes, STRENGTHS) if different else []
    fitted = {mine.tobytes(): path for mine, path in zip(different, paths, strict=True)}
    for fold in todo:
        shown = []  # (cohort, its rows) of a table; it differs from draw to draw in what is replaced below
        table = answered(
            bench, "", fold, lambda c, at, to=shown: to.append((c, at)) or np.zeros((len(at), bench.classes))
        )
        tables = []
        for size, seed in cells:
            mine = train[fold.number, size, seed]
            path = fitted[mine.tobytes()]
            i = probing.choose(path, bench.features[fold.validation], bench.labels[fold.validation]).index
            logits = np.concatenate([path.logits(bench.embeddings[c.name][at], i) for c, at in shown])
            patients = bench.home.frame["patient"].iloc[mine].nunique()
            about = {"protocol": f"{size} per class", "n_patients": patients, "seed": seed}
            answers = dict(zip(bench.task.columns(), logits.astype(np.float32).T, strict=True))
            tables.append(table.assign(**about, **answers))
        about = {"key": key, "chosen": {"sizes": list(sizes), "draws": draws}, "seconds": time.perf_counter() - started}
        write(bench, files[fold.number], pd.concat(tables), about)
    return files


def curves(predicted: Iterable[pd.DataFrame], task: Task, resamples: int = statistics.RANK_RESAMPLES) -> pd.DataFrame:
    """Return the headline score against the patients per class, mean over folds and draws, with interval by patient group.

    Parameters
    ----------
    predicted
        Predictions of ``run``, one frame per encoder.

    Returns
    -------
    pandas.DataFrame
        Columns encoder, tables.VIEW, patients per class, value, sd (over the draws), low, high, reason.
    """
    rows = []
    for frame in predicted:
        name = frame["encoder"].iloc[0]
        for sample in statistics.samples(frame.assign(encoder=frame["seed"].astype(str)), task):
            boot = statistics.bootstrap(sample, statistics.NAMES[:1], resamples)
            values, draws, out = (one[statistics.NAMES[0]] for one in (boot.folds, boot.draws, boot.jackknife))
            for protocol, members in sample.families.items():
                mine = values.mean(0)[members]
                ends = statistics.interval(draws[:, members].mean(1), mine.mean(), out, sample.stratum, "percentile")
                size = int(protocol.split()[0])
                rows.append((name, *sample.view, size, mine.mean(), mine.std(ddof=1), *ends))
    columns = ["encoder", *statistics.VIEW, "patients per class", "value", "sd", "low", "high", "reason"]
    return pd.DataFrame(rows, columns=columns).sort_values(["encoder", "patients per class"], kind="stable")


def sentences(curves: pd.DataFrame) -> list[str]:
    """Return one sentence per encoder and cohort as published, open: the fewest patients that give nine tenths of its best score."""
    shown = curves[(curves["rule"] == "open") & (curves["duplicates"] == "as published")]
    lines = []
    for (encoder, population, classes), part in shown.groupby(["encoder", "population", "classes"], sort=False):
        enough = part[part["value"] >= 0.9 * part["value"].max()]["patients per class"].min()
        where = f"{encoder}, {view_title(population, classes, 'open')}"
        lines.append(
            f"{where}: nine tenths of its best mean score ({part['value'].max():.3f}) with {enough} patients per class."
        )
    return lines
