"""Do the intervals cover, and do the tests err as often as they say? Simulated clustered answers with a known truth.

    python benchmarks/interval_coverage.py [--repetitions 1000] [--large 1000] [--resamples 1000] [--only SIZE ...] [--out PATH]

A cohort has groups (patients) of several images. An encoder answers right if its skill, an effect of the group, an
effect of the group on this encoder, noise of the image and noise of the fold model add up to more than 0. The truth is
the same estimand, the mean of macro F1 over five fold models, on 200,000 groups. Per size of cohort (896 groups and six
classes, like the Spanish test set; 112 and 25 groups and four classes, like Africa and one of its countries) it prints

* coverage and mean width of 95 % intervals: group bootstrap (percentile, BCa), and image bootstrap;
* how often p <= 0.05 for two encoders of equal skill: group permutation, image permutation;
* the family-wise error of Holm over the 21 pairs of seven encoders of equal skill.

Last, ``crossval`` in-domain with classifiers that are truly trained (nearest centroid, 3 of 5 folds, two equally good
blocks of features): the error of the group permutation test, of Nadeau-Bengio and of the uncorrected t-test, where the
null hypothesis is that the two learn equally well; the permutation test asks about the ten models at hand instead.

``--large`` are the repetitions at 896 groups, the slow ones. One BLAS thread.
"""

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits

from fpbench.analysis import statistics

FOLDS, ENCODERS, METRIC = 5, 7, statistics.NAMES[0]
SIZES = {896: 6, 112: 4, 25: 4}  # groups -> classes
SKILL, SHARED, OWN, FOLD = 1.8, 0.8, 0.7, 0.3  # mean; SD of the effects of group, group x encoder, fold model; image: 1


