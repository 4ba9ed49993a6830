"""Linear probing: classifiers on frozen embeddings, all folds and all regularisation strengths at once.

The main probe is multinomial logistic regression with the objective of scikit-learn's ``LogisticRegression`` (divided by
C n): ``F(W, b) = mean cross-entropy + lam/2 ||W||^2``, ``lam = 1/(C n)``, intercept free, on features standardised with the
training rows only. (For two classes scikit-learn keeps one weight vector instead of two: its C is twice the C here.)

How it is solved. All C of a fold advance together, so that logits and gradients are two matrix products per iteration.
L-BFGS works in the eigenbasis of the feature covariance (a rotation leaves ||W||^2 as it is), preconditioned by
``(M x Lambda + lam)^-1``: Lambda the eigenvalues, M = mean(diag(p) - p p') the class covariance of the predictions; exact at
W = 0, and sharper than Boehning's bound (M <= 1/2; Ann. Inst. Stat. Math. 44:197, 1992). The line search runs on cached
logits. Every third C starts cold, the others from a spline through those in log C. What single precision cannot finish,
double precision does.

Certificate. F is lam-strongly convex in W but not in b, so ``F - min F <= ||g_W||^2 / (2 lam)`` holds only where b is the
best intercept for W (then g_W is the gradient of ``min_b F``, which is lam-strongly convex). Hence b is profiled out by
Newton steps in double precision, on the unrotated features, before g_W is measured. A head is ``converged`` when this
bound, relative to its objective, is at most eps. The others are flagged, never hidden.

Reproducible: the same call with the same BLAS threads gives the same bytes twice, and a fold the same bytes whatever other
folds are in the call. Other C in the call change the starting points: then results agree within the certificate.

Contents: ``fit_paths`` (logistic regression), ``fit_ridge`` (closed form), ``choose``, ``knn_scores``.
Shapes: N images, n training rows, D features, K classes, P strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp

from fpbench.errors import InputError
from fpbench.files.progress import Progress
from fpbench.recipe import GRID
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


STRIDE, DENSE = 3, 0.3  # every 3rd C starts cold, if neighbours are at most 0.3 decades apart; else all
MEMORY = 40  # correction pairs of L-BFGS
SIGMA, TRIALS = 0.5, 12  # a line search ends when the slope has fallen by SIGMA, or after TRIALS points
PATIENCE = {"float32": 20, "float64": 200}  # iterations without progress after which a precision gives a head up
CACHED = 2**16  # logits of the heads that are worked on together


@dataclass(frozen=True)
class Path(Heads):
    """Logistic-regression heads of one training set; ``strength`` is C."""

    objective: np.ndarray  # (P,) mean cross-entropy + ||W||^2/(2 C n) on the training rows
    certificate: np.ndarray  # (P,) proven upper bound of (objective - minimum) / objective
    converged: np.ndarray  # (P,) bool: certificate <= eps
    iterations: np.ndarray  # (P,) of L-BFGS

    def losses(self, X: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the (P,) mean negative log-likelihoods, nats per image."""
        return _nll(self.all_logits(X), check_labels(y, len(X), self.intercept.shape[1]))


def fit_paths(
    X: np.ndarray,
    y: np.ndarray,
    train_sets: Sequence[np.ndarray],
    n_classes: int,
    C: np.ndarray = GRID,
    eps: float = 1e-6,
    max_iter: int = 2000,
) -> list[Path]:
    """Fit multinomial logistic regression for every fold and every C.

    Parameters
    ----------
    X : (N, D) features, not standardised, float32
    y : (N,) labels in 0..K-1
    train_sets : one array of row numbers per fold
    C : (P,) inverse strengths, ascending (C of scikit-learn)
    eps : largest certified relative gap of a converged head
    max_iter : bound of the iterations of a head; a head that needs more comes back with ``converged`` False

    Raises
    ------
    InputError
        Features not finite, a label out of range, lengths that differ, C not positive and ascending, an empty train set, or
        one that lacks a class (whose intercept would be minus infinity).

    Notes
    -----
    Folds are solved one after the other. Alive at a time: the fold's rows in float64 and one rotated copy.
    """
    X, C = check_features(X), check_grid(C, "C")
    y = check_labels(y, len(X), n_classes)
    if not (eps > 0 and max_iter >= 0):
        raise InputError(f"expected eps > 0 and max_iter >= 0, found {eps} and {max_iter}")
    rows = check_train_sets(train_sets, y, n_classes)
    steps = Progress(rows, total=len(rows), desc="solving probes", unit="training set")
    return [_fit_path(X[r], onehot(y[r], n_classes), C, eps, max_iter) for r in steps]


