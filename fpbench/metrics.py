"""Scores of a classifier on a test cohort. Pure functions on arrays; scikit-learn computes every value.

Conventions: ``y`` (N,) holds class indices, ``logits`` (N, K) one column per class of the task. ``space`` lists the classes
that occur in the test cohort: macro scores average over them alone, passed explicitly, so a prediction outside the space is a
miss for its true class and adds no class of its own. ``open`` takes the arg-max over all K classes, ``shared`` over the
space; probabilities are the softmax over the same columns (``shared`` renormalises).
"""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sk

from fpbench.errors import InputError

RULES = ("open", "shared")
HEADLINE = "macro F1"
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


def scores(
    y: np.ndarray, logits: np.ndarray, space: Sequence[int], rule: str = "open", ranked: bool = True
) -> dict[str, float]:
    """Return every reported score of one model on one test cohort.

    Parameters
    ----------
    y
        (N,) class indices, all in ``space``.
    logits
        (N, K) finite.
    space
        The test cohort's classes, in the order of the task.
    rule
        ``"open"`` or ``"shared"``.
    ranked
        With AUROC, which takes longer than all the others.

    Returns
    -------
    dict
        Macro F1 (the headline), weighted F1, accuracy, balanced accuracy, macro one-vs-rest AUROC, ECE, Brier, NLL (nats).
        AUROC is NaN where a class of the space has no image or no other.
    """
    y, space, z, predicted = _answered(y, logits, space, rule)
    z = log_softmax(z)
    probability = np.exp(z)
    _, recall, f1, images = _by_class(y, predicted, space)
    return {
        "macro F1": float(f1.mean()),
        "weighted F1": float(np.average(f1, weights=images)),
        "accuracy": float((predicted == y).mean()),
        "balanced accuracy": float(recall.mean()),
        **({"AUROC": float(auroc(y[:, None] == space, probability[:, space]).mean())} if ranked else {}),
        "ECE": ece(probability.max(axis=1), predicted == y),
        "Brier": float(((probability - np.eye(z.shape[1])[y]) ** 2).sum(axis=1).mean()),
        "NLL": float(-z[np.arange(len(y)), y].mean()),
    }


def per_class(y: np.ndarray, logits: np.ndarray, space: Sequence[int], rule: str = "open") -> dict[str, np.ndarray]:
    """Return precision, recall, F1 and images of each class of ``space``, each of shape (len(space),)."""
    y, space, _, predicted = _answered(y, logits, space, rule)
    return dict(zip(("precision", "recall", "F1", "images"), _by_class(y, predicted, space), strict=True))


def confusion(y: np.ndarray, logits: np.ndarray, space: Sequence[int], rule: str = "open") -> np.ndarray:
    """Return counts (len(space), K): rows are true classes of the space, columns all classes of the task."""
    y, space, z, predicted = _answered(y, logits, space, rule)
    return sk.confusion_matrix(y, predicted, labels=range(z.shape[1]))[space]


def auroc(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the one-vs-rest AUROC (S,) of each column of (N, S); NaN where one side is empty."""
    found, defined = np.full(positive.shape[1], np.nan), positive.any(axis=0) & ~positive.all(axis=0)
    if defined.any():
        found[defined] = sk.roc_auc_score(positive[:, defined], score[:, defined], average=None)
    return found


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top class over ``bins`` bins of equal width."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, correct.astype(float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _by_class(y: np.ndarray, predicted: np.ndarray, space: list[int]) -> tuple[np.ndarray, ...]:
    """Return precision, recall, F1 (0 where undefined) and images of each class, as scikit-learn does, without its checks."""
    size = max(y.max(), predicted.max(), *space) + 1
    images, named, right = (np.bincount(of, minlength=size)[space] for of in (y, predicted, y[y == predicted]))
    precision, recall, f1 = (
        n / np.maximum(of, 1) for n, of in ((right, named), (right, images), (2 * right, images + named))
    )
    return precision, recall, f1, images


def _answered(
    y: np.ndarray, logits: np.ndarray, space: Sequence[int], rule: str
) -> tuple[np.ndarray, list[int], np.ndarray, np.ndarray]:
    """Return y and space as they are worked with, the restricted logits and the answers; InputError for other input."""
    y, space, shape = np.asarray(y), list(space), np.shape(logits)
    if len(shape) != 2 or len(y) != shape[0] or not len(y):
        raise InputError(f"expected labels (N,) and logits (N, K) with N > 0, found {y.shape} and {shape}")
    if not np.isfinite(logits).all():
        raise InputError("expected finite logits, found NaN or infinity")
    if outside := sorted(set(np.unique(y)) - set(space)):
        found = f"labels {outside} are outside the label space {space} of this cohort"
        raise InputError(f"{found}: drop those rows or widen the space")
    z = restrict(logits, space, rule)
    return y, space, z, z.argmax(axis=1)
