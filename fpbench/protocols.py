"""From an encoder to predictions: every probe and every fine-tuning of it, on every fold.

Each fold writes its own predictions file; a restart skips the files that are there and current. What is chosen (strength of
a probe; learning rate and epoch of a fine-tuning) is chosen on the fold's validation rows: test rows enter only afterwards.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fpbench import artifacts, embeddings, images, paths, predictions, probing, recipe, splits
from fpbench.cohorts import Cohort, folder_of
from fpbench.embeddings import embed_cohort, embedding_key
from fpbench.encoders import Encoder
from fpbench.encoders.fetch import sha256
from fpbench.errors import InputError
from fpbench.splits import Fold, Splits
from fpbench.study import EncoderSpec, Study
from fpbench.tasks import Task

if TYPE_CHECKING:
    from fpbench.finetuning import Classifier, Part, Pictures

VERSION = 1  # of the probes; raise it when their predictions change
Scores = Callable[[np.ndarray], np.ndarray]  # embeddings (n, D) -> logits (n, K)
Answers = Callable[[Cohort, np.ndarray], np.ndarray]  # cohort, rows (n,) -> logits (n, K)


@dataclass(frozen=True)
class Bench:
    """One encoder, its embeddings of every cohort, and the cut: what a protocol works on."""

    study: Study
    task: Task
    encoder: str
    model: Encoder
    splits: Splits
    home: Cohort  # trains, validates, tests in-domain
    external: tuple[Cohort, ...]  # test out-of-domain
    embeddings: dict[str, np.ndarray]  # cohort name -> (N, D) float32; empty if not asked for
    about: dict  # the encoder's part of a sidecar
    key: str  # digest of all of the above
    shown: dict[str, np.ndarray] = field(default_factory=dict)  # cohort name -> what is answered on, if not embeddings

    @property
    def spec(self) -> EncoderSpec:
        """Return the encoder's entry in the study."""
        return self.study.encoder_spec(self.encoder)

    @property
    def labels(self) -> np.ndarray:
        """Return the class index of every image of the home cohort; 0 where it has none (no fold holds such a row)."""
        return np.maximum(self.task.codes(self.home.frame[self.task.label]), 0)

    @property
    def classes(self) -> int:
        """Return how many classes the task has."""
        return len(self.task.classes)

    @property
    def cohorts(self) -> tuple[Cohort, ...]:
        """Return home and external cohorts."""
        return (self.home, *self.external)

    @property
    def features(self) -> np.ndarray:
        """Return the embeddings of the home cohort."""
        return self.embeddings[self.home.name]


def open_bench(
    study: Study, encoder: str, home: Cohort, external: tuple[Cohort, ...], splits: Splits, embed: bool = True
) -> Bench:
    """Lay out what the protocols need; the probes need every cohort embedded, once (from the cache if it can be)."""
    spec, model = study.encoder_spec(encoder), study.load_encoder(encoder)
    cohorts = (home, *external)
    keys = [embedding_key(model, cohort, spec.batch_size, spec.bf16) for cohort in cohorts]
    about = {
        "name": encoder,
        **model.identity(),
        "fingerprint": model.fingerprint,
        "parameters": model.parameters(),
        "weights": asdict(model.weights),
        "label": model.weights.label,
        "cohorts": {cohort.name: cohort.fingerprint() for cohort in cohorts},
        "device": str(model.device),
    }
    wanted = cohorts if embed else ()
    embedded = {cohort.name: embed_cohort(model, cohort, spec.batch_size, spec.bf16) for cohort in wanted}
    labels = [cohort.fingerprint() for cohort in cohorts]
    key = artifacts.digest([keys, labels, splits.digest(), VERSION, study.task, study.seed, study.threads])
    return Bench(study, study.the_task, encoder, model, splits, home, external, embedded, about, key)


