"""Outside the clone: the wheel in environments of its own, a workspace that `fpbench init` lays out, the core alone.

Needs a package index, as `make install` does. The versions are those of the lock.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpbench import __version__, extras

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
JOB = "04_linear_probing.resnet50-mini"
SCORES = """
import json, sys
from pathlib import Path
from fpbench.analysis import scoring, statistics
from fpbench.tasks import TASKS
from fpbench import predictions
task = TASKS["planes"]
predicted = predictions.read(Path(sys.argv[1]).rglob("fold*.parquet"), task)
scores = scoring.evaluate(predicted, task)
boots = statistics.bootstraps(predicted, task)
intervals = statistics.of_all(statistics.intervals, boots)
print(json.dumps({"scores": scores["value"].tolist(), "low": intervals["low"].tolist(), "views": scores["classes"].unique().tolist()}))
"""
pytestmark = pytest.mark.slow


def call(*command, cwd, **environment):
    """What a command printed; it must end well. Nothing of this process's own settings of fpbench is handed on."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FPBENCH_", "PYTHONPATH", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder outside the clone, with the wheel in it."""
    folder = tmp_path_factory.mktemp("outside")
    call(UV, "build", "--quiet", "--out-dir", folder, ROOT, cwd=folder)
    return folder


def environment(folder, name, extra=""):
    """Make a virtual environment with the wheel and an extra of it; return its folder of commands."""
    (wheel,) = folder.glob("*.whl")
    call(UV, "venv", "--quiet", "--python", sys.executable, folder / name, cwd=folder)
    install = [UV, "pip", "install", "--quiet", "--python", folder / name, "--constraint", ROOT / "requirements.lock"]
    call(*install, f"{wheel}{extra}", cwd=folder)
    return folder / name / "bin"


def digests(results):
    files = sorted((results / "demo" / "predictions" / "resnet50-mini").rglob("*.parquet"))
    return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_wheel_holds_what_a_workspace_needs(outside):
    (wheel,) = outside.glob("*.whl")
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True
    ).stdout
    tracked = call("git", "ls-files", "notebooks", "studies", "profiles", "Snakefile", cwd=ROOT).split("\n")[:-1]
    assert len(tracked) > 20
    assert not [name for name in tracked if f"fpbench/workspace/{name}" not in names]
    assert "fpbench/py.typed" in names
    assert "tests/" not in names


def test_outside_the_clone_a_job_makes_the_same_predictions(outside, phantoms):
    """As the README says: install, init, run."""
    bin = environment(outside, "full", "[all]")
    assert call(bin / "fpbench", "--version", cwd=outside) == f"fpbench {__version__}\n"  # no commit: it is no clone
    call(bin / "fpbench", "init", "bench", cwd=outside)
    bench = outside / "bench"
    said = call(bin / "fpbench", "run", "demo", "--", JOB, cwd=bench / "notebooks")
    assert f"ran: 01_cohorts, 02_splits, {JOB}" in said
    found = digests(bench / "results")
    assert len(found) == 20
    results = outside / "of the clone"
    command = [sys.executable, "-m", "fpbench.cli", "run", "demo", "--", JOB]
    call(*command, cwd=ROOT, FPBENCH_RESULTS=str(results), FPBENCH_DATA=str(phantoms))
    assert found == digests(results)
    about = json.loads((bench / "results/demo/predictions/resnet50-mini/logistic/fold0.json").read_text())
    assert (about["provenance"]["fpbench"], about["provenance"]["commit"]) == (__version__, "")


def test_the_core_alone_reads_predictions_as_the_whole_does_and_names_what_it_lacks(outside):
    bin = environment(outside, "core")
    absent = "import importlib.util as u, sys; print([m for m in sys.argv[1:] if u.find_spec(m)])"
    assert (
        call(bin / "python", "-c", absent, *{m for names in extras.EXTRAS.values() for m in names}, cwd=outside)
        == "[]\n"
    )
    explore = ROOT / "studies" / "explore" / "predictions"
    alone = json.loads(call(bin / "python", "-c", SCORES, explore, cwd=outside))
    whole = json.loads(call(sys.executable, "-c", SCORES, explore, cwd=outside))
    assert len(alone["scores"]) > 1000
    assert alone["views"] == whole["views"] == ["all classes", "abdomen + brain + femur + thorax"]
    assert alone["scores"] == pytest.approx(whole["scores"], abs=1e-12, nan_ok=True)
    assert alone["low"] == pytest.approx(whole["low"], abs=1e-12, nan_ok=True)
    call(bin / "fpbench", "init", "core bench", cwd=outside)
    done = subprocess.run(
        [bin / "fpbench", "run", "demo"], cwd=outside / "core bench", capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == 'fpbench: this needs what is not installed here: pip install "fpbench[encoders,notebooks,grid]"\n'
    )
