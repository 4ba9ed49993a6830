"""Scores of predictions: every model, fold and view; tidy frames in and out.

A *view* is one way of scoring a test cohort: which of its classes count, whether the arg-max is *open* (all classes of the
task) or *shared* (those that both cohorts have), with all images or the de-duplicated ones. There are as many external cohorts as
the predictions hold: one that the task does not name is scored on the classes of the task that occur in it. The score of an encoder is the
mean over its fold models, of all seeds where each was trained with several; the SD over folds (of the means over seeds) and the SD over
seeds (of the means over folds) are training variation, not the error of the score. In frames a label space is the
name that ``Task.space`` gives it: two spaces of as many classes are two views.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn

from fpbench import metrics, predictions
from fpbench.errors import InputError
from fpbench.protocols import titles
from fpbench.tasks import Task

VIEW = ("population", "classes", "rule", "duplicates")
MODEL = ("encoder", "protocol")
RUN = ("fold", "seed")  # of a model: it is fitted once for each
DUPLICATES = {"as published": False, "de-duplicated": True}


def spaces(task: Task, predicted: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return population -> its label space, of every population with test rows: home first, then as the rows come."""
    seen = predicted.loc[predicted["split"] == "test", ["population", "y_true"]].drop_duplicates()
    found = {}
    for name in dict.fromkeys([task.train, *seen["population"]]):
        occur = set(seen.loc[seen["population"] == name, "y_true"])
        own = tuple(one for code, one in enumerate(task.classes) if code in occur)
        if occur:
            found[name] = task.home if name == task.train else task.tests.get(name, own)
    return found


def common(task: Task, predicted: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes that all populations have: those on which cohorts may be compared with each other."""
    every = spaces(task, predicted).values()
    return tuple(name for name in task.classes if all(name in classes for classes in every))


def views(task: Task, predicted: pd.DataFrame) -> list[tuple[str, tuple[str, ...], str]]:
    """Return (population, classes, rule) of every view: the home cohort whole, on the classes of each external one, and these."""
    abroad = {name: classes for name, classes in spaces(task, predicted).items() if name != task.train}
    found = [(task.train, task.home, "open")]
    found += [(task.train, own, rule) for own in abroad.values() if own != task.home for rule in metrics.RULES]
    found += [(name, own, rule) for name, own in abroad.items() for rule in metrics.RULES]
    return list(dict.fromkeys(found))


def shared_seeds(rows: pd.DataFrame) -> list[int]:
    """Return the seeds of the models that have several, empty if none has; InputError where these have others than those."""
    seeds = rows[[*MODEL, "seed"]].drop_duplicates().groupby(list(MODEL))["seed"].agg(sorted)
    several = {tuple(own): f"{' / '.join(model)}: {own}" for model, own in seeds.items() if len(own) > 1}
    if len(several) > 1:
        raise InputError(f"expected models of one seed, or of the same seeds; found {'; '.join(several.values())}")
    return list(next(iter(several), ()))


def evaluate(predicted: pd.DataFrame, task: Task, groups: tuple[str, ...] = (), ranked: bool = True) -> pd.DataFrame:
    """Score every model, fold, seed and view.

    Parameters
    ----------
    predicted
        Rows of predictions files; only ``split == "test"`` is scored.
    groups
        Further columns to score apart, e.g. ``("centre",)``.
    ranked
        With AUROC and, of a task with a positive class, AUPRC, which take longer than all the others.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, VIEW, RUN, ``groups``, images (how many), metric, value (0 to 1; NLL in nats).

    Raises
    ------
    InputError
        A logit is not finite, or a class lies outside the label space.
    """
    ranked = ranked or task.headline in metrics.RANKED
    return _collect(predicted, task, groups, partial(metrics.scores, ranked=ranked, positive=task.positive_code))


def evaluate_classes(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Score every class: as ``evaluate``, with the metric named ``F1 of abdomen`` and so on."""

    def by_class(y: np.ndarray, z: np.ndarray, space: Sequence[int], rule: str) -> dict[str, float]:
        table = metrics.per_class(y, z, space, rule)
        what = ("precision", "recall", "F1")
        return {f"{name} of {task.classes[k]}": table[name][i] for name in what for i, k in enumerate(space)}

    return _collect(predicted, task, (), by_class)


def _collect(predicted: pd.DataFrame, task: Task, groups: tuple[str, ...], score: Callable) -> pd.DataFrame:
    test = predicted[predicted["split"] == "test"]
    columns, rows = [*MODEL, *RUN, *groups], []
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):  # ``metrics`` checks its input
        for population, classes, rule in views(task, predicted):
            space = task.codes(classes)
            seen = test[(test["population"] == population) & test["y_true"].isin(space)]
            for duplicates, drop in DUPLICATES.items():
                for key, part in seen[seen["distinct"]].groupby(columns) if drop else seen.groupby(columns):
                    present = [k for k in space if not groups or (part["y_true"] == k).any()]
                    values = score(part["y_true"].to_numpy(), predictions.outputs(part, task), present, rule)
                    view = (population, task.space([task.classes[k] for k in present]), rule, duplicates)
                    rows += [(*key, *view, len(part), metric, float(value)) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=[*columns, *VIEW, "images", "metric", "value"])


