"""Probes against scikit-learn, brute force and plain torch loops; certificates against tight solutions."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from fpbench import recipe
from fpbench.errors import InputError
from fpbench.training.probes import heads, knn, logistic, ridge
from fpbench.training.probes import sgd as fetalclip

NINE = 10 ** np.linspace(-5, 0, 9)


@pytest.mark.parametrize("count", [1, 7, logistic.MEMORY, logistic.MEMORY + 13])
def test_the_pairs_of_lbfgs_in_products_equal_the_two_loops(count):
    heads, k, r = 3, 4, 15
    rng = np.random.default_rng(count)
    root = rng.normal(size=(heads, k * r, k * r)) / 8
    hessian, pairs, known = root @ root.mT + np.eye(k * r), logistic._Pairs.none(heads, k * r, "float64"), []
    for number in range(count):
        s = rng.normal(size=(heads, k * r))
        q = (hessian @ s[..., None])[..., 0]
        if number == count // 2 and count > 1:
            q[0] *= -1  # no curvature there: that head leaves the pair out
        pairs.add(s.reshape(heads, k, r), q.reshape(heads, k, r))
        known = [*known, (s, q)][-logistic.MEMORY :]
    G, H, U = (
        rng.normal(size=(heads, k, r)),
        rng.uniform(0.5, 2, (heads, k, r)),
        np.linalg.qr(rng.normal(size=(heads, k, k)))[0],
    )
    found = pairs.of(np.array([2, 0])).solve(*(a[[2, 0]] for a in (G, H, U)))
    for row, head in enumerate((2, 0)):
        mine = [(s[head], q[head]) for s, q in known]
        start = lambda g, h=head: (U[h] @ (H[h] * (U[h].T @ g.reshape(k, r)))).ravel()  # noqa: E731
        g, weights = G[head].ravel(), []
        for s, q in reversed(mine):
            weights.append(s @ g / (s @ q) if s @ q > 0 else 0.0)
            g = g - weights[-1] * q
        s, q = mine[-1]
        x = start(g) * (s @ q / (q @ start(q)) if s @ q > 0 else 1.0)
        for (s, q), weight in zip(mine, reversed(weights), strict=True):
            x = x + ((weight - q @ x / (s @ q)) * s if s @ q > 0 else 0.0)
        np.testing.assert_allclose(found[row].ravel(), x, rtol=1e-7, atol=1e-9)


def synthetic(n, d, k=4, shift=0.6, share=None, constant=0, seed=0):
    """Features with a decaying spectrum, a mean and mixed scales; every class occurs."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.choice(k, n - k, p=share)])
    latent = (rng.standard_normal((k, d)) * shift)[y] + rng.standard_normal((n, d))
    X = (latent / np.sqrt(np.arange(1, d + 1))) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    X = X * rng.uniform(0.2, 5, d) + rng.standard_normal(d)
    X[:, :constant] = 0.1
    return X.astype(np.float32), y


CASES = {
    "tall": {"n": 500, "d": 30},
    "wide, as the real sample": {"n": 150, "d": 1280, "k": 6, "shift": 0.1},
    "fewer rows than features": {"n": 60, "d": 90},
    "separable": {"n": 300, "d": 40, "shift": 3.0},
    "imbalanced": {"n": 700, "d": 24, "k": 6, "share": [0.01, 0.03, 0.06, 0.1, 0.2, 0.6]},
    "constant features": {"n": 200, "d": 20, "constant": 5},
    "one feature": {"n": 800, "d": 1, "k": 3},
}


@cache
def fitted(name, eps=1e-6):
    X, y = synthetic(**CASES[name])
    return X, y, logistic.fit_paths(X, y, [np.arange(len(y))], y.max() + 1, NINE, eps)[0]


def objective(X, y, path, i):
    """F of head i and its gradient in W where the intercept is optimal, from the weights alone."""
    Xs = StandardScaler().fit_transform(X.astype(float))
    W, b, lam = path.weights[i], path.intercept[i], 1 / (path.strength[i] * len(y))
    Z = Xs @ W + b
    residual = softmax(Z, 1) - np.eye(len(b))[y]
    value = (logsumexp(Z, 1) - Z[np.arange(len(y)), y]).mean() + lam / 2 * (W**2).sum()
    return value, Xs.T @ residual / len(y) + lam * W, residual.mean(0), lam


@pytest.mark.parametrize("name", CASES)
def test_parity_with_scikit_learn(name):
    X, y, path = fitted(name)
    Xs = StandardScaler().fit_transform(X.astype(float))
    for i, c in enumerate(NINE):
        ours = objective(X, y, path, i)[0]
        reference = LogisticRegression(C=c, tol=1e-7, max_iter=20_000).fit(Xs, y)
        p = reference.predict_proba(Xs)[np.arange(len(y)), y]
        theirs = -np.log(p).mean() + (reference.coef_**2).sum() / (2 * c * len(y))
        assert ours <= theirs * (1 + 1e-6)
        assert (path.logits(X, i).argmax(1) == reference.predict(Xs)).mean() >= 0.995