def run_probe(bench: Bench, probe: str, folds: Sequence[Fold] = (), aside: str = "") -> list[Path]:
    """Fit one probe on all folds that lack a current predictions file, and write them.

    Parameters
    ----------
    folds
        Default: those of ``bench.splits``.
    aside
        Name of a side question, whose files lie apart (``Study.predictions``).

    Returns
    -------
    list of Path
        The predictions files of all folds.
    """
    started = time.perf_counter()
    folds = list(folds) or [bench.splits.fold(number) for number in range(bench.splits.folds)]
    files = [bench.study.predictions(bench.encoder, probe, fold.number, aside) for fold in folds]
    key = artifacts.digest([bench.key, probe])
    todo = [(fold, path) for fold, path in zip(folds, files, strict=True) if not predictions.is_current(path, key)]
    fitted = PROBES[probe](bench, [fold for fold, _ in todo]) if todo else []
    for (fold, path), (scores, chosen) in zip(todo, fitted, strict=True):
        about = {"key": key, "chosen": chosen, "seconds": time.perf_counter() - started}
        shown = bench.embeddings | bench.shown
        rows = answered(bench, probe, fold, lambda c, at, s=scores, shown=shown: s(shown[c.name][at]))
        write(bench, path, rows, about)
    return files


def answered(bench: Bench, protocol: str, fold: Fold, answers: Answers, **run) -> pd.DataFrame:
    """Return the rows of a predictions file: validation, test, and all of the external cohorts; ``run`` replaces its columns."""
    train = bench.home.frame.iloc[fold.train]
    run = {
        "fold": fold.number,
        "encoder": bench.encoder,
        "protocol": protocol,
        "n_patients": train["patient"].nunique(),
        "seed": bench.study.seed,
    } | run
    parts = [(bench.home, {"val": fold.validation, "test": fold.test})]
    for cohort in bench.external:
        usable = np.array(bench.task.codes(cohort.frame[bench.task.label])) >= 0
        parts.append((cohort, {"test": np.flatnonzero(usable)}))
    tables = []
    for cohort, named in parts:
        split = np.repeat(list(named), [len(positions) for positions in named.values()])
        logits = np.concatenate([answers(cohort, positions) for positions in named.values()])
        positions = np.concatenate(list(named.values()))
        tables.append(predictions.rows(cohort, bench.task, positions, logits, split=split, **run))
    return pd.concat(tables)


def write(bench: Bench, path: Path, rows: pd.DataFrame, about: dict) -> None:
    """Write a predictions file with its sidecar; ``about`` holds its key and what was chosen."""
    made = {**artifacts.provenance(), "threads": bench.study.threads, "peak_memory": artifacts.peak_memory()}
    sidecar = {
        "study": asdict(bench.study),
        "study_hash": artifacts.digest(asdict(bench.study)),
        "splits": bench.splits.digest(),
        "encoder": bench.about,
        "provenance": made,
    }
    predictions.write(path, rows, bench.task, {**sidecar, **about})


def _logistic(bench: Bench, folds: list[Fold]) -> list[tuple[Scores, dict]]:
    train = [fold.train for fold in folds]
    fitted = probing.fit_paths(bench.features, bench.labels, train, bench.classes)
    return [_strength(bench, fold, path, "C") for fold, path in zip(folds, fitted, strict=True)]


def _ridge(bench: Bench, folds: list[Fold]) -> list[tuple[Scores, dict]]:
    fitted = probing.fit_ridge(bench.features, bench.labels, [fold.train for fold in folds], bench.classes)
    return [_strength(bench, fold, path, "alpha") for fold, path in zip(folds, fitted, strict=True)]


def _strength(bench: Bench, fold: Fold, path: probing.Heads, name: str) -> tuple[Scores, dict]:
    """Choose a head on the validation rows; the curve of validation losses goes into the sidecar."""
    X, y = bench.features[fold.validation], bench.labels[fold.validation]
    choice = probing.choose(path, X, y)
    chosen = {"name": name, **asdict(choice), "curve": np.column_stack([path.strength, path.losses(X, y)]).tolist()}
    if isinstance(path, probing.Path):
        chosen["certificate"] = float(path.certificate[choice.index])
    return lambda features: path.logits(features, choice.index), chosen


def _knn(bench: Bench, folds: list[Fold]) -> list[tuple[Scores, dict]]:
    def scores(fold: Fold) -> Scores:
        X, y = bench.features[fold.train], bench.labels[fold.train]
        return lambda features: probing.knn_scores(X, y, features, bench.classes)

    return [(scores(fold), {"name": "k", "strength": 20, "temperature": 0.07}) for fold in folds]


PROBES = {"logistic": _logistic, "ridge": _ridge, "knn": _knn}