def fit(bench: "Bench", folds: "list[Fold]") -> list[tuple[Scores, dict]]:
    """Fit the probe on some folds; C by the lowest validation loss."""
    fitted = fit_paths(bench.features, bench.labels, [fold.train for fold in folds], bench.classes, bench.strengths)
    found = [by_strength(bench, fold, path, "C") for fold, path in zip(folds, fitted, strict=True)]
    return [
        (scores, chosen | {"certificate": float(path.certificate[chosen["index"]])})
        for path, (scores, chosen) in zip(fitted, found, strict=True)
    ]


def _fit_path(X: np.ndarray, Y: np.ndarray, C: np.ndarray, eps: float, max_iter: int) -> Path:
    """Solve one fold: X (n, D) its rows, Y (K, n) its one-hot labels."""
    lam, (mean, scale) = 1 / (C * len(X)), moments(X)
    Xs = (X - mean) / scale
    basis, curvature = eigenbasis(Xs)
    unit = np.sqrt(curvature[-1])  # value of the intercept's column
    W = np.zeros((len(C), len(Y), len(curvature)))
    W[..., -1] = np.log(Y.mean(1)) / unit
    V, b = np.zeros((len(C), len(Y), X.shape[1])), np.zeros((len(C), len(Y)))
    steps, objective, certificate = np.zeros(len(C), int), np.zeros(len(C)), np.full(len(C), np.inf)
    for dtype in ("float32", "float64"):
        todo = np.flatnonzero(~(certificate <= eps))
        if not len(todo):
            break
        problem = _Problem(dtype, _design(Xs, basis, unit, dtype), Y, curvature, eps / 2, max_iter)
        solve = _coarse_to_fine if dtype == "float32" else _Problem.minimise
        W[todo], steps[todo] = solve(problem, W[todo], lam[todo], steps[todo])
        V[todo], b[todo] = W[todo, :, :-1] @ basis.T, W[todo, :, -1] * unit
        b[todo], objective[todo], certificate[todo] = _certify(Xs, Y, V[todo], b[todo], lam[todo])
        W[todo, :, -1] = b[todo] / unit
    return Path(C, V.mT.copy(), b, mean, scale, objective, certificate, certificate <= eps, steps)


def _design(Xs: np.ndarray, basis: np.ndarray, unit: float, dtype: str) -> np.ndarray:
    """Return the rotated features and the intercept's column, (n, R + 1)."""
    A = np.empty((len(Xs), basis.shape[1] + 1), dtype)
    A[:, :-1] = Xs.astype(dtype) @ basis.astype(dtype)
    A[:, -1] = unit
    return A


