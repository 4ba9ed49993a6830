"""The demo on phantoms: read by the loaders of the real archives, and a regression that bites."""

import json
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from fpbench import load_cohort, load_study, loading, make_splits, predictions
from fpbench.cohorts import audit
from fpbench.cohorts import phantoms as phantom
from fpbench.files import paths
from fpbench.grid import reference
from fpbench.training import probing
from fpbench.training.bench import open_bench
from fpbench.training.probes import knn

ENCODER = "usfm-mini"


@pytest.fixture
def data(phantoms, monkeypatch, session_cache):
    monkeypatch.setenv("FPBENCH_DATA", str(phantoms))
    monkeypatch.setenv("FPBENCH_CACHE", str(session_cache))
    return phantoms


def probed(change=lambda cohort: cohort, probes=("logistic", "knn")):
    """Predictions of one miniature encoder of the demo, as notebook 04 makes them."""
    study = load_study("demo").begin()
    home, external = loading.load_cohorts(study)
    home, external = change(home), tuple(map(change, external))
    splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
    bench = open_bench(study, ENCODER, home, external, splits)
    files = [path for probe in probes for path in probing.run_probe(bench, probe)]
    return predictions.read(files, study.the_task), study.the_task


@pytest.mark.parametrize("kind", ["spain", "africa"])
def test_the_audit_finds_exactly_the_planted_copies(data, kind):
    found = audit.audit(f"phantom-{kind}")
    frame = found.cohort.frame.set_index("image_id")
    root = data / f"phantom-{kind}"
    pairs = {
        frozenset(str(frame.loc[name, "path"].relative_to(root)) for name in pair)
        for pair in found.pairs[["image", "copy"]].to_numpy()
    }
    assert pairs == {frozenset(map(str, pair)) for pair in phantom.planted(root)}
    assert found.pairs["same_bytes"].all()
    assert not found.missing
    assert not len(found.unreadable)


def test_the_real_loaders_read_the_phantoms(data):
    spain, africa = load_cohort("phantom-spain"), load_cohort("phantom-africa")
    assert spain.source.read is load_cohort.__globals__["SOURCES"]["spain"].read
    assert africa.source.label == "phantom"
    assert set(africa.frame.loc[africa.frame["plane"] == "thorax", "centre"]) == {"Algeria", "Egypt", "Malawi"}
    dropped = make_splits(spain, load_study("demo").the_task, "official").frame.query("part == 'dropped'")
    assert len(dropped) > 0  # the planted copy across the published split


def test_no_other_module_asks_whether_it_is_a_phantom():
    for path in (paths.home() / "fpbench").rglob("*.py"):
        if path.parent.name == "phantoms":  # draws them
            continue
        lines = [
            line
            for line in path.read_text().splitlines()
            if "phantom" in line and "if " in line and not line.strip().startswith("#")
        ]
        assert not lines, (path, lines)


def test_the_demo_agrees_with_the_committed_reference_and_twice_byte_for_byte(data, tmp_path, monkeypatch):
    predicted, task = probed()
    assert reference.agrees("demo", predicted, task).endswith("True")
    first = sorted(
        (path.relative_to(tmp_path), path.read_bytes())
        for path in (tmp_path / "results").rglob("predictions/**/*.parquet")
    )
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "again"))
    probed()
    second = sorted(
        (path.relative_to(tmp_path), path.read_bytes())
        for path in (tmp_path / "again").rglob("predictions/**/*.parquet")
    )
    assert len(first) == 10
    assert [content for _, content in first] == [content for _, content in second]


def test_a_changed_default_is_noticed(data, monkeypatch):
    monkeypatch.setitem(knn.knn_scores.__kwdefaults__ or {}, "k", 5)
    monkeypatch.setattr(knn.knn_scores, "__defaults__", (5, 0.07))
    predicted, task = probed()
    assert "False" in reference.agrees("demo", predicted, task)


def test_a_swapped_label_is_noticed(data):
    def swap(cohort):
        frame = cohort.frame.copy()
        tested = frame.index[frame["official_split"] == "test"]
        one, two = (
            frame.index[(frame["plane"] == plane) & frame.index.isin(tested)][0] for plane in ("brain", "femur")
        )
        frame.loc[[one, two], "plane"] = frame.loc[[two, one], "plane"].to_numpy()
        return type(cohort)(cohort.source, frame)

    predicted, task = probed(swap)
    assert "the true differ" in reference.agrees("demo", predicted, task)


def test_a_dropped_image_is_noticed(data):
    predicted, task = probed(lambda cohort: cohort.select(np.arange(len(cohort)) != len(cohort) - 1))
    assert "the images differ" in reference.agrees("demo", predicted, task)


def test_answers_may_flip_up_to_the_tolerance_and_no_further(data, monkeypatch, tmp_path):
    predicted, task = probed()
    monkeypatch.setattr(reference, "folder", lambda: tmp_path)
    assert "no committed reference" in reference.agrees("demo", predicted, task)
    path = reference.write("demo", predicted, task)
    total = reference.differences("demo", predicted, task)[1]
    for flips, verdict in ((0, "True"), (int(0.01 * total), "True"), (int(0.01 * total) + 1, "False")):
        stored = json.loads(path.read_text())
        left = flips
        for entry in stored.values():
            here = min(left, len(entry["answers"]))
            entry["answers"] = "".join("9" for _ in range(here)) + entry["answers"][here:]
            left -= here
        changed = tmp_path / "other.json"
        changed.write_text(json.dumps(stored))
        assert verdict in reference.agrees("other", predicted, task)


def test_one_fold_of_a_trained_model_may_answer_otherwise_and_two_may_not(data, monkeypatch, tmp_path):
    predicted, task = probed(probes=("logistic",))
    path = reference.folder() / "demo.json"
    stored = json.loads(path.read_text())
    monkeypatch.setattr(reference, "folder", lambda: tmp_path)
    for changed, trained in ((0, "True"), (1, "True"), (2, "False")):
        for fold in range(changed):
            entry = stored[f"{ENCODER}/logistic/{fold}"]
            entry["answers"] = "9" * len(entry["answers"])
        (tmp_path / "other.json").write_text(json.dumps(stored))
        said = reference.agrees("other", predicted, task, reference.TRAINED)
        assert f", one fold a model left out): {trained}" in said
        assert f"): {not changed}" in reference.agrees("other", predicted, task)


def test_nbval_fails_when_an_output_changes(data, tmp_path):
    """The committed text is really compared: a notebook passes, and its copy with one number changed fails."""
    source = paths.home() / "notebooks" / "02_splits.ipynb"
    changed = "the largest overlap found is 0", "the largest overlap found is 1"
    for name, edit in (("same", None), ("other", changed)):
        notebook = nbformat.read(source, 4)
        if edit:
            (output,) = [
                out for cell in notebook.cells for out in cell.get("outputs", []) if edit[0] in str(out.get("text"))
            ]
            output.text = output.text.replace(*edit)
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-rA", "-o", "filterwarnings=", "-p", "no:cacheprovider", "--nbval"]
    command += ["--nbval-sanitize-with", str(paths.home() / "tests" / "nbval_sanitize.cfg"), "--nbval-current-env"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    env = {**os.environ, "FPBENCH_HOME": str(paths.home())}  # the copies lie outside the workspace
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    failed = re.findall(r"^FAILED (\S+)::", done.stdout, re.M)
    passed = re.findall(r"^PASSED (\S+)::", done.stdout, re.M)
    assert failed == ["other.ipynb"], done.stdout
    assert passed.count("same.ipynb") == passed.count("other.ipynb") + 1 > 3
