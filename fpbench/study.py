"""What to run: a study is one YAML file, read into frozen dataclasses; unknown keys and wrong types are errors.

Where its results lie is ``results``; what it names is opened by ``loading``.
"""

import os
import re
import sys
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from fpbench.errors import InputError, MissingError
from fpbench.files import paths, records
from fpbench.protocols import PROTOCOLS, TRAINING, probes, tunings
from fpbench.recipe import Pretraining, Recipe
from fpbench.tasks import TASKS, Task, get_task

PRETRAINED = "pretraining/"  # weights that a pretraining of the study makes


@dataclass(frozen=True)
class CohortSpec:
    """Where one cohort lies."""

    name: str = ""  # of cohorts.SOURCES
    file: str = ""  # or the YAML file that describes it
    root: str = ""  # folder of a named one; empty: <data>/<name>
    missing: str = "error"  # error | drop: what to do if images of the label file are absent

    def __post_init__(self) -> None:
        """Refuse what names none, or two."""
        if bool(self.name) == bool(self.file):
            raise InputError(f"a cohort: expected `name` or `file`, found {'both' if self.name else 'none'}")
        if self.file and self.root:
            raise InputError(f"cohort {self.file}: the file says where table and images lie: take `root` out")

    @property
    def title(self) -> str:
        """Return what a person calls it."""
        return self.name or self.file


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder of the study; empty fields take the model's own value."""

    name: str  # in tables and file names
    model: str  # name in the catalogue (usfm), its miniature (usfm-mini), or family:architecture
    weights: str = (
        "hub"  # hub (for the catalogue: what `fpbench fetch weights` got) | random | a file | pretraining/NAME
    )
    geometry: dict = field(default_factory=dict)  # kind, size, interpolation, crop
    mean: list[float] = field(default_factory=list)  # of channels in [0, 1]
    std: list[float] = field(default_factory=list)
    pooling: str = ""  # avg, token, ...
    seed: int = 0  # of random weights
    ignore: list[str] = field(default_factory=list)  # tensors that may be left out
    prefix: str = ""  # of the model's tensors in the file, e.g. image_encoder. or visual.trunk.
    options: dict = field(default_factory=dict)  # passed to the architecture
    batch_size: int = 32  # images per forward pass
    bf16: bool = False  # bfloat16 autocast, of embedding
    micro: int = 0  # images per forward pass of fine-tuning; 0: batch_size
    checkpointing: bool = False  # compute activations twice rather than keep them, in fine-tuning

    @property
    def pretraining(self) -> str:
        """Return the name of the pretraining that makes its weights; empty: none does."""
        return self.weights.removeprefix(PRETRAINED) if self.weights.startswith(PRETRAINED) else ""


