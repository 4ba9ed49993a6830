"""The user's workspace outside a clone: notebooks, studies, Snakefile and profiles, laid out from the package.

``.fpbench.json`` in it remembers the version and the SHA-256 of every file as it was laid, so that ``update`` can tell what the
user has changed. A file is the user's once it differs.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fpbench import __version__
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths

PARTS = ("Snakefile", "notebooks", "profiles", "studies")
MANIFEST = ".fpbench.json"


@dataclass
class Update:
    """What ``update`` did: paths relative to the workspace."""

    brought: list[str] = field(default_factory=list)  # new or newer
    changed: list[str] = field(default_factory=list)  # the user's: left alone
    deleted: list[str] = field(default_factory=list)  # by the user: not brought back
    gone: list[str] = field(default_factory=list)  # no longer part of fpbench, still there


def shipped() -> dict[str, Path]:
    """Return the files that a workspace is made of, by their path in it: of the installed package, or of the clone."""
    inside = paths.PACKAGE / "workspace"
    root = inside if inside.is_dir() else paths.PACKAGE.parent
    if not paths.is_home(root):
        raise MissingError(f"expected {', '.join(PARTS)} in {root}, found none: install fpbench again")
    found = [path for part in PARTS for path in sorted([root / part, *(root / part).rglob("*")]) if path.is_file()]
    names = {str(path.relative_to(root)): path for path in found}
    return {name: path for name, path in names.items() if "__pycache__" not in name and "/." not in name}


def lay(folder: Path) -> Path:
    """Make a workspace of a folder that is absent or empty; it is whole or not there.

    Raises
    ------
    InputError
        The folder holds something; the message says what to do.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"expected a folder to make at {folder}, found a file: choose another name")
    if folder.exists() and any(folder.iterdir()):
        way = (
            f"`fpbench init {folder} --update` brings newer files"
            if (folder / MANIFEST).is_file()
            else "choose another"
        )
        raise InputError(f"expected an empty folder at {folder}, found files in it: {way}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = Path(temporary) / folder.name
        for name, source in shipped().items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, new / name)
        _remember(new, {name: artifacts.file_sha256(source) for name, source in shipped().items()})
        new.replace(folder)  # an empty folder in its place is replaced
    return folder


def update(folder: Path) -> Update:
    """Bring the newer files of this version into a workspace; those that the user has changed or deleted stay as they are.

    Raises
    ------
    MissingError
        The folder was not laid out by ``lay``.
    """
    folder = folder.expanduser().absolute()
    if not (folder / MANIFEST).is_file():
        raise MissingError(
            f"expected {MANIFEST} in {folder}, found none: only what `fpbench init` laid out can be updated"
        )
    known, found, laid = artifacts.read_json(folder / MANIFEST)["files"], Update(), {}
    for name, source in shipped().items():
        there, new = folder / name, artifacts.file_sha256(source)
        old = artifacts.file_sha256(there) if there.is_file() else ""
        laid[name] = new
        if old == new:
            continue
        if old == known.get(name, ""):  # as it was laid, or new in this version
            with artifacts.atomic(there) as temporary:
                shutil.copyfile(source, temporary)
            found.brought.append(name)
        else:
            laid[name] = known.get(name, "")
            (found.changed if old else found.deleted).append(name)
    found.gone = [name for name in known if name not in laid and (folder / name).is_file()]
    _remember(folder, laid | {name: known[name] for name in found.gone})
    return found


def _remember(folder: Path, files: dict[str, str]) -> None:
    artifacts.write_json(folder / MANIFEST, {"version": __version__, "files": files})
