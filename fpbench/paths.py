"""Where things lie. Papermill runs in the caller's folder, JupyterLab in the notebook's: so no path is relative to either.

A path in a study file may hold ``${NAME}`` or ``${NAME:-default}`` (environment) and is taken relative to the repository.
"""

import os
import re
from pathlib import Path

from fpbench.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent


def expand(text: str) -> Path:
    """Return ``text`` as an absolute path, environment variables filled in, relative to the repository."""

    def value(match: re.Match) -> str:
        found = os.environ.get(match["name"]) or match["default"]
        if found is None:
            raise InputError(
                f"{text!r} needs the environment variable {match['name']}, which is not set: export it first"
            )
        return found

    filled = re.sub(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*))?\}", value, str(text))
    return (REPOSITORY / Path(filled).expanduser()).resolve()


def _root(variable: str, default: str) -> Path:
    return expand(os.environ.get(variable) or default)


def shared() -> Path:
    """Return the optional sample directory (``FPBENCH_SHARED``)."""
    return _root("FPBENCH_SHARED", "../shared")


def data() -> Path:
    """Return where fetched archives are kept (``FPBENCH_DATA``)."""
    return _root("FPBENCH_DATA", "data")


def weights() -> Path:
    """Return where fetched or hand-placed weights are kept, one folder per encoder (``FPBENCH_WEIGHTS``)."""
    return _root("FPBENCH_WEIGHTS", "weights")


def results() -> Path:
    """Return where studies write (``FPBENCH_RESULTS``)."""
    return _root("FPBENCH_RESULTS", "results")


def cache() -> Path:
    """Return where decoded images and embeddings are kept, shared by all studies (``FPBENCH_CACHE``)."""
    return expand(os.environ.get("FPBENCH_CACHE") or str(results() / "cache"))
