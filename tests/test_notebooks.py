"""The notebooks as a product: their form, and the whole grid on the real sample through the command line."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest

from fpbench import loading
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths
from fpbench.grid import notebooks
from fpbench.training.probes import heads, logistic

SOURCES = sorted((paths.home() / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_form_of_a_notebook(path):
    notebook = nbformat.read(path, 4)
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1], "exactly one cell tagged parameters, and it is the first"
    assert all("#" in line for line in tagged[0].source.splitlines()), "every parameter has a comment"
    opening = cells[0].source
    assert opening.startswith("# " + path.stem[:2])
    assert all(f"*{word}:*" in opening for word in ("Reproduces", "Reads", "Writes", "Takes"))
    assert "**Written:**" in cells[-1].source
    assert "**Next:**" in cells[-1].source
    assert any(cell.source.startswith("## What we found") or "\n## What we found" in cell.source for cell in cells)
    for cell in code:
        assert len(cell.source.splitlines()) <= 12
        assert not re.search(r"^\s*(def |class |!|%|from .* import \*)", cell.source, re.M)
        assert not re.search(r"[\"']/(home|work|tmp|Users|data)/", cell.source)
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in code)
    assert words >= 4 * lines, f"{words} words of prose for {lines} lines of code"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_committed_notebook_is_an_executed_demo_run(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert 'study = "demo' in code[0].source  # 10 to 13 have studies of their own, demo-brain and demo-quality
    for cell in code:
        assert "papermill" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result")
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            assert output.get("name") != "stderr", text
            assert not re.search(r"/(home|tmp|root|Users|work)/|Warning|it/s|\b\d+(\.\d+)? ?(s|ms|seconds)\b", text), (
                text
            )
    assert not re.search(r"agrees with the reference.*False", path.read_text())


def test_an_unknown_parameter_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match=r"unknown parameters stduy: expected some of study"):
        notebooks.execute(SOURCES[0], tmp_path / "out.ipynb", {"stduy": "sample"})
    assert not (tmp_path / "out.ipynb").exists()
    with pytest.raises(MissingError, match="expected a notebook"):
        notebooks.execute(tmp_path / "none.ipynb", tmp_path / "out.ipynb", {})


def fpbench(*arguments, **environment):
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "fpbench.cli", *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_the_command_line_prints_errors_without_a_traceback(tmp_path):
    done = fpbench("run", "nothing")
    assert done.returncode == 1
    assert "expected a study file" in done.stderr
    assert "Traceback" not in done.stderr
    for words in (["paper"], ["brain"], ["brain", "--dry-run"]):
        done = fpbench("run", *words, FPBENCH_DATA=str(tmp_path))
        assert done.returncode == 1
        assert "fpbench fetch spain" in done.stderr
        assert "Traceback" not in done.stderr
    done = fpbench("audit", "africa", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "African_planes_database.csv" in done.stderr


def test_the_audit_command_prints_the_known_numbers(shared, tmp_path):
    done = fpbench("audit", "africa", "--root", str(shared / "data" / "africa"), FPBENCH_RESULTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for line in (
        "450  files",
        "403  distinct",
        "47  pairs",
        "22  pairs across the split",
        "127  patient ids",
        "112  groups",
    ):
        assert line in done.stdout


@pytest.fixture(scope="module")
def sample_run(shared, tmp_path_factory, session_cache):
    """The whole sample study, run once as a user would."""
    environment = {
        "FPBENCH_RESULTS": str(tmp_path_factory.mktemp("results of a run")),
        "FPBENCH_CACHE": str(session_cache),
    }
    done = fpbench("run", "sample", "--jobs", "2", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment, done


def test_the_sample_study_gives_table_1_on_real_images(sample_run):
    environment, done = sample_run
    folder = paths.Path(environment["FPBENCH_RESULTS"]) / "sample"
    table = pd.read_csv(folder / "tables" / "table1.csv").set_index(["encoder", "protocol"])
    assert "snakemake" in done.stdout
    assert "Africa, abdomen + brain + femur + thorax, shared" in done.stdout
    real = table.loc["mobilenetv2", "linear probing"]
    random = table.loc["mobilenetv2-random", "linear probing"]
    for view in (
        "Spain, all classes, open",
        "Africa, abdomen + brain + femur + thorax, open",
        "Africa, abdomen + brain + femur + thorax, shared",
    ):
        assert float(real[view][:5]) > float(random[view][:5])
    assert float(real["Africa, abdomen + brain + femur + thorax, shared"][:5]) == pytest.approx(0.544, abs=0.02)
    assert float(real["Africa, abdomen + brain + femur + thorax, open"][:5]) == pytest.approx(0.455, abs=0.02)
    assert set(table["Spain, paper"]) == {"not public"}
    tuned = table.loc["mobilenetv2-112", "full fine-tuning"]
    assert float(tuned["Spain, all classes, open"][:5]) > 0.3  # chance is about 0.1
    gain = pd.read_csv(folder / "tables" / "gain.csv").query("encoder == 'mobilenetv2-112'").set_index("population")
    for population, view in (
        ("spain", "Spain, all classes, open"),
        ("africa", "Africa, abdomen + brain + femur + thorax, open"),
    ):
        probed, found = table.loc["mobilenetv2-112", "linear probing"], gain.loc[population]
        assert found["value"] == pytest.approx(float(tuned[view][:5]) - float(probed[view][:5]), abs=2e-3)
    assert gain.loc["africa", "low"] < gain.loc["africa", "value"] < gain.loc["africa", "high"]
    assert np.isnan(gain.loc["spain", "low"])  # three patients of a class in five folds: many resamples lack the class
    won = artifacts.read_json(folder / "findings" / "05_mobilenetv2-112_full.json")["lines"]
    assert all("full fine-tuning minus linear probing" in line for line in won)
    assert "Spain" in won[0]
    assert "none: femur has 1 patient in a fold" in won[0]
    assert "Africa" in won[1]
    assert "95 % interval" in won[1]
    steps = pd.read_csv(folder / "tables" / "gap_steps.csv").pivot(index="encoder", columns="step", values="value")
    parts = steps[["label set", "rule", "class prior", "copies", "residual"]].sum(axis=1)
    assert parts.to_numpy() == pytest.approx(steps["gap"].to_numpy(), abs=3e-3)  # rounded in the file
    conditions = pd.read_csv(folder / "tables" / "conditions.csv")
    assert set(conditions["condition"]) == {
        "whole pictures",
        "masked in the test",
        "masked throughout",
        "size and borders",
    }
    assert "real sample at half size" in (folder / "report.html").read_text()
    duplicates = pd.read_csv(folder / "tables" / "duplicates.csv")
    assert set(duplicates["images left out"]) == {47}
    assert "not evidence" in (folder / "tables" / "table1.md").read_text()
    executed = sorted(path.stem for path in (folder / "notebooks").glob("*.ipynb"))
    assert executed == [
        "01_cohorts", "02_splits", "03_encoders", "04_linear_probing.mobilenetv2", "04_linear_probing.mobilenetv2-112",
        "04_linear_probing.mobilenetv2-random", "05_fine_tuning.mobilenetv2-112.full", "06_benchmark",
        "07_cross_population", "08_shortcuts", "09_label_efficiency",
    ]  # fmt: skip
    for path in (folder / "notebooks").glob("*.ipynb"):
        outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", [])]
        assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"], path.name
    for name in (
        "06_scores",
        "06_per_class",
        "06_confusion_mobilenetv2",
        "06_map_mobilenetv2",
        "01_gallery_spain",
        "03_sights",
        "03_alignment",
    ):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
        assert (folder / "figures" / f"{name}.pdf").is_file()


def test_a_second_run_does_nothing_and_says_so(sample_run):
    environment, _ = sample_run
    done = fpbench("run", "sample", **environment)
    assert done.returncode == 0
    assert done.stdout == "nothing to do: 12 jobs are current\n"


def test_a_dry_run_after_a_change_lists_what_depends_on_it(sample_run, tmp_path):
    environment, _ = sample_run
    text = (paths.home() / "studies" / "sample.yaml").read_text()
    study = tmp_path / "sample.yaml"
    study.write_text(text.replace("    weights: random", "    weights: random\n    seed: 7"))
    listed = fpbench("run", str(study), "--dry-run", "--why", **environment).stdout
    why = r"encoder mobilenetv2-random changed: seed 0 -> 7"
    for job in ("03_encoders", "04_linear_probing.mobilenetv2-random", "06_benchmark", "08_shortcuts"):
        assert re.search(rf"^{job} +{why}$", listed, re.M), listed
    assert re.search(r"^ *mobilenetv2-random +1 +[\d.e-]+ ", listed, re.M), "what it would cost"
    assert "02_splits" not in listed
    assert "05_fine_tuning" not in listed
    assert "04_linear_probing.mobilenetv2 " not in listed


def test_shuffled_labels_give_chance_level_scores_on_real_embeddings(shared, sample_run, monkeypatch):
    from fpbench import load_study, metrics
    from fpbench.splits import make_splits
    from fpbench.training.embeddings import embed_cohort

    monkeypatch.setenv("FPBENCH_CACHE", sample_run[0]["FPBENCH_CACHE"])
    study = load_study("sample").begin()
    home, _ = loading.load_cohorts(study)
    X = embed_cohort(loading.load_encoder(study, "mobilenetv2"), home)
    splits, rng = make_splits(home, study.the_task, "crossval"), np.random.default_rng(0)
    y = rng.permutation(study.the_task.codes(home.frame["plane"]))
    folds = [splits.fold(n) for n in range(5)]
    found = []
    every = logistic.fit_paths(X, y, [fold.train for fold in folds], 6)
    for fold, path in zip(folds, every, strict=True):
        choice = heads.choose(path, X[fold.validation], y[fold.validation])
        found.append(
            metrics.scores(y[fold.test], path.logits(X[fold.test], choice.index), np.unique(y[fold.test]))["macro F1"]
        )
    assert np.mean(found) < 0.25


@pytest.mark.slow
def test_brain_sub_planes_are_a_second_study_file_and_no_other_code(shared, session_cache, tmp_path):
    target = str(tmp_path / "sample-brain" / "tables" / "table1.csv")
    done = fpbench("run", "sample-brain", "--", target, FPBENCH_RESULTS=str(tmp_path), FPBENCH_CACHE=str(session_cache))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "sample-brain" / "report.html").exists()
    tables = tmp_path / "sample-brain" / "tables"
    table = pd.read_csv(tables / "table1.csv")
    assert "not evidence" in (tables / "table1.md").read_text()
    cells = table[table["protocol"] == "linear probing"].set_index("encoder")["Spain, all classes, open"]
    found = {encoder: float(cell.split()[0]) for encoder, cell in cells.items()}
    assert len(found) == 4
    assert min(found[name] for name in ("mobilenetv2", "efficientnet-lite0", "dinov2-s")) > 0.45
    assert max(found.values()) < 0.75
    assert found["random-s"] == min(found.values())


def test_the_analysis_runs_on_the_committed_predictions_alone(tmp_path, phantoms):
    """As the README says: no encoder is run, and what comes out is a function of the predictions."""
    folder = tmp_path / "results" / "explore"
    shutil.copytree(paths.home() / "studies" / "explore", folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    environment = {"FPBENCH_RESULTS": str(tmp_path / "results"), "FPBENCH_DATA": str(phantoms)}
    for name, more in (("06_benchmark", ["-p", "maps=0"]), ("07_cross_population", [])):
        done = fpbench("notebook", name, str(folder / f"{name}.ipynb"), "-p", "study=explore", *more, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(pd.read_csv(folder / "tables" / "table1.csv")) == 4
    assert set(pd.read_csv(folder / "tables" / "claims.csv")["outcome"]) <= {
        "supported",
        "not supported",
        "undecided",
        "not tested",
    }
    done = fpbench("report", "explore", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not run:" not in (folder / "report.html").read_text()
    assert not list((tmp_path / "results").rglob("embeddings"))


def test_a_results_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = fpbench("run", "explore", FPBENCH_RESULTS=str(tmp_path / "file" / "results"))
    assert done.returncode == 1
    assert f"Not a directory: '{tmp_path}/file'" in done.stderr
    assert "Traceback" not in done.stderr
