"""The repository holds together: dependencies agree, imports are light, arrows run one way, nothing foreign is named."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fpbench
from fpbench import extras, protocols
from fpbench.grid import jobs

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "fpbench"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = (  # an import runs from a later room to an earlier one; those of one line stand side by side and do not know each other
    {"errors"}, {"extras"}, {"files"}, {"tasks"}, {"protocols"}, {"recipe"}, {"images"}, {"cohorts"}, {"encoders"}, {"study"},
    {"results"}, {"loading"}, {"splits"}, {"metrics"}, {"predictions"}, {"submissions"}, {"training", "analysis"}, {"reporting"}, {"grid"},
    {"doctor"}, {"cli"},
)  # fmt: skip
PLACE = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}
CORE = (
    "tasks",
    "study",
    "results",
    "splits",
    "predictions",
    "metrics",
    "analysis",
    "reporting.tables",
    "cohorts",
    "files.workspace",
)
DRAWING = {
    f"fpbench.cohorts.phantoms.{name}" for name in ("canvas", "scenes", "drawing", "passes")
}  # OpenCV draws them


def tracked():
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    names = done.stdout.split("\n") if done.returncode == 0 else []
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_environment_pyproject_and_lock_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == ["--requirement requirements.lock", "--editable ."]
    (python,) = [
        item.split("=")[1]
        for item in environment["dependencies"]
        if isinstance(item, str) and item.startswith("python=")
    ]
    assert f"{python}.0" in SpecifierSet(PROJECT["project"]["requires-python"])
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        pin = Requirement(line)
        assert re.fullmatch(r"==[\w.+]+", str(pin.specifier)), f"not a plain pin: {line}"
        locked.setdefault(pin.name.replace("_", "-").lower(), []).append(str(pin.specifier)[2:])
    optional = [text for texts in PROJECT["project"]["optional-dependencies"].values() for text in texts]
    for text in PROJECT["project"]["dependencies"] + optional + PROJECT["dependency-groups"]["dev"]:
        wanted = Requirement(text)
        if wanted.name == "fpbench":
            assert wanted.extras == set(extras.EXTRAS)
            continue
        versions = locked[wanted.name.replace("_", "-").lower()]
        assert all(version in wanted.specifier for version in versions), text
    assert not any(
        "sys_platform == 'win32'" in line and "darwin" not in line
        for line in (ROOT / "requirements.lock").read_text().splitlines()
    )


def test_import_is_light():
    """Nothing heavy is imported; the time itself (goal 0.3 s) is no test on a shared machine."""
    code = "import sys, fpbench; print([name for name in ('torch', 'pandas', 'numpy', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


BLOCKED = """
import importlib, sys
from importlib.abc import MetaPathFinder
blocked, wanted = sys.argv[1].split(), sys.argv[2].split()
class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in wanted:
    importlib.import_module(name)
"""


def modules(room):
    """The names of all modules of a room, or of one module."""
    place = LIBRARY / room.replace(".", "/")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_the_core_imports_without_anything_of_the_extras():
    absent = {module for names in extras.EXTRAS.values() for module in names}
    wanted = [name for room in CORE for name in modules(room) if name not in DRAWING]
    assert len(wanted) > 20
    command = [sys.executable, "-c", BLOCKED, " ".join(absent), " ".join(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", list(extras.EXTRAS))
def test_an_extra_is_what_pyproject_says(extra):
    of, named = packages_distributions(), PROJECT["project"]["optional-dependencies"][extra]
    plain = {Requirement(text).name.replace("_", "-").lower() for text in named}
    brings = {name: {one.replace("_", "-").lower() for one in of[name]} for name in extras.EXTRAS[extra]}
    assert plain <= set.union(*brings.values()), "a distribution of the extra whose module is not listed"
    core = {Requirement(text).name.replace("_", "-").lower() for text in PROJECT["project"]["dependencies"]}
    assert not core & set.union(*brings.values()), "a module of the core"


def room_of(name):
    """The room that an import of the package ends in; names that ``fpbench`` hands on lie in their own."""
    first, _, rest = name.partition(".")
    head = rest.partition(".")[0]
    if first != "fpbench" or not head:
        return None
    return fpbench._HOMES[head].split(".")[1] if head in fpbench._HOMES else head


def imported(tree):
    """Every module that a file imports when it runs, also inside functions; what only types need does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node = ast.Module(node.orelse, [])
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module" and node.args:
            yield "".join(
                part.value
                for part in getattr(node.args[0], "values", [node.args[0]])
                if hasattr(part, "value") and isinstance(part.value, str)
            )
        yield from imported(node)


def test_arrows_run_from_later_rooms_to_earlier_ones():
    seen = set()
    for path in LIBRARY.rglob("*.py"):
        room = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in PLACE, f"{path}: a room without a place in the order"
        for name in imported(ast.parse(path.read_text())):
            other = room_of(name)
            if other in (None, "__version__", room):
                continue
            assert PLACE[other] < PLACE[room], f"{path.relative_to(ROOT)} imports {name}"
            seen.add((room, other))
    assert len(seen) > 50


