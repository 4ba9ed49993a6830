"""The driver: what runs and why, what is left when an encoder fails, what can be seen from outside.

The tests of the driver use a copy of the program whose notebooks are a few lines, executed without a kernel: keys, records, Snakemake
and the command line are the real ones. The last test runs the real notebooks with an encoder that fails.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import write_africa, write_spain

from fpbench import cohorts, load_study
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.grid import jobs as grid
from fpbench.grid import run as run_module
from fpbench.training import bench

COUNTS = """
from dataclasses import replace
from fpbench import cohorts
for name, images, patients in (("spain", 144, 48), ("africa", 54, 15)):
    counts = {"total": {"images": images, "patients": patients}}
    cohorts.SOURCES[name] = replace(cohorts.SOURCES[name], counts=counts)
"""
EXECUTE = '''
"""Executes a notebook of the tests where it is: no kernel, no papermill."""
import json

EVERY, COMPUTING_TOO = ("ipykernel.parentpoller", "jupyter_client.provisioning.local_provisioner", "fpbench.cli", "fpbench.study", "fpbench.cohorts"), ()


def execute(source, output, parameters):
    cells = ["".join(cell["source"]) for cell in json.loads(source.read_text())["cells"]]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(source.read_text())
    exec("\\n".join(cells), dict(parameters))
'''
OPENING = """
import time
from fpbench import load_study, results
from fpbench.files import artifacts, paths
from fpbench.files.progress import Progress
folder = paths.results() / "tiny"
def put(name, content="x"):
    with artifacts.atomic(folder / name) as path:
        path.write_text(content)
    if name.startswith("tables"):
        artifacts.write_json(folder / f"{name[:-4]}.json", {"caption": ""})
"""
CELLS = {
    "01_cohorts": "artifacts.write_json(folder / 'cohorts.json', {})",
    "02_splits": "put('splits.csv'); artifacts.commit(folder / 'splits.csv', {})",
    "03_encoders": "put('encoders.csv', str([spec.name for spec in results.present(load_study(study))]))",
    "04_linear_probing": """
if encoder == "two" and (paths.home() / "two.safetensors").read_text() == "broken":
    raise ValueError("not a | weights\\nfile")
files = [f"predictions/{encoder}/logistic/fold{n}.parquet" for n in range(2)]
for name in files:
    put(name, encoder)
    artifacts.commit(folder / name, {})
known = {name: artifacts.file_sha256(folder / name) for name in files}
artifacts.write_json(folder / f"predictions/{encoder}/probing.json", {"files": known})
""",
    "05_fine_tuning": """
bar = Progress(total=100_000, desc=f"{encoder}, {mode}, fold 0", unit="step", initial=100)
bar.stage = "epoch 1 of 8"
slow = folder.parent / "slow"
while not bar.update(3) and slow.is_file():
    time.sleep(0.1)
artifacts.write_json(folder / f"predictions/{encoder}/{mode}.json", {"files": {}})
""",
    "06_benchmark": """