def register_probe(name: str, title: str, fit: Callable[[Bench, list[Fold]], list[tuple[Scores, dict]]]) -> None:
    """Add a probe of your own, e.g. from an extension of a study.

    Parameters
    ----------
    name, title
        In the study and in file names; in tables.
    fit
        Returns, for every fold, a function from embeddings to logits, and what was chosen, for the sidecar (``name`` and
        ``strength`` at least). It may use the fold's training and validation rows.
    """
    if name in recipe.PROTOCOLS:
        raise InputError(f"there is a protocol {name!r} already: expected a new name")
    PROBES[name], recipe.PROTOCOLS[name] = fit, title


def run_finetuning(bench: Bench, mode: str, folds: Sequence[int] = ()) -> list[Path]:
    """Fine-tune on some folds (default: all) where there is no current predictions file, and write them.

    Under ``official`` the learning rate is chosen on fold 0 and used for all; under ``crossval`` every fold chooses its own.

    Raises
    ------
    InputError
        Some folds failed (a loss that was not finite, too little memory); the others were finished first.
    """
    import torch

    from fpbench import finetuning

    key, failed = tuning_key(bench, mode), {}
    files = [bench.study.predictions(bench.encoder, mode, fold) for fold in folds or range(bench.splits.folds)]
    todo = [
        path
        for path in files
        if not (predictions.is_current(path, key) and artifacts.whole(_weights(bench, mode, path)))
    ]
    pictures = {
        c.name: finetuning.Pictures(c.array(bench.model.geometry), bench.model.device) for c in bench.cohorts if todo
    }
    for path in todo:
        started, fold = time.perf_counter(), bench.splits.fold(int(path.stem.removeprefix("fold")))
        try:
            model, chosen = _tune(bench, mode, fold, pictures, key)
        except (finetuning.Diverged, torch.OutOfMemoryError) as error:
            failed[fold.number] = str(error)
            continue
        answers = lambda cohort, rows, model=model: finetuning.predict(model, pictures[cohort.name], rows)  # noqa: E731
        about = {"key": key, "chosen": chosen, "seconds": time.perf_counter() - started}
        write(bench, path, answered(bench, mode, fold, answers), about)
    if failed:
        why = "\n".join(f"fold {number}: {reason}" for number, reason in failed.items())
        raise InputError(f"{bench.encoder}, {mode}: {len(failed)} of {len(files)} folds failed:\n{why}")
    return files


def _tune(bench: Bench, mode: str, fold: Fold, pictures: "dict[str, Pictures]", key: str) -> "tuple[Classifier, dict]":
    """Train once per learning rate; return the best model, and what was chosen and why."""
    from fpbench.finetuning import finetune

    rates, rule = _rates(bench, mode, fold, pictures, key)
    runs = []
    for rate in rates:
        model, part = classifier(bench, mode), learning_part(bench, fold, pictures[bench.home.name])
        folder = run_folder(bench, mode, key, fold.number, rate)
        run_key = artifacts.digest([key, fold.number, rate])
        title = f"{bench.encoder}, {mode}, fold {fold.number}, rate {rate:g}"
        history, epoch = finetune(
            model, part, bench.study.recipe, rate, folder, run_key, _seed(bench, mode, fold), title
        )
        runs.append((history.iloc[epoch], rate, model))
        runs = [min(runs, key=lambda run: (-run[0]["macro F1"], run[0]["NLL"]))] if len(runs) > 1 else runs
    (row, rate, model), grid = runs[0], bench.study.recipe.grid(mode)
    chosen = {
        "name": "learning rate", "strength": rate, "rule": rule, "epoch": int(row["epoch"]), "loss": float(row["NLL"]),
        "macro F1": float(row["macro F1"]), "at_edge": len(grid) > 1 and rate in (min(grid), max(grid)),
    }  # fmt: skip
    return model, chosen


def _rates(bench: Bench, mode: str, fold: Fold, pictures: dict, key: str) -> tuple[list[float], str]:
    """Return the learning rates that this fold tries, and by what rule."""
    grid = bench.study.recipe.grid(mode)
    if bench.splits.scheme == "crossval" or fold.number == 0 or len(grid) == 1:
        return grid, "best on the validation part of this fold"
    first = bench.study.predictions(bench.encoder, mode, 0)
    done = predictions.is_current(first, key)
    chosen = artifacts.checked(first)["chosen"] if done else _tune(bench, mode, bench.splits.fold(0), pictures, key)[1]
    return [chosen["strength"]], "best on the validation part of fold 0"


