"""Group bootstrap of macro F1: fpbench.analysis.statistics against a loop over scikit-learn, on the same resamples.

    python benchmarks/bootstrap.py [--images 5271] [--groups 896] [--resamples 10000] [--loop 50]

Ours: all resamples, drawing included, of one encoder with five fold models. scikit-learn: for the first resamples of
the same stream, ``f1_score`` on the drawn images of each fold model, images looked up beforehand (not timed), scaled to
all. The values must be equal. One BLAS thread, time.process_time, the median of the repeats. Also: seven encoders under
two protocols with every default metric, and the peak of the memory that this allocates.
"""

import time
import tracemalloc

import numpy as np
import pandas as pd
from common import entry, parser, pinned, save
from sklearn.metrics import f1_score

from fpbench.analysis import statistics

CLASSES = dict(enumerate(("abdomen", "brain", "femur", "thorax", "cervix", "other")))


def predictions(images: int, groups: int, folds: int, models: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Return rows (image x fold) and logits (models, rows, 6); every group has an image, the rest fall at random."""
    rng = np.random.default_rng(seed)
    group = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, images - groups)]))
    y = rng.integers(0, 6, images)
    rows = pd.DataFrame(
        {"y_true": np.tile(y, folds), "group": np.tile(group, folds), "fold": np.repeat(np.arange(folds), images)}
    )
    logits = rng.normal(size=(models, images * folds, 6)).astype(np.float32)
    logits[:, np.arange(len(rows)), rows["y_true"]] += 3
    return rows, logits


def sample_of(rows: pd.DataFrame, logits: np.ndarray) -> statistics.Sample:
    """Return the sample of these predictions, two protocols if the models are even in number."""
    models = tuple((f"encoder {i // 2}", ("logistic", "finetune")[i % 2]) for i in range(len(logits)))
    return statistics.make_sample(rows, logits, CLASSES, models=models)


def loop(rows: pd.DataFrame, logits: np.ndarray, weights: np.ndarray) -> tuple[list[float], float]:
    """Return macro F1 of one model on each resample by scikit-learn, and the CPU seconds of its calls."""
    folds, values, spent = rows["fold"].max() + 1, [], 0.0
    y, answers = rows["y_true"].to_numpy().reshape(folds, -1)[0], logits.argmax(1).reshape(folds, -1)
    group = rows["group"].to_numpy().reshape(folds, -1)[0]
    for weight in weights.astype(int):
        drawn = np.repeat(np.arange(len(y)), weight[group])
        start = time.process_time()
        scores = [
            f1_score(y[drawn], answer[drawn], labels=list(CLASSES), average="macro", zero_division=0)
            for answer in answers
        ]
        spent += time.process_time() - start
        values.append(float(np.mean(scores)))
    return values, spent


def main() -> None:
    """Parse the options, measure, print, write."""
    made = parser(__doc__, "bootstrap")
    defaults = {"images": 5271, "groups": 896, "folds": 5, "resamples": 10_000, "loop": 50}
    for name, default in defaults.items():
        made.add_argument(f"--{name}", type=int, default=default)
    args = made.parse_args()
    rows, logits = predictions(args.images, args.groups, args.folds, 14)
    one, all_models = sample_of(rows, logits[:1]), sample_of(rows, logits)
    headline = [statistics.NAMES[0]]
    with pinned(args.threads):
        times = []
        for _ in range(args.repeats):
            start = time.process_time()
            boot = statistics.bootstrap(one, headline, args.resamples)
            times.append(time.process_time() - start)
        weights = statistics.draw(one.stratum, args.loop, np.random.default_rng(0))
        values, spent = loop(rows, logits[0], weights)
        start = time.process_time()
        statistics.bootstrap(all_models, resamples=args.resamples)
        whole = time.process_time() - start
        tracemalloc.start()
        statistics.bootstrap(all_models, resamples=min(args.resamples, 2 * statistics.BLOCK))
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    difference = float(np.abs(boot.draws[headline[0]][: args.loop, 0] - values).max())
    if not difference < 1e-12:
        raise SystemExit(f"values differ by {difference}: the times compare nothing")
    case = f"macro F1 of one encoder, {args.resamples:,} resamples, {args.images:,} images, {args.folds} folds"
    scaled, theirs = f"{args.loop} of {args.resamples:,}", spent * args.resamples / args.loop
    facts = {"seven encoders, two protocols, all metrics, CPU s": whole, "peak MiB": peak}
    found = [
        entry("bootstrap", case, "CPU s", float(np.median(times)), theirs, scaled=scaled, **facts),
        entry(
            "bootstrap_equal", "largest difference of values", "macro F1", difference, value=difference, scaled=scaled
        ),
    ]
    save("bootstrap", args, found)


if __name__ == "__main__":
    main()
