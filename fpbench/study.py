"""What to run: a frozen dataclass read from ``studies/*.yaml``. Unknown keys and wrong types are errors.

The study also says where its files lie, and loads its cohorts and encoders.
"""

import difflib
import re
import reprlib
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache, cached_property
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, get_args, get_origin

import yaml

from fpbench import artifacts, paths
from fpbench.errors import InputError, MissingError
from fpbench.recipe import MODES, PROTOCOLS, Augmentation, Recipe
from fpbench.tasks import Task, get_task

if TYPE_CHECKING:
    from fpbench.cohorts import Cohort
    from fpbench.encoders import Encoder


@dataclass(frozen=True)
class CohortSpec:
    """Where one cohort lies."""

    name: str  # of cohorts.SOURCES
    root: str = ""  # folder; empty: <data>/<name>
    missing: str = "error"  # error | drop: what to do if images of the label file are absent


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder of the study; empty fields take the model's own value."""

    name: str  # in tables and file names
    model: str  # name in the catalogue (usfm), its miniature (usfm-mini), or family:architecture
    weights: str = "hub"  # hub (for the catalogue: what `fpbench fetch weights` got) | random | a file
    geometry: dict = field(default_factory=dict)  # kind, size, interpolation, crop
    mean: list[float] = field(default_factory=list)  # of channels in [0, 1]
    std: list[float] = field(default_factory=list)
    pooling: str = ""  # avg, token, ...
    seed: int = 0  # of random weights
    ignore: list[str] = field(default_factory=list)  # tensors that may be left out
    options: dict = field(default_factory=dict)  # passed to the architecture
    batch_size: int = 32  # images per forward pass
    bf16: bool = False  # bfloat16 autocast, of embedding
    micro: int = 0  # images per forward pass of fine-tuning; 0: batch_size
    checkpointing: bool = False  # compute activations twice rather than keep them, in fine-tuning


