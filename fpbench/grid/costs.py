"""What jobs cost: measured on this device for people, and from declared facts for a scheduler."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpbench import loading
from fpbench.cohorts import count_images
from fpbench.encoders import MINI
from fpbench.encoders.catalogue import CATALOGUE
from fpbench.errors import InputError
from fpbench.files.progress import Progress
from fpbench.grid.jobs import Job
from fpbench.images import Geometry
from fpbench.protocols import PROTOCOLS, SEGMENTATION
from fpbench.splits import Splits, make_splits
from fpbench.study import Study


def bill(study: Study, due: list[Job]) -> str:
    """Return what jobs of encoders would cost on this device, as a table: a row per encoder, and their sum.

    The encoders are built with random weights, one after the other, and timed on a picture or a batch; nothing is embedded or
    trained, and no picture is opened: folds are counted by patient, as if none were linked to another by a picture.
    """
    import pandas as pd

    home, external = loading.load_cohorts(study.begin(), look=False)
    longer = _pretrainings(study, [job.pretraining for job in due if job.pretraining])
    if not (due := [job for job in due if job.encoder]):
        return longer
    cut = make_splits(home, study.the_task, study.split, study.folds, study.seed)
    images, gpu = sum(map(len, (home, *external))), loading.device(study).startswith("cuda")
    shapes, rows = set(), []
    with Progress(total=len(due), desc="timing networks", unit="job", leave=False) as bar:
        for name in dict.fromkeys(job.encoder for job in due):
            row, shape = _timed(study, cut, images, name, [job.mode for job in due if job.encoder == name], bar)
            rows.append(row)
            shapes.add(shape)
    table = pd.DataFrame(rows).fillna(0.0)
    table.loc[len(table)] = table.sum(numeric_only=True).to_dict() | {"encoder": "together"}
    table = table.rename(columns={"hours": "GPU-hours" if gpu else "hours on this CPU"})
    text = table.astype({"jobs": int}).to_string(index=False, float_format="{:,.3g}".format)
    cache = sum(images * shape.size**2 for shape in shapes) / 1e9
    told = f"{longer}\n\n" if longer else ""
    how = f"timed here with {'a batch' if gpu else 'one picture'} at a time"
    text = f"Every epoch run, the choice of the learning rate included; {how}:\n{text}"
    return f"{told}{text}\nimage cache: {cache:,.3g} GB; the analysis is not counted"


def _timed(
    study: Study, cut: Splits, images: int, name: str, modes: list[str], bar: Progress
) -> tuple[dict[str, Any], Geometry]:
    """Return a row of the bill, and what the encoder makes of a picture. Its network is built once, and gone afterwards."""
    from fpbench.encoders import inspection
    from fpbench.training import tuning

    spec, encoder = study.encoder_spec(name), tuning.blank(study, name)
    row: dict[str, Any] = {
        "encoder": name,
        "jobs": len(modes),
        "hours": 0.0,
        "embeddings GB": 4e-9 * images * encoder.dim,
    }
    for mode in modes:
        if mode:
            found = tuning.cost(study, cut, encoder, mode, disk=True)
            del found["runs"], found["steps"]
        else:
            batch = spec.batch_size if encoder.device.type == "cuda" else 1
            found = {"hours": images / inspection.cost(encoder, batch, spec.bf16, least=1)["images/s"] / 3600}
        row |= {key: row.get(key, 0.0) + value for key, value in found.items()}
        bar.update()
    return row, encoder.geometry


def _pretrainings(study: Study, names: list[str]) -> str:
    """Return what pretrainings would take on this device, as a table, from one timed step each; empty: there are none."""
    import pandas as pd

    from fpbench.training.pretraining import runs

    rows = [
        {"pretraining": name, "pictures": (count := runs.most(study, name)), **runs.estimate(study, name, count)}
        for name in names
    ]
    if not rows:
        return ""
    where = "GPU-hours" if loading.device(study).startswith("cuda") else "hours on this CPU"
    table = pd.DataFrame(rows).rename(columns={"hours": where})
    text = table.to_string(index=False, float_format="{:,.3g}".format)
    return f"Pretraining, on at most so many pictures (what the rules leave out is counted):\n{text}"


# What a job asks of a scheduler, from declared facts alone: generous, at most a day, since a job that is cut off goes on from its
# checkpoint in the next attempt. Snakemake's own `--set-resources RULE:runtime=600` (minutes), `RULE:mem_mb=64000` override it.
SPEED = {"cpu": 0.1e12, "gpu": 20e12}  # multiplications and additions that we count on, per second

# Bytes that it holds beside the image cache, which is mapped and of which a batch at a time is read.
BASE = 4e9  # the program and its libraries, those of a GPU as well, and what a probe or a batch takes besides
COPIES = 28  # of a trained number, seven times 4: as loaded, best run so far, this run with gradient and two moments, its best epoch
LOADED = 8  # of any other number of a network: of the file, and of the network
FEATURE = 16  # of a number of the embeddings: all of them once, and the training rows of a fold in single and in double precision
ROW = 500  # of a row of predictions: read, and joined with others
PICTURE = 2000  # of a row of a cohort's table
DECODED = 4200  # of a pixel of a picture, what the decoder of a segmenter keeps for its backward pass, float32


def resources(study: Study, passes: int | str) -> dict[str, Any]:
    """Return Snakemake's resources of a kind of job: numbers, or functions of its wildcards.

    ``passes``: how often every image goes through the network of the job's encoder, or through all where it has none;
    ``training``, ``pretraining``: as often as these need; 0: there is no network, and no GPU is asked for.
    """
    images, every = _images(study), [spec.name for spec in study.encoders]
    if not passes:
        return {"mem_mb": 4000 + _megabytes(study, passes, every, images), "runtime": 120}

    def names(wildcards: Any) -> list[str]:
        if passes == "pretraining":
            return [study.pretraining[wildcards.pretraining].start]
        return [wildcards.encoder] if "encoder" in dict(wildcards) else every

    def minutes(wildcards: Any) -> int:
        if isinstance(passes, int):
            seen = passes
        elif passes == "pretraining":  # the views of a picture cost about 13 passes of one at full size
            seen = 13 * study.pretraining[wildcards.pretraining].epochs
        else:  # forwards and backwards, by all runs
            runs = (
                len(study.recipe.grid(wildcards.mode)) + len(study.seeds_of(wildcards.mode, wildcards.encoder)) - 1
            )  # of a fold
            seen = 4 * study.recipe.epochs * runs * study.folds
        operations = sum(_facts(study, name).operations for name in names(wildcards)) * images * seen
        return min(1440, 60 + int(operations / SPEED["gpu" if study.device != "cpu" else "cpu"] / 60))

    def megabytes(wildcards: Any) -> int:
        given = dict(wildcards)
        return _megabytes(study, passes, names(wildcards), images, given.get("pretraining", ""), given.get("mode", ""))

    return {**(_gpu() if study.device != "cpu" else {"gpu": 0}), "mem_mb": megabytes, "runtime": minutes}


def _megabytes(
    study: Study, passes: int | str, names: Sequence[str], images: int, pretraining: str = "", mode: str = ""
) -> int:
    """Return what a kind of job may hold, in MB, with the networks that it loads; activations where they lie on the CPU."""
    networks = [(_facts(study, name), study.encoder_spec(name)) for name in names]
    parameters, on_cpu = sum(facts.parameters for facts, _ in networks), study.device == "cpu"
    held = BASE + PICTURE * images
    if passes == "pretraining":
        (facts, _), plan = networks[0], study.pretraining[pretraining]
        pixels = 2 * plan.views.size**2 + plan.views.locals * plan.views.local_size**2  # of all views of a picture
        held += COPIES * parameters + on_cpu * plan.objective.batch * facts.kept * pixels / facts.side**2
    elif passes == "training":
        facts, spec = networks[0]
        micro = min(spec.micro or spec.batch_size, study.recipe.batch)
        active = micro * facts.kept
        if PROTOCOLS[mode].job == SEGMENTATION:  # of a frozen encoder; the decoder sees the whole batch
            active = micro * facts.alive + study.recipe.batch * DECODED * facts.side**2
        held += COPIES * parameters + on_cpu * active
    elif passes:
        held += LOADED * parameters + FEATURE * images * max(facts.dim for facts, _ in networks)
        held += on_cpu * max(facts.alive * spec.batch_size for facts, spec in networks)
    return int((held + ROW * _rows(study, names, images)) / 1e6)


def _rows(study: Study, names: Sequence[str], images: int) -> int:
    """Return how many rows the predictions of some encoders have at most, of all protocols, folds and seeds together."""
    called = [(name, probe) for name in names for probe in study.probes]
    called += [(name, mode) for name, mode in study.tunings() if name in names]
    times = (
        2 if study.split == "crossval" else study.folds
    )  # it validates once and is tested once; or takes part in all
    return images * times * sum(len(study.seeds_of(protocol, name)) for name, protocol in called)


def _gpu() -> dict[str, Any]:
    """Return the resource that asks for a GPU: as ``FPBENCH_SLURM_GPU`` says to sbatch, else Snakemake's own, which sends ``--gpus=1``."""
    if not (words := os.environ.get("FPBENCH_SLURM_GPU", "").strip()):
        return {"gpu": 1}
    if not words.startswith("--") or words.startswith(("--gpus=", "--gpus ")):
        wanted = "expected --gres=gpu:1, --gres=gpu:MODEL:1 or --gpus-per-node=1; nothing for --gpus=1"
        raise InputError(f"FPBENCH_SLURM_GPU={words}: {wanted}")
    return {"gres": words[len("--gres") + 1 :]} if words.startswith("--gres") else {"slurm_extra": words}


