"""Can this study run here? One line per thing it needs, and what to do about each that is not as it should be.

Only reads: nothing is pinned, drawn, fetched, cached or left behind. It says what is cheap to know without building a network
or opening a picture; ``full`` opens every picture and hashes every weights file anew. Bytes are rough: grey pictures, no
activations. Contents: ``examine`` (the checks, room by room), ``can_run``, ``render``.
"""

import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from fpbench import __version__, encoders, images, loading, results
from fpbench.cohorts import SOURCES, changed, count_images, locate, read_images, source_of
from fpbench.cohorts.source import Source
from fpbench.encoders import catalogue, fetch
from fpbench.errors import InputError
from fpbench.extras import EXTRAS
from fpbench.files import artifacts, machine, paths, sharing
from fpbench.study import CohortSpec, EncoderSpec, Study

NAMED = ("fpbench", "python", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "scikit-learn")
SMALL = 2_000  # images: a CPU will do
GUESS = images.Geometry("squash", 224), 2_048  # and length of an embedding, of a model that only its library knows
GPUS = ("nvidia*", "nvhost*", "kfd", "dxg")  # device files of Linux: without any, torch need not be asked
REMEDIES = {
    "versions": 'run `make install` in a clone; elsewhere `pip install --upgrade "fpbench[all]"`',
    "cohorts": "correct the study; or move the folder away, run `fpbench fetch {0}`, and leave `root` out of the study",
    "described": "correct {0}, or the table that it names, as the line above says",
    "weights": "correct the study, or get the file as MODELS.md says",
    "disk": "make room, or set FPBENCH_{1} to a folder on another disk",
    "memory": "use a larger machine",
    "device": "correct `device` and `bf16` in the study, or use a machine with a GPU",
    "writing": "make it writable, or set FPBENCH_{1} to another folder",
}


@dataclass(frozen=True)
class Finding:
    """One thing a study needs, and how it was found."""

    room: str  # of REMEDIES
    what: str
    state: str  # ok | warn | fail
    detail: str
    remedy: str = ""  # empty where all is well


def examine(study: Study, full: bool = False) -> list[Finding]:
    """Return what a study needs and how it was found, room by room; writes nothing.

    Parameters
    ----------
    study
        What shall run.
    full
        Open every picture, and hash every weights file instead of trusting the remembered hash: minutes.
    """
    found = [_look("versions", "packages", _versions)]
    found += [_look("cohorts", spec.title, _cohort, study, spec, full) for spec in study.cohorts]
    found += [_look("weights", spec.name, _weights, study, spec, full) for spec in study.encoders]
    found += [_look("disk", what, _space, study, what) for what in ("cache", "results")]
    found += [_look("memory", "memory", _space, study, "memory"), _look("device", study.device, _device, study)]
    return found + [_look("writing", what, _writing, study, what) for what in ("results", "cache", "weights", "data")]


def _look(room: str, what: str, check: Callable[..., tuple[str, str]], *arguments: Any) -> Finding:
    """Run one check; what it raises is its finding, so that no broken thing hides another."""
    try:
        state, detail = check(*arguments)
    except (InputError, OSError, PackageNotFoundError) as error:
        state, detail = "fail", str(error)
    remedy = REMEDIES["described" if room == "cohorts" and Path(what).suffix in (".yaml", ".yml") else room]
    return Finding(room, what, state, detail, "" if state == "ok" else remedy.format(what, what.upper()))


def can_run(findings: list[Finding]) -> bool:
    """Return whether nothing stands in the way."""
    return all(finding.state != "fail" for finding in findings)


def render(findings: list[Finding], study: str) -> str:
    """Return the findings as text of at most 120 columns, the verdict on ``study`` (its name) last."""
    width, lines = max(len(one.what) for one in findings), []
    for one in findings:
        start = f"{one.state.replace('fail', 'FAIL'):<4}  {one.room:<8}  {one.what:<{width}}  "
        for head, text in ((start, one.detail), (" " * len(start) + "-> ", one.remedy)):
            text, margin = " ".join(text.split()), " " * len(head)
            lines += textwrap.wrap(text, 120, initial_indent=head, subsequent_indent=margin, break_on_hyphens=False)
    red, warned = (sum(one.state == state for one in findings) for state in ("fail", "warn"))
    return "\n".join([*lines, f"study {study} {'cannot' if red else 'can'} run (red lines: {red}, warnings: {warned})"])