def test_two_classes_are_scikit_learn_at_twice_c():
    X, y = synthetic(200, 10, k=2)
    path = logistic.fit_paths(X, y, [np.arange(200)], 2, np.array([0.02, 0.2]), eps=1e-10)[0]
    Xs = StandardScaler().fit_transform(X.astype(float))
    binary = LogisticRegression(C=0.4, tol=1e-10, max_iter=10_000).fit(Xs, y)
    np.testing.assert_allclose(np.diff(path.logits(X, 1))[:, 0], binary.decision_function(Xs), atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_certificate_is_recomputable_and_bounds_the_gap(name):
    X, y, path = fitted(name)
    tight = fitted(name, 1e-12)[2]
    assert path.converged.all()
    assert tight.converged.all()
    for i in range(len(NINE)):
        value, gradient, in_b, lam = objective(X, y, path, i)
        assert np.abs(in_b).max() < 1e-9  # else the bound would not hold
        np.testing.assert_allclose(path.objective[i], value, rtol=1e-12)
        bound = (gradient**2).sum() / (2 * lam * value)
        np.testing.assert_allclose(path.certificate[i], bound, rtol=1e-3, atol=1e-16)
        assert bound <= 1e-6
        best = objective(X, y, tight, i)[0]
        assert -2e-12 <= (value - best) / value <= bound + 2e-12


def test_the_whole_grid_converges_and_the_spline_saves_iterations(monkeypatch):
    X, y = synthetic(600, 50)
    path = logistic.fit_paths(X, y, [np.arange(600)], 4)[0]
    assert path.converged.all()
    monkeypatch.setattr(logistic, "DENSE", 0)
    cold = logistic.fit_paths(X, y, [np.arange(600)], 4)[0]
    assert path.iterations.sum() < 0.7 * cold.iterations.sum()
    np.testing.assert_allclose(path.objective, cold.objective, rtol=1e-6)


def test_heads_that_miss_the_bound_are_flagged():
    X, y = synthetic(300, 40)
    path = logistic.fit_paths(X, y, [np.arange(300)], 4, NINE, max_iter=2)[0]
    assert not path.converged[-1]
    assert path.certificate[-1] > 1e-6
    assert (path.iterations <= 2).all()
    value, gradient, _, lam = objective(X, y, path, -1)
    np.testing.assert_allclose(path.certificate[-1], (gradient**2).sum() / (2 * lam * value), rtol=1e-6)
    assert not heads.choose(path, X, y).converged


def test_double_precision_finishes_what_single_cannot(monkeypatch):
    X, y = synthetic(300, 40)
    design, used = logistic._design, []
    monkeypatch.setattr(logistic, "_design", lambda *args: used.append(args[-1]) or design(*args))
    logistic.fit_paths(X, y, [np.arange(300)], 4, NINE, eps=1e-3)
    assert used == ["float32"]
    path = logistic.fit_paths(X, y, [np.arange(300)], 4, NINE, eps=1e-14)[0]
    assert used == ["float32", "float32", "float64"]
    assert path.converged.all()


def test_same_call_same_bytes_and_folds_are_independent():
    X, y = synthetic(300, 40)
    folds = [np.arange(0, 200), np.arange(100, 300)]
    first, again = (logistic.fit_paths(X, y, folds, 4, NINE) for _ in range(2))
    alone = logistic.fit_paths(X, y, folds[1:], 4, NINE)[0]
    for other in (again[1], alone):
        assert first[1].weights.tobytes() == other.weights.tobytes()
        assert first[1].intercept.tobytes() == other.intercept.tobytes()


def test_other_c_in_the_call_change_results_only_within_the_certificate():
    X, y = synthetic(300, 40)
    grid = logistic.fit_paths(X, y, [np.arange(300)], 4)[0]
    single = logistic.fit_paths(X, y, [np.arange(300)], 4, recipe.GRID[30])[0]
    assert abs(grid.objective[30] - single.objective[0]) <= 1e-6 * single.objective[0]


def test_rows_outside_the_train_set_change_nothing():
    X, y = synthetic(300, 40)
    other = X.copy()
    other[200:] *= 100
    one, two = (logistic.fit_paths(Z, y, [np.arange(200)], 4, NINE)[0] for Z in (X, other))
    assert one.weights.tobytes() == two.weights.tobytes()


def test_invariant_to_scaling_shifting_and_class_order():
    X, y, path = fitted("tall")
    scale = 2.0 ** np.random.default_rng(0).integers(-6, 7, X.shape[1])
    scaled = logistic.fit_paths((X * scale).astype(np.float32), y, [np.arange(len(y))], 4, NINE)[0]
    np.testing.assert_allclose(scaled.weights, path.weights, rtol=1e-6, atol=1e-9)
    swapped = logistic.fit_paths(X, 3 - y, [np.arange(len(y))], 4, NINE, eps=1e-12)[0]
    exact = fitted("tall", 1e-12)[2]
    np.testing.assert_allclose(swapped.weights[..., ::-1], exact.weights, atol=1e-6)


def test_constant_embeddings_give_the_class_shares():
    y = np.repeat([0, 1, 2], [5, 15, 30])
    path = logistic.fit_paths(np.full((50, 7), 3.3, np.float32), y, [np.arange(50)], 3, NINE)[0]
    assert path.converged.all()
    np.testing.assert_allclose(softmax(path.intercept, 1), np.tile([0.1, 0.3, 0.6], (9, 1)), atol=1e-9)


def test_all_logits_are_the_logits_of_each_head():
    X, _, path = fitted("tall")
    every = path.all_logits(X[:7])
    assert every.shape == (9, 7, 4)
    for i in range(9):
        np.testing.assert_allclose(every[i], path.logits(X[:7], i), atol=1e-12)


def constant(*biases):
    """A path of constant heads, so that its losses are known."""
    b, p = np.array(biases, float), len(biases)
    flags = np.ones(p)
    return logistic.Path(NINE[:p], np.zeros((p, 3, 2)), b, np.zeros(3), np.ones(3), flags, flags * 0, flags > 0, flags)


def test_choose_takes_the_lowest_loss_ties_to_the_smaller_c_and_flags_the_edge():
    X, y = np.zeros((4, 3), np.float32), np.zeros(4, int)
    choice = heads.choose(constant((0, 1), (2, 0), (2 + 1e-13, 0), (1, 0)), X, y)
    assert (choice.index, choice.strength, choice.at_edge) == (1, NINE[1], False)
    assert choice.loss == pytest.approx(-log_softmax([2, 0])[0])
    assert heads.choose(constant((0, 1), (2, 0), (2 + 1e-6, 0), (1, 0)), X, y).index == 2
    assert heads.choose(constant((3, 0), (2, 0), (1, 0)), X, y).at_edge
    assert heads.choose(constant((1, 0), (2, 0), (3, 0)), X, y).at_edge
    assert not heads.choose(constant((1, 0)), X, y).at_edge


def test_knn_equals_brute_force(monkeypatch):
    X, y = synthetic(120, 8)
    monkeypatch.setattr(knn, "BLOCK", 7)
    scores = knn.knn_scores(X[:90], y[:90], X[90:], 4, k=5, temperature=0.1)
    for row, found in zip(X[90:], scores, strict=True):
        s = X[:90] @ row / np.linalg.norm(X[:90], axis=1) / np.linalg.norm(row)
        near = np.argsort(-s)[:5]
        votes = np.bincount(y[near], np.exp(s[near] / 0.1), minlength=4)
        np.testing.assert_allclose(found, np.log((votes / votes.sum() + 1e-6) / (1 + 4e-6)), atol=1e-4)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(np.exp(scores).sum(1), 1)


def test_knn_with_few_rows_uses_them_all():
    X, y = synthetic(12, 5)
    np.testing.assert_array_equal(*(knn.knn_scores(X[:10], y[:10], X[10:], 4, k=k) for k in (10, 500)))


@pytest.mark.parametrize("name", ["tall", "wide, as the real sample", "constant features"])
def test_ridge_equals_scikit_learn(name):
    X, y = synthetic(**CASES[name])
    k, train = y.max() + 1, np.arange(0, len(y) - 20)
    path = ridge.fit_ridge(X, y, [train], k, np.array([100.0, 1.0, 0.01]))[0]
    scaler = StandardScaler().fit(X[train].astype(float))
    Xs, rest = scaler.transform(X[train].astype(float)), scaler.transform(X[-20:].astype(float))
    for i, alpha in enumerate(path.strength):
        reference = Ridge(alpha=alpha).fit(Xs, 2 * np.eye(k)[y[train]] - 1)
        np.testing.assert_allclose(path.logits(X[-20:], i), reference.predict(rest), atol=1e-6)
        assert (path.logits(X[-20:], i).argmax(1) == RidgeClassifier(alpha=alpha).fit(Xs, y[train]).predict(rest)).all()
    error = [((path.logits(X[-20:], i) - (2 * np.eye(k)[y[-20:]] - 1)) ** 2).mean() for i in range(3)]
    assert heads.choose(path, X[-20:], y[-20:]).index == int(np.argmin(error))


def plain_loop(X, y, train, val, k, seed, recipe):
    """The recipe as anyone would write it for one run."""
    import torch

    X, y = torch.as_tensor(X), torch.as_tensor(y)
    torch.manual_seed(seed)
    model, best, kept = torch.nn.Linear(X.shape[1], k), np.inf, None
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    for epoch in range(1, recipe.epochs + 1):
        order = torch.as_tensor(train)[torch.randperm(len(train))]
        for rows in order[: len(order) // recipe.batch * recipe.batch].split(recipe.batch):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(X[val]), y[val]).item()
        if loss < best:
            best, kept = loss, (epoch, model.weight.detach().numpy().T.copy(), model.bias.detach().numpy().copy())
    return best, *kept


def test_stacked_sgd_equals_one_plain_loop_per_run():
    torch = pytest.importorskip("torch")
    X, y = synthetic(400, 16, shift=0.2)
    X = X + 5 * (np.arange(16) == 3).astype(np.float32)
    train = [np.arange(0, 130), np.arange(100, 340), np.arange(20, 171)]  # 4, 7 and 4 batches of 32
    val = [np.arange(340, 400), np.arange(0, 50), np.arange(340, 370)]
    recipe = fetalclip.Recipe(lr=0.03, weight_decay=0.1, batch=32, epochs=12)
    state = torch.get_rng_state()
    stacked = fetalclip.fit_sgd(X, y, train, val, 4, seeds=[3, 11], recipe=recipe)
    assert torch.equal(state, torch.get_rng_state())
    for fold, runs in enumerate(stacked):
        for i, seed in enumerate(runs.strength):
            loss, epoch, weights, bias = plain_loop(X, y, train[fold], val[fold], 4, int(seed), recipe)
            np.testing.assert_allclose(runs.weights[i], weights, atol=5e-6)
            np.testing.assert_allclose(runs.intercept[i], bias, atol=5e-6)
            assert (runs.loss[i], runs.epoch[i]) == (pytest.approx(loss, abs=1e-6), epoch)
    assert {e for runs in stacked for e in runs.epoch} != {12}  # the checkpoint is not just the last epoch


GOOD = synthetic(60, 5)
EVERY = [np.arange(60)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.where(np.arange(300).reshape(60, 5) == 41, np.nan, GOOD[0])}, "NaN or Inf in 1 rows, first row 8"),
        ({"X": np.where(np.arange(300).reshape(60, 5) == 41, np.inf, GOOD[0])}, "NaN or Inf"),
        ({"X": GOOD[0][:, 0]}, r"features \(n, D\)"),
        ({"y": GOOD[1][:59]}, "expected 60 integer labels"),
        ({"y": GOOD[1] + 0.5}, "integer labels"),
        ({"y": GOOD[1] - 1}, r"labels in 0\.\.3, found -1"),
        ({"n_classes": 3}, r"labels in 0\.\.2"),
        ({"n_classes": 5}, r"fold 0: no training row of class \[4\]"),
        ({"train_sets": [np.arange(60), np.flatnonzero(GOOD[1] != 2)]}, r"fold 1: no training row of class \[2\]"),
        ({"train_sets": [np.array([], int)]}, "fold 0: .* one or more"),
        ({"train_sets": [np.array([0, 60])]}, r"row numbers in 0\.\.59"),
        ({"train_sets": [GOOD[1] == 1]}, "row numbers"),
        ({"train_sets": []}, "one train set or more"),
        ({"C": np.array([0.0, 1.0])}, "positive, ascending"),
        ({"C": np.array([1.0, 0.1])}, "positive, ascending"),
        ({"C": np.array([1.0, 1.0])}, "positive, ascending"),
        ({"C": np.array([1.0, np.nan])}, "positive, ascending"),
        ({"eps": 0.0}, "eps > 0"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(InputError, match=message):
        logistic.fit_paths(**{"X": GOOD[0], "y": GOOD[1], "train_sets": EVERY, "n_classes": 4, "C": NINE, **change})


def test_bad_input_of_the_other_probes():
    X, y = GOOD
    path = logistic.fit_paths(X, y, EVERY, 4, NINE[:1])[0]
    with pytest.raises(InputError, match="expected 5 features"):
        path.logits(X[:, :4], 0)
    with pytest.raises(InputError, match="integer labels"):
        heads.choose(path, X, y[:10])
    with pytest.raises(InputError, match="k >= 1"):
        knn.knn_scores(X, y, X, 4, k=0)
    with pytest.raises(InputError, match="alphas"):
        ridge.fit_ridge(X, y, EVERY, 4, np.array([1.0, 2.0]))
    with pytest.raises(InputError, match="64 rows"):
        fetalclip.fit_sgd(X, y, EVERY, EVERY, 4, seeds=[0])


def test_import_does_not_load_torch():
    code = "import sys, fpbench.training.probing, fpbench.training.probes.logistic, fpbench.training.probes.ridge, fpbench.training.probes.knn; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
