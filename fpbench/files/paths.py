"""Where things lie: the user's folder with studies and notebooks, and the roots that the environment names.

A *workspace* is a folder with ``Snakefile``, ``notebooks`` and ``studies``: a clone, or what ``fpbench init`` laid out. It is
found upwards from the current folder, like a git repository; ``FPBENCH_HOME`` names it instead. A path in a study file starts
there, one in an environment variable or on the command line where the user stands. Papermill runs in the workspace and
Snakemake in the results, so the command line first makes what the environment says absolute (``settle``).
"""

import os
import re
from pathlib import Path

from fpbench.errors import InputError, MissingError

PACKAGE = Path(__file__).resolve().parents[1]
HOME = "FPBENCH_HOME"
ROOTS = {"FPBENCH_DATA": "data", "FPBENCH_WEIGHTS": "weights", "FPBENCH_RESULTS": "results"}  # variable -> default
OTHERS = ("FPBENCH_CACHE", "FPBENCH_SHARED")
BUNDLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")  # certificates that requests trusts, and that httpx does
FOLDERS = ("SSL_CERT_DIR",)  # the same as a folder, for httpx
MARKS = ("Snakefile", "notebooks", "studies")  # what a workspace holds


def home() -> Path:
    """Return the workspace of the current folder; MissingError says how to get one."""
    if named := os.environ.get(HOME):
        if is_home(found := Path(named).expanduser().resolve()):
            return found
        raise MissingError(f"expected a workspace ({', '.join(MARKS)}) in {found}, which {HOME} names: correct it")
    here = Path.cwd()
    for folder in (here, *here.parents):
        if is_home(folder):
            return folder
    way = f"run `fpbench init DIR` and go there, go into a clone of fpbench, or set {HOME}"
    raise MissingError(f"expected a workspace ({', '.join(MARKS)}) in {here} or above it, found none: {way}")


def is_home(folder: Path) -> bool:
    """Return whether a folder is a workspace."""
    return all((folder / mark).exists() for mark in MARKS)


def settle() -> None:
    """Make the roots that the environment names absolute, and name the workspace, for processes that run elsewhere."""
    for name in (*ROOTS, *OTHERS):
        if given := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(given))
    trust()
    if HOME not in os.environ:
        try:
            os.environ[HOME] = str(home())
        except MissingError:
            return  # a command that needs one says so


def trust() -> None:
    """Let requests (REQUESTS_CA_BUNDLE) and httpx (SSL_CERT_FILE, SSL_CERT_DIR) trust the same certificates, whichever is named."""
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    if given := next((os.environ[name] for name in names if os.environ.get(name)), ""):
        os.environ.setdefault("REQUESTS_CA_BUNDLE", given)
        if "SSL_CERT_FILE" not in os.environ and "SSL_CERT_DIR" not in os.environ:
            os.environ["SSL_CERT_DIR" if os.path.isdir(given) else "SSL_CERT_FILE"] = given


def expand(text: str, base: Path | None = None) -> Path:
    """Return a path of a study file, ``${NAME}`` and ``${NAME:-default}`` filled in, relative to ``base`` (default: the workspace)."""

    def value(match: re.Match) -> str:
        if found := os.environ.get(match["name"]):
            return os.path.abspath(os.path.expanduser(found)) if match["name"] in (*ROOTS, *OTHERS) else found
        if match["default"] is None:
            raise InputError(f"{text!r} needs the environment variable {match['name']}, which is not set: export it")
        return match["default"]

    filled = Path(re.sub(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*))?\}", value, str(text))).expanduser()
    return filled.resolve() if filled.is_absolute() else ((base or home()) / filled).resolve()


def here(path: str | Path) -> Path:
    """Return a path as a user types it, made absolute from where the user stands; links stay as they are."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _root(variable: str, default: str) -> Path:
    if given := os.environ.get(variable):
        return Path(given).expanduser().resolve()
    return expand(default)


def shared() -> Path:
    """Return the optional sample directory (``FPBENCH_SHARED``)."""
    return _root("FPBENCH_SHARED", "../shared")


def data() -> Path:
    """Return where fetched archives are kept (``FPBENCH_DATA``)."""
    return _root("FPBENCH_DATA", ROOTS["FPBENCH_DATA"])


def weights() -> Path:
    """Return where fetched or hand-placed weights are kept, one folder per encoder (``FPBENCH_WEIGHTS``)."""
    return _root("FPBENCH_WEIGHTS", ROOTS["FPBENCH_WEIGHTS"])


def results() -> Path:
    """Return where studies write (``FPBENCH_RESULTS``)."""
    return _root("FPBENCH_RESULTS", ROOTS["FPBENCH_RESULTS"])


def cache() -> Path:
    """Return where decoded images and embeddings are kept, shared by all studies (``FPBENCH_CACHE``)."""
    if given := os.environ.get("FPBENCH_CACHE"):
        return Path(given).expanduser().resolve()
    return results() / "cache"