missing = results.missing(load_study(study))
put("tables/table1.csv", str(missing))
put("tables/table1.md", f"Table 1: {missing}")
""",
    "07_cross_population": "put('tables/gap_steps.csv')",
    "08_shortcuts": "put('tables/conditions.csv')",
    "09_label_efficiency": "put('tables/label_efficiency.csv')",
}
STUDY = {
    "name": "tiny", "title": "A tiny study", "split": "official", "folds": 2, "threads": 1, "full": ["one", "two"],
    "recipe": {"epochs": 8, "rates": [0.01]},
    "encoders": [
        {"name": name, "model": "timm:mobilenetv3_small_050", "weights": "random", "geometry": {"kind": "squash", "size": 32}}
        for name in ("one", "two")
    ],
}  # fmt: skip


class Tree:
    """A copy of the program with notebooks of a few lines, and a study."""

    def __init__(self, folder):
        self.folder, self.results, self.file = folder, folder / "results of a test", folder / "studies" / "tiny.yaml"
        shutil.copytree(paths.home() / "fpbench", folder / "fpbench", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(paths.home() / "profiles", folder / "profiles")
        shutil.copy(paths.home() / "Snakefile", folder)
        for name in ("notebooks", "studies"):
            (folder / name).mkdir()
        (folder / "fpbench" / "grid" / "notebooks.py").write_text(EXECUTE)
        for name, cell in CELLS.items():
            cells = [nbformat.v4.new_code_cell(text) for text in (OPENING, cell)]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")
        self.weights = folder / "two.safetensors"
        self.weights.write_text("whole")
        (folder / "studies" / "counts.py").write_text(COUNTS)
        (folder / "studies" / "probe.py").write_text("# it would call register_probe\n")
        roots = {"spain": write_spain(folder / "spain"), "africa": write_africa(folder / "africa")}
        self.study = json.loads(json.dumps(STUDY)) | {"extensions": ["studies/counts.py", "studies/probe.py"]}
        self.study["cohorts"] = [{"name": name, "root": str(root)} for name, root in roots.items()]
        self.study["encoders"][1]["weights"] = str(self.weights)
        self.write()

    def write(self, **changed):
        self.file.write_text(yaml.safe_dump(self.study | changed))

    def start(self, *command):
        env = {**os.environ, "FPBENCH_RESULTS": str(self.results), "PYTHONPATH": str(self.folder)}
        env["FPBENCH_CACHE"] = str(self.folder / "cache")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *command], env=env, cwd=self.folder, **pipes)

    def call(self, *arguments):
        process = self.start("-m", "fpbench.cli", *arguments)
        out, _ = process.communicate(timeout=300)
        return process.returncode, out


@pytest.fixture
def stale(tree, monkeypatch):
    """What would run and why, asked in this process, which takes the tree for its repository."""
    monkeypatch.setattr(paths, "PACKAGE", tree.folder / "fpbench")
    monkeypatch.setenv("FPBENCH_HOME", str(tree.folder))
    monkeypatch.setenv("FPBENCH_RESULTS", str(tree.results))
    monkeypatch.setenv("FPBENCH_CACHE", str(tree.folder / "cache"))
    for name, images, patients in (("spain", 144, 48), ("africa", 54, 15)):
        counts = {"total": {"images": images, "patients": patients}}
        monkeypatch.setitem(cohorts.SOURCES, name, replace(cohorts.SOURCES[name], counts=counts))
    return lambda: grid.stale(grid.jobs(load_study("tiny")))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The study: run with a broken weights file, run again, mended (and watched), finished. ``told`` keeps what was seen."""
    tree = Tree(tmp_path_factory.mktemp("a tree"))
    folder, tree.told = tree.results / "tiny", {}
    tree.weights.write_text("broken")
    tree.told["named"] = tree.call("run", "tiny", "--", str(folder / "predictions" / "two" / "probing.json"))
    tree.told["made"] = sorted(path.stem for path in (folder / "jobs").glob("0*"))
    tree.told["failed"] = tree.call("run", "tiny")
    tree.told["status"] = tree.call("status", "tiny")
    tree.told["encoders"] = (folder / "encoders.csv").read_text()
    tree.told["page"] = (folder / "report.html").is_file()
    tree.told["stamps"] = [(folder / "tables" / "table1.csv").stat().st_mtime_ns]
    tree.told["again"] = tree.call("run", "tiny")
    tree.told["stamps"].append((folder / "tables" / "table1.csv").stat().st_mtime_ns)
    tree.weights.write_text("mended")
    (tree.results / "slow").touch()
    process, file = tree.start("-m", "fpbench.cli", "run", "tiny", "--only", "two"), folder / "progress"
    stop, file = time.monotonic() + 200, file / "05_fine_tuning.two.full.json"
    while not (file.is_file() and "epoch" in file.read_text()) and process.poll() is None and time.monotonic() < stop:
        time.sleep(0.1)
    tree.told["running"] = tree.call("status", "tiny")
    (tree.results / "slow").unlink()
    out = process.communicate(timeout=300)[0]
    tree.told["mended"] = process.returncode, out
    return tree