def _certify(Xs: np.ndarray, Y: np.ndarray, V: np.ndarray, b: np.ndarray, lam: np.ndarray) -> list[np.ndarray]:
    """Return the best intercepts for V (P, K, D), and the objectives and certificates (P,) there, in double precision."""
    Z = (V.reshape(-1, V.shape[2]) @ Xs.mT).reshape(*b.shape, len(Xs))
    b, loss = b.copy(), np.empty(len(b))
    for s in _cuts(Z):
        for _ in range(50):
            R = Z[s] + b[s][..., None]
            loss[s], M = _residuals(R, Y)
            g = R.mean(-1)
            if np.abs(g).max() < 1e-13:
                break
            H = M + 1 / len(Y) + 1e-12 * np.eye(len(Y))  # + 1/K fixes the softmax gauge: sum(b) stays
            step = np.linalg.solve(H, g[..., None])[..., 0]
            b[s] -= step / np.maximum(np.abs(step).max(1, keepdims=True), 1)
        Z[s] = R
    G = (Z.reshape(-1, len(Xs)) @ Xs).reshape(V.shape) / len(Xs) + lam[:, None, None] * V
    objective = loss + lam / 2 * (V**2).sum((1, 2))
    profiled = np.abs(Z.mean(-1)).max(1) < 1e-12
    return [b, objective, np.where(profiled, (G**2).sum((1, 2)) / (2 * lam * objective), np.inf)]


def _coarse_to_fine(problem: "_Problem", W: np.ndarray, lam: np.ndarray, steps: np.ndarray) -> list[np.ndarray]:
    """Minimise every STRIDE-th head from W, and the others from a cubic spline through those in log C."""
    from scipy.interpolate import make_interp_spline  # a slow import, which ``doctor`` need not wait for

    x, every = -np.log(lam), np.arange(len(lam))
    first = every[:: STRIDE if len(x) > 2 * STRIDE and np.diff(x).max() <= DENSE * np.log(10) else 1]
    first = np.union1d(first, every[-1])
    W[first], steps[first] = problem.minimise(W[first], lam[first], steps[first])
    if len(rest := np.setdiff1d(every, first)):
        start = make_interp_spline(x[first], W[first], k=min(3, len(first) - 1))(x[rest])
        W[rest], steps[rest] = problem.minimise(start, lam[rest], steps[rest])
    return [W, steps]


