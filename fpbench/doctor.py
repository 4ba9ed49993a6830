"""Can this study run here? One line per thing it needs, and what to do about each that is not as it should be.

Only reads: nothing is pinned, drawn, fetched, cached or left behind. It says what is cheap to know without building a network
or opening a picture; ``full`` opens every picture and hashes every weights file anew. Bytes are lower bounds: grey pictures, no
activations. Contents: ``examine`` (the checks, room by room), ``can_run``, ``render``.
"""

import json
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from itertools import groupby
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from PIL import Image

from fpbench import __version__, artifacts, encoders, images, paths
from fpbench.cohorts import SOURCES, phantom
from fpbench.cohorts.source import check_counts, check_rows, locate
from fpbench.encoders import catalogue, fetch
from fpbench.errors import InputError, MissingError
from fpbench.study import CohortSpec, EncoderSpec, Study

NAMED = ("python", "fpbench", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "scikit-learn")
LABELS = {  # SHA-256 of the published label files
    "spain": "18f8250244dd7ee312b6444fdc5285f4adca47f784d4a68d991464b4a15c3679",
    "africa": "ae45d482b49bb46e4d3f04e8c0f6f37d092149c530a404979b68f417c20fa4a1",
}
SMALL = 2_000  # images: a CPU will do
ROW = 120  # bytes of a predictions row, roughly
GUESS = images.Geometry("squash", 224), 2_048  # and length of an embedding, of a model that only its library knows
GPUS = ("nvidia*", "nvhost*", "kfd", "dxg")  # device files of Linux: without any, torch need not be asked
STATES = ("ok", "warn", "fail")
Answer = tuple[str, ...]  # state, detail and perhaps remedy


@dataclass(frozen=True)
class Finding:
    """One thing a study needs, and how it was found."""

    room: str  # versions, cohorts, weights, disk, memory, device, writing
    what: str
    state: str  # of STATES
    detail: str
    remedy: str = ""  # empty where all is well, or where the detail says what to do


def examine(study: Study, full: bool = False) -> list[Finding]:
    """Return what a study needs and how it was found, room by room; writes nothing.

    Parameters
    ----------
    study
        What shall run.
    full
        Open every picture, and hash every weights file instead of trusting the remembered hash: minutes.
    """
    return [_finding(*check) for check in _checks(study, full)]


def can_run(findings: list[Finding]) -> bool:
    """Return whether nothing stands in the way."""
    return all(finding.state != "fail" for finding in findings)


def render(findings: list[Finding], study: str) -> str:
    """Return the findings as text of at most 120 columns, the verdict on ``study`` (its name) last."""
    width = max(len(one.what) for one in findings)
    lines = []
    for room, group in groupby(findings, lambda one: one.room):
        lines.append(room)
        for one in group:
            lines += _wrap(f"  {one.state.replace('fail', 'FAIL'):<4}  {one.what:<{width}}  ", one.detail)
            lines += _wrap(" " * (width + 10) + "-> ", one.remedy) if one.remedy else []
    red, warned = (sum(one.state == state for one in findings) for state in ("fail", "warn"))
    verdict = f"cannot run: {red} red line{'s' * (red > 1)}" if red else "can run"
    warnings = f" ({warned} warning{'s' * (warned > 1)})" if warned else ""
    return "\n".join([*lines, f"study {study} {verdict}{warnings}"])


def _wrap(start: str, text: str) -> list[str]:
    lines = [
        line for part in text.splitlines() for line in textwrap.wrap(part, 120 - len(start), break_on_hyphens=False)
    ]
    return [(start if row == 0 else " " * len(start)) + line for row, line in enumerate(lines)]


def _finding(room: str, what: str, check: Callable[[], Answer]) -> Finding:
    """Run one check; what it raises is its finding, so that no broken thing hides another."""
    try:
        return Finding(room, what, *check())
    except (InputError, OSError) as error:
        return Finding(room, what, "fail", str(error))


def _checks(study: Study, full: bool) -> Iterator[tuple[str, str, Callable[[], Answer]]]:
    wanted = _requirements()
    for name in (name for name in NAMED if name in wanted):
        yield "versions", name, partial(_versions, {name: wanted.pop(name)})
    yield "versions", "others", partial(_versions, wanted)
    yield "cohorts", "task", partial(_task, study)
    for spec in study.cohorts:
        yield "cohorts", spec.name, partial(_cohort, study, spec, full)
    for spec in study.encoders:
        yield "weights", spec.name, partial(_weights, study, spec, full)
    yield "disk", "cache, results", partial(_disk, study)
    yield "memory", "main", partial(_memory, study)
    yield "device", study.device, partial(_device, study)
    for what in ("results", "cache", "weights", "data"):
        yield "writing", what, partial(_writing, study, what)


