"""Scores of a classifier on a test cohort. Pure functions on arrays; scikit-learn computes every value.

Conventions: ``y`` (N,) holds class indices, ``logits`` (N, K) one column per class of the task. ``space`` lists the classes
that occur in the test cohort: macro scores average over them alone, passed explicitly, so a prediction outside the space is a
miss for its true class and adds no class of its own. ``open`` takes the arg-max over all K classes, ``shared`` over the
space; probabilities are the softmax over the same columns (``shared`` renormalises).

A class of the space without an image has no score, and no macro score has a value then: NaN, never a silent 0. Weighted F1 takes the
weights of the rows at hand. A model that gives nothing but answers stands as ``logits`` (N,): class indices, NONE for what is no class
of the task. What needs probabilities is NaN for it; under ``shared`` everything is, unless all its answers lie in the space.
"""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sk

from fpbench.errors import InputError
from fpbench.tasks import RANKED as RANKED  # sort the images, which takes longer than all the others

RULES = ("open", "shared")
NONE = -1  # an answer that is no class of the task
CALIBRATION = ("ECE", "Brier", "NLL")  # the lower, the better
ECE_BINS = 15  # equal widths on [0, 1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities (N, K) from logits (N, K)."""
    z = logits - logits.max(axis=1, keepdims=True)  # SciPy's takes five times as long for a few hundred rows
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) from logits (N, K)."""
    return np.exp(log_softmax(logits))


def restrict(logits: np.ndarray, space: Sequence[int], rule: str) -> np.ndarray:
    """Return float64 logits; under ``shared``, columns outside ``space`` are -inf, so that they have probability 0."""
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}: expected one of {', '.join(RULES)}")
    if rule == "open":
        return np.asarray(logits, np.float64)
    restricted = np.full(np.shape(logits), -np.inf)
    restricted[:, list(space)] = np.asarray(logits, np.float64)[:, list(space)]
    return restricted


def decided(logits: np.ndarray, space: Sequence[int], rule: str) -> np.ndarray | None:
    """Return the answers (N,): the arg-max of logits (N, K) under a rule, or answers (N,) as they are.

    None where answers alone do not say what would be answered under the rule.
    """
    if np.ndim(logits) == 2:
        return restrict(logits, space, rule).argmax(axis=1)
    return logits if rule == "open" or np.isin(logits, list(space)).all() else None


def scores(
    y: np.ndarray,
    logits: np.ndarray,
    space: Sequence[int],
    rule: str = "open",
    ranked: bool = True,
    positive: int | None = None,
) -> dict[str, float]:
    """Return every reported score of one model on one test cohort.

    Parameters
    ----------
    y
        (N,) class indices, all in ``space``.
    logits
        (N, K) finite, or (N,) answers.
    space
        The test cohort's classes, in the order of the task.
    rule
        ``"open"`` or ``"shared"``.
    ranked
        With AUROC and AUPRC.
    positive
        The class that AUPRC is of; None: there is no AUPRC.

    Returns
    -------
    dict
        Macro F1, weighted F1, accuracy, balanced accuracy, macro one-vs-rest AUROC, AUPRC (average precision) of ``positive``, ECE, Brier,
        NLL (nats). NaN as the module says; AUROC and AUPRC also where a class has no other beside it.
    """
    y, space, predicted = _checked(y, logits, space, rule)
    names = [name for name in RANKED if ranked and (name != "AUPRC" or positive is not None)]
    if predicted is None:
        return dict.fromkeys(("macro F1", "weighted F1", "accuracy", "balanced accuracy", *names, *CALIBRATION), np.nan)
    _, recall, f1, images = _by_class(y, predicted, space)
    found = {
        "macro F1": f1.mean(),
        "weighted F1": np.average(np.nan_to_num(f1), weights=images),
        "accuracy": (predicted == y).mean(),
        "balanced accuracy": recall.mean(),
    }
    if np.ndim(logits) == 1:
        return {name: float(value) for name, value in found.items()} | dict.fromkeys((*names, *CALIBRATION), np.nan)
    z = log_softmax(restrict(logits, space, rule))
    probability = np.exp(z)
    if "AUROC" in names:
        found["AUROC"] = auroc(y[:, None] == space, probability[:, space]).mean()
    if "AUPRC" in names:
        found["AUPRC"] = average_precision(y == positive, probability[:, positive])
    found["ECE"] = ece(probability.max(axis=1), predicted == y)
    found["Brier"] = ((probability - np.eye(z.shape[1])[y]) ** 2).sum(axis=1).mean()
    found["NLL"] = -z[np.arange(len(y)), y].mean()
    return {name: float(value) for name, value in found.items()}


def per_class(y: np.ndarray, logits: np.ndarray, space: Sequence[int], rule: str = "open") -> dict[str, np.ndarray]:
    """Return precision, recall, F1 and images of each class of ``space``, each of shape (len(space),); NaN as the module says."""
    y, space, predicted = _checked(y, logits, space, rule)
    nothing = (*[np.full(len(space), np.nan)] * 3, np.bincount(y, minlength=max(space) + 1)[space])
    found = nothing if predicted is None else _by_class(y, predicted, space)
    return dict(zip(("precision", "recall", "F1", "images"), found, strict=True))


def confusion(y: np.ndarray, logits: np.ndarray, space: Sequence[int], classes: int) -> np.ndarray:
    """Return counts (len(space), ``classes``), open: rows are true classes of the space, columns the answers; NONE stands in no column."""
    y, space, predicted = _checked(y, logits, space, "open")
    assert predicted is not None  # `open` decides always
    counted = predicted != NONE
    where = np.ravel_multi_index((y[counted], predicted[counted]), (classes, classes))
    return np.bincount(where, minlength=classes**2).reshape(classes, classes)[space]


def auroc(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the one-vs-rest AUROC (S,) of each column of (N, S); NaN where one side is empty."""
    found, defined = np.full(positive.shape[1], np.nan), positive.any(axis=0) & ~positive.all(axis=0)
    if defined.any():
        found[defined] = sk.roc_auc_score(positive[:, defined], score[:, defined], average=None)
    return found


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the average precision (AUPRC) of scores (N,); NaN where one side is empty."""
    return sk.average_precision_score(positive, score) if positive.any() and not positive.all() else np.nan


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top class over ``bins`` bins of equal width."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, correct.astype(float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _by_class(y: np.ndarray, predicted: np.ndarray, space: list[int]) -> tuple[np.ndarray, ...]:
    """Return precision, recall, F1 (NaN without an image; precision 0 without an answer) and images of each class, as scikit-learn."""
    named_any = predicted[predicted != NONE]
    size = max(y.max(), named_any.max(initial=0), *space) + 1
    images, named, right = (np.bincount(of, minlength=size)[space] for of in (y, named_any, y[y == predicted]))
    there = np.where(images > 0, 1.0, np.nan)
    precision, recall, f1 = (
        there * n / np.maximum(of, 1) for n, of in ((right, named), (right, images), (2 * right, images + named))
    )
    return precision, recall, f1, images


def _checked(
    y: np.ndarray, logits: np.ndarray, space: Sequence[int], rule: str
) -> tuple[np.ndarray, list[int], np.ndarray | None]:
    """Return y and space as they are worked with, and the answers (see ``decided``); InputError for other input."""
    y, space, shape = np.asarray(y), list(space), np.shape(logits)
    if len(shape) not in (1, 2) or len(y) != shape[0] or not len(y):
        raise InputError(f"expected labels (N,) and logits (N, K) with N > 0, found {y.shape} and {shape}")
    if not np.isfinite(logits).all():
        raise InputError("expected finite logits, found NaN or infinity")
    if outside := sorted(set(np.unique(y)) - set(space)):
        found = f"labels {outside} are outside the label space {space} of this cohort"
        raise InputError(f"{found}: drop those rows or widen the space")
    return y, space, decided(logits, space, rule)
