"""What is predicted. A task names its label column, the order of its classes, who trains it, and by what it is judged.

Nothing else in the library knows how many planes there are: a task is an entry of ``TASKS``, or a block of a study. Populations,
not cohorts, are named here, so that the real archive, its sample and its phantom serve the same task. A population that a task
does not name is scored on the classes of the task that occur in it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fpbench.errors import InputError

EVERY, JOIN = "all classes", " + "  # names of label spaces
QUALITIES = ("none", "sub-optimal", "optimal")  # of a frame of a sweep; the last two are usable
RANKED = ("AUROC", "AUPRC")  # of the order of the images
HEADLINES = ("macro F1", "weighted F1", "accuracy", "balanced accuracy", *RANKED)  # of metrics.scores; higher is better


@dataclass(frozen=True)
class Task:
    """A classification task."""

    name: str
    label: str  # column of the cohort frame that holds the class
    classes: tuple[str, ...]  # order of the logits; rows with any other label take no part
    title: str = ""  # for headings; empty: the name
    train: str = ""  # population that the models are trained on
    tests: dict[str, tuple[str, ...]] = field(default_factory=dict)  # population -> the classes that it is scored on
    headline: str = HEADLINES[0]  # the score that tables and sentences speak of
    positive: str = ""  # the class that is looked for, if it is a search: AUPRC is of it

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        object.__setattr__(self, "title", self.title or self.name)
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"task {self.name}: expected two different classes or more, found {list(self.classes)}")
        if self.headline not in HEADLINES:
            raise InputError(
                f"task {self.name}: unknown headline {self.headline!r}: expected one of {', '.join(HEADLINES)}"
            )
        if self.positive not in ("", *self.classes) or (self.headline == "AUPRC" and not self.positive):
            wanted = f"expected `positive` to be one of {', '.join(self.classes)}"
            raise InputError(f"task {self.name}: {wanted}, found {self.positive!r} (AUPRC needs it)")
        for population, classes in self.tests.items():
            if not classes or (unknown := [name for name in classes if name not in self.classes]):
                found = f"found {unknown}" if classes else "found none"
                raise InputError(
                    f"task {self.name}, tests of {population}: expected some of {', '.join(self.classes)}, {found}"
                )

    def adapted(self, train: str, tests: Mapping[str, Sequence[str]]) -> "Task":
        """Return the task trained on another population (empty: the same), and narrowed to some classes for some populations."""
        narrowed = {
            name: tuple(c for c in self.classes if c in wanted) if set(wanted) <= set(self.classes) else tuple(wanted)
            for name, wanted in tests.items()
        }
        return replace(self, train=train or self.train, tests=self.tests | narrowed)

    @property
    def home(self) -> tuple[str, ...]:
        """Return the classes that the population which trains is scored on."""
        return self.tests.get(self.train, self.classes)

    @property
    def selection(self) -> str:
        """Return the score that chooses an epoch and a learning rate: the headline if it ranks images, else macro F1."""
        return self.headline if self.headline in RANKED else HEADLINES[0]

    @property
    def positive_code(self) -> int | None:
        """Return the index of the class that is looked for; None if it is no search."""
        return self.classes.index(self.positive) if self.positive else None

    def codes(self, labels: Iterable) -> list[int]:
        """Return the class index of each label; -1 where a label is no class of this task."""
        index = {name: code for code, name in enumerate(self.classes)}
        labels = labels.tolist() if hasattr(labels, "tolist") else labels  # a column of text yields its values slowly
        return [index.get(label, -1) for label in labels]

    def space(self, classes: Sequence[str]) -> str:
        """Return what a label space is called and keyed by: its classes, never their number; "all classes" for all of them.

        Raises
        ------
        InputError
            The name of a class would make two label spaces look alike.
        """
        if tuple(classes) == self.classes:
            return EVERY
        if odd := [name for name in classes if JOIN in name or name == EVERY]:
            raise InputError(
                f"task {self.name}: expected class names without {JOIN!r} that are not {EVERY!r}, found {odd}"
            )
        return JOIN.join(classes)

    def columns(self) -> list[str]:
        """Return the names of the logit columns of a predictions file, in class order."""
        return [f"logit_{name}" for name in self.classes]


PLANES = ("abdomen", "brain", "femur", "thorax", "cervix", "other")
BRAIN_PLANES = ("trans-thalamic", "trans-ventricular", "trans-cerebellar")

_ALL = (
    Task("planes", "plane", PLANES, "six fetal planes", "spain", {"spain": PLANES, "africa": PLANES[:4]}),
    Task("brain_planes", "brain_plane", BRAIN_PLANES, "brain sub-planes", "spain", headline="weighted F1"),
    Task("quality", "usable", ("no plane", "plane"), "usable abdominal plane", "acouslic", headline="AUPRC", positive="plane"),
    Task("quality_optimal", "optimal", ("not optimal", "optimal"), "optimal abdominal plane", "acouslic", headline="AUPRC", positive="optimal"),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """Return a task by name; InputError names the known ones."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