@dataclass(frozen=True)
class _Problem:
    """Minimise F over heads W (P, K, R + 1) whose last column is the intercept; per-head numbers are NumPy float64."""

    dtype: str
    A: np.ndarray  # (n, R + 1)
    Y: np.ndarray  # (K, n)
    curvature: np.ndarray  # (R + 1,)
    tol: float  # a head ends when ||g||^2 / (2 lam F) is at most this
    max_iter: int

    def minimise(self, W: np.ndarray, lam: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run L-BFGS for all heads together; return W and the iterations used up (P,), which start at ``steps``."""
        found, steps, heads = W.copy(), steps.copy(), np.arange(len(lam))
        W, Y = self.cast(W), self.cast(self.Y)
        Z = self.logits(W)
        R = 0 * Z
        _, loss, M = self.search(Z, 0 * Z, R, Y, np.zeros((3, len(lam))))  # a step of length 0: evaluates Z
        G, best, idle = self.gradient(R, W, lam), np.full(len(lam), np.inf), np.zeros(len(lam), int)
        pairs = _Pairs.none(len(lam), G[0].size, self.dtype)
        while True:
            F = loss + lam / 2 * _dot(W[..., :-1], W[..., :-1])
            bound = _dot(G, G) / (2 * lam * F)
            idle, best = np.where(bound < best, 0, idle + 1), np.minimum(bound, best)
            done = (bound <= self.tol) | (steps[heads] >= self.max_iter) | (idle > PATIENCE[self.dtype])
            if done.any():
                found[heads[done]] = W[np.flatnonzero(done)]
                keep = np.flatnonzero(~done)
                heads, lam, best, idle, M, W, Z, R, G = (a[keep] for a in (heads, lam, best, idle, M, W, Z, R, G))
                pairs = pairs.of(keep)
            if not len(heads):
                return found, steps
            D = self.direction(G, pairs, M, lam)
            Zd = self.logits(D)
            ray = np.array([_dot(G, D), *(lam * _dot(U[..., :-1], D[..., :-1]) for U in (W, D))])
            a, loss, M = self.search(Z, Zd, R, Y, ray)
            steps[heads] += 1
            a = self.cast(a)[:, None, None]
            W, Z, old = W + a * D, Z + a * Zd, G
            G = self.gradient(R, W, lam)
            pairs.add(a * D, G - old)

    def cast(self, a: np.ndarray) -> np.ndarray:
        """Return an array in the working precision."""
        return np.asarray(a, self.dtype)

    def logits(self, W: np.ndarray) -> np.ndarray:
        """Return (P, K, n)."""
        return (W.reshape(-1, W.shape[-1]) @ self.A.mT).reshape(*W.shape[:2], len(self.A))

    def gradient(self, R: np.ndarray, W: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Return the gradient (P, K, R + 1) at W, whose residuals are R (P, K, n)."""
        G = (R.reshape(-1, len(self.A)) @ self.A).reshape(W.shape) / len(self.A)
        G[..., :-1] += self.cast(lam)[:, None, None] * W[..., :-1]
        return G

    def direction(self, G: np.ndarray, pairs: "_Pairs", M: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Return minus the L-BFGS approximation of H^-1 G."""
        mu, U = np.linalg.eigh(M + 1 / M.shape[1])  # + 1/K: the softmax gauge, along which G is zero
        H = np.maximum(mu, 1e-9)[:, :, None] * self.curvature
        H[..., :-1] += lam[:, None, None]
        return -pairs.solve(G, self.cast(1 / H), self.cast(U))

    def search(self, Z: np.ndarray, Zd: np.ndarray, R: np.ndarray, Y: np.ndarray, ray: np.ndarray) -> tuple:
        """Find steps a (P,) along Zd; write the residuals at Z + a Zd to R, return a, the loss and the class covariance.

        ray (3, P): the slope of F at 0, then lam W'D and lam D'D of the penalty.
        """
        slope, linear, square = ray
        a, loss, M = np.where(slope < 0, 1.0, 0.0), np.empty(len(Z)), np.empty((len(Z), len(Y), len(Y)))
        for s in _cuts(Z):
            ends, slopes = np.array([0 * a[s], 0 * a[s] + np.inf]), np.array([slope[s], 0 * slope[s]])
            for _ in range(TRIALS):
                R[s] = Z[s] + self.cast(a[s])[:, None, None] * Zd[s]
                loss[s], M[s] = _residuals(R[s], Y)
                now = _dot(R[s], Zd[s]) / len(self.A) + linear[s] + a[s] * square[s]
                bad = (np.abs(now) > SIGMA * np.abs(slope[s])) & (slope[s] < 0)
                if not bad.any():
                    break
                a[s] = np.where(bad, _next_point(a[s], now, ends, slopes), a[s])
        return a, loss, M


@dataclass
class _Pairs:
    """The last steps of L-BFGS and what they changed in the gradient, for P heads; the newest takes the place of the oldest.

    The two loops over the pairs (Nocedal & Wright, algorithm 7.4) are substitutions in the upper triangle of S'Q. Its inverse
    gets a new column with every pair, and each loop is a product with all pairs at once.
    """

    S: np.ndarray  # (P, MEMORY, K (R + 1)) steps
    Q: np.ndarray  # changes of the gradient, alike
    T: np.ndarray  # (P, MEMORY, MEMORY) inverse of the triangle, in the order of the places
    rho: np.ndarray  # (P, MEMORY) 1 / s'q; 0 leaves a pair out, as do zeros in T
    count: int = 0  # of pairs, ever

    @classmethod
    def none(cls, heads: int, size: int, dtype: str) -> "_Pairs":
        """Return room for pairs of some heads with so many weights."""
        S, Q = np.zeros((2, heads, MEMORY, size), dtype)
        return cls(S, Q, np.zeros((heads, MEMORY, MEMORY)), np.zeros((heads, MEMORY)))

    def of(self, heads: np.ndarray) -> "_Pairs":
        """Return those of some heads."""
        return _Pairs(self.S[heads], self.Q[heads], self.T[heads], self.rho[heads], self.count)

    def add(self, s: np.ndarray, q: np.ndarray) -> None:
        """Take up a step and the change of the gradient, (P, K, R + 1)."""
        place, used = self.count % MEMORY, min(self.count + 1, MEMORY)
        self.S[:, place], self.Q[:, place] = s.reshape(len(s), -1), q.reshape(len(q), -1)
        self.T[:, place], self.T[:, :, place], self.rho[:, place] = 0, 0, _inverse(_dot(s, q), 0.0)
        column = self.T[:, :used, :used] @ (self.S[:, :used] @ self.Q[:, place, :, None]).astype(float)
        self.T[:, :used, place] = -column[..., 0] * self.rho[:, place, None]
        self.T[:, place, place] = self.rho[:, place]
        self.count += 1

    def solve(self, G: np.ndarray, H: np.ndarray, U: np.ndarray) -> np.ndarray:
        """Return the approximation of the inverse Hessian times G (P, K, R + 1); without pairs it is U H U'."""
        if not self.count:
            return U @ (H * (U.mT @ G))
        last, used = (self.count - 1) % MEMORY, min(self.count, MEMORY)
        S, Q, T, rho = self.S[:, :used], self.Q[:, :used], self.T[:, :used, :used], self.rho[:, :used]
        weights = T @ (S @ G.reshape(len(G), -1, 1)).astype(float)
        q = G - (weights.mT.astype(Q.dtype) @ Q).reshape(G.shape)
        Uq = U.mT @ Q[:, last].reshape(G.shape)
        scale = _inverse(rho[:, last] * _dot(Uq, H * Uq), 1.0).astype(Q.dtype)
        q = U @ (scale[:, None, None] * H * (U.mT @ q))
        rest = weights * _inverse(rho, 0.0)[..., None] - Q @ q.reshape(len(q), -1, 1)
        return q + ((T.mT @ rest).mT.astype(S.dtype) @ S).reshape(G.shape)


def _next_point(a: np.ndarray, now: np.ndarray, ends: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Narrow the brackets ``ends`` (2, p) of a convex function by its slope at a, in place; return the secants' points."""
    side, each = (now > 0).astype(int), np.arange(len(a))
    ends[side, each], slopes[side, each] = a, now
    (low, high), (down, up) = ends, slopes
    inside = low + (high - low) * np.clip(-down / np.maximum(up - down, 1e-300), 0.05, 0.95)
    return np.where(np.isfinite(high), inside, a * 4)


def _residuals(T: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn logits T (p, K, n) in place into softmax(T) - Y; return mean cross-entropy (p,), mean(diag(p) - p p') (p, K, K)."""
    n, k = T.shape[-1], T.shape[-2]
    top = T.max(-2)
    loss = top.sum(-1) - np.linalg.vecdot(T, Y).sum(-1)
    T -= top[:, None]
    np.exp(T, out=T)
    total = T.sum(-2)
    T /= total[:, None]
    loss = (loss + np.log(total).sum(-1)) / n
    M = -(T @ T.mT) / n
    M[:, range(k), range(k)] += T.sum(-1) / n
    T -= Y
    return loss.astype(float), M.astype(float)


def _inverse(x: np.ndarray, otherwise: float) -> np.ndarray:
    """Return 1 / x where x is positive; elsewhere rounding has spoilt a curvature, and ``otherwise`` replaces it."""
    return np.divide(1, x, out=np.full_like(x, otherwise), where=x > 0)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the (P,) inner products of two (P, K, m) arrays."""
    return np.linalg.vecdot(a, b).astype(float).sum(-1)


def _cuts(Z: np.ndarray) -> list[slice]:
    """Cut the heads of logits (P, K, n) into as many at a time as stay in the processor's cache, at least one."""
    count = max(1, CACHED // max(Z[:1].size, 1))
    return [slice(i, i + count) for i in range(0, len(Z), count)]


def _nll(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean negative log-likelihoods (P,) of logits (P, n, K)."""
    return (logsumexp(logits, axis=-1) - logits[:, np.arange(len(y)), y]).mean(-1)