def _requirements() -> dict[str, SpecifierSet]:
    """Return what the installed fpbench requires on this machine; of itself, the version that is running."""
    own = {"fpbench": SpecifierSet(f"=={__version__}")}
    with suppress(PackageNotFoundError):
        own["python"] = SpecifierSet(metadata("fpbench")["Requires-Python"] or "")
        found = map(Requirement, requires("fpbench") or [])
        own |= {one.name: one.specifier for one in found if not one.marker or one.marker.evaluate({"extra": ""})}
    return own


def _versions(wanted: dict[str, SpecifierSet]) -> Answer:
    """Compare with what is installed, by its metadata: importing torch alone takes seconds."""
    found = {"python": platform.python_version()}
    for name in wanted:
        with suppress(PackageNotFoundError):
            found.setdefault(name, version(name))
    if bad := [n for n in wanted if n not in found or not wanted[n].contains(found[n], prereleases=True)]:
        detail = "; ".join(f"expected {name}{wanted[name]}, found {found.get(name, 'none')}" for name in bad)
        return "fail", detail, "run `pip install --editable .` in the repository, in the environment of environment.yml"
    if "torch" in wanted and Version(found["torch"]) < Version("2.10"):
        return "warn", f"{found['torch']}: reading a weights file safely (weights_only) needs 2.10", "update torch"
    return "ok", found[next(iter(wanted))] if len(wanted) == 1 else f"{len(wanted)} more packages, as required"


def _task(study: Study) -> Answer:
    wanted = study.the_task.train
    home = [spec.name for spec in study.cohorts if spec.name in SOURCES and SOURCES[spec.name].population == wanted]
    if len(home) != 1:
        return "fail", f"expected one cohort of the population {wanted!r} to train on, found {home}", "edit the study"
    return "ok", f"{study.task}: {home[0]} trains"


def _root(study: Study, spec: CohortSpec) -> Path:
    return study.root(spec) or paths.data() / spec.name


def _cohort(study: Study, spec: CohortSpec, full: bool) -> Answer:
    """Hold a cohort to what ``load_cohort`` asks of it, without drawing a phantom."""
    if spec.name not in SOURCES or spec.missing not in ("error", "drop"):
        known = ", ".join(SOURCES)
        raise InputError(f"expected one of {known}, missing: error or drop; found {spec.name}, missing: {spec.missing}")
    source, root = SOURCES[spec.name], _root(study, spec)
    if source.prepare and not phantom._holds(root, phantom._plan(source.population, 0, None)[0]):
        if root.exists() and not (root / "phantom.json").is_file() and any(root.iterdir()):
            return "fail", f"{root} holds something that is not a phantom cohort", "name another folder in the study"
        return "ok", "phantom, drawn on first use"
    again = f"run `fpbench fetch {source.name}`" + (" and leave `root` out of the study" if spec.root else "")
    again = again if source.archive else f"delete {root}: it is drawn again"
    if not root.is_dir():
        return "fail", f"expected the folder {root}, found nothing", again
    again = f"move {root} away and {again}" if source.archive else again
    try:
        table = locate(root, source) / source.csv
        rows = source.read(table, spec.name)
        check_rows(rows, table)
        check_counts(rows, source, table)
    except (InputError, MissingError) as error:
        return "fail", str(error), again
    there = [path for path in (table.parent / name for name in rows["path"]) if path.is_file()]
    if not there or (len(there) < len(rows) and spec.missing == "error"):
        detail = f"{len(rows) - len(there):,} of {len(rows):,} images are not in {table.parent}"
        return "fail", detail, f"{again}, or say `missing: drop` in the study"
    with ThreadPoolExecutor(images.workers()) as pool:
        bad = [damage for damage in pool.map(_damage, there) if damage] if full else []
    if bad:
        return "fail", "\n".join([f"{len(bad)} damaged images, the first are", *bad[:3]]), again
    found = artifacts.file_sha256(table)
    detail = f"{rows['patient'].nunique():,} patients, {len(there):,} of {len(rows):,} images, "
    detail += f"{'all' if full else 'none'} opened; label file {found[:12]}"
    known = LABELS.get(source.name)
    if known and found != known:
        return "warn", f"{detail}, published {known[:12]}", "its counts are right: were line ends changed?"
    return "ok", detail + (" as published" if known else "")


