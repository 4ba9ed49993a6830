"""Uncertainty of scores: group bootstrap, paired differences, ranking. Pure functions on arrays; frames at both ends.

Estimand: the score of an encoder is the mean over its fold models of the score on the test cohort; where a fold was trained
with several seeds, over folds and seeds. A resample draws patient groups with replacement, once for all fold models, seeds and
encoders: weights (G,) say how often each group stands in it. So an interval and a test speak of these runs, on other patients; how
scores differ by seed is an SD beside them (``scoring.summarise``). Models are paired fold by fold and seed by seed; one that was fitted
once stands beside every seed of the other. Where all folds test the same groups, these are drawn together; where each fold tests its own (``crossval``,
in-domain), a group is drawn within its fold: ``stratum`` (G,). Rows of different folds are never pooled.

An interval that the data cannot carry (one group, an undefined resample, all resamples equal) is NaN with its ``reason``, never of
width zero.

Contents: ``bootstrap`` of ``samples``, then ``intervals`` (percentile; BCa: Efron 1987), ``differences`` (group permutation
test; Holm 1979), ``ranking``; ``holm``, ``nadeau_bengio`` (2003). Point values equal those of ``fpbench.metrics``, i.e.
scikit-learn's, to rounding.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from fpbench import metrics
from fpbench.analysis.samples import Part, Sample, by_rank, evaluate, make_sample, ranked, samples, scores, sums
from fpbench.analysis.scoring import MODEL, VIEW
from fpbench.errors import InputError
from fpbench.files.progress import Progress
from fpbench.tasks import Task

__all__ = ["make_sample", "samples"]  # handed on: what ``bootstrap`` takes
RESAMPLES, RANK_RESAMPLES = 10_000, 1_000  # RANK: for metrics.RANKED, whose cost grows with images, not groups
NAMES = ("macro F1", "weighted F1", "accuracy", "balanced accuracy", *metrics.CALIBRATION)  # metrics.RANKED are slow
METHODS = ("percentile", "BCa")
BLOCK = 500  # resamples at a time: below 300 MB for 14 models, 5 folds, 896 groups
SAME = 1e-12  # scores closer than this are equal: they differ by rounding


@dataclass(frozen=True)
class Bootstrap:
    """The values of each metric. The score of a model is the mean of ``folds`` over the fold models, of every seed."""

    sample: Sample
    folds: dict[str, np.ndarray]  # (P, M) as Sample.parts: one per fold, or per fold and seed
    draws: dict[str, np.ndarray]  # (resamples, M), means over the parts
    jackknife: dict[str, np.ndarray]  # (G, M), one group left out


def draw(stratum: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each group stands in each resample (resamples, G), drawn within its stratum (G,), sorted."""
    size, start = np.bincount(stratum)[stratum], np.searchsorted(stratum, stratum)
    picked = start + (rng.random((resamples, len(stratum))) * size).astype(int)
    picked += np.arange(resamples)[:, None] * len(stratum)
    return np.bincount(picked.ravel(), minlength=picked.size).reshape(picked.shape).astype(float)


def _turns(names: Collection[str], total: int) -> Iterator[tuple[list[str], int]]:
    """Yield the metrics that are resampled together, and how often."""
    for slow, count in ((False, total), (True, min(total, RANK_RESAMPLES))):
        if some := [name for name in names if (name in metrics.RANKED) == slow]:
            yield some, count


def bootstrap(
    sample: Sample, names: Sequence[str] = NAMES, resamples: int = RESAMPLES, seed: int = 0, block: int = BLOCK
) -> Bootstrap:
    """Draw resamples of groups, the same for all models, folds and metrics, and score each.

    Parameters
    ----------
    names
        Metrics of ``fpbench.metrics.scores``; also those of a class, say ``F1 of femur``.
    resamples
        Of all metrics but metrics.RANKED, which have the first RANK_RESAMPLES of them.
    block
        Resamples held in memory at a time; no result depends on it, but for rounding.
    """

    def collect(names: Sequence[str], blocks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        pieces = [{name: v.mean(0) for name, v in evaluate(sample, w, names).items()} for w in blocks]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}

    groups = len(sample.groups)
    draws: dict[str, np.ndarray] = {}
    folds = {name: value[:, 0] for name, value in evaluate(sample, np.ones((1, groups)), names).items()}
    for some, total in _turns(names, resamples):
        rng = np.random.default_rng(seed)
        draws |= collect(some, (draw(sample.stratum, min(block, total - i), rng) for i in range(0, total, block)))
    left_out = (1 - np.eye(min(block, groups - i), groups, i) for i in range(0, groups, block))
    return Bootstrap(sample, folds, draws, collect(names, left_out))