@pytest.mark.parametrize("told", ["", "[]", "3", "{}"])
def test_a_progress_file_that_says_nothing_is_as_none(tmp_path, told):
    job = grid.Job("01_cohorts", tmp_path, tmp_path / "cohorts.json", [], {})
    job.path("progress").parent.mkdir()
    job.path("progress").write_text(told)
    assert job.running() == {}


@pytest.mark.parametrize("named", ["02_splits", "results of a test/tiny/splits.csv"])
def test_a_job_may_be_named_by_its_name_or_by_its_output_with_any_ending(tree, named):
    (tree.results / "tiny" / "splits.csv").unlink()
    code, out = tree.call("run", "tiny", "--", named)
    assert "ran: 02_splits\nreused: 1 jobs" in out
    assert "missing" not in out
    assert code == 0


def test_a_misspelt_job_is_named_and_nothing_runs(tree):
    code, out = tree.call("run", "tiny", "--", "02_split", "--quiet")
    assert "found '02_split'" in out
    assert "01_cohorts, 02_splits" in out
    assert "snakemake" not in out
    assert code != 0


def test_a_named_file_that_fails_is_all_that_was_tried(tree):
    code, out = tree.told["named"]
    assert code == 1, out
    assert "missing: 04_linear_probing.two: ValueError: not a / weights file" in out
    assert "Table 1" not in out
    assert tree.told["made"] == ["01_cohorts", "02_splits", "04_linear_probing.two.failed"]


def test_an_encoder_that_fails_leaves_a_hole_and_the_others_finish(tree):
    code, out = tree.told["failed"]
    assert code == 1, out
    reason = "ValueError: not a / weights file"
    missing = {"two/probing": reason, "two/full": f"after 04_linear_probing.two: {reason}"}
    assert f"Table 1: {missing}" in out
    assert f"missing: 04_linear_probing.two: {reason}" in out
    assert f"its notebook: {tree.results / 'tiny' / 'notebooks' / '04_linear_probing.two.ipynb'}" in out
    assert "fpbench run tiny --only two" in out
    assert "reused: 2 jobs" in out
    assert tree.told["encoders"] == "['one']"
    assert tree.told["page"]
    assert "12 jobs: 10 done, 0 running, 1 waiting, 1 failed" in tree.told["status"][1]
    assert f"failed   04_linear_probing.two  {reason}" in tree.told["status"][1]
    code, out = tree.told["again"]
    assert code == 1
    assert "\nran: 03_encoders, report\n" in out, out  # which saw the encoder again; the analysis of the others stays
    assert tree.told["stamps"][0] == tree.told["stamps"][1]


def test_it_is_mended_alone_and_table_1_is_whole_when_all_that_it_needs_is_there(tree):
    code, out = tree.told["mended"]
    assert code == 0, out
    assert "snakemake" in out
    assert "Table 1: {}" in out
    assert not (tree.results / "tiny" / "missing.json").exists()
    assert tree.call("run", "tiny", "--only", "one,three")[1].startswith("fpbench: study tiny has no encoder 'three': ")


def test_status_says_what_runs_how_fast_and_how_long_it_will_take(tree):
    seen = tree.told["running"][1]
    assert "running  05_fine_tuning.two.full  two, full, fold 0, epoch 1 of 8: " in seen, tree.told["mended"][1]
    assert re.search(
        r": [\d,]+ of 100,000 steps, [\d.,]+ steps/s, \d+:\d\d:\d\d to go; .+, process \d+ alive, wrote \d+ s ago\n",
        seen,
    )
    assert re.search(r"about 0:\d\d:\d\d to go, 1 at once", seen.splitlines()[-1])
    assert not list(tree.results.rglob("progress/*"))


