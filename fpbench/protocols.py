"""From embeddings to predictions: every probe of one encoder on every fold.

Each fold writes its own predictions file; a restart skips the files that are there and current. A probe chooses its strength
on the fold's validation rows alone: test rows enter only after the choice is made.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import artifacts, embeddings, images, paths, predictions, probing, splits
from fpbench.cohorts import Cohort, folder_of
from fpbench.embeddings import embed_cohort, embedding_key
from fpbench.errors import MissingError
from fpbench.splits import Fold, Splits
from fpbench.study import Study

VERSION = 1  # of the probes; raise it when their predictions change
Scores = Callable[[np.ndarray], np.ndarray]  # embeddings (n, D) -> logits (n, K)


@dataclass(frozen=True)
class Bench:
    """One encoder, its embeddings of every cohort, and the cut: what a probe works on."""

    study: Study
    encoder: str
    splits: Splits
    home: Cohort  # trains, validates, tests in-domain
    external: tuple[Cohort, ...]  # test out-of-domain
    embeddings: dict[str, np.ndarray]  # cohort name -> (N, D) float32
    about: dict  # the encoder's part of a sidecar
    key: str  # digest of all of the above

    @property
    def labels(self) -> np.ndarray:
        """Return the class index of every image of the home cohort; 0 where it has none (no fold holds such a row)."""
        return np.maximum(self.study.the_task.codes(self.home.frame[self.study.the_task.label]), 0)

    @property
    def classes(self) -> int:
        """Return how many classes the task has."""
        return len(self.study.the_task.classes)

    @property
    def features(self) -> np.ndarray:
        """Return the embeddings of the home cohort."""
        return self.embeddings[self.home.name]


def open_bench(study: Study, encoder: str, home: Cohort, external: tuple[Cohort, ...], splits: Splits) -> Bench:
    """Embed every cohort once (from the cache if it can be) and lay out what the probes need."""
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
    embedded = {cohort.name: embed_cohort(model, cohort, spec.batch_size, spec.bf16) for cohort in cohorts}
    labels = [cohort.fingerprint() for cohort in cohorts]
    key = artifacts.digest([keys, labels, splits.digest(), VERSION, study.task, study.seed, study.threads])
    return Bench(study, encoder, splits, home, external, embedded, about, key)


def run_probe(bench: Bench, probe: str) -> list[Path]:
    """Fit one probe on all folds that lack a current predictions file, and write them.

    Returns
    -------
    list of Path
        The predictions files of all folds.
    """
    started = time.perf_counter()
    files = [bench.study.predictions(bench.encoder, probe, fold) for fold in range(bench.splits.folds)]
    key = artifacts.digest([bench.key, probe])
    folds = [bench.splits.fold(n) for n, path in enumerate(files) if not predictions.is_current(path, key)]
    for fold, (scores, chosen) in zip(folds, PROBES[probe](bench, folds) if folds else [], strict=True):
        seconds = time.perf_counter() - started
        _write(bench, files[fold.number], probe, fold, scores, {"key": key, "chosen": chosen, "seconds": seconds})
    return files


def _write(bench: Bench, path: Path, probe: str, fold: Fold, scores: Scores, about: dict) -> None:
    task = bench.study.the_task
    train = bench.home.frame.iloc[fold.train]
    run = {
        "fold": fold.number,
        "encoder": bench.encoder,
        "protocol": probe,
        "n_patients": train["patient"].nunique(),
        "seed": bench.study.seed,
    }
    parts = [(bench.home, fold.validation, "val"), (bench.home, fold.test, "test")]
    for cohort in bench.external:
        parts.append((cohort, np.flatnonzero(np.array(task.codes(cohort.frame[task.label])) >= 0), "test"))
    tables = [
        predictions.rows(cohort, task, positions, scores(bench.embeddings[cohort.name][positions]), split=split, **run)
        for cohort, positions, split in parts
    ]
    sidecar = {
        "study": asdict(bench.study),
        "study_hash": artifacts.digest(asdict(bench.study)),
        "splits": bench.splits.digest(),
        "encoder": bench.about,
        "provenance": {
            **artifacts.provenance(),
            "threads": bench.study.threads,
            "peak_memory": artifacts.peak_memory(),
        },
    }
    predictions.write(path, pd.concat(tables), task, {**sidecar, **about})


def _logistic(bench: Bench, folds: list[Fold]) -> list[tuple[Scores, dict]]:
    train = [fold.train for fold in folds]
    fitted = probing.fit_paths(bench.features, bench.labels, train, bench.classes, device=bench.about["device"])
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


def _sgd(bench: Bench, folds: list[Fold]) -> list[tuple[Scores, dict]]:
    train, validation = [fold.train for fold in folds], [fold.validation for fold in folds]
    seeds, device = [bench.study.seed], bench.about["device"]
    heads = probing.fit_sgd(bench.features, bench.labels, train, validation, bench.classes, seeds, device=device)
    return [
        (
            lambda X, head=head: head.logits(X, 0),
            {"name": "epoch", "strength": int(head.epoch[0]), "loss": float(head.loss[0])},
        )
        for head in heads
    ]


PROBES = {"logistic": _logistic, "ridge": _ridge, "knn": _knn, "sgd": _sgd}


def choices(files: list[Path]) -> pd.DataFrame:
    """Return what each fold chose: one row per predictions file, from the sidecars."""
    rows = []
    for path in files:
        about = artifacts.checked(path)
        rows.append(
            {
                "fold": int(path.stem.removeprefix("fold")),
                **{k: v for k, v in about["chosen"].items() if k not in ("curve", "index")},
            }
        )
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


def job_key(study: Study, *encoders: str) -> str:
    """Return a digest of everything that a notebook depends on: the one authority on whether it must run again.

    Without encoders: cohorts and splits. With some: their weights and settings, the probes and the code of every step too.
    """
    parts = [images.VERSION, splits.VERSION, study.task, study.split, study.folds, study.seed]
    parts += [[spec.name, spec.missing, _folder_digest(spec.name, study.root(spec))] for spec in study.cohorts]
    if encoders:
        parts += [embeddings.VERSION, VERSION, study.probes, study.threads, study.device]
        parts += [artifacts.file_sha256(paths.expand(file)) for file in study.extensions]
        specs = [study.encoder_spec(name) for name in encoders]
        parts += [[asdict(spec), _file_digest(study.weights(spec))] for spec in specs]
    return artifacts.digest(parts)[:16]


def _folder_digest(name: str, root: Path | None) -> str:
    """Return a digest of the label file and of the names and sizes of all pictures."""
    source, folder = folder_of(name, root)
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.png"))
    return artifacts.digest([artifacts.file_sha256(folder / source.csv), files])


@cache
def _file_digest(weights: str) -> str:
    if weights in ("hub", "random"):
        return weights
    if not Path(weights).is_file():
        raise MissingError(f"expected a weights file at {weights}, found nothing: check the study, or FPBENCH_SHARED")
    return artifacts.file_sha256(Path(weights))