def classifier(bench: Bench, mode: str) -> "Classifier":
    """Return a fresh copy of the encoder with a new head."""
    from fpbench.finetuning import Classifier

    fresh = replace(bench.model, module=copy.deepcopy(bench.model.module))
    return Classifier(fresh, bench.classes, bench.study.recipe, mode, bench.spec, bench.study.seed)


def learning_part(bench: Bench, fold: Fold, pictures: "Pictures") -> "Part":
    """Return what a run on this fold may see."""
    from fpbench.finetuning import Part

    names = bench.home.frame["image_id"].to_numpy()
    return Part(pictures, bench.labels, names, fold.train, fold.validation)


def _weights(bench: Bench, mode: str, path: Path) -> Path:
    """Return where the weights behind a predictions file of ``run_finetuning`` lie."""
    rate, fold = artifacts.checked(path)["chosen"]["strength"], int(path.stem.removeprefix("fold"))
    return run_folder(bench, mode, tuning_key(bench, mode), fold, rate) / "best.safetensors"


def tuned(bench: Bench, mode: str, fold: int) -> "Classifier":
    """Return the model behind a predictions file of ``run_finetuning``."""
    from fpbench.finetuning import restore

    weights = _weights(bench, mode, bench.study.predictions(bench.encoder, mode, fold))
    return restore(classifier(bench, mode), weights.parent)


def movements(bench: Bench, mode: str, files: list[Path]) -> pd.DataFrame:
    """Return how far each layer of each tuned model moved: columns fold, layer, change."""
    from fpbench.adaptation import movement

    rows = []
    for fold in (int(path.stem.removeprefix("fold")) for path in files):
        moved = movement(bench.model.module, tuned(bench, mode, fold).body)
        rows += [{"fold": fold, "layer": layer, "change": change} for layer, change in moved.items()]
    return pd.DataFrame(rows)


def tuning_key(bench: Bench, mode: str) -> str:
    """Return a digest of everything that a fine-tuning depends on."""
    spec = [bench.spec.micro or bench.spec.batch_size, bench.spec.checkpointing]
    return artifacts.digest([bench.key, mode, asdict(bench.study.recipe), recipe.VERSION, spec])


def run_folder(bench: Bench, mode: str, key: str, fold: int, rate: float) -> Path:
    """Return where one training run keeps its checkpoint, its best weights and its history."""
    return bench.study.folder / "finetuning" / bench.encoder / mode / key[:12] / f"fold{fold}" / f"rate{rate:g}"


def histories(bench: Bench, mode: str) -> pd.DataFrame:
    """Return the training histories of all runs of a mode: columns fold, rate, epoch, loss, macro F1, NLL."""
    folder = bench.study.folder / "finetuning" / bench.encoder / mode / tuning_key(bench, mode)[:12]
    tables = []
    for path in sorted(folder.glob("fold*/rate*/best.json")):
        history = pd.DataFrame(artifacts.read_json(path)["history"])
        tables.append(history.assign(fold=int(path.parent.parent.name.removeprefix("fold"))))
    return pd.concat(tables, ignore_index=True)


def _seed(bench: Bench, mode: str, fold: Fold) -> int:
    return int(artifacts.digest([bench.study.seed, bench.encoder, mode, fold.number])[:12], 16)


def conclude(study: Study, encoder: str, name: str, files: list[Path]) -> None:
    """Write ``predictions/<encoder>/<name>.json``, the list of predictions files with their SHA-256: the job is done."""
    done = {str(path.relative_to(study.folder)): artifacts.checked(path)["sha256"] for path in files}
    artifacts.write_json(study.folder / "predictions" / encoder / f"{name}.json", {"files": done})


def choices(files: list[Path]) -> pd.DataFrame:
    """Return what each fold chose: one row per predictions file, from the sidecars."""
    rows = []
    for path in files:
        about = artifacts.checked(path)
        told = {name: value for name, value in about["chosen"].items() if name not in ("curve", "index")}
        rows.append({"fold": int(path.stem.removeprefix("fold")), **told})
    return pd.DataFrame(rows)


