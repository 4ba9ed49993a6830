"""What every linear probe shares: heads on standardised features, the choice among them, and the checks of what goes in.

Shapes: N images, n training rows, D features, K classes, P strengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from fpbench.errors import InputError

if TYPE_CHECKING:
    from fpbench.splits import Fold
    from fpbench.training.bench import Bench
    from fpbench.training.probes.logistic import Path
    from fpbench.training.probes.ridge import RidgePath

Scores = Callable[[np.ndarray], np.ndarray]  # embeddings (n, D) -> logits (n, K)


@dataclass(frozen=True)
class Heads:
    """Linear heads of one training set, acting on standardised features."""

    strength: np.ndarray  # (P,) what tells the heads apart: C ascending, alpha descending, or the seed
    weights: np.ndarray  # (P, D, K)
    intercept: np.ndarray  # (P, K)
    mean: np.ndarray  # (D,) of the training rows
    scale: np.ndarray  # (D,) their standard deviation; 1 where a feature is constant

    def logits(self, X: np.ndarray, i: int) -> np.ndarray:
        """Return the (n, K) scores of head i for features X (n, D), float64."""
        return self._standardise(X) @ self.weights[i] + self.intercept[i]

    def all_logits(self, X: np.ndarray) -> np.ndarray:
        """Return the (P, n, K) scores of all heads for features X (n, D), float64; one matrix product."""
        p, d, k = self.weights.shape
        flat = self._standardise(X) @ self.weights.transpose(1, 0, 2).reshape(d, p * k)
        return flat.reshape(-1, p, k).transpose(1, 0, 2) + self.intercept[:, None]

    def _standardise(self, X: np.ndarray) -> np.ndarray:
        X = check_features(X)
        if (found := X.shape[1]) != (wanted := len(self.mean)):
            raise InputError(f"expected {wanted} features as in training, found {found}: use the same encoder")
        return (X - self.mean) / self.scale


@dataclass(frozen=True)
class Choice:
    """The head that the validation rows chose."""

    index: int
    strength: float  # C, or alpha
    loss: float  # on the validation rows: negative log-likelihood, or squared error
    at_edge: bool  # the grid ends here: a longer one might choose differently
    converged: bool


def choose(path: "Path | RidgePath", X_val: np.ndarray, y_val: np.ndarray) -> Choice:
    """Choose the head of the lowest validation loss; within 1e-12 of it, the stronger regularisation (smaller C) wins.

    It is given validation rows only, so that no test row can take part in the choice.
    """
    return _least(path, path.losses(X_val, y_val))


def _least(path: "Path | RidgePath", losses: np.ndarray) -> Choice:
    i = int(np.flatnonzero(losses <= losses.min() + 1e-12)[0])
    edge = len(losses) > 1 and i in (0, len(losses) - 1)
    return Choice(i, float(path.strength[i]), float(losses[i]), edge, bool(path.converged[i]))


def by_strength(bench: "Bench", fold: "Fold", path: "Path | RidgePath", name: str) -> tuple[Scores, dict]:
    """Choose a head on the validation rows of a fold; the curve of validation losses goes into the sidecar.

    Returns
    -------
    tuple
        The scores of the chosen head, and what was chosen: ``name`` of the strength, ``Choice``, ``curve``.
    """
    X, y = bench.features[fold.validation], bench.labels[fold.validation]
    choice = _least(path, losses := path.losses(X, y))
    chosen = {"name": name, **asdict(choice), "curve": np.column_stack([path.strength, losses]).tolist()}
    return lambda features: path.logits(features, choice.index), chosen


def moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (D,), float64; features that are constant up to rounding get 1 (StandardScaler)."""
    mean, var, eps = X.mean(0, dtype=float), X.var(0, dtype=float), len(X) * np.finfo(float).eps
    return mean, np.sqrt(np.where(var <= eps * var + (eps * mean) ** 2, 1, var))


def eigenbasis(Xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an eigenbasis (D, R) of the covariance, spanning the rows of Xs, and the eigenvalues (R + 1,).

    The last value belongs to the intercept, whose column is given the size of the leading one: then the stopping rule of
    the solver weighs the intercept's gradient by what profiling it can add to g_W. Zero columns pad R + 1 to 16 k (BLAS).
    """
    n, d = Xs.shape
    if n < d:
        _, s, Qt = np.linalg.svd(Xs, full_matrices=False)
        values, basis = s**2 / n, Qt.mT
    else:
        values, basis = np.linalg.eigh(Xs.mT @ Xs / n)
    curvature = np.pad(np.maximum(values, 0), (0, 16 - len(values) % 16))
    curvature[-1] = max(curvature.max(), 1)
    padded = np.zeros((d, len(curvature) - 1))
    padded[:, : len(values)] = basis
    return padded, curvature


def check_features(X: np.ndarray) -> np.ndarray:
    """Return X if it is a finite (n, D) array of floats."""
    X = np.asarray(X)
    if X.ndim != 2 or not X.size or X.dtype.kind != "f":
        found = f"{X.dtype} {X.shape}"
        raise InputError(f"expected features (n, D) of floats, found {found}: pass the embeddings as an array")
    if len(bad := np.flatnonzero(~np.isfinite(X).all(1))):
        found = f"NaN or Inf in {len(bad)} rows, first row {bad[0]}"
        raise InputError(f"expected finite features, found {found}: embed them again")
    return X


def check_labels(y: np.ndarray, n: int, n_classes: int) -> np.ndarray:
    """Return y if it holds n integers in 0..n_classes-1."""
    y = np.asarray(y)
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise InputError(f"expected {n} integer labels, one per row of X, found {y.dtype} {y.shape}")
    if n_classes < 2 or (n and not 0 <= y.min() <= y.max() < n_classes):
        found = f"{y.min()}..{y.max()}"
        raise InputError(f"expected 2 classes or more and labels in 0..{n_classes - 1}, found {found}: map them first")
    return y


def check_grid(values: np.ndarray, name: str) -> np.ndarray:
    """Return a (P,) grid if it is positive, finite and strictly ascending."""
    values = np.atleast_1d(np.asarray(values, float))
    ascending = values.ndim == 1 and values.size and (np.diff(values) > 0).all()
    if not (ascending and values[0] > 0 and np.isfinite(values[-1])):
        raise InputError(f"expected {name} positive, ascending, without duplicates, found {values}: use np.unique(...)")
    return values


def check_rows(rows: np.ndarray, n: int, fold: int, part: str) -> np.ndarray:
    """Return row numbers if there are some and all are in 0..n-1."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n:
        found = f"{rows.dtype} {rows.shape}"
        raise InputError(f"fold {fold}: expected {part} row numbers in 0..{n - 1}, one or more, found {found}")
    return rows


def check_train_sets(train_sets: Sequence[np.ndarray], y: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """Return the train sets if each holds every class."""
    sets = [check_rows(rows, len(y), fold, "train") for fold, rows in enumerate(train_sets)]
    for fold, rows in enumerate(sets):
        if absent := np.setdiff1d(np.arange(n_classes), y[rows]).tolist():
            raise InputError(f"fold {fold}: no training row of class {absent}: use fewer folds or leave that class out")
    if not sets:
        raise InputError("expected one train set or more, found none")
    return sets


def onehot(y: np.ndarray, n_classes: int) -> np.ndarray:
    """Return (K, n) zeros and ones, float64."""
    return (np.arange(n_classes)[:, None] == y).astype(float)
