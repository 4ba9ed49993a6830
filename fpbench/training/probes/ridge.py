"""The ridge probe: regression on targets in {-1, 1}, all strengths from one eigendecomposition per fold.

Shapes: N images, n training rows, D features, K classes, P strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fpbench.recipe import ALPHAS
from fpbench.training.probes.heads import (
    Heads,
    Scores,
    by_strength,
    check_features,
    check_grid,
    check_labels,
    check_train_sets,
    eigenbasis,
    moments,
    onehot,
)

if TYPE_CHECKING:
    from fpbench.splits import Fold
    from fpbench.training.bench import Bench


@dataclass(frozen=True)
class RidgePath(Heads):
    """Ridge heads of one training set; ``strength`` is alpha. Their scores are no log-probabilities."""

    @property
    def converged(self) -> np.ndarray:
        """Return (P,) True: a closed form."""
        return np.ones(len(self.strength), bool)

    def losses(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the (P,) mean squared errors against targets in {-1, 1}."""
        targets = 2 * onehot(check_labels(y, len(X), self.intercept.shape[1]), self.intercept.shape[1]).T - 1
        return ((self.all_logits(X) - targets) ** 2).mean((1, 2))


def fit_ridge(
    X: np.ndarray, y: np.ndarray, train_sets: Sequence[np.ndarray], n_classes: int, alphas: np.ndarray = ALPHAS
) -> list[RidgePath]:
    """Fit ridge regression on targets in {-1, 1}: all alphas (P,), descending, from one eigendecomposition per fold.

    The same minimum as scikit-learn's ``Ridge`` and ``RidgeClassifier`` on standardised features. Arguments, errors: see
    ``fit_paths``. ``choose`` takes the alpha of the lowest validation squared error.
    """
    X, alphas = check_features(X), check_grid(np.asarray(alphas)[::-1], "alphas (reversed)")[::-1]
    y = check_labels(y, len(X), n_classes)
    return [_fit_ridge(X[r], onehot(y[r], n_classes), alphas) for r in check_train_sets(train_sets, y, n_classes)]


def _fit_ridge(X: np.ndarray, Y: np.ndarray, alphas: np.ndarray) -> RidgePath:
    """Solve one fold of ridge in closed form."""
    mean, scale = moments(X)
    Xs, targets = (X - mean) / scale, 2 * Y.T - 1
    basis, curvature = eigenbasis(Xs)
    rotated = basis.T @ (Xs.T @ targets)
    weights = basis @ (rotated / (len(X) * curvature[:-1] + alphas[:, None])[..., None])
    return RidgePath(alphas, weights, np.tile(targets.mean(0), (len(alphas), 1)), mean, scale)


def fit(bench: "Bench", folds: "list[Fold]") -> list[tuple[Scores, dict]]:
    """Fit the probe on some folds; alpha by the lowest validation squared error."""
    fitted = fit_ridge(bench.features, bench.labels, [fold.train for fold in folds], bench.classes)
    return [by_strength(bench, fold, path, "alpha") for fold, path in zip(folds, fitted, strict=True)]
