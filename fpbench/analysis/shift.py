"""Why the scores of two cohorts differ: the printed gap taken apart. Pure functions on predictions.

The gap that a paper prints compares the home cohort on all its classes with an external cohort on those it has. Four choices
of *how to measure* enter it, each a switch that is thrown for both cohorts at once:

    label set     all classes of the task, or those that both cohorts have
    rule          arg-max over all classes (open), or over the shared ones
    class prior   the cohort's own proportions of the shared classes, or those of the external cohort (weights on home images)
    copies        as published, or without the copies

gap(S) is the home score minus the external one with the switches S thrown: gap(none) is printed, gap(all) is the
*residual*, the shift of the population itself. What a switch explains depends on the order in which the four are thrown; its
part is the Shapley value, the mean over all 24 orders, beside the least and the most over the orders. Parts and residual add
up to the printed gap. The score is the estimand of ``fpbench.analysis.statistics``: the mean of macro F1 over the fold models.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import pandas as pd

from fpbench import metrics, predictions
from fpbench.analysis import statistics
from fpbench.analysis.scoring import MODEL, common, shared_seeds, spaces
from fpbench.errors import InputError
from fpbench.protocols import titles
from fpbench.tasks import Task

SWITCHES = ("label set", "rule", "class prior", "copies")


@dataclass(frozen=True)
class _Answers:
    """What all models answered on one cohort, as counts per group."""

    stratum: np.ndarray  # (G,) as statistics.Sample.stratum
    counts: dict[
        tuple[bool, bool], np.ndarray
    ]  # (shared?, without copies?) -> (G, F, M, K, K): true class x answer; F: folds x seeds

    def draw(self, resamples: int, rng: np.random.Generator) -> dict[tuple[bool, bool], np.ndarray]:
        """Return counts (1 + resamples, F, M, K, K): of the data, then of each resample of groups."""
        weights = statistics.draw(self.stratum, resamples, rng) if len(self.stratum) > 1 else np.ones((resamples, 1))
        weights = np.vstack([np.ones(len(self.stratum)), weights])
        return {state: np.tensordot(weights, counts, 1) for state, counts in self.counts.items()}


def _answers(rows: pd.DataFrame, task: Task, shared: list[int]) -> _Answers:
    folds = rows.groupby("group")["fold"].agg(["min", "nunique"])
    own = folds["nunique"].max() == 1 < rows["fold"].nunique()  # each fold tests its own groups
    stratum = folds["min"].rank(method="dense").astype(int) - 1 if own else folds["min"] * 0
    stratum = stratum.sort_values(kind="stable")
    fold, model = rows["fold"].rank(method="dense").astype(int) - 1, rows.groupby(list(MODEL)).ngroup()
    runs, seed = max(1, len(shared_seeds(rows))), rows.groupby(list(MODEL))["seed"].rank(method="dense").astype(int) - 1
    alone = np.flatnonzero(
        seed.groupby(model).max() == 0
    )  # models of one seed, which stands for every seed of the others
    place = [stratum.index.get_indexer(rows["group"]), fold, seed, model, rows["y_true"]]
    shape = (len(stratum), fold.max() + 1, runs, model.max() + 1, len(task.classes), len(task.classes))
    counts = {}
    for restricted, dropped in product((False, True), repeat=2):
        z = metrics.restrict(rows[task.columns()].to_numpy(), shared, metrics.RULES[restricted])
        where = np.ravel_multi_index([*place, z.argmax(axis=1)], shape)[rows["distinct"] | (not dropped)]
        found = np.bincount(where, minlength=np.prod(shape)).reshape(shape).astype(float)
        found[:, :, :, alone] = found[:, :, :1, alone]
        counts[restricted, dropped] = found.reshape(shape[0], -1, *shape[3:])
    return _Answers(stratum.to_numpy(), counts)


def _macro_f1(counts: np.ndarray, space: list[int]) -> np.ndarray:
    """Return macro F1 (R, M), mean over the folds and seeds, from counts (R, F, M, K, K); NaN where a class of the space has no image."""
    rows = counts[..., space, :]
    right, true, answered = rows[..., range(len(space)), space], rows.sum(-1), rows.sum(-2)[..., space]
    return (2 * right / np.where(true > 0, true + answered, np.nan)).mean(-1).mean(1)


def gaps(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return ``decompose`` of every external cohort, with the columns population and classes (its label space) in front.

    Scores of cohorts with different classes are different questions: where there are several external cohorts and not all have the
    same classes, each is taken apart a second time on the classes that all have.
    """
    own, all_have, parts = spaces(task, predicted), common(task, predicted), []
    abroad = [name for name in own if name != task.train]
    wanted = [(name, own[name]) for name in abroad]
    wanted += [(name, all_have) for name in abroad if len(abroad) > 1 and all_have]
    for name, classes in dict.fromkeys(wanted):
        steps = decompose(predicted, task, name, classes=classes)
        parts.append(steps.assign(population=name, classes=task.space(classes)))
    table = pd.concat(parts, ignore_index=True)
    return table[["population", "classes", *[name for name in table if name not in ("population", "classes")]]]


