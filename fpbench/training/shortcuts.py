"""Shortcuts: what do the frozen embeddings know besides anatomy, and how much of the score could it explain?

Every question is asked by the same probe on the same embeddings, and answered by predictions files like any other, which lie
apart (``results.path``): another target (machine, operator, picture size, country), training without one machine, pictures with
their corners blackened, and models that see nothing of a picture but its size and borders; of a frame of a sweep, nothing but its place,
its brightness, or the other frames. What is set beside the probe of whole
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


def position(cohort: Cohort) -> np.ndarray:
    """Return (N, 4 + sweeps): where a frame stands in its sweep, as four cosines, and the number of the sweep."""
    frame = cohort.frame
    last = frame.groupby(["case", "sweep"])["position"].transform("max").clip(lower=1)
    waves = [np.cos(np.pi * k * frame["position"] / last) for k in range(1, 5)]
    return np.column_stack([*waves, *(frame["sweep"] == k for k in sorted(set(frame["sweep"])))]).astype(np.float32)


def brightness(cohort: Cohort) -> np.ndarray:
    """Return (N, 8): mean, SD and share of black pixels of a frame, and five quantiles of its grey."""
    x = cohort.array(BORDERS).reshape(len(cohort), -1).astype(np.float32)
    levels = np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.99], axis=1)
    return np.column_stack([x.mean(1), x.std(1), (x < DARK).mean(1), *levels]).astype(np.float32)


def other_frames(cohort: Cohort, features: np.ndarray) -> np.ndarray:
    """Return (N, D): the mean embedding of the other frames of the sweep, of embeddings (N, D)."""
    sweep = cohort.frame.groupby(["case", "sweep"]).ngroup().to_numpy()
    order, count = np.argsort(sweep, kind="stable"), np.bincount(sweep)
    total = np.add.reduceat(features[order].astype(np.float64), np.r_[0, np.cumsum(count)[:-1]])
    return ((total[sweep] - features) / np.maximum(count[sweep] - 1, 1)[:, None]).astype(np.float32)


def without_frame(benches: list[Bench]) -> dict[str, list[Path]]:
    """Answer of every frame of a sweep without having seen it: from its position, from its brightness, from the other frames of its sweep."""
    first, found = benches[0], {}
    for name, see in (("position", position), ("brightness", brightness)):
        seen = {cohort.name: see(cohort) for cohort in first.cohorts}
        fingerprints = [cohort.fingerprint() for cohort in first.cohorts]
        key = artifacts.digest([name, first.splits.digest(), first.study.seed, fingerprints])
        asked = replace(first, encoder=name, embeddings=seen, key=key)
        found[name] = run_probe(asked, "logistic", question=name)
    files = []
    for bench in benches:
        seen = {cohort.name: other_frames(cohort, bench.embeddings[cohort.name]) for cohort in bench.cohorts}
        asked = replace(bench, embeddings=seen, key=artifacts.digest([bench.key, "other frames"]))
        files += run_probe(asked, "logistic", question="other-frames")
    return found | {"other frames of the sweep": files}