def _damage(path: Path) -> str:
    try:
        images.decode(path)
        with Image.open(path) as picture:
            picture.verify()  # checksums too: decoding skips those of the pixels
    except (InputError, OSError, SyntaxError, ValueError) as error:
        return f"{path.name}: {str(error).removeprefix(f'{path}: ')}"
    return ""


def _size(study: Study) -> int:
    """Return how many images the study has; only those that are there where the rest may be missing."""
    known = [(SOURCES[spec.name].counts["total"]["images"], spec) for spec in study.cohorts if spec.name in SOURCES]
    there = [sum(1 for _ in _root(study, spec).rglob("*.png")) if spec.missing == "drop" else n for n, spec in known]
    return sum(there)


def _weights(study: Study, spec: EncoderSpec, full: bool) -> Answer:
    family, _, model = spec.model.partition(":")
    entry = None if model and family in encoders.FAMILIES else catalogue.find(spec.model)[0]
    _facts(study, spec)
    if spec.weights == "random":
        return "ok", f"random weights, seed {spec.seed}"
    if spec.weights == "hub" and entry is None:
        return _library(family, model)
    path = fetch.path_of(spec.model) if spec.weights == "hub" else Path(study.weights(spec))
    licence = f"licence {entry.licence}, gated: {entry.gated}" if entry else "licence unknown"
    if not path.is_file() and spec.weights == "hub":
        remedy = f"run `fpbench fetch weights {spec.model}`, or save it by hand (MODELS.md) as {path}"
        return "fail", f"{path.name} is not there; {licence}", remedy
    if not path.is_file():
        return "fail", f"expected {path}, found nothing; {licence}", "check the study, or FPBENCH_SHARED"
    found = fetch.sha256(path, full, remember=False)
    known = "held to no hash: a file of the study"
    if spec.weights == "hub":
        locks = study.folder / "weights.lock.json", None
        said = dict.fromkeys(fetch.compare(spec.model, path, found, lock) for lock in locks)
        known = " and ".join(filter(None, said))
    return "ok", f"{path.name}, SHA-256 {found[:12]} ({known or 'to be pinned on first use'}); {licence}"


