"""Calibration: are the probabilities worth their name, at home and abroad? Pure functions on predictions.

Probabilities are the softmax over the columns of the view's rule: all classes of the task (``open``), or the classes of the
test cohort alone, renormalised (``shared``). A temperature is fitted on each fold's validation rows, which are of the home
cohort, and never sees a test row. ECE, Brier and NLL with intervals by patient group are metrics of ``fpbench.analysis.statistics``.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from fpbench import metrics, predictions
from fpbench.analysis.scoring import MODEL, RUN, told, view_title, views
from fpbench.tasks import Task

TEMPERATURES = (0.05, 20.0)  # searched between these


def temperatures(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return the temperature of each model, fold and seed that minimises the NLL of its validation rows (Guo 2017)."""
    rows, told = [], predictions.with_logits(predicted, task)
    for key, part in told[told["split"] == "val"].groupby([*MODEL, *RUN]):
        z, y = part[task.columns()].to_numpy(np.float64), part["y_true"].to_numpy()

        def loss(log: float, z: np.ndarray = z, y: np.ndarray = y) -> float:
            return -float(metrics.log_softmax(z / np.exp(log))[np.arange(len(y)), y].mean())

        found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
        rows.append((*key, float(np.exp(found.x))))
    return pd.DataFrame(rows, columns=[*MODEL, *RUN, "temperature"])


def scaled(predicted: pd.DataFrame, temperature: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return predictions with each model's logits divided by the temperature of its fold; answers stay the same.

    Models without validation rows have no temperature, and are left out.
    """
    predicted = predictions.with_logits(predicted, task)
    divisor = predicted[[*MODEL, *RUN]].merge(temperature, how="left", validate="many_to_one")["temperature"]
    known = divisor.notna().to_numpy()
    predicted, divisor = predicted[known], divisor[known]
    return predicted.assign(**(predicted[task.columns()] / divisor.to_numpy()[:, None]))


def confidences(predicted: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return MODEL, RUN, population, classes, rule, view (title), confidence (of the answer), right (0 or 1) of every test image.

    As published, of models with logits.
    """
    predicted = predictions.with_logits(predicted, task)
    test, parts = predicted[predicted["split"] == "test"], []
    for population, classes, rule in views(task, predicted):
        space = task.codes(classes)
        rows = test[(test["population"] == population) & test["y_true"].isin(space)]
        p = metrics.softmax(metrics.restrict(rows[task.columns()].to_numpy(), space, rule))
        about = {"classes": task.space(classes), "rule": rule, "confidence": p.max(axis=1)}
        about["view"] = view_title(population, task.space(classes), rule)
        parts.append(
            rows[[*MODEL, *RUN, "population"]].assign(**about, right=(p.argmax(axis=1) == rows["y_true"]).astype(float))
        )
    return pd.concat(parts, ignore_index=True)


def reliability(answers: pd.DataFrame) -> pd.DataFrame:
    """Return mean confidence, share right and images per bin of equal width, model and view: means over the fold models."""
    bins = np.minimum((answers["confidence"] * metrics.ECE_BINS).astype(int), metrics.ECE_BINS - 1)
    grouped = answers.groupby([*MODEL, "view", bins.rename("bin")])
    table = grouped[["confidence", "right"]].mean().assign(images=grouped.size())
    runs = answers[[*MODEL, *RUN]].drop_duplicates().groupby(list(MODEL)).size().rename("runs")
    table = table.reset_index().merge(runs.reset_index())
    return table.assign(images=table["images"] / table["runs"]).drop(columns="runs")


def debiased_error(confidence: np.ndarray, right: np.ndarray, bins: int = metrics.ECE_BINS) -> float:
    """Return the root mean squared calibration error, debiased (Kumar 2019): bins hold as many images each.

    The squared gap of a bin is too large by the variance of its share of right answers, which is subtracted; below 0 is 0.
    The plain ECE of a perfectly calibrated model is above 0, and the more so the fewer images there are.
    """
    total = 0.0
    for part in np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(right) // 2)):
        share = right[part].mean()
        total += len(part) * ((confidence[part].mean() - share) ** 2 - share * (1 - share) / (len(part) - 1))
    return float(np.sqrt(max(total / len(right), 0.0)))


def risk_coverage(answers: pd.DataFrame, points: int = 50) -> pd.DataFrame:
    """Return the error rate among the most confident share of the images: MODEL, view, share of images kept, error rate."""
    coverage = pd.Index(np.linspace(1 / points, 1, points), name="share of images kept")
    keys, curves = [*MODEL, "view", *RUN], {}
    for key, part in answers.groupby(keys):
        right = part.groupby("confidence")["right"].transform("mean")  # images of one confidence stand or fall together
        wrong = (1 - right).to_numpy()[np.argsort(-part["confidence"], kind="stable")]
        risk = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
        curves[key] = pd.Series(risk[np.maximum(np.ceil(coverage * len(wrong)).astype(int), 1) - 1], coverage)
    mean = pd.concat(curves, names=keys).groupby([*MODEL, "view", coverage.name]).mean()
    return mean.reset_index(name="error rate")


def table(intervals: dict[str, pd.DataFrame], answers: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return every calibration score of every model and view, one block per state (e.g. before and after scaling).

    Parameters
    ----------
    intervals
        State -> ``statistics.intervals`` of metrics.CALIBRATION; those of BCa are shown, since ECE grows in any resample.
    answers
        State -> ``confidences``, for the debiased error and the area under the risk-coverage curve, means over the folds.
    """
    columns = [*MODEL, "view", "state", *metrics.CALIBRATION, "debiased error", "area under risk-coverage"]
    keys, parts = columns[:3], []
    for state, rows in intervals.items():
        rows = rows[(rows["method"] == "BCa") & (rows["duplicates"] == "as published")]
        views = [view_title(*view) for view in rows[["population", "classes", "rule"]].itertuples(index=False)]
        rows = rows.assign(view=views, told=rows["value"].map("{:.3f}".format) + told(rows))
        cells = rows.pivot(index=keys, columns="metric", values="told")
        by_fold = answers[state].groupby([*keys, *RUN])
        error = by_fold.apply(lambda part: debiased_error(part["confidence"].to_numpy(), part["right"].to_numpy()))
        risk = risk_coverage(answers[state]).groupby(keys)["error rate"]
        for column, found in zip(columns[-2:], (error.groupby(keys), risk), strict=True):
            cells[column] = found.mean().map("{:.3f}".format)
        parts.append(cells.reset_index().assign(state=state))
    return pd.concat(parts, ignore_index=True)[columns].sort_values([*MODEL, "view"], kind="stable", ignore_index=True)


def sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence per view: the debiased error of the models before and after; ``table`` as above."""
    lines = []
    for view, part in table.groupby("view"):
        by_state = part.groupby("state", sort=False)["debiased error"].agg(lambda cells: cells.astype(float).median())
        told = ", ".join(f"{value:.3f} {state}" for state, value in by_state.items())
        lines.append(f"{view}: median over the models of the debiased calibration error: {told}.")
    return lines