def _versions() -> tuple[str, str]:
    """Hold what is installed to what fpbench and its extras require, by metadata: importing torch alone takes seconds."""
    known = [one for one in map(Requirement, requires("fpbench") or []) if one.name != "fpbench"]
    wanted = [one for one in known if not one.marker or any(one.marker.evaluate({"extra": name}) for name in EXTRAS)]
    found = {"python": sys.version.split()[0], "fpbench": __version__}
    for one in wanted:
        with suppress(PackageNotFoundError):
            found[one.name] = version(one.name)
    if bad := [one for one in wanted if one.name not in found or not one.specifier.contains(found[one.name], True)]:
        plain = [f"{one.name}{one.specifier}" for one in bad]
        return "fail", "; ".join(
            f"expected {text}, found {found.get(one.name, 'nothing')}" for one, text in zip(bad, plain, strict=True)
        )
    return "ok", ", ".join(f"{name} {found[name]}" for name in NAMED if name in found)


def _cohort(study: Study, spec: CohortSpec, full: bool) -> tuple[str, str]:
    """Hold a cohort to what ``load_cohort`` asks of it, without drawing a phantom."""
    name, root = loading.where(study, spec)
    source = source_of(name)
    loading.hold(study, [one for _, one in _sources(study)])
    if root and not source.prepared(root):
        return "ok", f"{source.label}, drawn on first use"
    folder = locate(root or Path(), source)
    rows, there = read_images(source, folder, spec.missing)
    if full and (bad := images.damaged(rows["path"][there].tolist(), source.bits)):
        return "fail", f"{len(bad)} damaged images, the first are {'; '.join(bad[:3])}"
    if full and (found := changed(source, rows["path"][there].tolist(), keep=False)):
        what = "changed under the same time and size since they were hashed"
        return "warn", f"{len(found)} images {what}, the first is {found[0]}: the next run takes them as they are"
    opened = "all" if full else "none"
    detail = f"{rows['patient'].nunique():,} patients, {there.sum():,} of {len(rows):,} images, {opened} opened"
    if source.csv_sha256 in ("", sha256 := artifacts.file_sha256(folder / source.csv)):
        return "ok", detail + ("; label file as published" if source.csv_sha256 else "")
    return "warn", f"{detail}; label file {sha256}, published {source.csv_sha256}: were line ends changed?"


def _weights(study: Study, spec: EncoderSpec, full: bool) -> tuple[str, str]:
    entry, *_ = _facts(spec)
    if spec.weights == "random":
        return "ok", f"random weights, seed {spec.seed}"
    if spec.pretraining:
        made = results.pretrained(study, spec.pretraining).is_file()
        return "ok", f"{'made' if made else 'to be made'} by the study's pretraining {spec.pretraining}"
    if spec.weights != "hub":
        path = Path(loading.weights(study, spec))
        return "ok", f"{path.name}, {path.stat().st_size:,} bytes: a file of the study, held to no hash"
    if entry is None:
        return "warn", f"fetched by {spec.model.partition(':')[0]} on first use: needs a network, or its cache"
    path = fetch.path_of(spec.model)
    if not path.is_file():
        return "fail", f"{path} is not there: run `fpbench fetch weights {spec.model}`. {fetch.by_hand(spec.model)}"
    found = fetch.sha256(path, full, remember=False)
    origins = {fetch.compare(spec.model, path, found, lock) for lock in (study.folder / "weights.lock.json", None)}
    known = " and ".join(sorted(origins - {""})) or "to be pinned on first use"
    return "ok", f"{path.name}, SHA-256 {found[:12]}, {known}; licence {fetch.entry(spec.model)[0].licence}"


def _facts(spec: EncoderSpec) -> tuple[catalogue.Entry | None, images.Geometry, int, float]:
    """Return entry, geometry, length of an embedding and bytes of the weights, as far as known without building."""
    if spec.model.partition(":")[0] in encoders.FAMILIES:
        return None, encoders.geometry_of(GUESS[0], spec.geometry), GUESS[1], 0.0
    entry, mini, pooling, geometry = encoders.settle(spec.model, spec.pooling, spec.geometry)
    return entry, geometry, entry.poolings[pooling], 0.0 if mini else 4e6 * entry.parameters


