"""FetalCLIP's 25 SGD fits (5 folds x 5 seeds, 50 epochs, AdamW, batch 64): ours, all side by side, against a loop per fit.

    python benchmarks/sgd.py [--d 768] [--epochs 50] [--loop 2] [--loads 300]

Ours: ``fpbench.training.probes.sgd``, all fits whole. Theirs is a re-creation from the description of their probing code: a
DataLoader over embeddings, ``nn.Linear``, AdamW, a validation pass per epoch. Run for ``--loop`` epochs of one fit, scaled to all.
``sgd_loads``: their loop also loads embedding file and picture and prepares the picture, for every item, and throws the picture
away; measured on ``--loads`` items, scaled to all items of all epochs. Synthetic embeddings with the sizes of the official split.
"""

import numpy as np
import torch
from common import alternate, entry, medians, parser, pinned, sample_files, save, scratch
from epoch import Files
from probe import features
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fpbench.training.probes import sgd

FOLDS, SEEDS = 5, 5


def loop(X: torch.Tensor, y: torch.Tensor, train: np.ndarray, val: np.ndarray, recipe, epochs: int) -> None:
    """Train one linear layer as a plain script does."""
    parts = [TensorDataset(X[rows], y[rows]) for rows in (train, val)]
    ready = [DataLoader(part, recipe.batch, shuffle=i == 0, drop_last=i == 0) for i, part in enumerate(parts)]
    model = torch.nn.Linear(X.shape[1], 6)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    for _ in range(epochs):
        for batch, labels in ready[0]:
            optimiser.zero_grad()
            functional.cross_entropy(model(batch), labels).backward()
            optimiser.step()
        with torch.no_grad():
            for batch, labels in ready[1]:
                functional.cross_entropy(model(batch), labels, reduction="sum").item()


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "sgd", repeats=3)
    made.add_argument("--n", type=int, default=7129, help="images: the official split's training images")
    made.add_argument("--d", type=int, default=768, help="features")
    made.add_argument("--epochs", type=int, default=50)
    made.add_argument("--loop", type=int, default=2, help="epochs of one fit that the loop runs")
    made.add_argument("--loads", type=int, default=300, help="items that are loaded")
    args = made.parse_args()
    recipe = sgd.Recipe(epochs=args.epochs)
    X, y, patient = features(args.n, args.d, 6, args.n // 7)
    part = np.random.default_rng(1).permutation(patient.max() + 1)[patient] % FOLDS
    train, val = ([np.flatnonzero((part == f) == held) for f in range(FOLDS)] for held in (False, True))
    files, what = sample_files()
    reader = Files(files, args.loads)
    with pinned(args.threads), scratch() as folder:
        for row in range(args.loads):
            np.save(folder / f"{row}.npy", X[row])
        tensors = torch.from_numpy(X), torch.from_numpy(y)
        calls = {
            "ours": lambda: sgd.fit_sgd(X, y, train, val, 6, range(SEEDS), recipe),
            "loop": lambda: loop(*tensors, train[0], val[0], recipe, args.loop),
            "loads": lambda: [(np.load(folder / f"{i}.npy"), reader[i]) for i in range(args.loads)],
        }
        cpu = medians(alternate(calls, args.repeats))
    fits, items = FOLDS * SEEDS, FOLDS * SEEDS * args.epochs * args.n
    plain = cpu["loop"] * fits * args.epochs / args.loop
    loads = cpu["loads"] * items / args.loads
    case, scaled = f"{fits} fits of {args.epochs} epochs, d = {args.d}", f"{args.loop} of {fits * args.epochs:,} epochs"
    also = f"{scaled}, {args.loads} of {items:,} loads"
    found = [
        entry("sgd", f"{case}, loads excluded", "CPU s", cpu["ours"], plain, scaled=scaled),
        entry("sgd_loads", f"{case}, loads of {what} included", "CPU s", cpu["ours"], plain + loads, scaled=also),
    ]
    save("sgd", args, found)


if __name__ == "__main__":
    main()
