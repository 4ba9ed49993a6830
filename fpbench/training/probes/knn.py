"""The vote of the nearest training rows, after DINO: nothing is trained, nothing is chosen.

Shapes: N images, D features, K classes.
"""

from typing import TYPE_CHECKING

import numpy as np

from fpbench.errors import InputError
from fpbench.training.probes.heads import Scores, check_features, check_labels, onehot

if TYPE_CHECKING:
    from fpbench.splits import Fold
    from fpbench.training.bench import Bench


BLOCK = 1024  # rows of one block of similarities; fixed, so that the bytes do not depend on the machine's memory


def knn_scores(
    X_train: np.ndarray, y_train: np.ndarray, X_test: np.ndarray, n_classes: int, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Score by the k nearest training rows in cosine similarity s, each voting with weight exp(s / temperature).

    The weighted vote of DINO (arXiv:2104.14294, appendix). Returns (n, K) log-probabilities, usable as logits; every class
    gets 1e-6 on top of its share of the votes, so that all are finite. k is at most the number of training rows.
    """
    both = map(check_features, (X_train, X_test))
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in both]
    votes = onehot(check_labels(y_train, len(X_train), n_classes), n_classes).T
    if k < 1 or not temperature > 0 or unit[0].shape[1] != unit[1].shape[1]:
        widths = unit[0].shape[1], unit[1].shape[1]
        raise InputError(f"expected k >= 1, temperature > 0, equal widths, found {k}, {temperature}, {widths}")
    share = np.empty((len(X_test), n_classes))
    for start in range(0, len(X_test), BLOCK):
        s = unit[1][start : start + BLOCK] @ unit[0].T
        near = np.argpartition(-s, min(k, len(votes)) - 1, axis=1)[:, :k]
        s = np.take_along_axis(s, near, axis=1).astype(float)
        w = np.exp((s - s.max(1, keepdims=True)) / temperature)
        share[start : start + BLOCK] = np.einsum("nk,nkc->nc", w / w.sum(1, keepdims=True), votes[near])
    return np.log((share + 1e-6) / (1 + n_classes * 1e-6))


def fit(bench: "Bench", folds: "list[Fold]") -> list[tuple[Scores, dict]]:
    """Return the vote of the training rows of some folds."""

    def scores(fold: "Fold") -> Scores:  # the rows of one fold at a time are in memory
        rows = fold.train
        return lambda features: knn_scores(bench.features[rows], bench.labels[rows], features, bench.classes)

    return [(scores(fold), {"name": "k", "strength": 20, "temperature": 0.07}) for fold in folds]