def bootstraps(
    predicted: pd.DataFrame,
    task: Task,
    names: Sequence[str] = (),
    seed: int = 0,
    wanted: Callable[..., bool] = lambda *view: True,
) -> list[Bootstrap]:
    """Return the bootstrap of every view, each with a seed of its own.

    Parameters
    ----------
    predicted
        Rows of predictions files of one study; test rows are drawn, by patient group.
    names
        Metrics; default: the headline of the task.
    seed
        Of the first view.
    wanted
        As of ``samples``: which views; their resamples are the same whatever others are asked for.

    Returns
    -------
    list of Bootstrap
        ``folds`` (P, M) and ``draws`` (resamples, M) of each metric, for M models and P folds, or folds x seeds: what
        ``intervals``, ``differences`` and ``ranking`` take.

    Raises
    ------
    InputError
        Models did not answer the same image x fold rows, or have several seeds that are not the same; or a metric is unknown.
    """
    names = names or [task.headline]
    drawn = Progress(samples(predicted, task, wanted), total=None, desc="resampling", unit="view")
    return [bootstrap(sample, names, seed=seed + sample.number) for sample in drawn]


def interval(
    draws: np.ndarray,
    value: float,
    jackknife: np.ndarray,
    stratum: np.ndarray,
    method: str,
    level: float = 0.95,
    undefined: str = "",
) -> tuple[float, float, str]:
    """Return low, high and, where they are NaN, the reason.

    Parameters
    ----------
    draws, value, jackknife
        (resamples,) the score on each, on the data, and (G,) with each group left out.
    stratum
        (G,) as ``Sample.stratum``.
    undefined
        Why some resamples have no score (``Sample.why``), where it is known.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    levels, reason = np.array([(1 - level) / 2, (1 + level) / 2]), flaw(draws, stratum, undefined)
    if not reason and method == "BCa":
        levels, reason = _bca(draws, value, jackknife, stratum, levels)
    low, high = (np.nan, np.nan) if reason else np.quantile(draws, levels)
    return float(low), float(high), reason


def flaw(draws: np.ndarray, stratum: np.ndarray, why: str = "") -> str:
    """Return why resamples (resamples,) say nothing about uncertainty; an empty string if they do."""
    if np.bincount(stratum).min() < 2:
        return "one patient group" + (" in a fold" if stratum.any() else "") + ": nothing to resample"
    if undefined := np.isnan(draws).sum():
        return why or f"undefined in {undefined:,} of {len(draws):,} resamples: a class has no image there"
    return "all resamples give the same value" if np.ptp(draws) <= SAME else ""


def _bca(
    draws: np.ndarray, value: float, jackknife: np.ndarray, stratum: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return the levels (2,) of the quantiles that correct for bias and skew, or why there are none."""
    below = ((draws < value - SAME).mean() + (draws <= value + SAME).mean()) / 2
    if np.isnan(jackknife).any():
        return levels, "no BCa: without one of the groups a class has no image"
    if not 0 < below < 1:
        return levels, "no BCa: all resamples lie on one side of the value"
    size = np.bincount(stratum)
    u = ((np.bincount(stratum, jackknife) / size)[stratum] - jackknife) * ((size - 1) / size)[stratum]
    if (spread := (u**2).sum()) <= SAME**2:
        return levels, "no BCa: no group changes the value"
    bias, acceleration = special.ndtri(below), (u**3).sum() / (6 * spread**1.5)
    z = bias + special.ndtri(levels)
    return special.ndtr(bias + z / (1 - acceleration * z)), ""


def intervals(boot: Bootstrap, methods: Sequence[str] = METHODS, level: float = 0.95) -> pd.DataFrame:
    """Return the interval of every model.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, VIEW, metric, resamples, groups, value, method, low, high, reason (of NaN); and seeds, how many the model has,
        where some model of the sample has several (so in ``differences`` and ``ranking``).
    """
    sample, rows = boot.sample, []
    for metric, i, method in product(boot.draws, range(len(sample.models)), methods):
        draws, value, left_out = boot.draws[metric][:, i], boot.folds[metric][:, i].mean(), boot.jackknife[metric][:, i]
        low, high, reason = interval(draws, value, left_out, sample.stratum, method, level, sample.why(value, metric))
        row = _about(boot, metric, i) | {"value": value, "method": method}
        rows.append(row | {"low": low, "high": high, "reason": reason})
    return pd.DataFrame(rows)