def curves(files: list[Path]) -> pd.DataFrame:
    """Return validation loss against strength, from the sidecars: columns strength, loss, fold."""
    tables = []
    for path in files:
        curve = artifacts.checked(path)["chosen"]["curve"]
        tables.append(
            pd.DataFrame(curve, columns=["strength", "loss"]).assign(fold=int(path.stem.removeprefix("fold")))
        )
    return pd.concat(tables, ignore_index=True)


def costs(
    study: Study, home: Cohort, splits: Splits, tunings: Sequence[tuple[str, str]] = (), disk: bool = False
) -> pd.DataFrame:
    """Return what fine-tunings of the study (default: all) would take on this device, the choice of the rate included.

    The networks are built with random weights and timed on one pass; nothing is trained and no weights file is needed.
    """
    from fpbench.finetuning import Classifier, estimate

    images, rows = len(splits.fold(0).train), []
    for name, mode in tunings or study.tunings():
        spec, encoder = study.encoder_spec(name), blank(study, name)
        grid = len(study.recipe.grid(mode))
        runs = grid * study.folds if splits.scheme == "crossval" else grid + study.folds - 1
        model = Classifier(encoder, len(study.the_task.classes), study.recipe, mode, spec)
        row = {"encoder": name, "mode": mode, "runs": runs, **estimate(model, study.recipe, images, runs)}
        if disk:  # the best epoch of every run; a checkpoint holds two moments of every number besides
            held = sum(tensor.nbytes for tensor in model.changing().values()) / 1e9
            row |= {"weights GB": runs * held, "checkpoint GB": 3 * held}
        rows.append(row)
    return pd.DataFrame(rows)


def blank(study: Study, name: str) -> Encoder:
    """Return an encoder of the study with random weights: as large and as slow, and no file is needed."""
    spec = replace(study.encoder_spec(name), weights="random", ignore=[])
    return replace(study, encoders=[spec], full=[], lora=[]).load_encoder(name)


def key_parts(study: Study) -> dict[str, dict]:
    """Return everything that the jobs of a study depend on: named parts, in groups of which every job takes some (``grid.jobs``).

    A weights file that cannot be read is a part that says so: it is the matter of its own encoder's jobs.
    """
    loaded = {"cohort": {}, "encoder": {}, "probe": {}}  # extensions, by what they register
    for file in study.extensions:
        text = paths.expand(file).read_text()
        for kind in [kind for kind in loaded if f"register_{kind}" in text] or loaded:
            loaded[kind][f"file {file}"] = artifacts.digest(text)
    cohorts = {f"cohort {one.name}": [one.missing, _folder_digest(one.name, study.root(one))] for one in study.cohorts}
    common = {"threads": study.threads, "device": study.device, "step embeddings": embeddings.VERSION}
    groups = {
        "cohorts": {"task": study.task, "step images": images.VERSION, **cohorts, **loaded["cohort"]},
        "cut": {"split": study.split, "folds": study.folds, "seed": study.seed, "step splits": splits.VERSION},
        "probes": {"probes": study.probes, "step probing": VERSION, **loaded["probe"]},
        "tuning": {"recipe": asdict(study.recipe), "step fine-tuning": recipe.VERSION, "step probing": VERSION},
    }
    for spec in study.encoders:
        fields = {
            name: value for name, value in asdict(spec).items() if name != "weights"
        }  # the file is a part of its own
        memory = {f"memory of {spec.name}": {name: fields.pop(name) for name in ("micro", "checkpointing")}}
        own = {f"encoder {spec.name}": fields, f"weights file of {spec.name}": _weights_digest(study, spec)}
        groups[f"encoder {spec.name}"] = {**common, **loaded["encoder"], **own}
        groups[f"tuned {spec.name}"] = {**groups["tuning"], **memory}
    return groups


def _folder_digest(name: str, root: Path | None) -> str:
    """Return a digest of the label file and of the names and sizes of all pictures."""
    source, folder = folder_of(name, root)
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.png"))
    return artifacts.digest([artifacts.file_sha256(folder / source.csv), files])


def _weights_digest(study: Study, spec: EncoderSpec) -> str:
    try:
        weights = study.weights(spec)
        return weights if weights in ("hub", "random") else sha256(Path(weights))
    except (InputError, OSError) as error:
        return f"unusable: {error}"
