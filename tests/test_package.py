"""The repository holds together: dependencies agree, imports are light, arrows run one way, nothing foreign is named."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fpbench.files import paths

ROOT = paths.home()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ORDER = (
    "errors", "paths", "tasks", "transfer", "artifacts", "progress", "images", "cohorts", "splits", "encoders", "inspection", "embeddings", "probing", "recipe",
    "study", "predictions", "metrics", "augmentation", "adaptation", "finetuning", "protocols", "tables", "statistics", "calibration", "shift", "claims", "figures", "report",
    "notebooks", "doctor", "cli",
)  # fmt: skip
ANALYSIS = (
    "metrics",
    "tables",
    "statistics",
    "calibration",
    "shift",
    "claims",
    "predictions",
    "splits",
    "tasks",
    "artifacts",
    "study",
    "probing",
)


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
    for text in PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]:
        wanted = Requirement(text)
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


def test_analysis_modules_import_no_torch():
    code = (
        "import sys; "
        + "; ".join(f"import fpbench.{name}" for name in ANALYSIS)
        + "; print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_arrows_run_from_later_rooms_to_earlier_ones():
    for path in (ROOT / "fpbench").rglob("*.py"):
        room = path.relative_to(ROOT / "fpbench").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        tree = ast.parse(path.read_text())
        for node in tree.body:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom) and node.module
                else []
            )
            for name in names:
                parts = name.split(".")
                if parts[0] == "fpbench" and len(parts) > 1 and parts[1] in ORDER and parts[1] != room:
                    assert ORDER.index(parts[1]) < ORDER.index(room), f"{path.name} imports {name}"


def code_lines(path):
    """Lines that hold code: no blank lines, comments or docstrings."""
    tree, lines = ast.parse(path.read_text()), set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        ):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_library_is_thin():
    assert sum(map(code_lines, (ROOT / "fpbench").rglob("*.py"))) < 5000


def test_encoders_know_no_cohorts():
    for path in (ROOT / "fpbench" / "encoders").glob("*.py"):
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
    assert citation["version"] == PROJECT["project"]["version"]
