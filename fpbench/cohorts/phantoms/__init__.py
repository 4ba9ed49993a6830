"""Phantom cohorts: synthesised ultrasound-like images in the exact on-disk layout of the two public archives.

Everything downstream (loaders, audit, splits, notebooks, CI) must run offline, in minutes, on the bytes that it will meet in
the real archives. This package writes such bytes. It is a tour and a regression fixture, never evidence: each picture says
PHANTOM in its lower left corner, and `phantom.json` beside the table says who made it.

Contents: ``ensure`` (draw a cohort), ``planted`` (its copies), ``SOURCES`` and ``MORE``; `facts` (what is planted), `layout` (who has which
image), `canvas`, `scenes` and `drawing` (one picture).
"""

import csv
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from fpbench.cohorts import africa, spain
from fpbench.cohorts.phantoms.facts import CAUSES, KINDS
from fpbench.cohorts.phantoms.layout import Entry, africa_entries, counts, spain_entries
from fpbench.cohorts.source import Source
from fpbench.errors import InputError
from fpbench.files.artifacts import beside, lock
from fpbench.files.machine import workers
from fpbench.files.progress import Progress
from fpbench.files.sharing import share_tree

VERSION = 1  # raise it whenever a byte of the output changes


def ensure(
    root: str | Path,
    kind: str,
    seed: int = 0,
    patients: int | None = None,
    causes: Iterable[str] = CAUSES,
    only: str = "",
) -> dict:
    """Return the manifest of the phantom cohort in ``root``, writing the cohort if it is absent or another one.

    Parameters
    ----------
    root
        Its folder. One that holds anything but a phantom cohort is refused, never replaced.
    kind
        ``"spain"`` or ``"africa"``.
    seed, patients, causes, only
        As of `spain_entries` and `africa_entries`; ``causes`` concern Africa only, ``only`` Spain.

    Raises
    ------
    InputError
        Unknown kind or cause, or the folder holds something else.
    """
    root, (manifest, entries) = Path(root), _plan(kind, seed, patients, causes, only)
    if _holds(root, manifest):  # without a lock: others may share the folder who cannot write there
        return manifest
    with lock(root), beside(root) as new, beside(root) as old:  # renamed at the end: whole or absent, also after a kill
        if _holds(root, manifest):
            return manifest
        _write(new, manifest, entries)
        share_tree(new)
        try:
            if root.exists():
                root.rename(old)
            new.rename(root)
        except OSError:
            if not _holds(root, manifest):  # else another process has drawn it, to whom the lock was granted too
                raise
    return manifest


def is_drawn(root: Path, kind: str, seed: int = 0, patients: int | None = None, only: str = "") -> bool:
    """Return whether the folder holds the phantom that `ensure` would leave there; InputError if it would refuse."""
    return _holds(root, _plan(kind, seed, patients, only=only)[0])


def planted(root: str | Path) -> list[tuple[str, str]]:
    """Return the pairs of byte-identical files of a phantom cohort: paths below ``root``, sorted within and among."""
    return [tuple(pair) for pair in json.loads((Path(root) / "phantom.json").read_text(encoding="utf-8"))["planted"]]


def _plan(
    kind: str, seed: int, patients: int | None, causes: Iterable[str] = CAUSES, only: str = ""
) -> tuple[dict, list[Entry]]:
    """Return the manifest that a cohort must have, and its images."""
    if kind not in KINDS:
        raise InputError(f"unknown phantom cohort {kind!r}: expected 'spain' or 'africa'")
    patients = patients or KINDS[kind]["patients"]
    manifest = {"version": VERSION, "kind": kind, "seed": seed, "patients": patients}
    if kind == "spain":
        entries = spain_entries(seed, patients, only)
        manifest |= {"only": only} if only else {}
    else:
        entries = africa_entries(seed, patients, frozenset(causes))
        manifest["causes"] = sorted(causes)
    pairs = sorted(sorted((entry.path, entry.copy)) for entry in entries if entry.copy)
    return manifest | {"counts": counts(entries), "planted": pairs}, entries


def _holds(root: Path, manifest: dict) -> bool:
    """Say whether a folder holds the whole cohort of a manifest; InputError if it holds anything but a phantom."""
    there, images = root / "phantom.json", manifest["counts"]["total"]["images"]
    if root.exists() and any(root.iterdir()) and not there.is_file():
        raise InputError(f"{root} holds something that is not a phantom: it is left alone; choose another folder")
    return there.is_file() and there.read_bytes() == _json(manifest) and len(list(root.glob("*/*.png"))) == images


def _json(manifest: dict) -> bytes:
    """Return the bytes of `phantom.json`."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _write(folder: Path, manifest: dict, entries: list[Entry]) -> None:
    """Write pictures, label table and manifest."""
    for parent in {(folder / entry.path).parent for entry in entries}:
        parent.mkdir(parents=True)
    drawn = [entry for entry in entries if not entry.copy]
    with ThreadPoolExecutor(workers()) as pool:
        list(Progress(pool.map(partial(_draw, folder), drawn), total=len(drawn), desc="drawing phantoms", unit="image"))
    for entry in entries:
        if entry.copy:
            shutil.copyfile(folder / entry.copy, folder / entry.path)
    kind = KINDS[manifest["kind"]]
    with open(folder / kind["file"], "w", encoding="ascii", newline="") as handle:
        table = csv.writer(handle, delimiter=kind["delimiter"], lineterminator="\n")
        table.writerows([kind["columns"], *(entry.row for entry in entries)])
    (folder / "phantom.json").write_bytes(_json(manifest))


def _draw(folder: Path, entry: Entry) -> None:
    from fpbench.cohorts.phantoms.drawing import draw_plane  # OpenCV, which only this needs

    picture = draw_plane(*entry.recipe)
    if entry.tints:
        bands = [picture.point([round(value * tint) for value in range(256)]) for tint in entry.tints]
        picture = Image.merge("RGB", bands)
    picture.save(folder / entry.path, compress_level=1)


def _source(real: Source, kind: str, entries: list[Entry], name: str = "", **drawing: Any) -> Source:
    """Return the phantom of a real cohort: the same reader and population, its own name, counts and label."""
    drawn = replace(
        real, name=f"phantom-{name or real.name}", title=f"Phantom of {real.title.split(' (')[0]}", label="phantom"
    )
    drawn = replace(drawn, licence="Apache-2.0", citation="Drawn by fpbench; no person was scanned.", archive=None)
    prepare, prepared = partial(ensure, kind=kind, **drawing), partial(is_drawn, kind=kind, **drawing)
    return replace(drawn, counts=counts(entries), csv_sha256="", prepare=prepare, prepared=prepared)


SOURCES = (
    _source(spain.SOURCE, "spain", spain_entries()),
    _source(africa.SOURCE, "africa", africa_entries()),
)
# of other seeds, so that nobody of them is in the demo's, each first drawn when the recipe of its study was fixed: brains alone
# (demo-brain), and enough patients to tell two networks apart (demo-origins)
DRAWN: dict[str, dict[str, Any]] = {
    "brain": {"seed": 4, "patients": 500, "only": "tvcb"},
    "spain-large": {"seed": 5, "patients": 250},
}
MORE = tuple(_source(spain.SOURCE, "spain", spain_entries(**how), name, **how) for name, how in DRAWN.items())
