"""Does the interval of AUPRC cover on blind sweeps? Simulated frames, clustered in sweeps and subjects, with a known truth.

    python benchmarks/sweep_coverage.py [--repetitions 2000] [--resamples 1000] [--subjects 281] [--out PATH]

As ACOUSLIC-AI: 281 subjects with one or more annotated sweeps (about two) of 140 frames, one run of 1 to 49 usable frames in a sweep, 8.5 % of
all. A score is the signal of the plane, which differs by subject and sweep, plus effects of subject and sweep, plus noise that neighbouring
frames share. Five folds; fold model k has a signal of its own and tests every fifth subject (``crossval``). The truth is the mean over the
five models of the AUPRC on 160,000 subjects. Printed: coverage and mean width of 95 % intervals (percentile, BCa) by subject, and by frame,
which is the mistake; the mean error of the point value (average precision of few positives is biased); of two models of equal skill, how
often the permutation test says p <= 0.05. One thread.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from fpbench.analysis import statistics

FRAMES, FOLDS, METRIC = 140, 5, "AUPRC"
SIGNAL = np.array([2.6, 2.8, 3.0, 3.2, 3.4])  # of each fold model, in SD of the noise
SUBJECT, SWEEP, VARIED = 0.7, 0.4, 0.8  # SD of the effects on the score; of subject and sweep on the signal
MEMORY = 0.9  # correlation of the noise of neighbouring frames


def frames(subjects: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the subject of each sweep (S,) and which of its frames are usable (S, 140)."""
    owner = np.repeat(np.arange(subjects), np.minimum(1 + rng.poisson(0.97, subjects), 6))
    length = np.clip(rng.normal(12, 6.5, len(owner)).round(), 1, 49)[:, None]
    start = (rng.uniform(17, 91, len(owner)) - length[:, 0] / 2).clip(0).round()[:, None]
    at = np.arange(FRAMES)
    return owner, (at >= start) & (at < start + length)


def scores(owner: np.ndarray, usable: np.ndarray, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the score of each frame (S, 140) of one model, whose signal is (S,)."""
    subjects, sweeps = owner.max() + 1, len(owner)
    own = SUBJECT * rng.normal(size=subjects)[owner] + SWEEP * rng.normal(size=sweeps)
    varied = VARIED * (rng.normal(size=subjects)[owner] + rng.normal(size=sweeps)) / np.sqrt(2)
    white = rng.normal(size=usable.shape) * np.r_[1, np.full(FRAMES - 1, np.sqrt(1 - MEMORY**2))]
    noise = lfilter([1], [1, -MEMORY], white, axis=1)
    return own[:, None] + noise + (signal + varied)[:, None] * usable


def truth(rng: np.random.Generator, subjects: int = 20_000, cohorts: int = 8) -> float:
    """Return the mean over the fold models of their AUPRC on many subjects; eight cohorts, for of one it has an SD of 0.0013."""
    found = []
    for signal in np.tile(SIGNAL, cohorts):
        owner, usable = frames(subjects, rng)
        score = scores(owner, usable, np.full(len(owner), signal), rng)
        found.append(average_precision_score(usable.ravel(), score.ravel()))
    return float(np.mean(found))


def sample_of(subjects: int, rng: np.random.Generator, models: int = 1, by_frame: bool = False) -> statistics.Sample:
    """Return the sample of models of equal skill; ``by_frame`` takes each frame for a group of its own, which is the mistake."""
    owner, usable = frames(subjects, rng)
    fold, sweep = owner % FOLDS, np.repeat(np.arange(len(owner)), FRAMES)
    z = np.stack([scores(owner, usable, SIGNAL[fold], rng).ravel() for _ in range(models)])
    group = np.arange(usable.size) if by_frame else owner[sweep]
    rows = pd.DataFrame({"y_true": usable.ravel().astype(int), "group": group, "fold": fold[sweep]})
    logits = np.stack([np.zeros_like(z), z - 3], axis=-1)
    return statistics.make_sample(
        rows, logits, {0: "none", 1: "usable"}, models=tuple((one, "") for one in "ab"[:models]), positive=1
    )


def report(subjects: int, repetitions: int, resamples: int, seed: int) -> dict:
    """Return coverage, widths and errors."""
    aim, found, values, rejected = truth(np.random.default_rng(seed)), {}, [], []
    for number in range(repetitions):
        sample = sample_of(subjects, np.random.default_rng([seed, number]))
        boot = statistics.bootstrap(sample, [METRIC], resamples, number)
        table = statistics.intervals(boot).set_index("method")
        ends = {f"subject, {name}": tuple(table.loc[name, ["low", "high"]]) for name in statistics.METHODS}
        if number < repetitions // 5:  # what is plain, or slow, after fewer
            by_frame = sample_of(subjects, np.random.default_rng([seed, number]), by_frame=True)
            ends["frame, percentile"] = of_frames(by_frame, number)
            two = sample_of(subjects, np.random.default_rng([seed, number, 2]), models=2)
            rejected.append(statistics.permutation(two, [(0, 1)], [METRIC], 200, number)[METRIC][0] <= 0.05)
        for name, pair in ends.items():
            found.setdefault(name, []).append(pair)
        values.append(table["value"].iloc[0])
    told = {"subjects": subjects, "repetitions": repetitions, "resamples": resamples, "truth": aim}
    told |= {"bias": float(np.mean(values) - aim), "SD of the value": float(np.std(values))}
    told["permutation test, p <= 0.05"] = float(np.mean(rejected))
    for name, pairs in found.items():
        low, high = np.array(pairs).T
        told[name] = {"coverage": float(((low <= aim) & (aim <= high)).mean()), "width": float((high - low).mean())}
        told[name] |= {
            "truth below": float((aim < low).mean()),
            "truth above": float((aim > high).mean()),
            "of": len(low),
        }
    return told


def of_frames(sample: statistics.Sample, seed: int, resamples: int = 100) -> tuple[float, float]:
    """Return the interval of the first model where frames are drawn: 100 resamples, for a group more is a row more of weights."""
    rng, draws = np.random.default_rng(seed), []
    for part in sample.parts:
        n = len(part.y)
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(resamples)], 1).astype(float)
        draws.append(statistics.ranked(METRIC, sample, part, part.probability[0], np.arange(n), weights))
    return tuple(np.quantile(np.mean(draws, 0), [0.025, 0.975]))


def main() -> None:
    """Parse the options, simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--subjects", type=int, default=281)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures here")
    args = parser.parse_args()
    start = time.time()
    with threadpool_limits(1):
        told = report(args.subjects, args.repetitions, args.resamples, args.seed)
    print(json.dumps(told, indent=1))
    print(f"{time.time() - start:.0f} s")
    if args.out:
        args.out.write_text(json.dumps(told | {"seed": args.seed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