@dataclass(frozen=True)
class Study:
    """A benchmark run."""

    name: str  # folder below results/
    title: str  # for headings
    cohorts: list[CohortSpec]  # the first that fits trains, the others test
    encoders: list[EncoderSpec]
    label: str = ""  # stands on every table and figure: what these results are not
    task: str = "planes"  # of tasks.TASKS
    split: str = "official"  # official | crossval
    folds: int = 5
    seed: int = 0  # of the folds and of every fit
    probes: list[str] = field(default_factory=lambda: ["logistic"])  # logistic, ridge, knn, or of an extension
    threads: int = 2  # of every computation on the CPU
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    full: list[str] = field(default_factory=list)  # encoders to fine-tune whole
    lora: list[str] = field(default_factory=list)  # encoders to fine-tune by low-rank additions
    recipe: Recipe = field(default_factory=Recipe)  # of both
    extensions: list[str] = field(default_factory=list)  # Python files that register encoders, cohorts, probes

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        get_task(self.task)
        known = [name for name in PROTOCOLS if name not in MODES]
        if unknown := [probe for probe in self.probes if probe not in known]:
            raise InputError(f"unknown probes {unknown}: expected some of {', '.join(known)}, or of an extension")
        names = [spec.name for spec in self.encoders]
        if not names or len(set(names)) < len(names):
            raise InputError(f"expected encoders with different names, found {names}")
        if bad := [name for name in (*names, self.name) if not re.fullmatch(r"[\w.-]*[^\W_][\w.-]*", name)]:
            raise InputError(f"{bad}: a name becomes a file name: use letters, digits, '-', '_' and '.'")
        if strangers := sorted({*self.full, *self.lora} - set(names)):
            raise InputError(f"fine-tuning of {strangers}: expected encoders of the study, {', '.join(names)}")
        if bad := [spec.name for spec in self.encoders if spec.batch_size < 1 or spec.micro < 0]:
            raise InputError(f"encoders {bad}: expected batch_size >= 1 and micro >= 0 (0: batch_size)")
        if bad := [spec.name for spec in self.encoders if {len(spec.mean), len(spec.std)} - {0, 3} or 0 in spec.std]:
            raise InputError(f"encoders {bad}: expected mean and std of three channels, no std of 0")
        if self.threads < 1 or self.folds < 2 or not 0 <= self.seed < 2**32:
            found = f"{self.threads}, {self.folds}, {self.seed}"
            raise InputError(f"expected threads >= 1, folds >= 2, a seed from 0 to 2^32 - 1, found {found}")

    @property
    def folder(self) -> Path:
        """Return where the study writes."""
        return paths.results() / self.name

    def predictions(self, encoder: str, protocol: str, fold: int, aside: str = "") -> Path:
        """Return the path of one predictions file; those of a side question (``aside``) lie apart."""
        folder = self.folder / "aside" / aside if aside else self.folder / "predictions"
        return folder / encoder / protocol / f"fold{fold}.parquet"

    def all_predictions(self) -> list[Path]:
        """Return every predictions file that this study calls for, but for ``holes``: files of others do not count."""
        holes = self.holes()
        names = [(spec.name, probe) for spec in self.present() for probe in self.probes]
        names += [one for one in self.tunings() if "/".join(one) not in holes]
        return [self.predictions(*name, fold) for name in names for fold in range(self.folds)]

    def holes(self) -> dict[str, str]:
        """Return what failed in the last run, and why: ``encoder/probing``, ``encoder/full``, ``encoder/lora`` -> reason."""
        path = self.folder / "holes.json"
        return artifacts.read_json(path) if path.is_file() else {}

    def present(self, protocol: str = "probing") -> list[EncoderSpec]:
        """Return the encoders that have predictions of a protocol: those called for, but for the holes."""
        called = getattr(self, protocol) if protocol in MODES else [spec.name for spec in self.encoders]
        holes, kind = self.holes(), protocol if protocol in MODES else "probing"
        return [spec for spec in self.encoders if spec.name in called and f"{spec.name}/{kind}" not in holes]

    def tunings(self) -> list[tuple[str, str]]:
        """Return what is fine-tuned: (encoder, mode), mode full or lora."""
        return [(name, mode) for mode in MODES for name in getattr(self, mode)]

    def stamp(self) -> str:
        """Return what an artefact was made of: digests of the study and of the predictions that are there, and the commit."""
        sidecars = [path for file in self.all_predictions() if (path := artifacts.sidecar(file)).is_file()]
        found = [artifacts.read_json(path)["sha256"] for path in sidecars]
        made = f"{len(found)} predictions files {artifacts.digest(found)[:12]}" if found else "no predictions"
        return f"study {self.name} {artifacts.digest(asdict(self))[:12]}, {made}, commit {artifacts.commit_id()[:12] or 'unknown'}"

    @cached_property
    def the_task(self) -> Task:
        """Return the task."""
        return get_task(self.task)

    def encoder_spec(self, name: str) -> EncoderSpec:
        """Return the entry of one encoder."""
        for spec in self.encoders:
            if spec.name == name:
                return spec
        raise InputError(
            f"study {self.name} has no encoder {name!r}: expected one of {', '.join(s.name for s in self.encoders)}"
        )

    def load_cohorts(self) -> "tuple[Cohort, tuple[Cohort, ...]]":
        """Return the cohort that trains, and the external ones that test."""
        from fpbench.cohorts import load_cohort

        loaded = [load_cohort(spec.name, self.root(spec), spec.missing) for spec in self.cohorts]
        home = [cohort for cohort in loaded if cohort.source.population == self.the_task.train]
        if len(home) != 1:
            raise InputError(
                f"task {self.task} trains on the population {self.the_task.train!r}: expected one such cohort, found {len(home)}"
            )
        return home[0], tuple(c for c in loaded if c is not home[0] and c.source.population in self.the_task.tests)

    def load_encoder(self, name: str) -> "Encoder":
        """Return an encoder of the study, on its device; holds torch to the study's threads."""
        import torch

        from fpbench.encoders import load_encoder

        torch.set_num_threads(self.threads)
        spec = self.encoder_spec(name)
        settings = {key: value for key in ("mean", "std", "pooling", "options") if (value := getattr(spec, key))}
        return load_encoder(
            spec.model,
            self.weights(spec),
            name=name,
            geometry=spec.geometry,
            seed=spec.seed,
            ignore=tuple(spec.ignore),
            **settings,
        ).to(self.resolve_device())

    def resolve_device(self) -> str:
        """Return cpu, cuda or cuda:N; InputError if it is not there."""
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"device {self.device}: torch sees no GPU here; use 'auto' or 'cpu'")
        return self.device

    def begin(self) -> "Study":
        """Hold this process to the study's threads (results depend on them in the last bits); return the study."""
        from threadpoolctl import threadpool_limits

        threadpool_limits(self.threads)
        return self

    def describe(self) -> None:
        """Print what is run, and what the results are not."""
        cohorts, encoders = (", ".join(spec.name for spec in specs) for specs in (self.cohorts, self.encoders))
        print(f"{self.title}\n  cohorts   {cohorts}\n  encoders  {encoders}")
        print(f"  folds     {self.folds}, {self.split}, seed {self.seed}\n  probes    {', '.join(self.probes)}")
        for mode in MODES:
            print(f"  {mode:<9} {', '.join(getattr(self, mode)) or 'none'}")
        if self.label:
            print(f"  Mind: {self.label}.")

    def root(self, spec: CohortSpec) -> Path:
        """Return the folder of a cohort."""
        return paths.expand(spec.root) if spec.root else paths.data() / spec.name

    def weights(self, spec: EncoderSpec) -> str:
        """Return the weights of an encoder as ``load_encoder`` takes them: hub, random, or an absolute path."""
        if spec.weights == "hub" and ":" not in spec.model:  # a file of the catalogue, pinned by the study
            from fpbench.encoders.fetch import locate

            return str(locate(spec.model, self.folder / "weights.lock.json"))
        return spec.weights if spec.weights in ("hub", "random") else str(paths.expand(spec.weights))


