"""What a study names, opened: its cohorts, its encoders on their device."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fpbench import cohorts, encoders, images, results
from fpbench.cohorts import Cohort
from fpbench.cohorts.source import Source
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, machine, paths, progress
from fpbench.study import CohortSpec, EncoderSpec, Study

if TYPE_CHECKING:
    from fpbench.encoders import Encoder
    from fpbench.images import Geometry


def load_cohorts(study: Study, look: bool = True) -> tuple[Cohort, tuple[Cohort, ...]]:
    """Return the cohort that trains, and the external ones that test: all others; each knows the ``geometries`` of the study.

    ``look``: as ``cohorts.load_cohort`` takes it.

    Raises
    ------
    InputError
        As ``hold`` has it; a cohort without an image of the task; or what ``cohorts.load_cohort`` raises.
    """
    task = study.the_task
    sources(study)
    loaded = [cohorts.load_cohort(*where(study, spec), spec.missing, look) for spec in study.cohorts]
    check(study, loaded)
    loaded = [replace(cohort, geometries=geometries(study)) for cohort in grouped(study, loaded)]
    home = next(cohort for cohort in loaded if cohort.source.population == task.train)
    return home, tuple(cohort for cohort in loaded if cohort is not home)


def grouped(study: Study, loaded: list[Cohort]) -> list[Cohort]:
    """Return cohorts with the groups that the split of the study cuts: of a ``published`` one the cases of the cohort that trains."""
    if study.split != "published":
        return loaded
    return [one.by_case() if one.source.population == study.the_task.train else one for one in loaded]


def geometries(study: Study) -> tuple[images.Geometry, ...]:
    """Return what the jobs of a study make of every picture, as far as no model must be built to know it (``encoders.declared``).

    The first job that decodes makes all of it. An encoder whose weights file is not there, or which failed in the last run, asks for
    nothing; one of timm, open_clip or transformers whose geometry the study does not declare in full has a pass of its own.
    """
    found = [images.BORDERS]  # of notebook 08
    for spec in results.present(study):
        with suppress(InputError, OSError):  # the matter of its own jobs
            file = weights_file(spec)
            if (file is None or file.is_file()) and (one := encoders.declared(spec.model, spec.pooling, spec.geometry)):
                found.append(one)
    return tuple(dict.fromkeys(found))


def check(study: Study, loaded: list[Cohort]) -> None:
    """Raise InputError for a cohort whose frame has no image of the study's task."""
    task = study.the_task
    for cohort in loaded:
        if task.label not in cohort.frame:
            there = ", ".join(cohort.frame.columns)
            raise InputError(
                f"{cohort.name} has no column {task.label!r}, the label of task {task.name}: found {there}"
            )
        if not cohort.frame[task.label].isin(task.classes).any():
            wanted = f"expected images of {', '.join(task.classes)} ({task.label})"
            raise InputError(f"{cohort.name}: {wanted}, found none: leave it out of a study of this task")


def load_encoder(study: Study, name: str, seed: int | None = None) -> "Encoder":
    """Return an encoder of the study, on its device; holds torch to the study's threads. ``seed``: of its pretraining, if it has several."""
    import torch

    progress.begin(f"loading {name}")
    torch.set_num_threads(study.threads)
    spec = study.encoder_spec(name)
    settings = {key: value for key in ("mean", "std", "pooling", "prefix", "options") if (value := getattr(spec, key))}
    encoder = encoders.load_encoder(
        spec.model,
        weights(study, spec, seed),
        name=name,
        geometry=spec.geometry,
        seed=spec.seed,
        ignore=tuple(spec.ignore),
        **settings,
    ).to(device(study))
    return _made_here(study, spec, encoder, seed) if spec.pretraining else encoder


def _made_here(study: Study, spec: EncoderSpec, encoder: "Encoder", seed: int | None) -> "Encoder":
    """Return an encoder that a pretraining of the study made, its facts those of the model card."""
    card = artifacts.checked(file := results.pretrained(study, spec.pretraining, seed)).get("card")
    kinds = {"licence": str, "note": str, "saw": dict}
    if not isinstance(card, dict) or not all(isinstance(card.get(name), kind) for name, kind in kinds.items()):
        found = f"expected the model card of a pretraining in {artifacts.sidecar(file).name}, found none"
        raise InputError(f"{file}: {found}: delete both and run notebook 10 with pretraining={spec.pretraining}")
    told = replace(
        encoder.weights, licence=card["licence"], saw=card["saw"], notes=(*encoder.weights.notes, card["note"])
    )
    return replace(encoder, weights=told)


