"""Claims: what the abstract says and what a study lets one say, each held to the resamples of ``fpbench.analysis.statistics``.

A sentence "A is better than B" comes from ``sentences`` or ``contrasts`` alone, and they write it only where the test says so:
Holm-adjusted p of the group permutation test at most ALPHA. The primary view of a cohort has all its classes, the open
arg-max and the images as published.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fpbench.analysis.scoring import MODEL, VIEW, view_title
from fpbench.analysis.statistics import SAME, Bootstrap, flaw
from fpbench.protocols import titles
from fpbench.tasks import Task

ALPHA = 0.05
NATURAL = ("resnet50", "efficientnetv2_s", "dinov3")  # the encoders of the paper that have seen no ultrasound


def verdicts(boots: Iterable[Bootstrap], task: Task) -> pd.DataFrame:
    """Hold the claims of ``claims.csv`` to a study.

    Parameters
    ----------
    boots
        With the headline metric, drawn with different seeds, so that those of two cohorts are independent.

    Returns
    -------
    pandas.DataFrame
        Columns claim, cohort, encoders (compared; a miniature stands for its namesake), probability, outcome, reason.
        ``probability`` is the share of the joint resamples in which the claim holds. Outcome: supported (at least 1 - ALPHA),
        not supported (at most ALPHA), undecided, not tested. That *some* encoder is below another is supported only if
        one pair stands after Bonferroni's correction, since which pair was not said beforehand.
    """
    boots, rows = list(boots), []
    draws = {boot.sample.view: boot for boot in boots}
    main = {boot.sample.view[0]: boot for boot in primary(boots, task)}
    for claim in pd.read_csv(Path(__file__).with_name("claims.csv")).itertuples():
        boot = main.get(claim.population)
        found = _headline(boot, task, claim.protocol)
        if claim.kind == "gap" and boot:
            home = _headline(
                draws.get((task.train, *boot.sample.view[1:])), task, claim.protocol
            )  # on the same classes
            found = {name: home[name] - value for name, value in found.items() if name in home}
        judged = outcome(claim.kind, found, claim.encoders.split())
        rows.append((claim.claim, claim.population.capitalize(), ", ".join(found) or "none", *judged))
    return pd.DataFrame(rows, columns=["claim", "cohort", "encoders", "probability", "outcome", "reason"])


def primary_view(task: Task, population: str, classes: str, rule: str, duplicates: str) -> bool:
    """Return whether a view (``scoring.VIEW``) is the primary one of its cohort; an external cohort is scored on its own classes alone."""
    own = population != task.train or classes == task.space(task.home)
    return own and (rule, duplicates) == ("open", "as published")


def primary(boots: Iterable[Bootstrap], task: Task) -> list[Bootstrap]:
    """Return the bootstraps of primary views."""
    return [boot for boot in boots if primary_view(task, *boot.sample.view)]


def _headline(boot: Bootstrap | None, task: Task, protocol: str) -> dict[str, np.ndarray]:
    """Return the resampled headline score (resamples,) of every encoder under a protocol, by the name of the full encoder."""
    if boot is None:
        return {}
    models = enumerate(boot.sample.models)
    return {name.removesuffix("-mini"): boot.draws[task.headline][:, i] for i, (name, of) in models if of == protocol}


def outcome(kind: str, draws: dict[str, np.ndarray], named: list[str]) -> tuple[float, str, str]:
    """Return probability, outcome and reason of a claim about some of the models whose resampled scores (resamples,) are given.

    ``kind``: the ``named`` are *best*, each above all others (of losses: their *gap* is the largest), or one of them is *below* a natural one.
    """
    rivals = [name for name in (NATURAL if kind == "below" else draws) if name in draws and name not in named]
    named_here = [name for name in named if name in draws]
    if not rivals or (len(named_here) < len(named) and kind != "below") or not named_here:
        return np.nan, "not tested", f"needs {', '.join(named)} and others to compare with"
    ours, others = (np.column_stack([draws[name] for name in names]) for names in (named_here, rivals))
    if reason := flaw((ours[:, 0] - others[:, 0]), np.zeros(2, int)):
        return np.nan, "undecided", reason
    if kind == "below":
        holds = ours.min(axis=1) < others.max(axis=1) - SAME
        pairs = (ours[:, :, None] < others[:, None] - SAME).mean(axis=0)
        support = 1 - pairs.size * (1 - pairs.max())
    else:  # best: above all others; gap: the losses of the named ones are the largest
        holds = ours.min(axis=1) > others.max(axis=1) + SAME
        support = holds.mean()
    verdict = "supported" if support >= 1 - ALPHA else "not supported" if holds.mean() <= ALPHA else "undecided"
    return float(holds.mean()), verdict, ""


def sentences(pairs: pd.DataFrame) -> list[str]:
    """Return one sentence per protocol and view: which encoder is better than which; ``pairs`` of ``statistics.differences``."""
    lines = []
    for (protocol, *view), part in pairs.groupby(["protocol", *VIEW], sort=False):
        above: dict[str, list[str]] = {}
        for row in part[part["p_holm"] <= ALPHA].itertuples():
            better, worse = (row.encoder, row.other) if row.value > 0 else (row.other, row.encoder)
            above.setdefault(better, []).append(worse)
        told = "; ".join(f"{name} is better than {', '.join(worse)}" for name, worse in above.items())
        where = f"{titles().get(protocol, protocol)}, {view_title(*view[:3])}{_runs(next(part.itertuples()))}"
        count = f"{sum(map(len, above.values()))} of {len(part)} pairs at Holm-adjusted p <= {ALPHA}"
        lines.append(f"{where}: {told or 'no encoder is shown to be better than another'} ({count}).")
    return lines


def _runs(row: Any) -> str:
    """Return which training runs a sentence on a row speaks of, where they are of several seeds."""
    seeds = getattr(row, "seeds", 1)
    return f", these runs with {seeds} seeds" if seeds > 1 else ""


def winners(ranking: pd.DataFrame) -> list[str]:
    """Return one sentence per protocol and view on the highest score; ``ranking`` of ``statistics.ranking``."""
    best = ranking[(ranking["encoder"] == ranking["winner"]) & (ranking["reason"] == "")]
    return [
        f"{titles().get(row.protocol, row.protocol)}, {view_title(row.population, row.classes, row.rule)}{_runs(row)}: {row.winner} scores "
        f"highest ({row.value:.3f}); the probability that it is not the best is {row.winner_not_best:.2f}."
        for row in best.itertuples()
    ]


def contrasts(pairs: pd.DataFrame) -> list[str]:
    """Return one sentence per pair and view: by how much, with interval, and whether the test calls it a difference."""
    lines = []
    for row in pairs.itertuples():
        better = row.encoder if row.value > 0 else row.other
        verdict = f"{better} is better" if row.p_holm <= ALPHA else "undecided"
        interval = row.reason or f"95 % interval {row.low:+.3f} to {row.high:+.3f}"
        lines.append(
            f"{row.protocol}, {view_title(row.population, row.classes, row.rule)}{_runs(row)}: {row.encoder} minus {row.other} {row.value:+.3f} "
            f"({interval}; p = {row.p_holm:.4f}): {verdict}."
        )
    return lines


def against(pairs: pd.DataFrame, other: str) -> pd.DataFrame:
    """Return the differences (``statistics.differences``) of everything minus one of them, whichever side it stood on."""
    turned = pairs[pairs["encoder"] == other]
    turned = turned.assign(
        encoder=turned["other"], other=other, value=-turned["value"], low=-turned["high"], high=-turned["low"]
    )
    return pd.concat([pairs[pairs["other"] == other], turned], ignore_index=True)


def exchanged(predicted: pd.DataFrame, protocols: Iterable[str]) -> pd.DataFrame:
    """Return predictions with encoder and protocol exchanged, so that ``statistics`` compares the protocols of one encoder."""
    rows = predicted[predicted["protocol"].isin(list(protocols))]
    return rows.assign(**dict(zip(MODEL, (rows["protocol"].replace(titles()), rows["encoder"]), strict=True)))
