"""What is predicted. A task names its label column, the order of its classes, who trains it and who tests it.

Nothing else in the library knows how many planes there are: to add a task, add an entry to ``TASKS``. Populations, not
cohorts, are named here, so that the real archive, its sample and its phantom serve the same task.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fpbench.errors import InputError

EVERY, JOIN = "all classes", " + "  # names of label spaces


@dataclass(frozen=True)
class Task:
    """A classification task."""

    name: str
    title: str  # for headings
    label: str  # column of the cohort frame that holds the class
    classes: tuple[str, ...]  # order of the logits; rows with any other label take no part
    train: str  # population that the models are trained on
    tests: dict[str, tuple[str, ...]] = field(default_factory=dict)  # population -> the classes that occur in it

    def codes(self, labels: Iterable) -> list[int]:
        """Return the class index of each label; -1 where a label is no class of this task."""
        index = {name: code for code, name in enumerate(self.classes)}
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
    Task("planes", "six fetal planes", "plane", PLANES, "spain", {"spain": PLANES, "africa": PLANES[:4]}),
    Task("brain_planes", "brain sub-planes", "brain_plane", BRAIN_PLANES, "spain", {"spain": BRAIN_PLANES}),
)
TASKS = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """Return a task by name; InputError names the known ones."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
