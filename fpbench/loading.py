"""What a study names, opened: its cohorts, its encoders on their device."""

from pathlib import Path
from typing import TYPE_CHECKING

from fpbench import cohorts
from fpbench.cohorts import Cohort
from fpbench.errors import InputError
from fpbench.files import paths
from fpbench.study import CohortSpec, EncoderSpec, Study

if TYPE_CHECKING:
    from fpbench.encoders import Encoder


def load_cohorts(study: Study) -> tuple[Cohort, tuple[Cohort, ...]]:
    """Return the cohort that trains, and the external ones that test.

    Raises
    ------
    InputError
        No cohort of the population that trains, or several; or what ``cohorts.load_cohort`` raises.
    """
    task = study.the_task
    loaded = [cohorts.load_cohort(spec.name, root(study, spec), spec.missing) for spec in study.cohorts]
    home = [cohort for cohort in loaded if cohort.source.population == task.train]
    if len(home) != 1:
        wanted = f"task {task.name} trains on the population {task.train!r}: expected one such cohort"
        raise InputError(f"{wanted}, found {len(home)}")
    return home[0], tuple(c for c in loaded if c is not home[0] and c.source.population in task.tests)


def load_encoder(study: Study, name: str) -> "Encoder":
    """Return an encoder of the study, on its device; holds torch to the study's threads."""
    import torch

    from fpbench import encoders

    torch.set_num_threads(study.threads)
    spec = study.encoder_spec(name)
    settings = {key: value for key in ("mean", "std", "pooling", "options") if (value := getattr(spec, key))}
    return encoders.load_encoder(
        spec.model,
        weights(study, spec),
        name=name,
        geometry=spec.geometry,
        seed=spec.seed,
        ignore=tuple(spec.ignore),
        **settings,
    ).to(device(study))


def device(study: Study) -> str:
    """Return cpu, cuda or cuda:N; InputError if it is not there."""
    import torch

    if study.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if study.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {study.device}: torch sees no GPU here; use 'auto' or 'cpu'")
    return study.device


def root(study: Study, spec: CohortSpec) -> Path:
    """Return the folder of a cohort of the study."""
    return paths.expand(spec.root) if spec.root else paths.data() / spec.name


def weights(study: Study, spec: EncoderSpec) -> str:
    """Return the weights of an encoder as ``encoders.load_encoder`` takes them: hub, random, or an absolute path."""
    if spec.weights == "hub" and ":" not in spec.model:  # a file of the catalogue, pinned by the study
        from fpbench.encoders.fetch import locate

        return str(locate(spec.model, study.folder / "weights.lock.json"))
    return spec.weights if spec.weights in ("hub", "random") else str(paths.expand(spec.weights))
