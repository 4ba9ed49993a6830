"""Shortcuts, read from predictions: what embeddings know besides anatomy, and what a picture's size and borders score.

The predictions are those of ``training.shortcuts``.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from fpbench import predictions
from fpbench.analysis import shift, statistics
from fpbench.analysis.claims import primary_view
from fpbench.tasks import Task


def knowledge(found: dict[tuple[str, str], tuple[Task, list[Path]]]) -> pd.DataFrame:
    """Return how often every target of ``targets`` is named right, beside what guessing would give.

    Columns encoder, asked (cohort and target), values, groups, accuracy as ``value`` with ``low`` and ``high`` (95 % interval
    by patient group), majority (share of the most frequent value), balanced accuracy, chance (one in values). No rows where nothing was asked.
    """
    rows = []
    for (population, target), (task, files) in found.items():
        predicted = predictions.read(files, task)
        sample = next(statistics.samples(predicted, task))
        boot = statistics.bootstrap(sample, ["accuracy", "balanced accuracy"], statistics.RANK_RESAMPLES)
        (told,) = statistics.intervals(boot, ["percentile"]).query("metric == 'accuracy'").to_dict("records")
        told |= {"asked": f"{population}: {target}", "values": len(task.classes), "chance": 1 / len(task.classes)}
        told["majority"] = predicted.query("split == 'test'")["y_true"].value_counts(normalize=True).max()
        rows.append(told | {"balanced accuracy": boot.folds["balanced accuracy"].mean()})
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
    return pd.DataFrame(rows, columns=columns)


def unseen(left_out: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return ``shift.by_part`` of machines that took no part in training, open, as published; empty where there are none.

    ``left_out``: predictions of ``training.shortcuts.without_each``, of all encoders together. Further columns: trained ("as few
    images", "without it"), case (machine and trained, for a figure).
    """
    parts = []
    for trained in ("as few images", "without it") if len(left_out) else ():
        rows = left_out[left_out["trained"] == trained].reset_index(drop=True)
        parts.append(shift.by_part(rows, task, task.train, "machine").assign(trained=trained))
    if not parts:
        return pd.DataFrame()
    return widest(pd.concat(parts, ignore_index=True), task).assign(case=lambda f: f["part"] + "\n" + f["trained"])


def widest(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the rows of ``shift.by_part``, open, as published, that score a part over all the classes it has."""
    if table.empty:
        return table
    table = table.query("rule == 'open' and duplicates == 'as published'")
    own = table["present"].map(lambda words: task.space(words.split(", ")))
    return table[table["classes"] == own].sort_values("part", kind="stable", ignore_index=True)


def compare(conditions: dict[str, pd.DataFrame], task: Task) -> pd.DataFrame:
    """Return the headline score with interval of every encoder under every condition, in the primary view of every cohort."""
    parts = []
    for condition, predicted in conditions.items():
        boots = statistics.bootstraps(predicted, task, wanted=partial(primary_view, task))
        table = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
        parts.append(table.assign(condition=condition))
    columns = ["encoder", "population", "classes", "condition", "groups", "value", "low", "high", "reason"]
    return pd.concat(parts, ignore_index=True)[columns]


def sentences(knowledge: pd.DataFrame, conditions: pd.DataFrame) -> list[str]:
    """Return what ``knowledge`` and ``compare`` support: which targets are read above guessing, and what borders alone score."""
    lines = [] if len(knowledge) else ["Of no cohort more than one machine, operator, picture size or centre is known."]
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
