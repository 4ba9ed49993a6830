"""Predictions as arrays, and every metric of them under weights of patient groups: what resampling computes with.

Every metric but the ranked ones is a function of sums over images, so a group is reduced to its sums, a *tally* (T,): true
images, answers and right answers of each class of the space (S); the gap of each ECE bin; Brier; NLL. All resamples are
one matrix product. AUROC and AUPRC sort the images once and add up weights (ties count half; stand together). An *outcome* is any other
ratio of sums, whatever its unit (a sweep, a case): three more columns of the tally.

A score over classes is not defined where one of them has no image, nor a score of probabilities where a model gave answers alone: NaN, in a
resample too. Contents: ``samples`` (predictions to arrays), ``with_outcomes``, ``with_sums``, ``by_rank``, ``evaluate``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats

from fpbench import metrics, predictions
from fpbench.analysis.scoring import DUPLICATES, MODEL, RUN, shared_seeds, views
from fpbench.errors import InputError
from fpbench.tasks import Task


@dataclass(frozen=True)
class Part:
    """What the models of one fold and seed answered on its test images; rows sorted by group."""

    groups: slice  # of Sample.groups, those that this fold tests
    unit: np.ndarray  # (n,) position in Sample.groups
    y: np.ndarray  # (n,) class index
    probability: np.ndarray  # (M, n, S)
    tally: np.ndarray  # (groups of this fold, M, T)


@dataclass(frozen=True)
class Sample:
    """M models on one view of the test images."""

    models: tuple[tuple[str, str], ...]  # as scoring.MODEL
    classes: dict[int, str]  # the label space: class index -> name
    groups: np.ndarray  # (G,) names, sorted by stratum
    stratum: np.ndarray  # (G,) all 0, or the fold that tests the group
    parts: tuple[Part, ...]  # one per fold and seed: the seeds of the first fold, then of the next
    runs: int = 1  # parts of a fold: seeds
    seeds: tuple[int, ...] = ()  # how many each model has: ``runs``, or one that stands for all
    view: tuple = ("", "", "", "")  # as scoring.VIEW
    test_share: float = np.nan  # tested / training patients of a fold, for Nadeau-Bengio
    positive: int = -1  # the class index that AUPRC is of; -1: none
    number: int = 0  # among the samples of these predictions, asked for or not
    outcomes: tuple[str, ...] = ()  # further metrics, as ``with_outcomes`` adds them

    @property
    def families(self) -> dict[str, list[int]]:
        """Return the positions of the models of each protocol: encoders are compared under one protocol."""
        return {name: [i for i, m in enumerate(self.models) if m[1] == name] for _, name in self.models}

    def why(self, value: float, metric: str = "") -> str:
        """Return why a resample can lack a score: the class with the fewest patients (groups); or what ``value`` of ``metric`` needs."""
        if own := [len(self.classes) * 3 + 3 * i + 2 for i, name in enumerate(self.outcomes) if name == metric]:
            names, columns = [f"what {metric} speaks of"], own
        else:
            names, columns = list(self.classes.values()), list(range(len(self.classes)))
        patients = np.array([(part.tally[:, 0, columns] > 0).sum(0) for part in self.parts])
        if np.isnan(value) and patients.all():
            if metric in metrics.RANKED and (
                len(names) < 2 or (metric == "AUPRC" and self.positive not in self.classes)
            ):
                return f"none: no image of a class beside {', '.join(names)}"
            return "none: the model gave answers alone"
        few, least = np.unravel_index(patients.argmin(), patients.shape), int(patients.min())
        where = " in a fold" if self.stratum.any() else ""
        return f"none: {names[few[1]]} has {least} patient{'s' * (least != 1)}{where}"


def samples(predicted: pd.DataFrame, task: Task, wanted: Callable[..., bool] = lambda *view: True) -> Iterator[Sample]:
    """Yield a sample of each of ``scoring.views``, as published and de-duplicated, from rows of predictions files.

    ``wanted``: takes the fields of ``scoring.VIEW`` and says whether this one is asked for; the others take no time.
    """
    number = -1
    test = predicted[predicted["split"] == "test"].sort_values([*MODEL, "seed", "fold", "image_id"], ignore_index=True)
    for population, classes, rule in views(task, predicted):
        home, space = test[test["population"] == population], task.codes(classes)
        trained = home.loc[home["n_patients"] > 0, "n_patients"].mean()  # of submitted answers it is not known
        share = home.groupby("fold")["patient"].nunique().mean() / trained
        seen = home[home["y_true"].isin(space)]
        for duplicates, drop in DUPLICATES.items():
            rows = seen[seen["distinct"]] if drop else seen
            if not len(rows):
                continue
            number, view = number + 1, (population, task.space(classes), rule, duplicates)
            if wanted(*view):
                models, seeds, first, said = _align(rows, task)
                about = {"models": models, "seeds": seeds, "view": view, "number": number, "test_share": share}
                about["positive"] = task.codes([task.positive])[0]
                yield make_sample(first, said, dict(zip(space, classes, strict=True)), rule, **about)


def _align(rows: pd.DataFrame, task: Task) -> tuple[tuple, tuple, pd.DataFrame, list[np.ndarray]]:
    """Return the models, how many seeds each has, the rows of one with all seeds, and ``predictions.outputs`` of each, image by image.

    ``rows`` are sorted by model and seed. A model of one seed answers alike with every seed of the others.
    """
    counts, identity = rows.groupby([*MODEL, "seed"]).size(), ["fold", "image_id", "group", "y_true"]
    first, seeds = rows.head(counts.iloc[0]), shared_seeds(rows) or [0]
    said: dict[tuple[str, str], list[np.ndarray]] = {}
    for (encoder, protocol, _), start, count in zip(counts.index, np.cumsum(counts) - counts, counts, strict=True):
        part = rows.iloc[start : start + count]
        same = count == len(first) and all((part[one].array == first[one].array).all() for one in identity)
        if not same or part.duplicated(identity[:2]).any():
            wanted = f"{encoder} / {protocol} to answer the {len(first):,} image x fold rows of {' / '.join(counts.index[0][:2])} once each"
            found = f"found {count:,} rows, not the same: read the predictions of one study, all its folds"
            raise InputError(f"expected {wanted}, {found}")
        said.setdefault((encoder, protocol), []).append(predictions.outputs(part, task))
    every = pd.concat([first.assign(seed=seed) for seed in seeds])
    answers = [np.concatenate(own * (len(seeds) // len(own))) for own in said.values()]
    return tuple(said), tuple(map(len, said.values())), every, answers


def make_sample(
    rows: pd.DataFrame, said: Sequence[np.ndarray], classes: dict[int, str], rule: str = "open", **about: Any
) -> Sample:
    """Return the sample of M models.

    Parameters
    ----------
    rows
        N image x fold rows with y_true (class index), group and fold; and seed, where there are several: then of every seed.
    said
        Of each model logits (N, K), or answers (N,) as ``fpbench.metrics`` takes them.
    classes
        The label space: class index to name.
    about
        ``models`` and other fields of Sample.
    """
    y, fold = rows["y_true"].to_numpy(), np.unique(rows["fold"], return_inverse=True)[1]
    seed = np.unique(rows["seed"], return_inverse=True)[1] if "seed" in rows else np.zeros_like(fold)
    names, unit = np.unique(rows["group"], return_inverse=True)
    images = np.bincount(fold * len(names) + unit, minlength=(fold.max() + 1) * len(names)).reshape(-1, len(names))
    own = len(images) > 1 and ((images > 0).sum(0) == 1).all()
    if not own and (images != images[0]).any():
        raise InputError("expected folds that test the same images, or each its own groups, found a mixture of the two")
    stratum = images.argmax(0) if own else np.zeros(len(names), int)
    order = np.argsort(stratum, kind="stable")
    unit = np.argsort(order)[unit]
    part = fold * (seed.max() + 1) + seed
    cut = np.split(np.lexsort((unit, part)), np.cumsum(np.bincount(part))[:-1])
    parts = (_part(y[mine], unit[mine], [one[mine] for one in said], list(classes), rule) for mine in cut)
    about["runs"] = int(seed.max()) + 1
    about.setdefault("seeds", (about["runs"],) * len(said))
    return Sample(classes=classes, groups=names[order], stratum=stratum[order], parts=tuple(parts), **about)


def _part(y: np.ndarray, unit: np.ndarray, said: list[np.ndarray], space: list[int], rule: str) -> Part:
    values, probabilities = zip(*(_image_tally(y, one, space, rule) for one in said), strict=True)
    tally = np.add.reduceat(np.stack(values, axis=1), np.flatnonzero(np.diff(unit, prepend=-1)), axis=0)
    return Part(slice(unit[0], unit[-1] + 1), unit, y, np.stack(probabilities), tally)


def _image_tally(y: np.ndarray, said: np.ndarray, space: list[int], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what each image adds to the sums of one model (n, T), and the probabilities of the space (n, S); NaN where it does not say."""
    true, answer, rows = y[:, None] == space, metrics.decided(said, space, rule), np.arange(len(y))
    unsaid = np.full(true.shape, np.nan)
    if said.ndim == 1:
        answered = unsaid if answer is None else answer[:, None] == space
        rest = np.full((len(y), metrics.ECE_BINS + 2), np.nan)
        return np.column_stack([true, answered, np.where(true, answered, 0 * answered), rest]), unsaid
    assert answer is not None  # logits decide always
    answered, log_p = answer[:, None] == space, metrics.log_softmax(metrics.restrict(said, space, rule))
    p = np.exp(log_p)
    confidence, gaps = p.max(axis=1), np.zeros((len(y), metrics.ECE_BINS))
    bins = np.minimum((confidence * metrics.ECE_BINS).astype(int), metrics.ECE_BINS - 1)
    gaps[rows, bins] = (answer == y) - confidence
    brier = ((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1)
    return np.column_stack([true, answered, true & answered, gaps, brier, -log_p[rows, y]]), p[:, space]


def with_outcomes(sample: Sample, found: Mapping[str, Sequence[np.ndarray]]) -> Sample:
    """Return the sample with further metrics: name -> of each part (groups, M, 3), sums over what the metric is of (sweeps, say).

    The metric is the first sum by the second; NaN where the third is 0, else 0 where the second is.
    """
    parts, at = [], 3 * (len(sample.classes) + len(sample.outcomes))
    for number, part in enumerate(sample.parts):
        own = [of_parts[number] for of_parts in found.values()]
        parts.append(replace(part, tally=np.concatenate([part.tally[..., :at], *own, part.tally[..., at:]], axis=-1)))
    return replace(sample, parts=tuple(parts), outcomes=(*sample.outcomes, *found))


def with_sums(
    sample: Sample, rows: pd.DataFrame, sums: Callable[[tuple, pd.DataFrame, pd.Index], Mapping[str, np.ndarray]]
) -> Sample:
    """Return the sample ``with_outcomes`` that follow from the test rows of each model.

    Parameters
    ----------
    rows
        The test rows of the sample, with further columns.
    sums
        Takes a model (encoder, protocol, fold, seed), its rows and the groups of its fold (G,); returns name -> (G, 3).
    """
    runs, folds = dict(iter(rows.groupby([*MODEL, *RUN]))), np.unique(rows["fold"])
    seeds = rows.groupby(list(MODEL))["seed"].unique().map(np.sort)
    of_parts = []
    for number, part in enumerate(sample.parts):
        groups, found = pd.Index(sample.groups[part.groups]), []
        for model in sample.models:  # one of one seed stands beside every seed of the others
            key = (*model, folds[number // sample.runs], seeds[model][number % len(seeds[model])])
            found.append(sums(key, runs[key], groups))
        of_parts.append(found)
    names = of_parts[0][0]
    return with_outcomes(
        sample, {name: [np.stack([one[name] for one in found], axis=1) for found in of_parts] for name in names}
    )


def by_rank(sample: Sample) -> Sample:
    """Return the sample with the rank of each image in place of its probabilities, by part, model and class; ties share the mean rank.

    No ranked metric changes, and models that differ in scale may change sides.
    """
    parts = (replace(part, probability=stats.rankdata(part.probability, axis=1)) for part in sample.parts)
    return replace(sample, parts=tuple(parts))


def scores(
    totals: np.ndarray, classes: Sequence[str], names: Sequence[str], outcomes: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return metrics but the ranked ones, also those of a class, (...) each, from sums over images (..., T)."""
    cuts = np.cumsum([len(classes)] * 3 + [3 * len(outcomes)])
    true, answered, right, own, rest = np.split(totals, cuts, axis=-1)
    parts = {"precision": (right, answered), "recall": (right, true), "F1": (2 * right, true + answered)}

    def images() -> np.ndarray:
        return np.where(true.any(-1), true.sum(-1), np.nan)

    def of(name: str) -> np.ndarray:
        return np.where(true > 0, _ratio(*parts[name]), np.nan)

    ways = {
        "macro F1": lambda: of("F1").mean(-1),
        "weighted F1": lambda: (true * _ratio(*parts["F1"])).sum(-1) / images(),
        "accuracy": lambda: right.sum(-1) / images(),
        "balanced accuracy": lambda: of("recall").mean(-1),
        "ECE": lambda: np.abs(rest[..., :-2]).sum(-1) / images(),
        "Brier": lambda: rest[..., -2] / images(),
        "NLL": lambda: rest[..., -1] / images(),
    }
    ways |= {
        f"{name} of {c}": partial(lambda name, i: of(name)[..., i], name, i)
        for name in parts
        for i, c in enumerate(classes)
    }
    ways |= {name: partial(_outcome, own[..., 3 * i : 3 * i + 3]) for i, name in enumerate(outcomes)}
    if unknown := sorted(set(names) - set(ways)):
        raise InputError(
            f"unknown metrics {', '.join(unknown)}: expected some of {', '.join([*metrics.RANKED, *ways])}"
        )
    return {name: ways[name]() for name in names}


def _outcome(sums: np.ndarray) -> np.ndarray:
    top, bottom, there = np.moveaxis(sums, -1, 0)
    return np.where(there > 0, _ratio(top, bottom), np.nan)


def sums(sample: Sample, part: Part, names: Sequence[str]) -> np.ndarray:
    """Return the tally of a part (groups, M, T), without what no metric of ``names`` needs."""
    counts = 3 * (len(sample.classes) + len(sample.outcomes))
    return part.tally if set(names) & set(metrics.CALIBRATION) else part.tally[..., :counts]


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a / np.where(b == 0, 1, b)  # 0 / 0 = 0: a class that nobody answers


def _runs(unit: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights (runs, b) of runs of images, the first up to ``ends[0]`` and so on; of images (n,) whose units have weights (U, b)."""
    n = ends[-1]
    return sparse.csr_array((np.ones(n), unit[:n], np.r_[0, ends]), (len(ends), len(weights))) @ weights


def auroc(positive: np.ndarray, score: np.ndarray, unit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the one-vs-rest AUROC (b,) of images (n,) whose units have weights (U, b); NaN where one side is empty."""
    if positive.all() or not positive.any():
        return np.full(weights.shape[1], np.nan)
    (up, own), (down, other) = (
        (score[of][order], unit[of][order]) for of in (positive, ~positive) for order in [np.argsort(score[of])]
    )
    last = np.flatnonzero(np.diff(up, append=np.nan))
    ends = np.stack([np.searchsorted(down, up[last], side) for side in ("left", "right")], axis=1)
    w, below = _runs(own, last + 1, weights), np.cumsum(_runs(other, np.r_[ends.ravel(), len(down)], weights), axis=0)
    pairs = w.sum(axis=0) * below[-1]
    return np.einsum("nb,nb->b", w, below[:-1:2] + below[1::2]) / 2 / np.where(pairs > 0, pairs, np.nan)


def average_precision(positive: np.ndarray, score: np.ndarray, unit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision (b,) of images (n,) whose units have weights (U, b); NaN where one side is empty."""
    if positive.all() or not positive.any():
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(-score)
    last = np.flatnonzero(np.diff(score[order], append=np.nan))  # images of one score are answered together
    found = np.cumsum(positive[order])[last]
    grown = np.diff(found, prepend=0) > 0  # where the recall grows: it stands still between
    answered = np.cumsum(_runs(unit[order], np.r_[last[grown] + 1, len(order)], weights), axis=0)
    gained = _runs(unit[order][positive[order]], found[grown], weights)
    right = np.cumsum(gained, axis=0)
    precision, total = _ratio(right, answered[:-1]), right[-1]
    return np.where(answered[-1] > total, (gained * precision).sum(0) / np.where(total > 0, total, np.nan), np.nan)


def evaluate(sample: Sample, weights: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each metric (P, b, M) of every part, fold by fold and seed by seed, under group weights (b, G)."""
    tables, classes, tallied = [], list(sample.classes.values()), [n for n in names if n not in metrics.RANKED]
    for part in sample.parts:
        totals = np.tensordot(weights[:, part.groups], sums(sample, part, names), 1)
        table = scores(totals, classes, tallied, sample.outcomes)
        for name in set(names) & set(metrics.RANKED):
            found = [ranked(name, sample, part, p, part.unit, weights.T) for p in part.probability]
            table[name] = np.stack(found, 1)
        tables.append(table)
    return {name: np.stack([table[name] for table in tables]) for name in names}


def ranked(name: str, sample: Sample, part: Part, p: np.ndarray, unit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return macro AUROC, or AUPRC, (b,) of probabilities (n, S), or of two models stacked (2n, S), by weights (units, b)."""
    y, space = np.tile(part.y, len(unit) // len(part.y)), list(sample.classes)
    if np.isnan(p).any() or (name == "AUPRC" and sample.positive not in space):
        return np.full(weights.shape[1], np.nan)
    if name == "AUPRC":
        return average_precision(y == sample.positive, p[:, space.index(sample.positive)], unit, weights)
    return np.mean([auroc(y == k, p[:, i], unit, weights) for i, k in enumerate(space)], axis=0)
