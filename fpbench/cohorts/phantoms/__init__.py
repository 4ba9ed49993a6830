"""Phantom cohorts: synthesised ultrasound-like images in the exact on-disk layout of the public archives.

Everything downstream (loaders, audit, splits, notebooks, CI) must run offline, in minutes, on the bytes that it will meet in
the real archives. This package writes such bytes. It is a tour and a regression fixture, never evidence: each picture says
PHANTOM in its lower left corner, and `phantom.json` beside the table says who made it.

Contents: ``ensure`` (draw a cohort), ``planted`` (its copies), ``SOURCES`` and ``MORE``; `facts` (what is planted), `layout` (who has which
image), `canvas`, `scenes` and `drawing` (one picture); `sweeps` (stacks of blind sweeps) and `passes` (the frames of one).
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

from fpbench.cohorts import acouslic, africa, spain
from fpbench.cohorts.phantoms import sweeps
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
    frames: int = sweeps.FRAMES,
) -> dict:
    """Return the manifest of the phantom cohort in ``root``, writing the cohort if it is absent or another one.

    Parameters
    ----------
    root
        Its folder. One that holds anything but a phantom cohort is refused, never replaced.
    kind
        ``"spain"``, ``"africa"`` or ``"acouslic"``.
    seed, patients, causes, only, frames
        As of `spain_entries`, `africa_entries` and `sweeps.stacks`, where ``patients`` are its stacks; ``causes`` concern Africa only,
        ``only`` Spain, ``frames`` the sweeps.

    Raises
    ------
    InputError
        Unknown kind or cause, or the folder holds something else.
    """
    root, (manifest, entries) = Path(root), _plan(kind, seed, patients, causes, only, frames)
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


def is_drawn(root: Path, kind: str, **drawing: Any) -> bool:
    """Return whether the folder holds the phantom that `ensure` would leave there; InputError if it would refuse."""
    return _holds(root, _plan(kind, **drawing)[0])


def planted(root: str | Path) -> list[tuple[str, str]]:
    """Return the pairs of byte-identical files of a phantom cohort: paths below ``root``, sorted within and among."""
    return [tuple(pair) for pair in json.loads((Path(root) / "phantom.json").read_text(encoding="utf-8"))["planted"]]


def _plan(
    kind: str,
    seed: int = 0,
    patients: int | None = None,
    causes: Iterable[str] = CAUSES,
    only: str = "",
    frames: int = sweeps.FRAMES,
) -> tuple[dict, list[Entry] | list[sweeps.Stack]]:
    """Return the manifest that a cohort must have, and its images or stacks."""
    if kind not in (*KINDS, "acouslic"):
        raise InputError(f"unknown phantom cohort {kind!r}: expected 'spain', 'africa' or 'acouslic'")
    patients = patients or (KINDS[kind]["patients"] if kind in KINDS else sweeps.STACKS)
    manifest = {"version": VERSION, "kind": kind, "seed": seed, "patients": patients}
    if kind == "acouslic":
        stacks = sweeps.stacks(seed, patients, frames)
        return manifest | {
            "frames": frames,
            "counts": sweeps.counts(stacks),
            "files": 2 * len(stacks),
            "planted": [],
        }, stacks
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
    there, files = root / "phantom.json", manifest.get("files", manifest["counts"]["total"]["images"])
    if root.exists() and any(root.iterdir()) and not there.is_file():
        raise InputError(f"{root} holds something that is not a phantom: it is left alone; choose another folder")
    if not there.is_file() or there.read_bytes() != _json(manifest):
        return False
    return sum(path.suffix in (".png", ".mha") for path in root.rglob("*")) == files


def _json(manifest: dict) -> bytes:
    """Return the bytes of `phantom.json`."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _write(folder: Path, manifest: dict, entries: list) -> None:
    """Write pictures, label table and manifest."""
    (sweeps.write if manifest["kind"] == "acouslic" else partial(_write_planes, manifest["kind"]))(folder, entries)
    (folder / "phantom.json").write_bytes(_json(manifest))


def _write_planes(name: str, folder: Path, entries: list[Entry]) -> None:
    """Write pictures and label table of a kind."""
    for parent in {(folder / entry.path).parent for entry in entries}:
        parent.mkdir(parents=True)
    drawn = [entry for entry in entries if not entry.copy]
    with ThreadPoolExecutor(workers()) as pool:
        list(Progress(pool.map(partial(_draw, folder), drawn), total=len(drawn), desc="drawing phantoms", unit="image"))
    for entry in entries:
        if entry.copy:
            shutil.copyfile(folder / entry.copy, folder / entry.path)
    kind = KINDS[name]
    with open(folder / kind["file"], "w", encoding="ascii", newline="") as handle:
        table = csv.writer(handle, delimiter=kind["delimiter"], lineterminator="\n")
        table.writerows([kind["columns"], *(entry.row for entry in entries)])


def _draw(folder: Path, entry: Entry) -> None:
    from fpbench.cohorts.phantoms.drawing import draw_plane  # OpenCV, which only this needs

    picture = draw_plane(*entry.recipe)
    if entry.tints:
        bands = [picture.point([round(value * tint) for value in range(256)]) for tint in entry.tints]
        picture = Image.merge("RGB", bands)
    picture.save(folder / entry.path, compress_level=1)


def _source(real: Source, kind: str, held: dict[str, dict[str, int]], name: str = "", **drawing: Any) -> Source:
    """Return the phantom of a real cohort: the same reader and population, its own name, counts and label."""
    drawn = replace(
        real, name=f"phantom-{name or real.name}", title=f"Phantom of {real.title.split(' (')[0]}", label="phantom"
    )
    drawn = replace(drawn, licence="Apache-2.0", citation="Drawn by fpbench; no person was scanned.", archive=None)
    prepare, prepared = partial(ensure, kind=kind, **drawing), partial(is_drawn, kind=kind, **drawing)
    return replace(drawn, counts=held, csv_sha256="", prepare=prepare, prepared=prepared)


SOURCES = (
    _source(spain.SOURCE, "spain", counts(spain_entries())),
    _source(africa.SOURCE, "africa", counts(africa_entries())),
)
# of other seeds, so that nobody of them is in the demo's, each first drawn when the recipe of its study was fixed: brains alone
# (demo-brain), and enough patients to tell two networks apart (demo-origins)
DRAWN: dict[str, dict[str, Any]] = {
    "brain": {"seed": 4, "patients": 500, "only": "tvcb"},
    "spain-large": {"seed": 5, "patients": 250},
}
SWEPT = 6  # seed of the blind sweeps, first drawn when their difficulty was fixed
MORE = (
    *(_source(spain.SOURCE, "spain", counts(spain_entries(**how)), name, **how) for name, how in DRAWN.items()),
    _source(acouslic.SOURCE, "acouslic", sweeps.counts(sweeps.stacks(SWEPT)), seed=SWEPT),
)