def _library(family: str, model: str) -> Answer:
    """Say whether the hub cache holds a library's model, as far as its name tells."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = "models--" + ("timm/" * (family == "timm") + model).replace("/", "--")
    files = [*Path(HF_HUB_CACHE, folder).glob("snapshots/*/*"), *(paths.REPOSITORY / model).glob("*")]
    if any(path.suffix in (".safetensors", ".bin", ".pt", ".pth") and path.is_file() for path in files):
        return "ok", "in the local hub cache, or a folder; licence unknown"
    return "warn", f"not seen in the local hub cache: {family} will download it; licence unknown", "needs a network"


def _facts(study: Study, spec: EncoderSpec) -> tuple[images.Geometry, int, float]:
    """Return geometry, length of an embedding and bytes in memory while loading, as far as known without building."""
    (geometry, dim), parameters, file = GUESS, 0.0, 0
    if entry := catalogue.CATALOGUE.get(spec.model.removesuffix(encoders.MINI)):
        mini = spec.model.endswith(encoders.MINI)
        geometry = replace(entry.geometry, size=entry.mini) if mini else entry.geometry
        if spec.pooling and spec.pooling not in entry.poolings:
            raise InputError(f"{spec.model}: expected a pooling of {', '.join(entry.poolings)}, found {spec.pooling}")
        dim, parameters = entry.poolings[spec.pooling or next(iter(entry.poolings))], 0 if mini else entry.parameters
        file = (entry.source and entry.source.size) or 0 if spec.weights == "hub" else 0
        catalogue.check_side(entry, geometry.size, encoders._geometry(geometry, spec.geometry).size)
    if spec.weights not in ("hub", "random") and Path(study.weights(spec)).is_file():
        file = Path(study.weights(spec)).stat().st_size
    module = 4e6 * parameters or file
    return encoders._geometry(geometry, spec.geometry), dim, module + max(module, file)


def _disk(study: Study) -> Answer:
    """Compare pictures and embeddings in the cache, and predictions, with what is free on the disk of each."""
    n, facts = _size(study), [_facts(study, spec) for spec in study.encoders]
    cache = n * sum(4 * dim for _, dim, _ in facts) + sum(n * shape.size**2 for shape in {shape for shape, *_ in facts})
    results = ROW * n * study.folds * len(study.probes) * len(study.encoders)
    disks = {}
    for folder, needed in ((paths.cache(), cache - _kept({shape for shape, *_ in facts})), (study.folder, results)):
        place = _nearest(folder)
        disks.setdefault(place.stat().st_dev, [place, 0])[1] += max(needed, 0)
    answers = [
        _enough(needed, shutil.disk_usage(place).free, f"on the disk of {place}") for place, needed in disks.values()
    ]
    state = max((state for state, _ in answers), key=STATES.index)
    remedy = "make room, or set FPBENCH_CACHE and FPBENCH_RESULTS" if state != "ok" else ""
    return state, "; ".join(detail for _, detail in answers), remedy


def _kept(shapes: set[images.Geometry]) -> int:
    """Return the bytes of pictures that the cache holds in these geometries."""
    found = 0
    for path in (paths.cache() / "images").glob("*.json"):
        with suppress(OSError, ValueError, KeyError):
            if json.loads(path.read_text())["key"]["geometry"] in map(asdict, shapes):
                found += path.with_suffix(".npy").stat().st_size
    return found


def _memory(study: Study) -> Answer:
    facts = [_facts(study, spec) for spec in study.encoders]
    needed = max(load for *_, load in facts) + _size(study) * max(4 * dim for _, dim, _ in facts)
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):
        free = 1024 * int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1])
    unknown = sum(load == 0 for *_, load in facts)
    state, detail = _enough(needed, free, "of memory")
    detail += f" (without {unknown} of {len(facts)} encoders: only their library knows)" if unknown else ""
    return state, detail, "close other programs, or use a larger machine" if state != "ok" else ""


def _enough(needed: float, free: float, where: str) -> tuple[str, str]:
    state = "fail" if free < needed else "warn" if free < 2 * needed else "ok"
    return state, f"needs at least {needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB are free {where}"


def _device(study: Study) -> Answer:
    hopeless = sys.platform == "linux" and not any(next(Path("/dev").glob(name), None) for name in GPUS)
    device = "cpu" if study.device == "auto" and hopeless else study.device
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        return "fail", f"expected auto, cpu, cuda or cuda:N, found {device}", "edit `device` in the study"
    device = device if device == "cpu" else study.resolve_device()
    if device != "cpu":
        return _gpu(study, device)
    large = [spec.name for spec in study.encoders if spec.model in catalogue.CATALOGUE]
    if large and _size(study) > SMALL:
        return "warn", f"CPU only: slow with {', '.join(large)} on {_size(study):,} images", "use a machine with a GPU"
    return "ok", f"CPU, {images.workers()} cores"


def _gpu(study: Study, device: str) -> Answer:
    import torch

    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        return "fail", f"expected {device}, torch sees {torch.cuda.device_count()} GPUs", "say `device: auto`"
    facts, bf16 = torch.cuda.get_device_properties(index), torch.cuda.is_bf16_supported(including_emulation=False)
    detail = f"{device}: {facts.name}, {facts.total_memory / 1e9:.0f} GB, bfloat16: {'yes' if bf16 else 'no'}"
    if not bf16 and any(spec.bf16 for spec in study.encoders):
        return "warn", detail, "say `bf16: false` in the study"
    return "ok", detail


def _writing(study: Study, what: str) -> Answer:
    """Write a nameless temporary file where the study will write, or where its folder will be made."""
    folders = [study.folder] if what == "results" else [paths.cache()] if what == "cache" else []
    if what == "weights":
        hub = [catalogue.CATALOGUE.get(spec.model) for spec in study.encoders if spec.weights == "hub"]
        absent = [one for one in hub if one and one.source and not fetch.path_of(one.name).is_file()]
        folders = [paths.weights()] if absent else []
    if what == "data":  # a phantom keeps its lock beside its folder
        known = [(SOURCES[spec.name], _root(study, spec)) for spec in study.cohorts if spec.name in SOURCES]
        folders = [root.parent for source, root in known if source.prepare or not root.exists()]
    for place in {_nearest(folder) for folder in folders}:
        remedy = f"make it writable, or set FPBENCH_{what.upper()} to another folder"
        if not place.is_dir():
            return "fail", f"expected a folder at {place}, found a file", remedy
        try:
            with tempfile.TemporaryFile(dir=place) as handle:
                handle.write(b"fpbench")
        except OSError as error:
            return "fail", f"{place} cannot be written: {error.strerror}", remedy
    return "ok", ", ".join(sorted({str(folder) for folder in folders})) or "nothing is written there"


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest of its parents that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