@dataclass(frozen=True)
class Study:
    """A benchmark run."""

    name: str  # folder below results/
    title: str  # for headings
    cohorts: list[CohortSpec]  # one trains, the others test
    encoders: list[EncoderSpec]
    label: str = ""  # stands on every table and figure: what these results are not
    task: str = "planes"  # of tasks.TASKS; or, in the file, a block with the fields of one's own, see ``own_task``
    own_task: Task | None = None  # `task: {name: ..., label: ..., classes: [...]}`
    train: str = ""  # population that trains, the others test; empty: the one that the task names
    tests: dict[str, list[str]] = field(
        default_factory=dict
    )  # population -> classes; else those of the task that occur
    split: str = "official"  # official | crossval | published (by case, of blind sweeps)
    folds: int = 5  # published: 1
    seed: int = 0  # of the folds and of every fit
    seeds: list[int] = field(default_factory=list)  # of fine-tuning, a run each on every fold; empty: `seed` alone
    probes: list[str] = field(default_factory=lambda: ["logistic"])  # logistic, ridge, knn, or of an extension
    threads: int = 2  # of every computation on the CPU
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    tuned: dict[str, list[str]] = field(default_factory=dict)  # protocol -> encoders; in the file, `full: [usfm]`
    recipe: Recipe = field(default_factory=Recipe)  # of all fine-tuning
    pretraining: dict[str, Pretraining] = field(
        default_factory=dict
    )  # name -> one; encoders take `weights: pretraining/NAME`
    extensions: list[str] = field(default_factory=list)  # Python files that register encoders, cohorts, probes

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not self.the_task.train:
            raise InputError(
                f"task {self.task}: which population trains is not said: write `train: NAME` into the study"
            )
        if unknown := [probe for probe in self.probes if probe not in probes()]:
            raise InputError(f"unknown probes {unknown}: expected some of {', '.join(probes())}, or of an extension")
        if unknown := [name for name in self.tuned if name not in tunings()]:
            raise InputError(f"unknown protocols {unknown}: expected some of {', '.join(tunings())}")
        names = [spec.name for spec in self.encoders]
        if not names or len(set(names)) < len(names):
            raise InputError(f"expected encoders with different names, found {names}")
        check_names(*names, self.name)
        for protocol, called in self.tuned.items():
            if strangers := sorted(set(called) - set(names)):
                title, known = PROTOCOLS[protocol].title, ", ".join(names)
                raise InputError(f"{title} of {strangers}: expected encoders of the study, {known}")
        if bad := [spec.name for spec in self.encoders if spec.batch_size < 1 or spec.micro < 0]:
            raise InputError(f"encoders {bad}: expected batch_size >= 1 and micro >= 0 (0: batch_size)")
        if bad := [spec.name for spec in self.encoders if {len(spec.mean), len(spec.std)} - {0, 3} or 0 in spec.std]:
            raise InputError(f"encoders {bad}: expected mean and std of three channels, no std of 0")
        self._check_pretraining()
        if (self.split == "published") != (self.folds == 1):
            raise InputError(f"split {self.split}, folds {self.folds}: expected 1 with published, more with any other")
        if self.threads < 1 or self.folds < 1 or not 0 <= self.seed < 2**32:
            found = f"{self.threads}, {self.folds}, {self.seed}"
            raise InputError(f"expected threads >= 1, folds >= 1, a seed from 0 to 2^32 - 1, found {found}")
        if len(set(self.seeds)) < len(self.seeds) or not all(0 <= seed < 2**32 for seed in self.seeds):
            raise InputError(f"seeds: expected different numbers from 0 to 2^32 - 1, found {self.seeds}")

    def _check_pretraining(self) -> None:
        """Refuse pretrainings that would see who is tested, and encoders that do not fit theirs."""
        check_names(*self.pretraining)
        if self.pretraining and self.split != "official":
            why = "under crossval every patient is tested by some fold, and whoever is in the corpus has been seen"
            why = why if self.split == "crossval" else "no other split keeps who is tested out of the corpus"
            raise InputError(f"pretraining: expected `split: official`, found {self.split}: {why}")
        lists = {name: sorted(plan.seeds) for name, plan in self.pretraining.items() if plan.seeds}
        lists |= {"the study": sorted(self.seeds)} if self.seeds and lists else {}
        if len(set(map(tuple, lists.values()))) > 1:
            raise InputError(
                f"seeds: runs are compared seed by seed: expected the same seeds everywhere, found {lists}"
            )
        specs = {spec.name: spec for spec in self.encoders}
        for name, plan in self.pretraining.items():
            if plan.seeds and self.seed not in plan.seeds:
                raise InputError(
                    f"pretraining {name}: seeds: expected the study's own, {self.seed}, among {plan.seeds}"
                )
            if plan.start not in specs or specs[plan.start].pretraining:
                known = ", ".join(one for one, spec in specs.items() if not spec.pretraining)
                raise InputError(
                    f"pretraining {name}: start: expected an encoder of the study, {known}; found {plan.start!r}"
                )
        for spec in [one for one in self.encoders if one.pretraining]:
            if spec.pretraining not in self.pretraining:
                known = ", ".join(self.pretraining) or "none"
                raise InputError(
                    f"encoder {spec.name}: weights: expected a pretraining of the study ({known}), found {spec.weights}"
                )
            start = specs[(plan := self.pretraining[spec.pretraining]).start]
            if (spec.model, spec.options) != (start.model, start.options):
                wanted = f"expected model and options of {start.name}, where its pretraining starts, {start.model} {start.options}"
                raise InputError(f"encoder {spec.name}: {wanted}; found {spec.model} {spec.options}")
            if plan.transductive and "transductive" not in spec.name:
                why = "its pretraining saw test pictures, and every result must say so"
                raise InputError(f"encoder {spec.name}: {why}: write the word transductive into its name")

    @property
    def folder(self) -> Path:
        """Return where the study writes."""
        return paths.results() / self.name

    def encoders_of(self, protocol: str) -> list[str]:
        """Return the encoders that a protocol is called for: all for a probe of the study."""
        if PROTOCOLS[protocol].part != "probing":
            return self.tuned.get(protocol, [])
        return [spec.name for spec in self.encoders] if protocol in self.probes else []

    def seeds_of(self, protocol: str, encoder: str = "") -> list[int]:
        """Return the seeds that a protocol is run with, one predictions file each on every fold: those of the encoder's pretraining first."""
        made = {spec.name: spec.pretraining for spec in self.encoders}.get(encoder, "")
        if made and self.pretraining[made].seeds:
            return self.pretraining[made].seeds
        return self.seeds if self.seeds and PROTOCOLS[protocol].job in TRAINING else [self.seed]

    def tunings(self, job: str = "") -> list[tuple[str, str]]:
        """Return what is run encoder by encoder, (encoder, protocol); ``job``: what one job computes."""
        return [(name, protocol) for protocol in tunings(job) for name in self.encoders_of(protocol)]

    @cached_property
    def the_task(self) -> Task:
        """Return the task, trained and narrowed as the study says."""
        return (self.own_task or get_task(self.task)).adapted(self.train, self.tests)

    def encoder_spec(self, name: str) -> EncoderSpec:
        """Return the entry of one encoder."""
        for spec in self.encoders:
            if spec.name == name:
                return spec
        raise InputError(
            f"study {self.name} has no encoder {name!r}: expected one of {', '.join(s.name for s in self.encoders)}"
        )

    def begin(self) -> "Study":
        """Hold this process to the study's threads (results depend on them in the last bits); return the study."""
        from threadpoolctl import threadpool_limits

        threadpool_limits(self.threads)
        return self

    def describe(self) -> None:
        """Print what is run, and what the results are not."""
        cohorts, encoders = (
            ", ".join(names) for names in ([c.title for c in self.cohorts], [e.name for e in self.encoders])
        )
        print(f"{self.title}\n  cohorts   {cohorts} ({self.the_task.train} trains)\n  encoders  {encoders}")
        print(f"  folds     {self.folds}, {self.split}, seed {self.seed}\n  probes    {', '.join(self.probes)}")
        if self.seeds not in ([], [self.seed]):
            print(f"  seeds     {', '.join(map(str, self.seeds))} of fine-tuning")
        for protocol in tunings():
            print(f"  {protocol:<9} {', '.join(self.encoders_of(protocol)) or 'none'}")
        for name, plan in self.pretraining.items():
            told = ", ".join(spec.title for spec in plan.corpus) + ", test pictures among them" * plan.transductive
            print(f"  pretrained {name}: from {plan.start} on {told}, {plan.epochs} epochs")
        if self.label:
            print(f"  Mind: {self.label}.")


