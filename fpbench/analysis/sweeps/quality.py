"""Image quality on blind sweeps: the claims of arXiv:2507.22802, its numbers beside ours, and what the sentences of a study may say.

Everything follows from the bootstrap of the package. The paper's models are FetalCLIP with LoRA (FetalCLIP-CLS), six baselines,
and a segmenter on FetalCLIP that answers by the area it finds; a miniature stands for its namesake. Its score is F1 of the positive class
at 0.5, over frames of one split by stack, of which five subjects lie in training and in test; ours is AUPRC, and that F1 beside it.

Contents: ``table`` (the scores as people read them), ``public``, ``verdicts``, ``coverage``, ``sentences``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fpbench.analysis import claims, scoring, sweeps
from fpbench.analysis.scoring import MODEL
from fpbench.analysis.statistics import Bootstrap
from fpbench.protocols import titles
from fpbench.tasks import Task

OWN = "fetalclip"
PAPER = ("lora", "full")  # how its classifiers were trained: transformers, networks of convolutions
VARIANTS = {
    "lora": ("lora", "lora_mlp")
}  # of ours, beside a protocol of the paper; peft reaches the MLPs of FetalCLIP alone
COVERAGE, PUBLISHED = (Path(__file__).with_name(f"{name}.csv") for name in ("coverage", "published"))
WELL = (0.93, 0.97)  # coverage of a 95 % interval that need not be told
TOLD = (
    "AUPRC",
    sweeps.PREVALENCE,
    "AUROC",
    "F1",
    sweeps.BEST_USABLE,
    sweeps.BEST_OPTIMAL,
    sweeps.SENSITIVITY,
    sweeps.SELECTION,
)


def _f1(task: Task, at: str = sweeps.HALF) -> str:
    return f"F1 of {task.positive}, {at}"


def table(intervals: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return one row per model: the scores of every unit with their intervals, the best AUPRC first.

    ``intervals`` of ``sweeps.intervals``, one method. A column is named by metric and unit; F1 is that at the threshold of validation.
    """
    names = [_f1(task, sweeps.CHOSEN) if name == "F1" else name for name in TOLD]
    rows = intervals[intervals["metric"].isin(names)]
    rows = rows.assign(
        text=rows["value"].map("{:.3f}".format) + np.where(rows["metric"] == sweeps.PREVALENCE, "", scoring.told(rows))
    )
    wide = rows.pivot(index=list(MODEL), columns="metric", values="text")[
        [name for name in names if name in set(rows["metric"])]
    ]
    order = rows[rows["metric"] == "AUPRC"].sort_values("value", ascending=False)
    unit = sweeps.units(task)
    wide = wide.loc[list(order[list(MODEL)].itertuples(index=False, name=None))].rename(
        index=titles(), level="protocol"
    )
    return (
        wide.rename(columns={name: f"{name} ({unit[name]})" for name in wide}).rename_axis(columns=None).reset_index()
    )


