"""Blind sweeps: does a model find the frames that show the plane? Pure functions on predictions.

A *frame* is an image of a sweep, a *sweep* one pass of the probe over the abdomen, a *case* the sweeps of one examination, and the subject is
the group that is resampled. Predictions come merged with COLUMNS; rows are of annotated sweeps alone, for what nobody has looked at is no
negative. Every number names its unit (``units``). The score of a frame is the probability of the task's positive class.

* Frame: AUPRC beside the prevalence, AUROC, calibration; F1, precision and recall of the positive class at 0.5 and at the threshold of best F1;
  accuracy beside that of answering *never*.
* Sweep: is the best-scored frame usable (of sweeps that hold a usable one), is it optimal (of those that hold an optimal one)? The share of
  positive frames found, all sweeps together, at the threshold of one false frame a sweep, and how many false frames a sweep that gives.
* Case: the selection score of the ACOUSLIC-AI challenge, here *among annotated sweeps*: of the best-scored frame of the case, 1 if it is
  optimal, or sub-optimal where the case has no optimal one; 0.6 if it is sub-optimal though there is one; else 0. A case without a usable
  frame is left out and counted (``counts``).

Both thresholds are chosen on validation rows, for each fold model (``thresholds``); a score at the threshold is an answer. Frames that tie
for the best score share the first place: the outcome is the mean over them, whatever the order of rows.

Contents: ``scored`` (the frames), ``thresholds``, ``counts``, ``measured`` (samples whose outcomes these are), ``bootstraps``, ``intervals``,
``differences``; ``precision_recall``, ``examples`` and ``worst`` for figures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fpbench import metrics, predictions
from fpbench.analysis import samples, statistics
from fpbench.analysis.samples import Part, Sample
from fpbench.analysis.scoring import MODEL, RUN, spaces
from fpbench.analysis.statistics import Bootstrap
from fpbench.errors import InputError
from fpbench.tasks import QUALITIES, Task

COLUMNS = ("case", "sweep", "position", "quality")  # of a frame, beside those of predictions; ``sweep`` within its case
CREDIT = 0.6  # of a sub-optimal frame where the case has an optimal one
FALSE_FRAMES = 1.0  # a sweep, on validation
HALF, CHOSEN = "threshold 0.5", "threshold of validation"  # HALF: the arg-max
SHAPES = ("F1", "precision", "recall")  # of the positive class, at both
PREVALENCE, NEVER, FALSE = "prevalence", "accuracy of never", "false frames a sweep"
FACTS = (PREVALENCE, NEVER, FALSE)  # beside the scores; no model is better for them
SENSITIVITY, SELECTION = "sensitivity at one false frame a sweep", "selection score among annotated sweeps"
BEST_USABLE, BEST_OPTIMAL = "best frame usable", "best frame optimal"
SLACK = 1e-9  # of a recall that is reached but for rounding


def units(task: Task) -> dict[str, str]:
    """Return metric -> its unit (frame, sweep, case), of everything that is measured."""
    called = [f"{name} of {task.positive}, {at}" for at in (HALF, CHOSEN) for name in SHAPES]
    frame = ["AUPRC", PREVALENCE, "AUROC", *called, "accuracy", NEVER]
    sweep = [BEST_USABLE, BEST_OPTIMAL, SENSITIVITY, FALSE]
    return dict.fromkeys([*frame, *metrics.CALIBRATION], "frame") | dict.fromkeys(sweep, "sweep") | {SELECTION: "case"}


def thresholds(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the thresholds of each model, fold and seed, chosen on its validation rows.

    Parameters
    ----------
    predicted
        Rows of predictions files with COLUMNS.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, RUN, frames and sweeps (of validation); threshold, F1 (best of the positive class; of thresholds that tie, the highest);
        threshold_false, false_frames (a sweep; the lowest threshold that gives FALSE_FRAMES or fewer; infinite where the best-scored frames
        tie and are too many already).

    Raises
    ------
    InputError
        As ``measured``.
    """
    return _thresholds(scored(predicted, task))


def _thresholds(rows: pd.DataFrame) -> pd.DataFrame:
    found = [
        (*key, *_chosen(part, " / ".join(map(str, key))))
        for key, part in rows[rows["split"] == "val"].groupby([*MODEL, *RUN])
    ]
    columns = ["frames", "sweeps", "threshold", "F1", "threshold_false", "false_frames"]
    return pd.DataFrame(found, columns=[*MODEL, *RUN, *columns])