def test_a_second_run_does_nothing_and_says_so(tree):
    began = time.monotonic()
    assert tree.call("run", "tiny") == (0, "nothing to do: 12 jobs are current\n")
    assert time.monotonic() - began < 60  # on a shared machine; the goal is 10 s
    assert tree.call("status", "tiny") == (0, "tiny: 12 jobs: 12 done, 0 running, 0 waiting, 0 failed\n")


ALL = ["06_benchmark", "07_cross_population", "report"]


def test_a_changed_recipe_lists_fine_tuning_and_what_needs_it(tree):
    try:
        tree.write(recipe={"epochs": 6, "rates": [0.01]})
        code, out = tree.call("run", "tiny", "--dry-run", "--why")
    finally:
        tree.write()
    assert code == 0, out
    listed = dict(
        line.split(maxsplit=1) for line in out.splitlines() if line[:2] in ("05", "06", "07") or "report  " in line
    )
    tuned = [f"05_fine_tuning.{name}.full" for name in ("one", "two")]
    assert list(listed) == [*tuned, *ALL]
    assert all(why == "recipe changed: epochs 8 -> 6" for why in listed.values())
    assert "5 of 12 jobs would run" in out
    assert {line.split()[0] for line in out.splitlines() if "0.00" in line} >= {"one", "two", "together"}
    assert "image cache" in out