def _images(study: Study) -> int:
    return sum(map(count_images, loading.sources(study)))


@dataclass(frozen=True)
class _Facts:
    """What a network is counted with."""

    operations: float  # multiplications and additions, per image and pass
    parameters: float
    dim: int  # numbers of an embedding
    side: int  # of its input, pixels
    kept: float  # bytes of an image for a backward pass, float32
    alive: float  # bytes of an image at most in a forward pass, float32


def _facts(study: Study, name: str) -> _Facts:
    """Return the facts of an encoder; of one that we do not know, much."""
    spec = study.encoder_spec(name)
    if spec.model.endswith(MINI):
        return _Facts(1e9, 1e6, 64, 64, 10e6, 2e6)
    entry = CATALOGUE.get(spec.model)
    said = re.match(r"[\d.]+", entry.gmacs) if entry else None
    usual = entry.geometry.size if entry else 224
    side = spec.geometry.get("size", usual)
    more = (side / usual) ** 2
    if entry and said:
        dim = entry.poolings[spec.pooling or next(iter(entry.poolings))]
        kept, alive = (1e6 * more * held for held in entry.held)
        return _Facts(2e9 * float(said[0]) * more, 1e6 * entry.parameters, dim, side, kept, alive)
    return _Facts(2e11, 300e6, 4096, side, 700e6 * more, 30e6 * more)