def load_study(name: str | Path) -> Study:
    """Read a study: a path, or the name of a file in ``studies/``.

    Raises
    ------
    MissingError
        No such file; the message lists those that are there.
    InputError
        Not YAML, an unknown or missing key, or a wrong type; the message names the key.

    The study's extensions are executed, once in a process: a study file is to be trusted as a program is.
    """
    path = Path(name)
    if not path.suffix:
        path = paths.REPOSITORY / "studies" / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in (paths.REPOSITORY / "studies").glob("*.yaml")))
        raise MissingError(f"expected a study file at {path}, found nothing: the studies are {there}")
    content = plain_yaml(path.read_bytes(), str(path))
    named = content.get("extensions", []) if isinstance(content, dict) else []
    for file in _convert(list[str], named, f"{path}: extensions"):
        extension(file)
    return _build(Study, content, str(path))


def plain_yaml(text: str | bytes, where: str):
    """Return what YAML says, plain values alone; InputError names ``where``."""
    try:
        return yaml.safe_load(text)
    except Exception as error:  # dates, numbers and deep nesting raise others than YAMLError
        raise InputError(f"{where}: not YAML of plain values ({str(error)[:400] or type(error).__name__})") from None


@cache
def extension(file: str) -> ModuleType:
    """Return the module of a Python file of a study, e.g. one that registers encoders; it is executed once in a process."""
    path = paths.expand(file)
    if not path.is_file() or path.suffix != ".py":
        raise MissingError(f"expected a Python file at {path} (extensions of the study), found nothing")
    spec = spec_from_file_location(f"fpbench_extension_{path.stem}", path)
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(kind: type, content, where: str):
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a table of keys and values, found {type(content).__name__}")
    known = {item.name: item for item in fields(kind)}
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            raise InputError(
                f"{where}: unknown key {key!r}"
                + (f": did you mean {close[0]!r}?" if close else f": expected {', '.join(known)}")
            )
    needed = [n for n, item in known.items() if MISSING is item.default is item.default_factory and n not in content]
    if needed:
        raise InputError(f"{where}: missing {', '.join(needed)}")
    return kind(**{key: _convert(known[key].type, value, f"{where}: {key}") for key, value in content.items()})


def _convert(kind, value, where: str):
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list, found {reprlib.repr(value)}")
        return [_convert(get_args(kind)[0], item, f"{where}[{row}]") for row, item in enumerate(value)]
    if kind in (CohortSpec, EncoderSpec, Recipe, Augmentation):
        return _build(kind, value, where)
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise InputError(f"{where}: expected a number below 2^63, found another")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where}: expected {kind.__name__}, found {reprlib.repr(value)}")
    if kind is str and not value.replace("\n", " ").isprintable():
        raise InputError(f"{where}: expected printable text, found {reprlib.repr(value)}")
    return value