def load_study(name: str | Path) -> Study:
    """Read a study.

    Parameters
    ----------
    name
        A path, or the name of a file in the ``studies/`` of the workspace.

    Returns
    -------
    Study
        A frozen dataclass; nothing is loaded yet.

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
        path = paths.home() / "studies" / f"{name}.yaml"
    if not os.path.isfile(path):
        there = ", ".join(sorted(file.stem for file in (paths.home() / "studies").glob("*.yaml")))
        raise MissingError(f"expected a study file at {path.absolute()}, found nothing: the studies are {there}")
    content, called, own = records.plain_yaml(path.read_bytes(), str(path)), {}, None
    if isinstance(content, dict):
        for file in records.convert(list[str], content.get("extensions", []), f"{path}: extensions"):
            extension(file)
        for protocol in [name for name in tunings() if name in content]:
            called[protocol] = records.convert(list[str], content.pop(protocol), f"{path}: {protocol}")
        if isinstance(block := content.get("task"), dict):
            own = records.build(Task, block, f"{path}: task")
            if own.name in TASKS:
                raise InputError(f"{path}: task: there is a task {own.name!r} already: give yours another name")
            content = content | {"task": own.name}
    return records.build(Study, content, str(path), also=tunings(), tuned=called, own_task=own)


def check_names(*names: str) -> None:
    """Raise InputError for a name that cannot be a file name."""
    if bad := [name for name in names if not re.fullmatch(r"[\w.-]*[^\W_][\w.-]*", name)]:
        raise InputError(f"{bad}: a name becomes a file name: use letters, digits, '-', '_' and '.'")


@cache
def extension(file: str) -> ModuleType:
    """Return the module of a Python file of a study, e.g. one that registers encoders; it is executed once in a process."""
    path = paths.expand(file)
    if not os.path.isfile(path) or path.suffix != ".py":
        raise MissingError(f"expected a Python file at {path} (extensions of the study), found nothing")
    spec = spec_from_file_location(f"fpbench_extension_{path.stem}", path)
    assert spec is not None  # there are both for every .py
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
