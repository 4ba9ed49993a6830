"""What pretraining on ultrasound is worth: every adapted encoder against what it is held to, and the claims of arXiv:2511.01915.

An *arm* says where the weights of an encoder come from. An adapted encoder is held against the released weights of the same
architecture (in the paper, of natural images), against its start where that is random, and a transductive one, whose corpus
held test pictures, against the same run without them: what the leak is worth. All pairs share the resamples of patient groups
of ``fpbench.analysis.statistics``, and Holm's rule adjusts over all pairs of a view.

The claims are about cells, encoder and protocol: the adapted encoders of an arm under ``PAPER``, each against the first that it is held
to. A transductive arm is an arm of its own, says so in its name, and is no evidence for them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fpbench import results
from fpbench.analysis.claims import ALPHA
from fpbench.analysis.scoring import VIEW
from fpbench.analysis.statistics import SAME, Bootstrap, flaw, holm, interval, permutation
from fpbench.protocols import titles
from fpbench.study import EncoderSpec, Study
from fpbench.tasks import Task

PAPER = ("logistic", "full")  # protocols of the paper
LARGEST = 0.2  # "up to 20 percent" in weighted F1; read as a share of the other's score
GAINS_MOST = "trans-ventricular"
RELEASED, RANDOM, LEAK = "released weights", "random weights", "transductive"
WITHOUT = "the same without the leak"
CLAIMS = {
    "better": "Pretraining on ultrasound is consistently better: every cell gains",
    "largest": f"The largest relative gain reaches {LARGEST:.0%}",
    "class": f"The {GAINS_MOST} plane gains most",
}
COLUMNS = ("encoder", "arm", "protocol", "other", "against")


@dataclass(frozen=True)
class Pair:
    """An adapted encoder, and one that it is held against."""

    encoder: str
    arm: str  # of the encoder, as ``arms`` names it
    other: str
    against: str  # released weights | random weights | the same without the leak


def arms(study: Study) -> dict[str, str]:
    """Return encoder -> where its weights come from, in words; of those that have predictions."""
    return {spec.name: _arm(study, spec) for spec in results.present(study)}


def _arm(study: Study, spec: EncoderSpec) -> str:
    if not spec.pretraining:
        return RANDOM if spec.weights == "random" else RELEASED
    plan = study.pretraining[spec.pretraining]
    return f"adapted from {_arm(study, study.encoder_spec(plan.start))}" + f", {LEAK}" * plan.transductive


def pairs(study: Study) -> list[Pair]:
    """Return what is held against what, of those that have predictions; the first of an encoder is what the claims are about."""
    known, found = arms(study), []
    for spec in [one for one in results.present(study) if one.pretraining]:
        start = study.pretraining[spec.pretraining].start
        alike = [one.name for one in study.encoders if (one.model, one.options) == (spec.model, spec.options)]
        released = [name for name in alike if known.get(name) == RELEASED]
        others = dict.fromkeys([*released, *[start] * (start in known)])
        found += [Pair(spec.name, known[spec.name], other, known[other]) for other in others]
        found += [Pair(spec.name, known[spec.name], other, WITHOUT) for other in _honest(study, spec)]
    return found


def firsts(held: Sequence[Pair]) -> list[Pair]:
    """Return the first pair of every adapted encoder, that of a leak not counted: what the claims are about."""
    return list({pair.encoder: pair for pair in reversed(held) if pair.against != WITHOUT}.values())[::-1]


def _honest(study: Study, spec: EncoderSpec) -> list[str]:
    """Return the encoders that were adapted as a transductive one was, but for the test pictures; none for any other."""
    plan, there = study.pretraining[spec.pretraining], {one.name for one in results.present(study)}
    wanted = replace(plan, transductive=False)
    same = [one for one in study.encoders if one.pretraining and one.name in there]
    return [one.name for one in same if plan.transductive and study.pretraining[one.pretraining] == wanted]


def metrics_of(task: Task) -> list[str]:
    """Return the metrics that this module needs of ``statistics.bootstraps``: the headline, and F1 of every class."""
    return [task.headline, *(f"F1 of {name}" for name in task.classes)]


def _cells(boot: Bootstrap, held: Iterable[Pair], protocols: Sequence[str]) -> Iterator[tuple[Pair, str, int, int]]:
    """Yield pair, protocol and the positions of both models, of the pairs whose models were run."""
    place = {model: i for i, model in enumerate(boot.sample.models)}
    for protocol in protocols:
        for pair in held:
            one, other = (place.get((name, protocol)) for name in (pair.encoder, pair.other))
            if one is not None and other is not None:
                yield pair, protocol, one, other


def gains(boot: Bootstrap, held: Sequence[Pair], task: Task, protocols: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Return the differences of the headline, adapted minus what it is held against.

    Parameters
    ----------
    boot
        With ``metrics_of`` the task; draws (resamples, M).
    held
        Of ``pairs``.
    protocols
        In this order; a pair counts where both encoders were run with one.

    Returns
    -------
    pandas.DataFrame
        Columns COLUMNS, VIEW, groups, score (of the adapted encoder), score of the other, value (the difference), low and high (95 %,
        by patient group), relative (value / score of the other), p (group permutation), p_holm (over all rows), reason (of NaN).
    """
    cells, name = list(_cells(boot, held, protocols)), task.headline
    mean, draws, rows = boot.folds[name].mean(0), boot.draws[name], []
    both = [(a, b) for _, _, a, b in cells]
    p = permutation(boot.sample, both, [name], len(draws), seed)[name] if cells else np.empty(0)
    for (pair, protocol, a, b), own, adjusted in zip(cells, p, holm(p), strict=True):
        told = _interval(boot, name, a, b) | {"relative": (mean[a] - mean[b]) / mean[b] if mean[b] > 0 else np.nan}
        scores = {"score": mean[a], "score of the other": mean[b]}
        rows.append(_about(boot, pair, protocol) | scores | told | {"p": own, "p_holm": adjusted})
    columns = [
        *COLUMNS,
        *VIEW,
        "groups",
        "score",
        "score of the other",
        "value",
        "low",
        "high",
        "relative",
        "p",
        "p_holm",
        "reason",
    ]
    return pd.DataFrame(rows, columns=columns)