def _size(study: Study) -> int:
    """Return how many images the study has; only those that are there where the rest may be missing."""
    count = 0
    for spec, source in _sources(study):
        _, root = loading.where(study, spec)
        with suppress(InputError, OSError):  # of a table: told above
            count += len([*root.rglob("*.png")]) if root and spec.missing == "drop" else count_images(source)
    return count


def _sources(study: Study) -> list[tuple[CohortSpec, Source]]:
    """Return the facts of the cohorts that are known."""
    found = []
    for spec in study.cohorts:
        with suppress(InputError, OSError):
            found.append((spec, source_of(loading.where(study, spec)[0])))
    return found


def _space(study: Study, what: str) -> tuple[str, str]:
    """Compare the bytes needed with those there; what the cache already holds is counted again."""
    n, (_, shapes, dims, loads) = _size(study), zip(*map(_facts, study.encoders), strict=True)
    needed, there = {
        "cache": (n * (4 * sum(dims) + sum(shape.size**2 for shape in set(shapes))), _free(paths.cache())),
        "results": (n * 120 * study.folds * len(study.probes) * len(study.encoders), _free(study.folder)),  # 120 a row
        "memory": (n * 4 * max(dims) + 2 * max(loads), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }[what]
    short = "warn" if what == "cache" and paths.cache().exists() else "fail"
    state = short if there < needed else "warn" if there < 2 * needed else "ok"
    bound = "least" if what == "memory" else "most"
    return state, f"needs at {bound} {needed / 1e9:,.2f} GB, there are {there / 1e9:,.2f} GB"


def _free(folder: Path) -> int:
    return shutil.disk_usage(_nearest(folder)).free


def _device(study: Study) -> tuple[str, str]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", study.device):
        raise InputError(f"expected auto, cpu, cuda or cuda:N, found {study.device}")
    there = sys.platform != "linux" or any(next(Path("/dev").glob(name), None) for name in GPUS)
    hopeless = not there and not machine.named_gpus()
    device = "cpu" if study.device == "cpu" or (study.device == "auto" and hopeless) else loading.device(study)
    if device == "cpu":
        large = [spec.name for spec in study.encoders if spec.model in catalogue.CATALOGUE]
        slow = f": slow with {', '.join(large)} on {_size(study):,} images" if large and _size(study) > SMALL else ""
        return "warn" if slow else "ok", f"CPU, {machine.workers()} cores{slow}"
    import torch

    if (index := int(device.partition(":")[2] or 0)) >= torch.cuda.device_count():
        raise InputError(f"expected {device}, torch sees {torch.cuda.device_count()} GPUs")
    facts, bf16 = torch.cuda.get_device_properties(index), torch.cuda.is_bf16_supported(including_emulation=False)
    state = "ok" if bf16 or not any(spec.bf16 for spec in study.encoders) else "warn"
    return state, f"{device}: {facts.name}, {facts.total_memory / 1e9:.0f} GB, bfloat16: {'yes' if bf16 else 'no'}"


def _writing(study: Study, what: str) -> tuple[str, str]:
    """Write a nameless temporary file where the study will write, or where its folder will be made."""
    folder = study.folder if what == "results" else getattr(paths, what)()
    try:
        tempfile.TemporaryFile(dir=_nearest(folder)).close()
    except OSError as error:
        other = what == "cache" and folder != paths.results() / "cache" and folder.is_dir()
        drawn = any(one.name in SOURCES and one.prepare for _, one in _sources(study))
        needed = ("results", "" if other else "cache", "data" if drawn else "")
        more = f": what is new goes to {paths.results() / 'cache'}" if other else ""
        return "fail" if what in needed else "warn", f"{folder} cannot be written: {error.strerror}{more}"
    if what != "results" and (bad := sharing.closed(folder, what == "cache")):
        whose, few = ", ".join(sorted({sharing.owner(path) for path in bad})), f"{len(bad):,} files or folders"
        way = f"{'what is wanted of them is made again. ' * (what == 'cache')}Ask there for `chmod -R g+rwX {folder}`"
        return "warn", f"{folder}: {few} of {whose} are closed to you, the first is {bad[0]}: {way}"
    return "ok", str(folder)


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
