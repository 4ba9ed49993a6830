"""What a job depends on: named parts, whose digest is its key."""

from dataclasses import asdict
from pathlib import Path

from fpbench import images, loading, recipe, splits
from fpbench.cohorts import folder_of, pictures_in
from fpbench.encoders.fetch import sha256
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.recipe import CorpusSpec
from fpbench.study import EncoderSpec, Study
from fpbench.tasks import RANKED
from fpbench.training import bench, embeddings, segmentation


def key_parts(study: Study) -> dict[str, dict]:
    """Return everything that the jobs of a study depend on: named parts, in groups of which every job takes some (``grid.jobs``).

    A weights file that cannot be read is a part that says so: it is the matter of its own encoder's jobs.
    """
    task = study.the_task
    loaded: dict[str, dict[str, str]] = {"cohort": {}, "encoder": {}, "probe": {}}  # extensions, by what they register
    for file in study.extensions:
        text = paths.expand(file).read_text(encoding="utf-8")
        for kind in [kind for kind in loaded if f"register_{kind}" in text] or loaded:
            loaded[kind][f"file {file}"] = artifacts.digest(text)
    cohorts = {
        f"cohort {source.name}": [one.missing, _folder_digest(*loading.where(study, one))]
        for one, source in zip(study.cohorts, loading.sources(study), strict=True)
    }
    common = {"threads": study.threads, "device": study.device, "step embeddings": embeddings.VERSION}
    groups: dict[str, dict] = {
        "cohorts": {
            "task": {"label": task.label, "classes": task.classes, "train": task.train},
            "step images": images.VERSION,
            "step looking": images.LOOKS,
            **cohorts,
            **loaded["cohort"],
        },
        "cut": {"split": study.split, "folds": study.folds, "seed": study.seed, "step splits": splits.VERSION},
        "probes": {"probes": study.probes, "step probing": bench.VERSION, **loaded["probe"]},
        "tuning": {"recipe": asdict(study.recipe), "step fine-tuning": recipe.VERSION, "step probing": bench.VERSION},
    }
    groups["segmentation"] = {"step segmentation": segmentation.VERSION, "step masks": segmentation.MEASURES}
    if study.seeds not in ([], [study.seed]):
        groups["tuning"]["seeds"] = study.seeds
    if task.selection in RANKED:
        groups["tuning"]["chosen by"] = [task.selection, task.positive]
    for spec in study.encoders:
        fields = {
            name: value for name, value in asdict(spec).items() if name != "weights"
        }  # the file is a part of its own
        memory = {f"memory of {spec.name}": {name: fields.pop(name) for name in ("micro", "checkpointing")}}
        own = {f"encoder {spec.name}": fields, f"weights file of {spec.name}": _weights_digest(study, spec)}
        described = spec.model.partition(":")[2]
        if described.endswith(".json") and paths.expand(described).is_file():
            own[f"file {described}"] = artifacts.file_sha256(paths.expand(described))
        groups[f"encoder {spec.name}"] = {**common, **loaded["encoder"], **own}
        groups[f"tuned {spec.name}"] = {**groups["tuning"], **memory}
    for name in study.pretraining:
        groups[f"pretraining {name}"] = _pretraining(study, name, groups)
    for spec in [
        one for one in study.encoders if one.pretraining
    ]:  # their weights are what their pretraining depends on
        groups[f"encoder {spec.name}"] |= groups[f"pretraining {spec.pretraining}"] | groups["cohorts"] | groups["cut"]
    return groups


def _pretraining(study: Study, name: str, groups: dict[str, dict]) -> dict:
    """Return what the weights of a pretraining depend on, but for the study's cohorts and their cut."""
    from fpbench.training.pretraining import corpus, trainer

    plan = study.pretraining[name]
    fields = {key: value for key, value in asdict(plan).items() if key != "corpus"}
    parts = {f"corpus {name}: {spec.title}": _corpus_digest(study, spec) for spec in plan.corpus}
    steps = {"step pretraining": [trainer.VERSION, corpus.VERSION]}
    return {**groups[f"encoder {plan.start}"], f"pretraining {name}": fields, **parts, **steps}


def _corpus_digest(study: Study, spec: CorpusSpec) -> list:
    """Return the parts that are asked for, and a digest of the pictures."""
    from fpbench.training.pretraining import corpus

    if spec.folder:
        folder = paths.expand(spec.folder)
        files = [[str(file.relative_to(folder)), file.stat().st_size] for file in corpus.listed(folder)]
        return [spec.parts, artifacts.digest(files)]
    return [spec.parts, spec.missing, _folder_digest(*corpus.place(study, spec))]


def _folder_digest(name: str, root: Path | None) -> str:
    """Return a digest of the label file, of what describes it, and of the names and sizes of all pictures."""
    source, folder = folder_of(name, root)
    table = source.table.digest() if source.table else artifacts.file_sha256(folder / source.csv)
    return artifacts.digest([table, pictures_in(source, folder)])


def _weights_digest(study: Study, spec: EncoderSpec) -> str:
    if spec.pretraining:
        return f"of pretraining {spec.pretraining}"
    try:
        weights = loading.weights(study, spec)
        return weights if weights in ("hub", "random") else sha256(Path(weights))
    except (InputError, OSError) as error:
        return f"unusable: {error}"