def side_by_side(predicted: pd.DataFrame, task: Task, seed: int = 0) -> pd.DataFrame:
    """Return ``statistics.intervals`` of the headline of every cohort on the classes that all of them have, as published.

    Empty where no class is common to all.
    """
    if not (classes := common(task, predicted)):
        return pd.DataFrame()
    local = task.adapted("", dict.fromkeys(spaces(task, predicted), classes))
    boots = statistics.bootstraps(predicted, local, seed=seed)
    table = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
    return table[table["duplicates"] == "as published"].reset_index(drop=True)


def decompose(
    predicted: pd.DataFrame,
    task: Task,
    population: str,
    resamples: int = statistics.RANK_RESAMPLES,
    seed: int = 0,
    classes: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Take the gap between the home cohort and an external one apart, for every model with logits.

    Parameters
    ----------
    classes
        Of the external cohort, on which it is scored; default: all that it has.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, step (``gap``, SWITCHES, ``residual``), value, least and most over the orders, low and high (95 %
        percentile interval by patient group, drawn in each cohort by itself), reason (of NaN).
    """
    test = predictions.with_logits(predicted[predicted["split"] == "test"], task)
    present = set(test["population"])
    if not {task.train, population} <= present or population == task.train:
        raise InputError(
            f"expected test rows of {task.train!r} and of another cohort {population!r}, found {sorted(present)}"
        )
    every, shared = task.codes(task.home), task.codes(classes or spaces(task, test)[population])
    rng, sides = np.random.default_rng(seed), []
    for name, space in ((task.train, every), (population, shared)):
        rows = test[(test["population"] == name) & test["y_true"].isin(space)]
        sides.append(_answers(rows, task, shared))
    home, abroad = (side.draw(resamples, rng) for side in sides)
    gap = {}
    for state in product((False, True), repeat=len(SWITCHES)):
        labels, rule, prior, copies = state
        here, there = home[rule, copies], abroad[rule, copies]
        if prior:
            here = here * _prior_weights(here, there, shared)
        gap[state] = _macro_f1(here, shared if labels else every) - _macro_f1(there, shared)
    orders = []
    for order in permutations(range(len(SWITCHES))):
        thrown = [False] * len(SWITCHES)
        parts: list[np.ndarray | None] = [None] * len(SWITCHES)
        for switch in order:
            before, thrown[switch] = gap[tuple(thrown)], True
            parts[switch] = before - gap[tuple(thrown)]
        orders.append(parts)
    by_order, ends = np.array(orders), (gap[(False,) * 4], gap[(True,) * 4])
    mean, least, most = by_order.mean(0), by_order.min(0), by_order.max(0)
    steps = [("gap", ends[0], *ends[:1] * 2)]
    steps += [(name, mean[i], least[i], most[i]) for i, name in enumerate(SWITCHES)]
    steps += [("residual", ends[1], *ends[1:] * 2)]
    groups, table = min((side.stratum for side in sides), key=len), []
    for m, model in enumerate(sorted(set(map(tuple, test[list(MODEL)].drop_duplicates().to_numpy())))):
        for step, draws, low, high in steps:
            ends_of = statistics.interval(draws[1:, m], draws[0, m], np.empty(0), groups, "percentile")
            table.append((*model, step, draws[0, m], low[0, m], high[0, m], *ends_of))
    return pd.DataFrame(table, columns=[*MODEL, "step", "value", "least", "most", "low", "high", "reason"])


def _prior_weights(here: np.ndarray, there: np.ndarray, shared: list[int]) -> np.ndarray:
    """Return weights (R, F, 1, K, 1) of true classes that give the home images the external proportions of the shared classes."""
    images, wanted = here[:, :, 0].sum(-1)[..., shared], there[:, :, 0].sum(-1)[..., shared].mean(1, keepdims=True)
    weights, known = np.ones(here[:, :, 0].shape[:-1]), np.where(images > 0, images, np.nan)  # no image: no weight
    weights[..., shared] = wanted / wanted.sum(-1, keepdims=True) * images.sum(-1, keepdims=True) / known
    return weights[:, :, None, :, None]


def sentences(steps: pd.DataFrame) -> list[str]:
    """Return one sentence per cohort, label space and model: the printed gap, the largest part of it, and whether a residual is left; ``gaps``."""
    lines = []
    for (population, classes, encoder, protocol), part in steps.groupby(["population", "classes", *MODEL], sort=False):
        part = part.set_index("step")
        said = part["value"].map("{:+.3f}".format) + " [" + part["low"].map("{:+.3f}".format)
        said += " to " + part["high"].map("{:+.3f}]".format)
        largest, (low, high) = part.loc[list(SWITCHES), "value"].abs().idxmax(), part.loc["residual", ["low", "high"]]
        verdict = (
            "the populations differ" if low > 0 or high < 0 else "no difference is shown once both are measured alike"
        )
        lines.append(
            f"{population.capitalize()}, {classes}: {encoder}, {titles()[protocol]}: printed gap {said['gap']}; the largest part of it is the {largest}, {said[largest]}; "
            f"residual {said['residual']}: {verdict}."
        )
    return lines


def by_part(
    predicted: pd.DataFrame, task: Task, population: str, column: str = "centre", seed: int = 0
) -> pd.DataFrame:
    """Return ``statistics.intervals`` of the headline for every part of a cohort (a country, a machine), over the classes that it has.

    Further columns: part, images, present (the classes, in words). Scores of parts with other classes are not comparable. Empty where no
    part is known.
    """
    rows, parts = predicted[(predicted["split"] == "test") & (predicted["population"] == population)], []
    for part, mine in rows.groupby(column):
        present = tuple(name for code, name in enumerate(task.classes) if (mine["y_true"] == code).any())
        local = task.adapted("", {population: present})
        boots = statistics.bootstraps(mine, local, seed=seed)
        table = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
        parts.append(table.assign(part=part, images=mine["image_id"].nunique(), present=", ".join(present)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def by_centre(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return ``by_part`` of the centres of every external cohort that has several; where these are several cohorts, a part names its own."""
    seen = predicted[(predicted["split"] == "test") & (predicted["population"] != task.train)]
    centres = seen.groupby("population", sort=False)["centre"].nunique()
    several = list(centres.index[centres > 1])
    tables = [by_part(seen, task, name) for name in several]
    if len(tables) > 1:
        tables = [
            table.assign(part=name.capitalize() + ": " + table["part"])
            for name, table in zip(several, tables, strict=True)
        ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def worst(predicted: pd.DataFrame, task: Task, encoder: str, protocol: str, most: int = 3) -> pd.DataFrame:
    """Return the wrong answers of which the fold models are surest together, ``most`` per centre of the external cohorts.

    Columns image_id, cohort, centre (the cohort's name where it knows none), true, answer, confidence (of the mean softmax over all
    classes and fold models).
    """
    rows = predictions.with_logits(predicted, task)
    rows = rows[(rows["split"] == "test") & (rows["population"] != task.train)]
    rows = rows[(rows["encoder"] == encoder) & (rows["protocol"] == protocol)]
    rows = rows.assign(centre=rows["centre"].fillna(rows["cohort"]))
    keys = ["image_id", "cohort", "centre", "y_true"]
    p = pd.DataFrame(metrics.softmax(rows[task.columns()].to_numpy()), rows.index, list(task.classes))
    p = p.groupby([rows[key] for key in keys]).mean()
    table = pd.DataFrame({"answer": p.idxmax(axis=1), "confidence": p.max(axis=1)}).reset_index()
    table["true"] = table.pop("y_true").map(dict(enumerate(task.classes)))
    wrong = table[table["true"] != table["answer"]].sort_values(["confidence", "image_id"], ascending=[False, True])
    return wrong.groupby("centre").head(most).sort_values(["centre", "confidence"], ascending=[True, False])
