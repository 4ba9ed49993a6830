"""Outside the clone, without installing anything: a workspace laid out and updated, found from below, and what paths start at."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fpbench import __version__, extras, load_study
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths, provenance, workspace

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A workspace, and this process in it."""
    for name in (paths.HOME, *paths.ROOTS, *paths.OTHERS):
        monkeypatch.delenv(name, raising=False)
    folder = workspace.lay(tmp_path / "my bench")
    monkeypatch.chdir(folder)
    return folder


def laid(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_workspace_holds_what_the_clone_has_and_is_found_from_below(bench, monkeypatch):
    assert laid(bench) == {*workspace.shipped(), ".fpbench.json"}
    assert {"Snakefile", "notebooks/01_cohorts.ipynb", "studies/demo.yaml", "profiles/slurm/config.yaml"} <= laid(bench)
    monkeypatch.chdir(bench / "studies" / "explore")
    assert paths.home() == bench
    assert load_study("demo").folder == bench / "results" / "demo"
    assert paths.cache() == bench / "results" / "cache"


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        workspace.lay(tmp_path)
    with pytest.raises(InputError, match="found a file"):
        workspace.lay(tmp_path / "mine")
    assert laid(tmp_path) == {"mine"}
    with pytest.raises(MissingError, match="only what `fpbench init` laid out"):
        workspace.update(tmp_path)
    (tmp_path / "empty").mkdir()
    assert workspace.lay(tmp_path / "empty") == tmp_path / "empty"


def test_a_workspace_that_cannot_be_finished_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "_remember", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        workspace.lay(tmp_path / "bench")
    assert not list(tmp_path.iterdir())


def test_an_update_brings_newer_files_and_leaves_those_of_the_user(bench, tmp_path, monkeypatch):
    newer = tmp_path / "newer"
    for name, source in workspace.shipped().items():
        (newer / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, newer / name)
    for name in ("studies/demo.yaml", "studies/paper.yaml", "studies/sample.yaml"):
        (newer / name).write_text("# newer\n")
    (newer / "notebooks" / "10_new.ipynb").write_text("{}")
    (newer / "profiles" / "gpubox" / "config.yaml").unlink()
    monkeypatch.setattr(paths, "PACKAGE", newer / "fpbench")  # a clone of a later version
    (bench / "studies" / "demo.yaml").write_text("# mine\n")
    (bench / "studies" / "paper.yaml").unlink()
    (bench / "studies" / "own.yaml").write_text("# of my own\n")
    found = workspace.update(bench)
    assert sorted(found.brought) == ["notebooks/10_new.ipynb", "studies/sample.yaml"]
    assert (found.changed, found.deleted) == (["studies/demo.yaml"], ["studies/paper.yaml"])
    assert found.gone == ["profiles/gpubox/config.yaml"]
    assert (bench / "studies" / "demo.yaml").read_text() == "# mine\n"
    assert (bench / "studies" / "own.yaml").read_text() == "# of my own\n"
    assert not (bench / "studies" / "paper.yaml").exists()
    again = workspace.update(bench)
    assert (again.brought, again.changed, again.deleted, again.gone) == ([], found.changed, found.deleted, found.gone)
    shutil.copyfile(newer / "studies" / "demo.yaml", bench / "studies" / "demo.yaml")  # the user takes the newer one
    assert workspace.update(bench).changed == []


def test_without_a_workspace_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(paths.HOME, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="run `fpbench init DIR` and go there"):
        load_study("demo")
    monkeypatch.setenv(paths.HOME, str(tmp_path))
    with pytest.raises(MissingError, match="which FPBENCH_HOME names: correct it"):
        paths.home()


def test_paths_of_the_environment_start_where_the_user_stands_and_stay_there(bench, monkeypatch):
    monkeypatch.chdir(bench / "studies")
    monkeypatch.setenv("FPBENCH_DATA", "here")
    monkeypatch.setenv("FPBENCH_SHARED", "../there")
    assert paths.data() == bench / "studies" / "here"
    assert paths.expand("${FPBENCH_SHARED:-../shared}/x") == bench / "there" / "x"
    assert paths.expand("data/x") == bench / "data" / "x"  # of a study file
    paths.settle()  # as the command line does, before it starts processes elsewhere
    monkeypatch.chdir("/")
    assert paths.data() == bench / "studies" / "here"
    assert paths.expand("${FPBENCH_SHARED:-../shared}/x") == bench / "there" / "x"
    assert paths.home() == bench
    for name in ("FPBENCH_DATA", "FPBENCH_SHARED", paths.HOME):
        monkeypatch.delenv(name)


def test_provenance_names_the_commit_of_its_own_clone_alone(tmp_path):
    """An installed package inside somebody's repository says nothing of that repository's commit."""
    site = tmp_path / "theirs" / "site"
    shutil.copytree(ROOT / "fpbench", site / "fpbench", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "theirs" / "code").write_text("theirs")
    git = ["git", "-C", str(tmp_path / "theirs"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "code"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    code = "from fpbench.files import provenance as p; import json; print(json.dumps([p.program(), p.provenance()['commit']]))"
    env = {**os.environ, "PYTHONPATH": str(site)}
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout) == [f"fpbench {__version__}", ""]
    here = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if here.returncode == 0 and (ROOT / ".git").exists():
        assert provenance.commit_id().removesuffix("+changes") == here.stdout.strip()
        assert provenance.program().startswith(f"fpbench {__version__}, commit {here.stdout[:12]}")


LACKING = """
import sys
from importlib.abc import MetaPathFinder
lacking, sys.argv = sys.argv[1], ["fpbench", *sys.argv[2:]]
class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == lacking:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from fpbench.cli import main
main()
"""


@pytest.mark.parametrize(
    ("lacking", "command", "extra"),
    [
        ("psutil", ["status", "demo"], "notebooks"),
        ("papermill", ["notebook", "02_splits", "results/out.ipynb"], "notebooks"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(lacking, command, extra):
    arguments = [sys.executable, "-c", LACKING, lacking, *command]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f'fpbench: this needs what is not installed here: pip install "fpbench[{extra}]"\n'


def test_what_a_run_needs_is_asked_before_anything_starts(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("snakemake", "torch") else True)
    with pytest.raises(extras.MissingExtra, match=r'pip install "fpbench\[encoders,grid\]"$'):
        extras.need("encoders", "notebooks", "grid")
    assert extras.explain(ModuleNotFoundError("No module named 'mine'", name="mine")) == ""


def test_the_manifest_of_a_workspace_is_checked(bench):
    content = (bench / workspace.MANIFEST).read_text()
    (bench / workspace.MANIFEST).write_text(content.replace(__version__, "9.9.9"))
    with pytest.raises(InputError, match="was changed after it was written"):
        workspace.update(bench)
    assert artifacts.file_sha256(bench / "Snakefile") == artifacts.file_sha256(ROOT / "Snakefile")
