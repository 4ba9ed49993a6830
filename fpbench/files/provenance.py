"""Who made an artefact: version and commit of the program, versions of libraries, machine, time. It never enters a key."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fpbench import __version__
from fpbench.files.paths import PACKAGE

PACKAGES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "opencv-python-headless")


@cache
def commit_id() -> str:
    """Return the commit of the program, with "+changes" if files differ from it; empty where it is no clone.

    An installed package may lie inside somebody else's repository, whose commit says nothing of it.
    """
    clone = PACKAGE.parent
    if _git("rev-parse", "--show-toplevel") != str(clone) or not _git("ls-files", "fpbench/__init__.py"):
        return ""
    return _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:  # there is no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def program() -> str:
    """Return what the program is, in a few words: its version, and its commit where it runs from a clone."""
    return f"fpbench {__version__}" + (f", commit {commit_id()[:12]}" if commit_id() else "")


def provenance() -> dict:
    """Return who made an artefact: version, commit, libraries, machine, time."""
    return {
        "fpbench": __version__,
        "commit": commit_id(),
        "python": platform.python_version(),
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> dict[str, str]:
    """Return the version of every library that is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # the core alone is installed
    return found
