"""The whole analysis of a paper-sized study, on random predictions: seconds and memory of each stage.

    python benchmarks/analysis.py [--out PATH]

Seven encoders, two protocols, five folds, 5,271 Spanish test images of 896 groups and 450 African ones of 112, and 1,100
validation rows a fold: 476,070 rows. The predictions are written and read as files; statistics, tables and figures are
those of notebooks 06 and 07 (all but the pictures), the report is that of ``fpbench report``. One BLAS thread. CPU time.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from threadpoolctl import threadpool_limits

from fpbench import load_study, metrics, predictions, results
from fpbench.analysis import calibration, claims, scoring, shift, statistics
from fpbench.files import machine
from fpbench.protocols import tunings
from fpbench.reporting import figures, tables
from fpbench.reporting.page import build as write_page

SEVEN = ("usfm", "mofo", "ultrasam", "fetalclip", "resnet50", "efficientnetv2_s", "dinov3")
PARTS = {  # population, split -> images, groups, share of each class
    ("spain", "val"): (1_100, 179, (353, 1620, 516, 1058, 981, 2601)),
    ("spain", "test"): (5_271, 896, (358, 1472, 524, 660, 645, 1612)),
    ("africa", "test"): (450, 112, (125, 125, 125, 75)),
}
PRINT = {"dim": 2, "norm": 1.0, "values": [0.5] * 16, "digest": "a"}


def prepare(folder: Path) -> Path:
    """Write a study file with the paper's encoders; return its path."""
    encoders = [{"name": name, "model": name, "weights": "random"} for name in SEVEN]
    content = {"name": "paper-sized", "title": "Random predictions", "label": "random predictions, not evidence"}
    content |= {"encoders": encoders, "cohorts": [{"name": "spain"}, {"name": "africa"}], "full": list(SEVEN)}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


def write(study, seed: int = 0) -> None:
    """Write random predictions of every model and fold, some better than others."""
    task, rng = study.the_task, np.random.default_rng(seed)
    images = {}
    for (population, split), (count, groups, shares) in PARTS.items():
        group = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, count - groups)]))
        y = rng.choice(len(shares), count, p=np.array(shares) / sum(shares))
        names = np.char.add(f"{population}/{split}/", group.astype(str))
        images[population, split] = pd.DataFrame(
            {
                "image_id": [f"{population}/{split}/{i}" for i in range(count)],
                "patient": names,
                "group": names,
                "y_true": y,
            }
        ).assign(centre=np.array(["A", "B", "C", "D", "E"])[group % 5], distinct=rng.random(count) > 0.05)
    for encoder in SEVEN:
        for protocol in ("logistic", "full"):
            skill = rng.uniform(1, 3)
            for fold in range(study.folds):
                parts = []
                for (population, split), frame in images.items():
                    z = rng.normal(size=(len(frame), 6))
                    z[np.arange(len(frame)), frame["y_true"]] += skill
                    run = {
                        "cohort": population,
                        "population": population,
                        "split": split,
                        "fold": fold,
                        "encoder": encoder,
                    }
                    run |= {"protocol": protocol, "target": task.name, "n_patients": 717, "seed": 0}
                    rows = frame.assign(**run)[list(predictions.COLUMNS)]
                    parts.append(rows.assign(**dict(zip(task.columns(), z.astype(np.float32).T, strict=True))))
                about = {
                    "key": "k",
                    "study": {},
                    "encoder": {"name": encoder, "fingerprint": PRINT},
                    "chosen": {},
                    "provenance": {},
                }
                predictions.write(results.path(study, encoder, protocol, fold), pd.concat(parts), task, about)


def analyse(study, stage) -> None:
    """Do what notebooks 06 and 07 and the report do; ``stage(name, function)`` times each."""
    task, told = study.the_task, ["logistic", *tunings()]
    predicted = stage("read", lambda: predictions.read(results.files(study), task))
    scores = stage("point scores (scikit-learn)", lambda: scoring.evaluate(predicted, task))
    by_class = stage("point scores by class", lambda: scoring.evaluate_classes(predicted, task))
    boots = stage(
        "bootstrap, 7 metrics, 10,000 resamples", lambda: statistics.bootstraps(predicted, task, statistics.NAMES)
    )
    intervals = stage("intervals", lambda: statistics.of_all(statistics.intervals, boots))
    one = stage("bootstrap, headline", lambda: statistics.bootstraps(predicted, task))
    stage("differences", lambda: statistics.of_all(statistics.differences, one, protocols=told))
    stage("ranking, claims", lambda: (statistics.of_all(statistics.ranking, one), claims.verdicts(one, task)))
    half = predicted[predicted["protocol"] == "logistic"]
    steps = stage("gap", lambda: shift.decompose(half, task, "africa"))
    parts = stage("countries", lambda: shift.by_part(half, task, "africa"))
    repaired = stage("temperatures", lambda: calibration.scaled(half, calibration.temperatures(half, task), task))
    answers = {
        "as trained": calibration.confidences(half, task),
        "temperature": calibration.confidences(repaired, task),
    }
    after = stage("bootstrap, calibration", lambda: statistics.bootstraps(repaired, task, metrics.CALIBRATION))
    both = dict.fromkeys(answers, statistics.of_all(statistics.intervals, after))
    table = stage("calibration table", lambda: calibration.table(both, answers))

    def draw() -> None:
        headline = intervals[(intervals["metric"] == task.headline) & (intervals["method"] == "percentile")]
        tables.save(tables.table1(scores, task, headline), study, "table1", "Macro F1")
        for name, content in (("gap_steps", steps), ("countries", parts), ("calibration", table)):
            tables.save(content.round(3), study, name, name)
        figures.save(figures.scores(scoring.overview(scores, task, headline), task.headline), study, "06_scores")
        shown = by_class.query("protocol == 'logistic' and duplicates == 'as published' and rule == 'open'")
        figures.save(figures.class_scores(shown, task), study, "06_per_class")
        for name in SEVEN:
            figures.save(figures.confusions(half.query("encoder == @name"), task), study, f"06_confusion_{name}")
        figures.save(figures.dot_figure(steps, "step", "macro F1", None), study, "07_gap")
        figures.save(
            figures.parts(parts.query("rule == 'shared' and duplicates == 'as published'"), task.headline),
            study,
            "07_countries",
        )
        figures.save(figures.reliability(answers, task), study, "07_reliability")

    stage("tables and figures", draw)
    stage("report", lambda: write_page(study))


def main() -> None:
    """Print the seconds of each stage, their sum and the peak of the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    options, found = parser.parse_args(), {}

    def stage(name, function):
        start = time.process_time()
        value = function()
        found[name] = time.process_time() - start
        print(f"{found[name]:8.1f} s  {name}", flush=True)
        return value

    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        os.environ["FPBENCH_RESULTS"] = folder
        study = load_study(prepare(Path(folder)))
        write(study)
        analyse(study, stage)
    peak = machine.peak_memory() / 2**30
    print(f"{sum(found.values()):8.1f} s  together; peak memory {peak:.2f} GiB")
    if options.out:
        options.out.write_text(json.dumps({"seconds": found, "peak_gib": peak}, indent=1))


if __name__ == "__main__":
    main()