@pytest.mark.parametrize(
    ("change", "jobs", "why"),
    [
        ("weights", ["03_encoders", "04_linear_probing.two", "05_fine_tuning.two.full"], "weights file of two changed"),
        ("cohort", ["01_cohorts", "02_splits", "04_linear_probing.one"], "cohort africa changed"),
        ("probes", ["04_linear_probing.one", "04_linear_probing.two"], "probes ['logistic'] -> ['logistic', 'knn']"),
        ("version", ["04_linear_probing.one", "05_fine_tuning.one.full"], "step probing: code version 1 -> 2"),
        ("extension", ["04_linear_probing.one", "04_linear_probing.two"], "file studies/probe.py changed"),
        ("notebook", ["09_label_efficiency"], "notebook 09_label_efficiency changed"),
        ("question", ["08_shortcuts"], "file training/shortcuts.py changed"),
        ("batch", ["03_encoders", "04_linear_probing.one"], "encoder one changed: batch_size 32 -> 16"),
        ("analysis", ["03_encoders", "06_benchmark"], "code of the analysis changed"),
        ("predictions", ["04_linear_probing.one"], "missing or damaged: predictions/one/logistic/fold1.parquet"),
        ("sidecar", ["04_linear_probing.one"], "missing or damaged: predictions/one/logistic/fold1.parquet"),
        ("output", ["08_shortcuts"], "missing or damaged: tables/conditions.csv"),
        ("title", [], ""),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_and_only_that(tree, stale, monkeypatch, change, jobs, why):
    files = {
        "weights": tree.weights, "cohort": tree.folder / "africa" / "African_planes_database.csv",
        "extension": tree.folder / "studies" / "probe.py",
        "notebook": tree.folder / "notebooks" / "09_label_efficiency.ipynb", "analysis": tree.folder / "fpbench" / "analysis" / "claims.py",
        "predictions": tree.results / "tiny" / "predictions" / "one" / "logistic" / "fold1.parquet",
        "sidecar": tree.results / "tiny" / "predictions" / "one" / "logistic" / "fold1.json",
        "output": tree.results / "tiny" / "tables" / "conditions.csv",
        "question": tree.folder / "fpbench" / "training" / "shortcuts.py",
    }  # fmt: skip
    edits = {"notebook": ("put(", "put( "), "output": ("x", "y")}
    assert stale() == {}
    monkeypatch.setattr(bench, "VERSION", 2 if change == "version" else 1)
    before = files[change].read_text() if change in files else ""
    try:
        if change in files:
            files[change].write_text(before.replace(*edits[change]) if change in edits else before + "\n# more")
        one, two = tree.study["encoders"]
        fields = {"probes": {"probes": ["logistic", "knn"]}, "title": {"title": "Another", "label": "told"}}
        fields["batch"] = {"encoders": [one | {"batch_size": 16}, two]}
        tree.write(**fields.get(change, {}))
        found = stale()
    finally:
        tree.write()
        if change in files:
            files[change].write_text(before)
    own = {name: reason for name, reason in found.items() if not reason.startswith("upstream")}
    assert set(jobs) <= set(own)
    assert all(why in reason for reason in own.values())
    kinds = {"weights": "one", "batch": "two"}
    assert not any(kinds.get(change, "nobody") in name.split(".") for name in found)
    if change in ("probes", "extension"):
        assert not {"01_cohorts", "02_splits", "03_encoders"} & set(found)
        assert "05_fine_tuning.one.full" not in own
    if change in ("notebook", "question", "output", "title"):
        assert set(found) == ({*jobs, "report"} if jobs else set())


def test_the_real_benchmark_goes_on_without_an_encoder(tmp_path, phantoms):
    """The committed predictions of two miniatures, one of them taken away: its rows say why, nothing else minds."""
    folder = tmp_path / "results" / "explore"
    shutil.copytree(paths.home() / "studies" / "explore", folder)
    shutil.rmtree(folder / "predictions" / "mofo-mini")
    missing = {"mofo-mini/probing": "ValueError: no weights", "mofo-mini/full": "after it"}
    artifacts.write_json(folder / "missing.json", missing)
    env = {**os.environ, "FPBENCH_RESULTS": str(tmp_path / "results"), "FPBENCH_DATA": str(phantoms)}
    command = [sys.executable, "-m", "fpbench.cli", "notebook", "06_benchmark", str(folder / "06.ipynb")]
    command += ["-p", "study=explore", "-p", "maps=0"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(folder / "tables" / "table1.csv").set_index(["encoder", "protocol"])
    assert table.loc[("mofo-mini", "linear probing")].iloc[0] == "missing: ValueError: no weights"
    assert table.loc[("mofo-mini", "full fine-tuning")].iloc[0] == "missing: after it"
    assert "±" in table.loc[("efficientnetv2_s-mini", "linear probing")].iloc[0]
    assert "missing: ValueError: no weights" in (folder / "tables" / "table1.html").read_text()


@pytest.mark.parametrize(
    ("cores", "threads", "asked", "taken", "says"),
    [
        (2, 2, 2, 2, "2 jobs of 2 threads on 2 cores: 1 at once, the others wait\n"),
        (8, 2, 3, 6, ""),
        (8, 2, 0, 8, ""),
        (2, 4, 1, 4, ""),  # threads are the study's: never reduced
        (2, 4, 2, 4, "2 jobs of 4 threads on 2 cores: 1 at once, the others wait\n"),
        (1, 1, 0, 1, ""),
    ],
)
def test_jobs_times_threads_is_held_to_the_cores_that_are_there(
    monkeypatch, capsys, cores, threads, asked, taken, says
):
    """Before, two jobs of two threads were given four cores where there are two, and took three times as long together."""
    monkeypatch.setattr(run_module.machine, "cores", lambda: cores)
    monkeypatch.setattr(run_module, "USUAL", 1.0)
    assert run_module._held(asked, threads) == taken
    assert capsys.readouterr().out == says
    monkeypatch.setattr(run_module, "USUAL", 1e18)  # where memory is short, one at a time unless asked for more
    assert run_module._held(0, threads) == threads


def test_a_cluster_is_not_held_to_the_cores_of_the_login_node():
    for name, executor in (("slurm", "slurm"), ("local", None), ("gpubox", None)):
        words = ["--profile", str(paths.home() / "profiles" / name)]
        assert run_module._profile(words).get("executor") == executor
    assert run_module._profile(["--quiet"]) == {}


def test_a_profile_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("- executor: slurm\n")
    with pytest.raises(InputError, match=r"config\.yaml: expected a table of Snakemake's options, found list"):
        run_module._profile(["--profile", str(tmp_path)])