def public(intervals: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the paper's numbers beside the range of all our variants of them.

    Returns
    -------
    pandas.DataFrame
        Columns model, encoder, protocol, metric, paper, sd (over five runs; of an earlier README), low, high, verdict. The variants are
        both thresholds, and VARIANTS of the protocol. *Inside the range* is no agreement: the split is another.
    """
    cells = pd.read_csv(PUBLISHED).rename(columns={"value": "paper"})
    ours = intervals.assign(encoder=intervals["encoder"].str.removesuffix("-mini"))
    spans = []
    for cell in cells.itertuples():
        mine = (ours["encoder"] == cell.encoder) & ours["protocol"].isin(VARIANTS.get(cell.protocol, (cell.protocol,)))
        named = ours["metric"].str.startswith(f"{cell.metric} of {task.positive}, ") | (ours["metric"] == cell.metric)
        value = ours.loc[mine & named, "value"]
        spans.append((value.min(), value.max()))
    low, high = np.array(spans).T
    inside = cells["paper"].between(low, high)
    verdict = np.select([np.isnan(low), inside], ["not run here", "inside the range"], "outside the range")
    return cells.assign(low=low, high=high, verdict=verdict).replace({"protocol": titles()})


def verdicts(boot: Bootstrap, task: Task) -> pd.DataFrame:
    """Hold the claims of the abstract to a study.

    Parameters
    ----------
    boot
        Of ``sweeps.bootstraps``.

    Returns
    -------
    pandas.DataFrame
        Columns claim, metric, unit, models (compared), probability (share of the joint resamples in which the claim holds), outcome, reason.
    """
    place = {(name.removesuffix("-mini"), protocol): i for i, (name, protocol) in enumerate(boot.sample.models)}
    named = {model: f"{model[0]}, {titles()[model[1]]}" for model in place}
    own, segmenter = (OWN, "lora"), (OWN, "segmentation")
    trained = [model for model in place if model[1] in PAPER and model[0] != OWN]
    asked = {
        "FetalCLIP with LoRA is better than every baseline": (own, [own, *trained]),
        "The segmenter on FetalCLIP is better than FetalCLIP with LoRA": (segmenter, [segmenter, own]),
    }
    rows = []
    for claim, (better, models) in asked.items():
        for metric in (_f1(task), "AUPRC"):
            there = [model for model in models if model in place]
            draws = {named[model]: boot.draws[metric][:, place[model]] for model in there}
            outcome = claims.outcome("best", draws, [named.get(better, f"{better[0]}, {titles()[better[1]]}")])
            rows.append((claim, metric, sweeps.units(task)[metric], "; ".join(draws) or "none", *outcome))
    return pd.DataFrame(rows, columns=["claim", "metric", "unit", "models", "probability", "outcome", "reason"])


def coverage(metric: str = "AUPRC", method: str = "percentile") -> str:
    """Return what is known of the coverage of a 95 % interval on blind sweeps, as a sentence; empty where it is within WELL.

    Simulated (``benchmarks/sweep_coverage.py``): frames clustered in sweeps and subjects as in ACOUSLIC-AI, 281 subjects, a known truth.
    """
    known = pd.read_csv(COVERAGE)
    row = known[(known["metric"] == metric) & (known["method"] == method)].iloc[0]
    if WELL[0] <= row["coverage"] <= WELL[1]:
        return ""
    return (
        f"Mind: of simulated sweeps with a known truth, {row['coverage']:.1%} of such 95 % intervals of {metric} ({method}) held it "
        f"({row['repetitions']:,} repetitions, 281 subjects): they are too {'narrow' if row['coverage'] < WELL[0] else 'wide'}."
    )


def sentences(
    intervals: pd.DataFrame, pairs: pd.DataFrame, judged: pd.DataFrame, conditions: pd.DataFrame, counted: pd.DataFrame
) -> list[str]:
    """Return what a study lets one say.

    Parameters
    ----------
    intervals, pairs
        Of ``sweeps.intervals`` and ``sweeps.differences`` (``across``), one method.
    judged
        Of ``verdicts``.
    conditions
        Of ``shortcuts.compare``: linear probes that do not see the frame, beside those that do.
    counted
        Of ``sweeps.counts``.
    """
    ranked = intervals[intervals["metric"] == "AUPRC"].sort_values("value", ascending=False, kind="stable")
    best = tuple(ranked[list(MODEL)].iloc[0])
    mine = intervals[(intervals[list(MODEL)] == best).all(axis=1)].set_index("metric")

    def told(metric: str) -> str:
        return f"{mine.loc[metric, 'value']:.3f}{scoring.told(mine.loc[[metric]])[0]}"

    beaten = _beaten(pairs, best)
    lines = [
        f"Frames: {best[0]}, {titles()[best[1]]}, ranks them best: AUPRC {told('AUPRC')}, where an order at random has "
        f"{mine.loc[sweeps.PREVALENCE, 'value']:.3f}. It is better than {len(beaten)} of {len(ranked) - 1} others at Holm-adjusted p <= {claims.ALPHA}.",
        f"Sweeps: its best-scored frame is usable in {told(sweeps.BEST_USABLE)} of those that hold a usable one.",
        f"Cases: its best-scored frame earns {told(sweeps.SELECTION)} of the challenge's selection score, among annotated sweeps; "
        f"cases without a usable frame, which are left out: {int(counted['cases left out'].iloc[0])}.",
    ]
    floor, seen = (conditions[(conditions["condition"] == "frames") == own] for own in (False, True))
    most = floor.loc[floor["value"].idxmax()]
    near = seen[~(seen["low"] > most["value"])]["encoder"]
    lines.append(
        f"Without the frame: {most['condition']} alone scores AUPRC {most['value']:.3f}; encoders whose linear probe is not shown above that: "
        f"{', '.join(near) or 'none'}."
    )
    for row in judged.itertuples():
        lines.append(
            f"{row.claim}, {row.metric}: {row.outcome} ({row.reason or f'probability {row.probability:.2f}'})."
        )
    return lines


def _beaten(pairs: pd.DataFrame, best: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the models that one is shown to be better than, in AUPRC."""
    stand = pairs[(pairs["metric"] == "AUPRC") & (pairs["p_holm"] <= claims.ALPHA)]
    sides = [((row.encoder, row.protocol), (row.other, row.other_protocol), row.value) for row in stand.itertuples()]
    return [two for one, two, value in sides if one == best and value > 0] + [
        one for one, two, value in sides if two == best and value < 0
    ]