def test_the_test_of_arrows_sees_what_it_shall():
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from fpbench.grid import jobs
def f():
    from fpbench.training import bench
    return import_module(f"fpbench.reporting.{f}")
from fpbench import load_encoder
"""
    found = [room_of(name) for name in imported(ast.parse(code))]
    assert [room for room in found if room] == ["training", "reporting", "encoders"]


def test_no_room_is_more_than_one_can_hold_in_the_head():
    for folder in {path.parent for path in LIBRARY.rglob("*.py")}:
        lines = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
        most = 24 if folder == LIBRARY else 12  # beside the rooms stand the few files between them
        assert len(lines) <= most, f"{folder}: {len(lines)} modules"
        assert sum(lines.values()) <= 2500, f"{folder}: {sum(lines.values())} lines"
        assert max(lines.values()) <= 500, f"{folder}: {max(lines, key=lines.get)}"


def test_only_users_extensions_are_loaded_by_a_path():
    loaders = re.compile(r"spec_from_file_location|runpy|exec_module|\bextension\(")
    found = [path.relative_to(ROOT) for path in LIBRARY.rglob("*.py") if loaders.search(path.read_text())]
    assert [str(path) for path in found] == ["fpbench/study.py"]
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "Snakefile", *(ROOT / "tools").glob("*.py")]:
        assert not loaders.search(path.read_text()), path


def test_every_protocol_is_one_file_and_one_line():
    rules = {row["rule"] for row in jobs.rows()}
    for name, protocol in protocols.PROTOCOLS.items():
        if name == protocols.SUBMITTED:  # somebody else's
            continue
        assert protocol.job in rules, f"{name}: no row of grid.yaml computes it"
        if name in protocols.probes():
            assert callable(importlib.import_module(f"fpbench.training.probes.{name}").fit)
    text = (ROOT / "Snakefile").read_text()
    assert not [name for name in protocols.PROTOCOLS if re.search(rf"\b{name}\b", text)]
    assert not re.search(r"\b0\d_", text)


def test_a_job_depends_on_the_modules_without_a_version_that_its_notebook_calls():
    """Before, notebooks loaded these files by their paths, and a job's key held the files that it loaded."""
    called = {
        "grid/reference.py": "reference",
        "training/shortcuts.py": "training.shortcuts",
        "training/efficiency.py": "training.efficiency",
    }
    for row in jobs.rows():
        path = ROOT / "notebooks" / f"{row['job'].partition('.')[0]}.ipynb"
        text = path.read_text() if path.is_file() else ""
        imports = {
            file
            for file, name in called.items()
            if re.search(rf"from fpbench\.(grid import {name}|{name} import)\b", text)
        }
        assert imports == set(row["code"]), row["job"]


def test_the_names_handed_on_are_documented():
    assert 10 <= len(fpbench.__all__) <= 15
    for name in fpbench.__all__:
        doc = getattr(fpbench, name).__doc__
        assert doc, name
        for section in ("Parameters", "Raises"):
            assert re.search(rf"^ +{section}\n +-+$", doc, re.M), f"{name}: no section {section}"
    assert set(fpbench.__all__) <= set(dir(fpbench))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fpbench.nothing  # noqa: B018


def test_the_house_words_are_gone_from_what_users_read():
    words = re.compile(r"\b(holes?|aside)\b")
    files = [*LIBRARY.rglob("*.py"), *LIBRARY.rglob("*.html"), *LIBRARY.rglob("*.yaml"), ROOT / "README.md"]
    assert not [(path.name, found[0]) for path in files if (found := words.search(path.read_text()))]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        assert not words.search("\n".join(cells)), path.name


def test_the_readme_shows_the_way_through_the_code():
    text = (ROOT / "README.md").read_text()
    for room in {path.name for path in LIBRARY.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}:
        assert f"`{room}/`" in text, f"README's table of rooms lacks {room}"


def test_encoders_know_no_cohorts():
    for path in (LIBRARY / "encoders").rglob("*.py"):
        assert "fpbench.cohorts" not in path.read_text()


def test_nothing_foreign_is_named():
    pattern = re.compile(
        "|".join([r"py" + r"pi\.org", r"python" + r"hosted", r"/wo" + r"rk/", r"/home/\w+/", r"bash_" + r"jobs"])
    )
    for path in tracked():
        if path.suffix in (".png", ".pdf", ".npz"):
            continue
        found = pattern.search(path.read_text(errors="ignore"))
        assert not found, f"{path.relative_to(ROOT)} names {found[0]}"


def test_citation_names_the_paper_and_invents_nothing():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["authors"] == [{"name": "The fpbench contributors"}]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2605.27796"
    assert "doi" not in citation
    assert "orcid" not in (ROOT / "CITATION.cff").read_text().lower()
    assert citation["version"] == fpbench.__version__
    assert re.search(
        rf"^## {re.escape(fpbench.__version__)} \(\d{{4}}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