def _about(boot: Bootstrap, metric: str, *models: int) -> dict:
    sample, (first, *_) = boot.sample, models
    about = dict(zip(MODEL + VIEW, sample.models[first] + sample.view, strict=True))
    about |= {"metric": metric, "resamples": len(boot.draws[metric]), "groups": len(sample.groups)}
    return about | ({"seeds": max(sample.seeds[i] for i in models)} if sample.runs > 1 else {})


def permutation(
    sample: Sample, pairs: Sequence, names: Sequence[str], permutations: int, seed: int = 0, block: int = BLOCK
) -> dict[str, np.ndarray]:
    """Return two-sided p (P,) of each metric for pairs (P, 2) of models.

    Within each group the two models are swapped, or not, for all folds and seeds at once; of metrics.RANKED, the ranks of their images
    within fold and seed, so that no scale matters. p = (1 + swaps with at least the observed difference) / (1 + permutations), so it is
    never 0; NaN where the difference is, or with one group.
    """
    rng, groups = np.random.default_rng(seed), len(sample.groups)
    sample = by_rank(sample) if set(names) & set(metrics.RANKED) else sample
    observed = _swapped(sample, np.zeros((1, groups)), pairs, names)
    hits = dict.fromkeys(names, 1)
    for start in range(0, permutations, block):
        swap = rng.random((min(block, permutations - start), groups)) < 0.5
        found = _swapped(sample, swap.astype(float), pairs, names)
        hits = {n: hits[n] + (np.abs(found[n]) >= np.abs(observed[n]) - SAME).sum(0) for n in names}
    return {n: np.where(np.isnan(observed[n][0]) | (groups < 2), np.nan, hits[n] / (1 + permutations)) for n in names}


