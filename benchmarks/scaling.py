"""The scaling figure: CPU seconds of a probe sweep against images, folds and values of C, ours and scikit-learn; log-log.

    python benchmarks/scaling.py [--d 256]

Each panel moves one number, the others stay at 3,000 images, 5 folds, 45 C. Ours runs whole. scikit-learn (float64, lbfgs, tol 1e-5,
about as exact as ours at C <= 1) runs three heads on one fold, at C of 1e-5, 1e-3 and 1e-1, scaled to all heads. Written:
results/scaling.json and scaling.png.
"""

import matplotlib.pyplot as plt
import numpy as np
from common import FOLDER, alternate, entry, medians, parser, pinned, save
from probe import features, sklearn_fit, standardise

from fpbench.recipe import GRID
from fpbench.training.probes.logistic import fit_paths

PANELS = {"images": (1_000, 3_000, 10_000), "folds": (1, 2, 5), "values of C": (5, 15, 45)}
BASE = {"images": 3_000, "folds": 5, "values of C": 45}
HEADS = (1e-5, 1e-3, 1e-1)


def point(d: int, repeats: int, images: int, folds: int, strengths: int) -> tuple[float, float]:
    """Return the CPU seconds of both."""
    X, y, patient = features(images, d, 6, max(images // 7, 5))
    part = np.random.default_rng(1).permutation(patient.max() + 1)[patient] % 5
    train = [np.flatnonzero(part != fold) for fold in range(folds)]
    grid = np.geomspace(GRID[0], GRID[-1], strengths)
    rows = train[0]
    Xs = standardise(X[rows])
    calls = {
        "ours": lambda: fit_paths(X, y, train, 6, grid),
        "scikit-learn": lambda: [sklearn_fit(Xs, y[rows], C, 1e-5) for C in HEADS],
    }
    spent = medians(alternate(calls, repeats))
    return spent["ours"], spent["scikit-learn"] * folds * strengths / len(HEADS)


def draw(found: dict, d: int) -> None:
    """Draw the panels from what was measured."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
    for ax, (name, values) in zip(axes, PANELS.items(), strict=True):
        for side, colour, style in (("fpbench", "#0072b2", "o-"), ("scikit-learn, scaled", "#d55e00", "s--")):
            costs = [found[name, value][side != "fpbench"] for value in values]
            ax.loglog(values, costs, style, color=colour, label=side)
        ax.set(xlabel=name, xticks=values, xticklabels=[f"{value:,}" for value in values])
        ax.minorticks_off()
    axes[0].set_ylabel("CPU seconds of the sweep")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Probe sweep, {d} features, 6 classes, one CPU thread", fontsize=10)
    figure.savefig(FOLDER / "scaling.png", dpi=150, metadata={"Software": None})


def main() -> None:
    """Measure, draw, write."""
    made = parser(__doc__, "scaling", repeats=1)
    made.add_argument("--d", type=int, default=256, help="features")
    args = made.parse_args()
    found, entries = {}, []
    with pinned(args.threads):
        for name, values in PANELS.items():
            for value in values:
                setting = {**BASE, name: value}
                images, folds, strengths = setting.values()
                key = tuple(setting.values())
                found[key] = found.get(key) or point(args.d, args.repeats, images, folds, strengths)
                found[name, value] = found[key]
                ours, theirs = found[key]
                case, part = f"{images:,} images, {folds} folds, {strengths} C", f"3 of {folds * strengths} heads"
                entries.append(entry(f"scaling_{name.replace(' ', '_')}", case, "CPU s", ours, theirs, scaled=part))
    save("scaling", args, entries)
    draw(found, args.d)


if __name__ == "__main__":
    main()