def geometry(study: Study, name: str) -> "Geometry":
    """Return how an encoder of the study sees a picture; no weights are needed."""
    spec = replace(study.encoder_spec(name), weights="random", ignore=[])
    return load_encoder(replace(study, encoders=[spec], tuned={}, pretraining={}), name).geometry


def best_device() -> str:
    """Return cuda where there is a GPU, else cpu; InputError where ``FPBENCH_GPUS`` names some and torch sees others, or none."""
    import torch

    names = machine.named_gpus()
    os.environ.update(machine.visible(names) if names else {})
    if names and not 0 < (seen := torch.cuda.device_count()) <= len(names):  # of MIG instances it sees one
        how = "expected numbers or names as `nvidia-smi -L` gives them, set before torch first looks"
        raise InputError(f"FPBENCH_GPUS={','.join(names)}: torch sees {seen} GPUs: {how}; or take it out")
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(study: Study) -> str:
    """Return cpu, cuda or cuda:N; InputError if it is not there."""
    if study.device == "auto":
        return best_device()
    if study.device.startswith("cuda") and best_device() == "cpu":
        raise InputError(f"device {study.device}: torch sees no GPU here; use 'auto' or 'cpu'")
    return study.device


def where(study: Study, spec: CohortSpec) -> tuple[str, Path | None]:
    """Return a cohort of a study as ``load_cohort`` and ``audit`` take it: name and folder; or the file that describes it, and None."""
    return (str(paths.expand(spec.file)), None) if spec.file else (spec.name, root(study, spec))


def sources(study: Study) -> list[Source]:
    """Return the facts of the cohorts of a study, in its order; InputError for one that is unknown, and as ``hold`` has it."""
    found = [cohorts.source_of(where(study, spec)[0]) for spec in study.cohorts]
    hold(study, found)
    return found


def has_sweeps(study: Study) -> bool:
    """Return whether the pictures of the cohort that trains are frames of blind sweeps, whose quality is looked at."""
    task = study.the_task
    return any(one.population == task.train and "sweep" in one.further for one in sources(study)) and bool(
        task.positive
    )


def hold(study: Study, known: list[Source]) -> None:
    """Raise InputError unless names and populations are different, one trains, and ``tests`` of the study are among them."""
    names, populations = [source.name for source in known], [source.population for source in known]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"study {study.name}: two cohorts are called {twice[0]!r}: expected names of their own")
    if twice := sorted({name for name in populations if populations.count(name) > 1}):
        wanted = "expected cohorts of different populations, whose scores would be one"
        raise InputError(f"study {study.name}: {wanted}; found several of {', '.join(twice)}: describe them as one")
    if (train := study.the_task.train) not in populations:
        wanted = (
            f"expected one cohort of the population {train!r} to train on, found {', '.join(populations) or 'none'}"
        )
        raise InputError(f"study {study.name}: {wanted}; or write `train: NAME`")
    if strangers := [name for name in study.tests if name not in populations]:
        wanted = f"expected populations of its cohorts, {', '.join(populations)}"
        raise InputError(f"study {study.name}: tests of {', '.join(strangers)}: {wanted}")


def root(study: Study, spec: CohortSpec) -> Path:
    """Return the folder of a cohort that the study names."""
    return paths.expand(spec.root) if spec.root else paths.data() / spec.name


def weights_file(spec: EncoderSpec) -> Path | None:
    """Return where the weights file of an encoder lies or shall lie, unopened; None where there is none."""
    if spec.weights == "hub" and ":" not in spec.model:
        from fpbench.encoders.fetch import path_of

        return path_of(spec.model)
    return None if spec.pretraining or spec.weights in ("hub", "random") else paths.expand(spec.weights)


def weights(study: Study, spec: EncoderSpec, seed: int | None = None) -> str:
    """Return the weights of an encoder as ``encoders.load_encoder`` takes them: hub, random, or an absolute path."""
    if spec.pretraining:
        if not (path := results.pretrained(study, spec.pretraining, seed)).is_file():
            how = f"run the study, or notebook 10 with pretraining={spec.pretraining}"
            raise MissingError(f"encoder {spec.name}: expected weights at {path}, found nothing: {how}")
        return str(path)
    if spec.weights == "hub" and ":" not in spec.model:  # a file of the catalogue, pinned by the study
        from fpbench.encoders.fetch import locate

        return str(locate(spec.model, study.folder / "weights.lock.json"))
    return spec.weights if spec.weights in ("hub", "random") else str(paths.expand(spec.weights))