def class_gains(boot: Bootstrap, held: Sequence[Pair], task: Task, protocols: Sequence[str]) -> pd.DataFrame:
    """Return the differences of F1 class by class.

    Returns
    -------
    pandas.DataFrame
        Columns COLUMNS, VIEW, groups, class, value, low, high, most (share of the resamples in which this class gains most; classes that
        tie share it), reason. A row per cell and class.
    """
    names, rows = metrics_of(task)[1:], []
    for pair, protocol, a, b in _cells(boot, held, protocols):
        draws = np.column_stack([boot.draws[name][:, a] - boot.draws[name][:, b] for name in names])
        first = draws >= draws.max(axis=1, keepdims=True) - SAME
        share = (first / first.sum(axis=1, keepdims=True)).mean(0)  # NaN, as a draw of the same row is, is never first
        for name, most in zip(names, share, strict=True):
            about = _about(boot, pair, protocol) | {"class": name.removeprefix("F1 of ")}
            rows.append(about | _interval(boot, name, a, b) | {"most": most})
    columns = [*COLUMNS, *VIEW, "groups", "class", "value", "low", "high", "most", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _about(boot: Bootstrap, pair: Pair, protocol: str) -> dict:
    first = zip(COLUMNS, (pair.encoder, pair.arm, protocol, pair.other, pair.against), strict=True)
    return dict(first) | dict(zip(VIEW, boot.sample.view, strict=True)) | {"groups": len(boot.sample.groups)}


def _interval(boot: Bootstrap, name: str, a: int, b: int) -> dict:
    draws, folds, out = (x[name][:, a] - x[name][:, b] for x in (boot.draws, boot.folds, boot.jackknife))
    value = folds.mean()
    low, high, reason = interval(draws, value, out, boot.sample.stratum, "percentile", undefined=boot.sample.why(value))
    return {"value": value, "low": low, "high": high, "reason": reason}


def verdicts(boot: Bootstrap, held: Sequence[Pair], task: Task, protocols: Sequence[str] = PAPER) -> pd.DataFrame:
    """Hold the claims of the abstract to every arm of a study.

    Parameters
    ----------
    boot
        With ``metrics_of`` the task, of one view: one bootstrap, so that all cells are resampled together.

    Returns
    -------
    pandas.DataFrame
        Columns claim, arm, cells (how many), value, low, high, probability, outcome, reason. ``probability`` is the share of the joint
        resamples in which the claim holds; supported: at least 1 - ALPHA, not supported: at most ALPHA, undecided between. The value
        of the first claim is the smallest difference, and it is supported only if, besides, the interval of every cell lies above 0;
        of the second, the largest relative gain (of resamples too, and a maximum of noisy numbers is too large); of the third, how much
        more F1 GAINS_MOST gains, over the mean of the cells, than the next class.
    """
    about_them, rows = firsts(held), []
    for arm in dict.fromkeys(pair.arm for pair in about_them):
        cells = list(_cells(boot, [pair for pair in about_them if pair.arm == arm], protocols))
        about = {"arm": arm, "cells": len(cells)}
        if not cells:
            none = {"value": np.nan, "low": np.nan, "high": np.nan, "probability": np.nan}
            why = f"needs {' or '.join(titles()[name] for name in protocols)} of both encoders"
            rows += [
                {"claim": claim} | about | none | {"outcome": "not tested", "reason": why} for claim in CLAIMS.values()
            ]
            continue
        a, b = (np.array([cell[side] for cell in cells]) for side in (2, 3))
        rows += [{"claim": claim} | about | told for claim, told in _claims(boot, task, a, b)]
    return pd.DataFrame(
        rows, columns=["claim", "arm", "cells", "value", "low", "high", "probability", "outcome", "reason"]
    )


def _claims(boot: Bootstrap, task: Task, a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, dict]]:
    """Yield every claim with its verdict, for cells of the models ``a`` (adapted) and ``b``."""
    name = task.headline
    draws, means = boot.draws[name], boot.folds[name].mean(0)
    one, other, own, its = draws[:, a], draws[:, b], means[a], means[b]
    least, most = (one - other).min(1), _relative(one, other).max(1)
    above = all(_interval(boot, name, *cell)["low"] > SAME for cell in zip(a, b, strict=True))
    yield CLAIMS["better"], _told(boot, least, (own - its).min(), least > SAME, above)
    yield CLAIMS["largest"], _told(boot, most, _relative(own, its).max(), most >= LARGEST - SAME)
    if GAINS_MOST in task.classes:
        index, names = task.classes.index(GAINS_MOST), metrics_of(task)[1:]
        change = np.column_stack([(boot.draws[n][:, a] - boot.draws[n][:, b]).mean(1) for n in names])
        seen = np.array([(boot.folds[n].mean(0)[a] - boot.folds[n].mean(0)[b]).mean() for n in names])
        lead = change[:, index] - np.delete(change, index, 1).max(1)
        holds = (lead > SAME) & (change[:, index] > SAME)  # what gains nothing does not gain most, whatever others lose
        yield CLAIMS["class"], _told(boot, lead, seen[index] - np.delete(seen, index).max(), holds)


