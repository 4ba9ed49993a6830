"""The recipe of FetalCLIP's own probing code, as a probe.

All folds and seeds are trained side by side; each run equals the plain loop of torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fpbench.errors import InputError
from fpbench.training.probes import heads

if TYPE_CHECKING:
    from fpbench.splits import Fold
    from fpbench.training.bench import Bench


@dataclass(frozen=True)
class Recipe:
    """AdamW on unweighted cross-entropy, as in FetalCLIP's six-plane probe (without its augmented copies)."""

    lr: float = 3e-4  # per step
    weight_decay: float = 0.01  # decoupled
    batch: int = 64  # images; the last incomplete batch of an epoch is dropped
    epochs: int = 50


@dataclass(frozen=True)
class SgdHeads(heads.Heads):
    """Heads of one fold, one per seed (``strength`` holds the seeds), each from its epoch of lowest validation loss."""

    loss: np.ndarray  # (R,) that validation cross-entropy
    epoch: np.ndarray  # (R,) that epoch, from 1


def fit_sgd(
    X: np.ndarray,
    y: np.ndarray,
    train_sets: Sequence[np.ndarray],
    val_sets: Sequence[np.ndarray],
    n_classes: int,
    seeds: Sequence[int] | np.ndarray,
    recipe: Recipe = Recipe(),
    device: Any = "cpu",
) -> list[SgdHeads]:
    """Train a linear layer per fold and seed by AdamW, all stacked in one batched product per step.

    Each run equals the plain loop ``torch.manual_seed(seed); nn.Linear(D, K); per epoch torch.randperm(n)`` on its own rows:
    same initial weights, same batches. Features are not standardised. Not comparable with the macro F1 of 94.73 published
    for FetalCLIP's probe, which trained on five augmented copies of each image and no clean one.

    X, y, train_sets, n_classes, errors: see ``fit_paths``; moreover a train set must hold a batch. seeds: R numbers, the
    same for every fold.
    """
    import torch

    X = heads.check_features(X).astype(np.float32)
    y, seeds = heads.check_labels(y, len(X), n_classes), np.array(seeds)
    rows, held_out = (
        heads.check_train_sets(train_sets, y, n_classes),
        [heads.check_rows(r, len(y), f, "val") for f, r in enumerate(val_sets)],
    )
    if len(rows) != len(held_out) or not len(seeds) or min(map(len, rows)) < recipe.batch:
        raise InputError(f"expected a val set per train set, seeds, and {recipe.batch} rows or more in each train set")
    order = sorted(range(len(rows)), key=lambda f: -len(rows[f]))  # runs with most steps first: the active ones lead
    runs = _Runs(torch, device, X, y, n_classes, [(rows[f], int(s)) for f in order for s in seeds], recipe)
    best, loss, epochs = runs.theta.clone(), np.full(len(runs.sets), np.inf), np.zeros(len(runs.sets), int)
    for epoch in range(1, recipe.epochs + 1):
        runs.train_epoch()
        now = np.concatenate([runs.losses(held_out[f], i * len(seeds), len(seeds)) for i, f in enumerate(order)])
        better = np.flatnonzero(now < loss)
        best[better], loss[better], epochs[better] = runs.theta[better], now[better], epoch
    best, (zero, one) = best.cpu().numpy().astype(float), (np.zeros(X.shape[1]), np.ones(X.shape[1]))
    runs_of = [slice(i * len(seeds), (i + 1) * len(seeds)) for i in np.argsort(order)]  # fold by fold
    return [SgdHeads(seeds, best[s, :-1], best[s, -1], zero, one, loss[s], epochs[s]) for s in runs_of]


class _Runs:
    """Linear layers theta (B, D + 1, K) trained side by side; the last row is the bias. Longest train sets come first."""

    def __init__(self, torch: Any, device: Any, X: np.ndarray, y: np.ndarray, k: int, sets: list, recipe: Recipe):
        self.torch, self.recipe, self.sets = torch, recipe, [(torch.as_tensor(rows), seed) for rows, seed in sets]
        self.X = torch.as_tensor(np.c_[X, np.ones(len(X), np.float32)], device=device)
        self.Y = torch.as_tensor(heads.onehot(y, k).T, dtype=torch.float32, device=device)
        self.generators = [torch.Generator().manual_seed(seed) for _, seed in sets]
        self.theta = torch.stack([self._layer(X.shape[1], k, g) for g in self.generators]).to(device)
        self.first, self.second = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.batches, self.steps = np.array([len(rows) // recipe.batch for rows, _ in sets]), np.zeros(len(sets))

    def _layer(self, d: int, k: int, generator: Any) -> Any:
        """Return the (d + 1, k) initial values of torch's ``nn.Linear(d, k)``."""
        weight = self.torch.nn.init.kaiming_uniform_(self.torch.empty(k, d), a=5**0.5, generator=generator)
        bias = self.torch.empty(k).uniform_(-(d**-0.5), d**-0.5, generator=generator)
        return self.torch.cat([weight.T, bias[None]])

    def train_epoch(self) -> None:
        """Pass once over each train set, in the run's own order."""
        runs = zip(self.sets, self.generators, strict=True)
        orders = [rows[self.torch.randperm(len(rows), generator=g)] for (rows, _), g in runs]
        for t in range(self.batches[0]):
            active = int((self.batches > t).sum())
            self._step(self.torch.stack([o[t * self.recipe.batch :][: self.recipe.batch] for o in orders[:active]]))

    def _step(self, index: Any) -> None:
        """Take one AdamW step (torch's defaults: betas 0.9 and 0.999, eps 1e-8) for the first m runs, on rows index (m, batch)."""
        active = slice(0, len(index))
        x, theta, first, second = self.X[index], self.theta[active], self.first[active], self.second[active]
        gradient = x.mT @ ((x @ theta).softmax(-1) - self.Y[index]) / index.shape[1]
        self.steps[active] += 1
        fix1, fix2 = (theta.new_tensor(1 - beta ** self.steps[active])[:, None, None] for beta in (0.9, 0.999))
        theta *= 1 - self.recipe.lr * self.recipe.weight_decay
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        theta -= self.recipe.lr * (first / fix1) / ((second / fix2).sqrt() + 1e-8)

    def losses(self, rows: np.ndarray, start: int, count: int) -> np.ndarray:
        """Return the mean cross-entropies (count,) of neighbouring runs on some rows."""
        scores = (self.X[rows] @ self.theta[start : start + count]).log_softmax(-1)
        return -(scores * self.Y[rows]).sum(-1).mean(-1).cpu().numpy().astype(float)


def fit(bench: "Bench", folds: "list[Fold]") -> list[tuple[heads.Scores, dict]]:
    """Train the probe on some folds, with the study's seed; the epoch by the lowest validation loss."""
    train, validation = [fold.train for fold in folds], [fold.validation for fold in folds]
    seeds, device = [bench.seed], bench.about["device"]
    fitted = fit_sgd(bench.features, bench.labels, train, validation, bench.classes, seeds, device=device)
    return [
        (
            partial(one.logits, i=0),
            {"name": "epoch", "strength": int(one.epoch[0]), "loss": float(one.loss[0])},
        )
        for one in fitted
    ]