def summarise(scores: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return mean, SD over folds (and folds, images) of each metric of each model and view, SD over seeds (and seeds).

    The SD over folds is of the means over seeds, the SD over seeds of the means over folds: NaN where there is one.
    """
    keys = [*MODEL, *VIEW, *by, "metric"]
    fold, seed = (
        scores.groupby([*keys, run], sort=False, as_index=False).agg(value=("value", "mean"), images=("images", "mean"))
        for run in RUN
    )
    table = fold.groupby(keys, sort=False, as_index=False).agg(
        mean=("value", "mean"), sd=("value", "std"), folds=("value", "size"), images=("images", "mean")
    )
    return table.merge(
        seed.groupby(keys, as_index=False).agg(sd_seeds=("value", "std"), seeds=("value", "size")), on=keys
    )


def overview(scores: pd.DataFrame, task: Task, intervals: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return ``summarise`` of the headline of the task, copies left in, with the heading of each view in the column ``view``.

    Variation by patient, fold and seed stand side by side: ``low`` and ``high``, ``sd``, ``sd_seeds``.

    ``intervals`` of ``statistics.intervals``, one method, add the columns ``low`` and ``high``, NaN where the data carry none, and
    ``reason`` why.
    """
    summary = summarise(scores[(scores["metric"] == task.headline) & (scores["duplicates"] == "as published")])
    if intervals is not None:
        keys = [*MODEL, *VIEW, "metric"]
        summary = summary.merge(intervals[[*keys, "low", "high", "reason"]], on=keys, how="left")
    views = summary[["population", "classes", "rule"]].itertuples(index=False)
    return summary.assign(view=[view_title(*view) for view in views])


def published() -> pd.DataFrame:
    """Return numbers from the literature; those that fill a cell of Table 1 name encoder, protocol and population."""
    return pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


def verdicts(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's public cells beside the range of all our variants of them.

    Returns
    -------
    pandas.DataFrame
        Columns encoder, protocol (title), population, paper, low, high, verdict. The variants are macro and weighted F1, every
        label space and rule, with and without copies. *Inside the range* is no agreement: the paper's protocol is not public.
    """
    public = published().query("encoder != ''").rename(columns={"value": "paper"})
    ours = summarise(scores[scores["metric"].isin(["macro F1", "weighted F1"])]).replace({"protocol": titles()})
    span = ours.groupby([*MODEL, "population"])["mean"].agg(low="min", high="max").reset_index()
    table = public[[*MODEL, "population", "paper"]].merge(span, how="left")
    inside = table["paper"].between(table["low"], table["high"])
    words = np.select([table["low"].isna(), inside], ["not run here", "inside the range"], "outside the range")
    return table.assign(verdict=words)


def view_title(population: str, classes: str, rule: str) -> str:
    """Return a column heading for a view; ``classes`` as ``Task.space`` calls them."""
    return f"{population.capitalize()}, {classes}, {rule}"


def told(intervals: pd.DataFrame) -> list[str]:
    """Return ``low`` and ``high`` of each row as text; ``[none]`` where the data carry no interval, with the reason where it is short."""
    rows = zip(intervals["low"], intervals["high"], intervals["reason"].fillna(""), strict=True)
    none = "none: "  # begins a reason that is short
    return [
        f" [{low:.3f}, {high:.3f}]" if low <= high else f" [{why if why.startswith(none) else 'none'}]"
        for low, high, why in rows
    ]


def variation(summary: pd.DataFrame) -> list[str]:
    """Return one sentence per protocol with several seeds and view: how far patients, folds and seeds move a score; ``overview`` with intervals."""
    lines = []
    for (protocol, view), part in summary[summary["seeds"] > 1].groupby(["protocol", "view"], sort=False):
        by_patient, by_fold, by_seed = (
            (part["high"] - part["low"]).median(),
            part["sd"].median(),
            part["sd_seeds"].median(),
        )
        lines.append(
            f"{titles().get(protocol, protocol)}, {view}, these runs with {part['seeds'].max()} seeds: median over the encoders of the "
            f"SD by seed {by_seed:.3f}, of the SD by fold {by_fold:.3f}, of the width of the interval by patient {by_patient:.3f}."
        )
    return lines


def difference(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return each view's mean as published, de-duplicated, and their difference."""
    summary = summarise(scores[scores["metric"] == metric])
    if summary.empty:
        raise InputError(f"no scores of {metric!r}: expected one of {', '.join(sorted(set(scores['metric'])))}")
    keys = [*MODEL, "population", "classes", "rule"]
    both = summary.pivot(index=keys, columns="duplicates", values=["mean", "images"])
    table, images = both["mean"][list(DUPLICATES)].rename_axis(columns=None), both["images"]
    table["difference"] = table["de-duplicated"] - table["as published"]
    table["images left out"] = np.round(images["as published"] - images["de-duplicated"]).astype(int)
    return table.reset_index()


def headline(scores: pd.DataFrame, task: Task, encoder: str, protocol: str) -> str:
    """Return the headline of one model in words, view by view."""
    summary = overview(scores[(scores["encoder"] == encoder) & (scores["protocol"] == protocol)], task)
    return "; ".join(f"{row.view} {row.mean:.3f}" for row in summary.itertuples())


def findings(scores: pd.DataFrame, task: Task) -> list[str]:
    """Return one sentence per external cohort: what the rule of the arg-max changes there, under linear probing."""
    abroad = overview(scores[(scores["protocol"] == "logistic") & (scores["population"] != task.train)], task)
    rules = abroad.pivot(index=["population", "encoder"], columns="rule", values="mean").reindex(columns=metrics.RULES)
    lines = []
    for population, change in (rules["shared"] - rules["open"]).dropna().groupby("population", sort=False):
        span = dict.fromkeys(f"{value:+.3f}" for value in (change.min(), change.max()))  # one encoder has one number
        found = f"changes {task.headline} there by {' to '.join(span)}"
        where = f"Restricting the answers to the classes that {population.capitalize()} has"
        lines.append(f"{where} {found}: the rule must be named with every score.")
    return lines