def _relative(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one - other) / np.where(other > 0, other, np.nan)


def _told(boot: Bootstrap, draws: np.ndarray, value: float, holds: np.ndarray, also: bool = True) -> dict:
    """Return the verdict on a claim that holds in some of the resamples; ``also``: whether what else support needs is there."""
    if reason := flaw(draws, boot.sample.stratum, boot.sample.why(value)):
        return dict.fromkeys(("low", "high", "probability"), np.nan) | {
            "value": value,
            "outcome": "undecided",
            "reason": reason,
        }
    (low, high), share = np.quantile(draws, [0.025, 0.975]), float(holds.mean())
    outcome = "supported" if share >= 1 - ALPHA and also else "not supported" if share <= ALPHA else "undecided"
    return {"value": value, "low": low, "high": high, "probability": share, "outcome": outcome, "reason": ""}


def sentences(gained: pd.DataFrame, judged: pd.DataFrame) -> list[str]:
    """Return one sentence per difference and per claim; of ``gains`` and ``verdicts``. Better is said only where the test says so."""
    if not len(gained):
        return ["No adapted encoder was run beside what it is held against."]
    lines = []
    for row in gained.itertuples():
        verdict = "undecided" if not row.p_holm <= ALPHA else f"{row.encoder if row.value > 0 else row.other} is better"
        within = row.reason or f"95 % interval {row.low:+.3f} to {row.high:+.3f}"
        lines.append(
            f"{titles()[row.protocol]}: {row.encoder} ({row.arm}) minus {row.other} ({row.against}) {row.value:+.3f} "
            f"({within}; Holm-adjusted p = {row.p_holm:.4f}): {verdict}."
        )
    for row in judged.itertuples():
        within = row.reason or f"probability {row.probability:.2f}"
        no = " No evidence: the corpus held test pictures." if LEAK in row.arm else ""
        lines.append(
            f"{row.claim} ({row.arm}, {row.cells} cell{'s' * (row.cells != 1)}): {row.outcome} ({within}).{no}"
        )
    return lines