def _chosen(rows: pd.DataFrame, where: str) -> tuple[int, int, float, float, float, float]:
    order = np.argsort(-rows["score"].to_numpy(), kind="stable")
    score, positive = (rows[name].to_numpy()[order] for name in ("score", "positive"))
    if not positive.any():
        raise InputError(f"{where}: expected a frame of the positive class in validation, found none: cut other folds")
    last = np.flatnonzero(np.diff(score, append=np.nan))  # frames of one score are answered together
    answered, right, sweeps = last + 1, np.cumsum(positive)[last], rows["sweep_number"].nunique()
    f1, false = 2 * right / (answered + positive.sum()), (answered - right) / sweeps
    best, few = int(f1.argmax()), int((false <= FALSE_FRAMES).sum())
    loose = (score[last[few - 1]], false[few - 1]) if few else (np.inf, 0.0)
    return len(rows), sweeps, float(score[last[best]]), float(f1[best]), float(loose[0]), float(loose[1])


def counts(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return what the test rows of each population hold, whatever the number of models.

    Returns
    -------
    pandas.DataFrame
        One row per population. Columns population, groups; of cases, (annotated) sweeps and frames how many, ``... usable`` and
        ``... optimal``: those that are, or hold one; cases left out (of the selection score), frames positive (of the task).
    """
    rows = scored(predicted, task)
    frames = rows[rows["split"] == "test"].drop_duplicates(["population", *COLUMNS[:3]])
    found = []
    for population, part in frames.groupby("population"):
        row: dict[str, Any] = {"population": population, "groups": part["group"].nunique()}
        best = {
            "cases": part.groupby("case_number")["rank"].max(),
            "sweeps": part.groupby("sweep_number")["rank"].max(),
        }
        for name, top in (best | {"frames": part["rank"]}).items():
            row |= {name: len(top), f"{name} usable": (top > 0).sum(), f"{name} optimal": (top > 1).sum()}
        row |= {"cases left out": row["cases"] - row["cases usable"], "frames positive": part["positive"].sum()}
        found.append(row)
    return pd.DataFrame(found)


def measured(predicted: pd.DataFrame, task: Task) -> Iterator[Sample]:
    """Yield the sample of each population, as published, with the outcomes of frames, sweeps and cases as metrics (``units``).

    Parameters
    ----------
    predicted
        Rows of predictions files of one study, validation and test, with COLUMNS.
    task
        Of two classes, one of them ``positive``.

    Raises
    ------
    InputError
        A column is missing or holds something else; a case has frames of two groups; two frames stand at one position; y_true does not
        follow from the quality; a model has no logits, or no validation rows, or none of them is positive; or as ``samples``.
    """
    rows = scored(predicted, task)
    chosen = _thresholds(rows).set_index([*MODEL, *RUN])
    test, own = rows[rows["split"] == "test"], spaces(task, rows)
    whole = [(population, task.space(classes), "open", "as published") for population, classes in own.items()]
    for sample in samples.samples(rows, task, lambda *view: view in whole):
        mine = test[(test["population"] == sample.view[0]) & test["y_true"].isin(sample.classes)]
        yield samples.with_sums(sample, mine, partial(_outcomes, task, chosen))


def _outcomes(
    task: Task, chosen: pd.DataFrame, model: tuple, rows: pd.DataFrame, groups: pd.Index
) -> dict[str, np.ndarray]:
    """Return the three sums (groups, 3), as ``samples.with_outcomes`` takes them, of each outcome of one fold model."""
    tight, loose = chosen.loc[model, ["threshold", "threshold_false"]]
    score, y, rank = (rows[name].to_numpy() for name in ("score", "positive", "rank"))
    case, sweep = (np.unique(rows[name], return_inverse=True)[1] for name in ("case_number", "sweep_number"))
    unit = groups.get_indexer(rows["group"])
    every, loosely = np.ones(len(y)), score >= loose
    frame = {PREVALENCE: (y, every, every), NEVER: (~y, every, every), SENSITIVITY: (y & loosely, y, y)}
    for at, called in ((HALF, rows["answered"].to_numpy()), (CHOSEN, score >= tight)):
        right = y & called
        shapes = ((2 * right, y.astype(int) + called, y), (right, called, y), (right, y, y))
        frame |= {f"{name} of {task.positive}, {at}": sums for name, sums in zip(SHAPES, shapes, strict=True)}
    usable, optimal = _most(sweep, rank) > 0, _most(sweep, rank) > 1
    false = np.bincount(sweep, ~y & loosely)
    sweeps = {
        BEST_USABLE: (_at_best(sweep, score, rank > 0), usable, usable),
        BEST_OPTIMAL: (_at_best(sweep, score, rank > 1), optimal, optimal),
        FALSE: (false, np.ones(len(false)), np.ones(len(false))),
    }
    there, credit = _most(case, rank), np.where((rank == 1) & (_most(case, rank)[case] > 1), CREDIT, rank > 0)
    cases = {SELECTION: (_at_best(case, score, credit), there > 0, there > 0)}
    found = {}
    for of, outcomes in ((np.arange(len(y)), frame), (sweep, sweeps), (case, cases)):
        owner = unit[np.unique(of, return_index=True)[1]]
        for name, sums in outcomes.items():
            found[name] = np.stack([np.bincount(owner, one, len(groups)) for one in sums], axis=-1)
    return found


def _most(of: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the largest value (U,) of the frames (n,) of each of U sweeps or cases; ``of`` (n,) is 0 to U - 1."""
    found = np.full(of.max() + 1, -np.inf)
    np.maximum.at(found, of, value)
    return found


def _at_best(of: np.ndarray, score: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the value (U,) of the best-scored frame of each sweep or case; of frames that tie, the mean."""
    best = score == _most(of, score)[of]
    return np.bincount(of, best * value) / np.bincount(of, best)


def bootstraps(
    predicted: pd.DataFrame, task: Task, names: Sequence[str] = (), resamples: int = statistics.RESAMPLES, seed: int = 0
) -> list[Bootstrap]:
    """Return the bootstrap of every population, each with a seed of its own; ``names``: some of ``units``, default all."""
    names = list(names or units(task))
    return [
        statistics.bootstrap(sample, names, resamples, seed + sample.number) for sample in measured(predicted, task)
    ]


def intervals(boots: Sequence[Bootstrap], task: Task, **options: Any) -> pd.DataFrame:
    """Return the rows of ``statistics.intervals`` with the column ``unit``: every number is said with it."""
    found = statistics.of_all(statistics.intervals, boots, **options)
    return found.assign(unit=found["metric"].map(units(task)))


def differences(boots: Sequence[Bootstrap], task: Task, **options: Any) -> pd.DataFrame:
    """Return the rows of ``statistics.differences`` with the column ``unit``, of all metrics but FACTS."""
    scored = [replace(boot, draws={n: drawn for n, drawn in boot.draws.items() if n not in FACTS}) for boot in boots]
    found = statistics.of_all(statistics.differences, scored, **options)
    return found.assign(unit=found["metric"].map(units(task)))


def scored(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the rows in one order, with what is made of them.

    Parameters
    ----------
    predicted
        Rows of predictions files with COLUMNS.

    Returns
    -------
    pandas.DataFrame
        Further columns score (probability of the positive class), answered (the arg-max is positive), positive, rank (0: no plane, 1:
        sub-optimal, 2: optimal), case_number and sweep_number.

    Raises
    ------
    InputError
        As ``measured``.
    """
    if len(task.classes) != 2 or not task.positive:
        raise InputError(
            f"task {task.name}: expected two classes, one of them `positive`, found {list(task.classes)} and {task.positive!r}"
        )
    if absent := [name for name in COLUMNS if name not in predicted]:
        raise InputError(
            f"expected the columns {', '.join(COLUMNS)} beside those of predictions, found no {', '.join(absent)}: merge the cohort's frame"
        )
    if odd := sorted(set(predicted["quality"].astype(object).fillna("nothing")) - set(QUALITIES), key=str):
        raise InputError(
            f"expected the quality of every frame to be one of {', '.join(QUALITIES)}, found {odd}: leave out sweeps that are not annotated"
        )
    if predicted[list(COLUMNS)].isna().any(axis=None):
        raise InputError(f"expected {', '.join(COLUMNS)} of every frame, found empty cells: merge by image_id")
    rows = predicted.sort_values([*MODEL, *RUN, "split", *COLUMNS[:3], "image_id"], ignore_index=True)
    _refuse(rows, task)
    code, logits = task.codes([task.positive])[0], rows[task.columns()].to_numpy(np.float64)
    return rows.assign(
        score=metrics.softmax(logits)[:, code],
        answered=logits.argmax(axis=1) == code,
        positive=rows["y_true"].to_numpy() == code,
        rank=rows["quality"].map({name: i for i, name in enumerate(QUALITIES)}).to_numpy(int),
        case_number=rows.groupby("case").ngroup(),
        sweep_number=rows.groupby(["case", "sweep"]).ngroup(),
    )


def _refuse(rows: pd.DataFrame, task: Task) -> None:
    if len(predictions.with_logits(rows, task)) < len(rows):
        alone = sorted(set(rows.loc[rows[predictions.ANSWER].notna(), "encoder"]))
        raise InputError(
            f"expected logits, for frames are ranked, found answers alone of {', '.join(alone)}: leave them out"
        )
    if (twice := rows.duplicated([*MODEL, *RUN, *COLUMNS[:3]])).any():
        case, sweep, position = rows.loc[twice, list(COLUMNS[:3])].iloc[0]
        raise InputError(
            f"case {case}, sweep {sweep}: expected one frame at position {position} of each model and fold, found several: "
            "is the merge by image_id?"
        )
    if (groups := rows.groupby("case")["group"].nunique()).max() > 1:
        raise InputError(
            f"case {groups.idxmax()}: expected frames of one group, found {groups.max()}: name cases by cohort"
        )
    targets = rows.groupby("quality")["y_true"].agg(["nunique", "max", "min"])
    code = task.codes([task.positive])[0]
    if (targets["nunique"] > 1).any() or (targets["max"].get(QUALITIES[0]) == code):
        raise InputError(
            f"expected y_true to follow from the quality and {task.positive!r} to be usable, found y_true "
            f"{targets[['min', 'max']].to_dict('index')}: were labels of another target merged?"
        )
    validated = rows[rows["split"] == "val"].groupby([*MODEL, *RUN]).size()
    if lost := [key for key in rows.groupby([*MODEL, *RUN]).groups if key not in validated.index]:
        raise InputError(
            f"expected validation rows of every model and fold, for thresholds are chosen on them, found none of {lost[0]}: "
            "read whole predictions files"
        )


def precision_recall(
    sample: Sample, points: int = 101, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Return the precision of every model against recall, the mean over the fold models, with a band by subject.

    Parameters
    ----------
    sample
        Of ``measured``.
    points
        How many values of recall, from 0 to 1. The precision at one is that of the highest threshold which reaches it.

    Returns
    -------
    pandas.DataFrame
        Columns MODEL, recall, value, low, high: M x ``points`` rows.
    """
    grid, rng = np.linspace(0, 1, points), np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(sample.groups)), statistics.draw(sample.stratum, resamples, rng)])
    tables, column = [], list(sample.classes).index(sample.positive)
    for number, model in enumerate(sample.models):
        curves = np.mean(
            [_curve(part, part.probability[number][:, column], sample, weights, grid) for part in sample.parts], 0
        )
        low, high = np.nanquantile(curves[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
        about = dict(zip(MODEL, model, strict=True))
        tables.append(pd.DataFrame({**about, "recall": grid, "value": curves[0], "low": low, "high": high}))
    return pd.concat(tables, ignore_index=True)


def _curve(part: Part, score: np.ndarray, sample: Sample, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the precision (b, points) of one fold model under weights of groups (b, G); NaN where no frame is positive."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=np.nan))  # frames of one score are answered together
    positive, unit, found = (part.y == sample.positive)[order], part.unit[order], []
    for own in weights:
        answered, right = np.cumsum(own[unit])[last], np.cumsum(own[unit] * positive)[last]
        if not right[-1]:
            found.append(np.full(len(grid), np.nan))
            continue
        place = np.searchsorted(right, np.maximum(grid * right[-1] * (1 - SLACK), SLACK))
        found.append(right[place] / answered[place])
    return np.array(found)


def examples(rows: pd.DataFrame, encoder: str, protocol: str) -> list[tuple[str, int]]:
    """Return (case, sweep) of sweeps to be shown: of those with an optimal frame one where the best-scored frame is optimal, and one where it shows no plane.

    ``rows`` of ``scored``. Of each kind the one whose AUPRC is the median; a kind that does not occur is left out.
    """
    mine = rows[(rows["split"] == "test") & (rows["encoder"] == encoder) & (rows["protocol"] == protocol)]
    found = []
    for key, part in mine[mine["seed"] == mine["seed"].min()].groupby(["case", "sweep"]):
        if (part["rank"] == 2).any():
            best = part.loc[part["score"].idxmax(), "rank"]
            found.append((*key, best, metrics.average_precision(part["positive"].to_numpy(), part["score"].to_numpy())))
    table = pd.DataFrame(found, columns=["case", "sweep", "best", "value"]).sort_values(["value", "case", "sweep"])
    kinds = [kind for best in (2, 0) if len(kind := table[table["best"] == best])]
    return [(kind["case"].iat[len(kind) // 2], int(kind["sweep"].iat[len(kind) // 2])) for kind in kinds]


def worst(rows: pd.DataFrame, encoder: str, protocol: str, most: int = 6) -> pd.DataFrame:
    """Return the mistakes of which the fold models are surest: ``most`` frames without a plane of the highest scores, and with one of the lowest.

    ``rows`` of ``scored``. One frame of a sweep; columns image_id, quality, score, mistake ("false", "missed").
    """
    mine = rows[(rows["split"] == "test") & (rows["encoder"] == encoder) & (rows["protocol"] == protocol)]
    mean = mine.groupby(["image_id", "case", "sweep", "quality", "positive"], as_index=False)["score"].mean()
    tables = []
    for mistake, positive in (("false", False), ("missed", True)):
        kind = mean[mean["positive"] == positive].sort_values(["score", "image_id"], ascending=[positive, True])
        tables.append(kind.drop_duplicates(["case", "sweep"]).head(most).assign(mistake=mistake))
    return pd.concat(tables, ignore_index=True)[["image_id", "quality", "score", "mistake"]]