def _swapped(sample: Sample, swap: np.ndarray, pairs: Sequence, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the difference (b, P) of each metric after the groups marked in swap (b, G) changed sides."""
    a, b = np.array(pairs).T
    found: dict[str, Any] = dict.fromkeys(names, 0.0)  # numbers until the first fold is added
    classes, tallied = list(sample.classes.values()), [n for n in names if n not in metrics.RANKED]
    for part in sample.parts:
        tally = sums(sample, part, names)
        marked, whole = np.tensordot(swap[:, part.groups], tally, 1), tally.sum(0)
        shift = marked[:, b] - marked[:, a]
        one, two = (scores(total, classes, tallied, sample.outcomes) for total in (whole[a] + shift, whole[b] - shift))
        for name in set(names) & set(metrics.RANKED):
            one[name], two[name] = _swapped_ranked(name, sample, part, swap, pairs)
        found = {name: value + (one[name] - two[name]) / len(sample.parts) for name, value in found.items()}
    return found


def _swapped_ranked(name: str, sample: Sample, part: Part, swap: np.ndarray, pairs: Sequence) -> np.ndarray:
    """Return AUROC or AUPRC (2, b, P) of both sides: a side has weights for its own rows and for those of the other."""
    sides = np.hstack([np.vstack([1 - swap.T, swap.T]), np.vstack([swap.T, 1 - swap.T])])
    unit = np.concatenate([part.unit, part.unit + swap.shape[1]])
    both = [ranked(name, sample, part, np.concatenate(part.probability[list(pair)]), unit, sides) for pair in pairs]
    return np.stack(both, axis=-1).reshape(2, len(swap), len(pairs))


def differences(
    boot: Bootstrap,
    protocols: Sequence[str] = (),
    method: str = METHODS[0],
    level: float = 0.95,
    seed: int = 0,
    across: bool = False,
) -> pd.DataFrame:
    """Return the differences of all pairs of encoders of each protocol (default: of all), on the resamples of ``boot``.

    ``across``: of all pairs of models, of those protocols, for a question in which an encoder comes with the way it is trained; Holm is over
    all of them.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, VIEW, metric, resamples (and as many permutations), groups, other (encoder; with ``across`` other_protocol
        too), value (encoder minus other), method, low, high, p (group permutation), p_holm (over the pairs of this protocol,
        view and metric), p_nadeau_bengio (secondary; ``crossval`` in-domain alone, else NaN), reason (of NaN in low and high). No rows
        where a protocol has one encoder.
    """
    sample, rows, most = boot.sample, [], max(map(len, boot.draws.values()))
    wanted = [members for name, members in sample.families.items() if name in (protocols or sample.families)]
    for members in [sorted(chain(*wanted))] if across else wanted:
        pairs = list(combinations(members, 2))
        for names, total in _turns(boot.draws, most) if pairs else ():
            p = permutation(sample, pairs, names, total, seed)
            for name, (k, (a, b)) in product(names, enumerate(pairs)):
                draws, folds, out = (x[name][:, a] - x[name][:, b] for x in (boot.draws, boot.folds, boot.jackknife))
                why = sample.why(folds.mean(), name)
                low, high, reason = interval(draws, folds.mean(), out, sample.stratum, method, level, why)
                row = _about(boot, name, a, b) | {"other": sample.models[b][0], "value": folds.mean()}
                row |= {"other_protocol": sample.models[b][1]} if across else {}
                row |= {"method": method, "low": low, "high": high, "p": p[name][k], "p_holm": holm(p[name])[k]}
                by_fold = folds.reshape(-1, sample.runs).mean(1)
                fold_test = nadeau_bengio(by_fold, sample.test_share) if sample.stratum.any() else np.nan
                rows.append(row | {"p_nadeau_bengio": fold_test, "reason": reason})
    about = _about(boot, next(iter(boot.draws)), 0)
    other = ["other", "other_protocol"] if across else ["other"]
    columns = [*about, *other, "value", "method", "low", "high", "p", "p_holm", "p_nadeau_bengio", "reason"]
    return pd.DataFrame(rows, columns=columns)


def ranking(boot: Bootstrap) -> pd.DataFrame:
    """Return rank and probability of rank 1 of every encoder of each protocol, and how doubtful the named winner is.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, VIEW, metric, resamples, groups, value, rank (observed), rank1 (share of the joint resamples in
        which the encoder is first; encoders that tie there share it), winner (observed best), winner_not_best (1 - its
        rank1), reason (of NaN).
    """
    sample, rows = boot.sample, []
    for metric, members in product(boot.draws, sample.families.values()):
        sign = -1 if metric in metrics.CALIBRATION else 1
        value, draws = sign * boot.folds[metric].mean(0)[members], sign * boot.draws[metric][:, members]
        reasons = [flaw(c, sample.stratum, sample.why(0.0, metric)) for c in (draws - draws.mean(1, keepdims=True)).T]
        reason = "one encoder: nothing to rank" if len(members) < 2 else reasons[0] if all(reasons) else ""
        first = draws >= draws.max(axis=1, keepdims=True) - SAME
        rank1 = np.full(len(members), np.nan) if reason else (first / first.sum(axis=1, keepdims=True)).mean(0)
        rank, best = stats.rankdata(-value, "min", nan_policy="omit"), np.argmax(np.nan_to_num(value, nan=-np.inf))
        verdict = {"winner": sample.models[members[best]][0], "winner_not_best": 1 - rank1[best], "reason": reason}
        for i, member in enumerate(members):
            row = _about(boot, metric, member) | {"value": sign * value[i], "rank": rank[i]}
            rows.append(row | {"rank1": rank1[i]} | verdict)
    return pd.DataFrame(rows)


def of_all(tell: Callable[..., pd.DataFrame], boots: Sequence[Bootstrap], **options: Any) -> pd.DataFrame:
    """Return the rows of ``intervals``, ``differences`` or ``ranking`` (``tell``) of several bootstraps."""
    told = Progress(boots, total=len(boots), desc=getattr(tell, "__name__", "views"), unit="view")
    return pd.concat([tell(boot, **options) for boot in told], ignore_index=True)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return step-down adjusted p (n,) that hold the family-wise error (Holm 1979); NaN stays NaN, not counted."""
    p = np.asarray(p, float)
    adjusted, tested = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def nadeau_bengio(difference: np.ndarray, test_share: float) -> float:
    """Return two-sided p of the corrected resampled t-test (Nadeau & Bengio 2003) on differences (F,) of two encoders, means over seeds.

    For folds that test patients of their own (``crossval``, in-domain) and nothing else: on a common test set the folds
    share its luck, which no fold SD shows. ``test_share`` is tested / training patients. NaN where the SD is 0.
    """
    n = len(difference)
    if n < 2 or not np.ptp(difference) > SAME:
        return float("nan")
    t = np.mean(difference) / np.sqrt(np.var(difference, ddof=1) * (1 / n + test_share))
    return float(2 * stats.t.sf(abs(t), n - 1))