def cohort(groups: int, classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return group and class of each image: six classes, 5.9 images of few classes a group; four: most planes once."""
    if classes == 4:
        return np.nonzero(rng.random((groups, classes)) < 0.9)
    group = np.repeat(np.arange(groups), 1 + rng.poisson(4.9, groups))
    share = rng.dirichlet(np.full(classes, 0.7), groups).cumsum(axis=1)
    return group, np.minimum((rng.random((len(group), 1)) > share[group]).sum(axis=1), classes - 1)


def simulate(groups: int, classes: int, encoders: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Return rows (image x fold) and logits (encoders, rows, classes): 1 for the answer, 0 for the rest."""
    group, y = cohort(groups, classes, rng)
    margin = SKILL - 0.3 * (y == 0) + SHARED * rng.normal(size=groups)[group]
    margin = margin + OWN * rng.normal(size=(encoders, groups))[:, group] + rng.normal(size=(encoders, len(y)))
    right = margin[:, None] + FOLD * rng.normal(size=(encoders, FOLDS, len(y))) > 0
    wrong = (
        y + rng.choice(classes - 1, right.shape, p=np.r_[0.6, np.full(classes - 2, 0.4 / (classes - 2))]) + 1
    ) % classes
    answer = np.where(right, y, wrong).reshape(encoders, -1)
    rows = pd.DataFrame(
        {"y_true": np.tile(y, FOLDS), "group": np.tile(group, FOLDS), "fold": np.repeat(range(FOLDS), len(y))}
    )
    return rows, (answer[..., None] == np.arange(classes)).astype(np.float32)


def sample_of(rows: pd.DataFrame, logits: np.ndarray, by_image: bool = False) -> statistics.Sample:
    """Return the sample; ``by_image`` takes each image for a group of its own, which is the mistake."""
    rows = rows.assign(group=np.tile(np.arange(len(rows) // FOLDS), FOLDS)) if by_image else rows
    names = {k: str(k) for k in range(logits.shape[-1])}
    return statistics.make_sample(rows, logits, names, models=tuple((str(i), "") for i in range(len(logits))))


def truth(classes: int, rng: np.random.Generator, chunks: int = 20) -> float:
    """Return the estimand of any of the encoders on 10,000 groups a chunk."""
    parts = [sample_of(*simulate(10_000, classes, 1, rng)).parts for _ in range(chunks)]
    totals = np.array([[part.tally.sum(0)[0] for part in chunk] for chunk in parts]).sum(0)
    return float(statistics.scores(totals, [str(k) for k in range(classes)], [METRIC])[METRIC].mean())


def intervals(rows: pd.DataFrame, logits: np.ndarray, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return the interval of the first encoder by each method."""
    boot = statistics.bootstrap(sample_of(rows, logits[:1]), [METRIC], resamples, seed)
    table = statistics.intervals(boot).set_index("method")
    images = sample_of(rows, logits[:1], by_image=True)
    weights = statistics.draw(images.stratum, resamples, np.random.default_rng(seed))
    draws = statistics.evaluate(images, weights, [METRIC])[METRIC].mean(0)[:, 0]
    found = {f"group {method}": tuple(table.loc[method, ["low", "high"]]) for method in statistics.METHODS}
    return found | {"image percentile": tuple(np.quantile(draws, [0.025, 0.975]))}


def size_report(groups: int, repetitions: int, resamples: int, seed: int) -> dict:
    """Return coverage, widths and errors at one size of cohort."""
    classes, rng = SIZES[groups], np.random.default_rng([seed, groups])
    aim, found, errors = (
        truth(classes, rng),
        {},
        {"group permutation": [], "image permutation": [], "Holm, 21 pairs": []},
    )
    for number in range(repetitions):
        rows, logits = simulate(groups, classes, ENCODERS, rng)
        for name, ends in intervals(rows, logits, resamples, number).items():
            found.setdefault(name, []).append(ends)
        pairs = list(combinations(range(ENCODERS), 2))
        p = statistics.permutation(sample_of(rows, logits), pairs, [METRIC], resamples, number)[METRIC]
        images = sample_of(rows, logits[:2], by_image=True)
        by_image = statistics.permutation(images, pairs[:1], [METRIC], resamples, number)[METRIC]
        for name, value in zip(errors, (p[0], by_image[0], statistics.holm(p).min()), strict=True):
            errors[name].append(value <= 0.05)
    report = {"groups": groups, "repetitions": repetitions, "truth": aim}
    for name, ends in found.items():
        low, high = np.array(ends).T
        defined = ~np.isnan(low)
        inside = (low <= aim) & (aim <= high)
        report[name] = {
            "coverage": float(inside[defined].mean()),
            "width": float((high - low)[defined].mean()),
            "truth below": float((aim < low)[defined].mean()),
            "truth above": float((aim > high)[defined].mean()),
            "undefined": int((~defined).sum()),
        }
    return report | {name: float(np.mean(values)) for name, values in errors.items()}


def crossval_report(repetitions: int, resamples: int, seed: int, groups: int = 120, d: int = 8) -> dict:
    """Return how often each test rejects that two learners, equally good, learn equally well."""
    rng, p = np.random.default_rng([seed, 1]), {"group permutation": [], "Nadeau-Bengio": [], "uncorrected t": []}
    for number in range(repetitions):
        group, y = cohort(groups, 4, rng)
        centres = 0.8 * rng.normal(size=(4, d))  # the same for both blocks of features: the learners are equally good
        X = centres[y] + 0.6 * rng.normal(size=(2, groups, d))[:, group] + rng.normal(size=(2, len(y), d))
        fold = rng.permutation(groups)[group] % FOLDS
        logits = np.zeros((2, len(y), 4))
        for k in range(FOLDS):
            train, test = (fold != k) & (fold != (k + 1) % FOLDS), fold == k
            means = np.stack([X[:, train & (y == c)].mean(axis=1) for c in range(4)], axis=1)
            logits[:, test] = -((X[:, test, None] - means[:, None]) ** 2).sum(-1)
        sample = sample_of(pd.DataFrame({"y_true": y, "group": group, "fold": fold}), logits)
        scores = statistics.evaluate(sample, np.ones((1, groups)), [METRIC])[METRIC][:, 0]
        p["group permutation"].append(statistics.permutation(sample, [(0, 1)], [METRIC], resamples, number)[METRIC][0])
        p["Nadeau-Bengio"].append(statistics.nadeau_bengio(scores[:, 0] - scores[:, 1], 1 / (FOLDS - 2)))
        p["uncorrected t"].append(stats.ttest_rel(*scores.T).pvalue)
    return {"groups": groups, "repetitions": repetitions} | {
        n: float(np.mean(np.array(v) <= 0.05)) for n, v in p.items()
    }


def show(report: dict) -> None:
    """Print one report."""
    print(f"\n{report['groups']} groups, {report['repetitions']} repetitions", flush=True)
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"  {name:<18} " + ", ".join(f"{key} {number:.4g}" for key, number in value.items()))
        elif name not in ("groups", "repetitions"):
            print(f"  {name:<18} {value:.4g}", flush=True)


def main() -> None:
    """Parse the options, simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--large", type=int, default=1000, help="repetitions at 896 groups")
    parser.add_argument("--resamples", type=int, default=1000, help="and permutations")
    parser.add_argument("--only", type=int, nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures here")
    args = parser.parse_args()
    start, reports = time.time(), []
    with threadpool_limits(1):
        for groups in args.only:
            repetitions = args.large if groups == 896 else args.repetitions
            reports.append(size_report(groups, repetitions, args.resamples, args.seed))
            show(reports[-1])
        crossval = crossval_report(args.repetitions, args.resamples, args.seed)
    print("\ncrossval, trained classifiers:", end="")
    show(crossval)
    print(f"\n{time.time() - start:.0f} s")
    if args.out:
        result = {"resamples": args.resamples, "seed": args.seed, "sizes": reports, "crossval": crossval}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
