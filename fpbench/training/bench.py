"""One encoder, its embeddings and the cut: what a protocol works on, and how its answers become predictions files."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fpbench import loading, predictions, results
from fpbench.cohorts import Cohort
from fpbench.encoders import Encoder
from fpbench.files import artifacts, machine, provenance
from fpbench.recipe import GRID
from fpbench.splits import Fold, Splits
from fpbench.study import EncoderSpec, Study
from fpbench.tasks import Task
from fpbench.training.embeddings import embed_cohort, embedding_key

VERSION = 1  # of the probes; raise it when their predictions change
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
    strengths: np.ndarray = field(default_factory=lambda: GRID)  # C among which the logistic probe chooses
    other_seed: int | None = None  # of this run, if not the study's
    others: dict[int, "Bench"] = field(default_factory=dict)  # of encoders that were pretrained with other seeds

    @property
    def seed(self) -> int:
        """Return the seed of this run."""
        return self.study.seed if self.other_seed is None else self.other_seed

    @property
    def run_key(self) -> str:
        """Return a digest of what a run depends on: ``key``, and seed and strengths where they are not the study's and all."""
        key = self.key if self.seed == self.study.seed else artifacts.digest([self.key, "seed", self.seed])
        return key if self.strengths is GRID else artifacts.digest([key, "strengths", self.strengths.tolist()])

    def of_seed(self, seed: int) -> "Bench":
        """Return the bench of a run with another seed, and where its encoder was pretrained with it the encoder of that seed.

        Its files have names and keys of their own.
        """
        if seed == self.seed:
            return self
        if not self.spec.pretraining or not self.study.pretraining[self.spec.pretraining].seeds:
            return replace(self, other_seed=seed)
        if seed not in self.others:
            self.others.setdefault(self.seed, self)
            cohorts = (self.home, self.external, self.splits, bool(self.embeddings))
            other = open_bench(self.study, self.encoder, *cohorts, seed)
            self.others[seed] = replace(other, others=self.others)
        return self.others[seed]

    def path(self, protocol: str, fold: int, question: str = "") -> Path:
        """Return where the predictions of a fold lie."""
        return results.path(self.study, self.encoder, protocol, fold, question, self.seed)

    @property
    def spec(self) -> EncoderSpec:
        """Return the encoder's entry in the study."""
        return self.study.encoder_spec(self.encoder)

    @cached_property
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
    study: Study,
    encoder: str,
    home: Cohort,
    external: tuple[Cohort, ...],
    splits: Splits,
    embed: bool = True,
    seed: int | None = None,
) -> Bench:
    """Lay out what the protocols need; the probes need every cohort embedded, once (from the cache if it can be).

    ``seed``: of the encoder's pretraining, if it has several and this is not the study's.
    """
    spec, model = study.encoder_spec(encoder), loading.load_encoder(study, encoder, seed)
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
    labels, task = [[cohort.source.population, cohort.fingerprint()] for cohort in cohorts], study.the_task
    asked = [task.name, task.label, task.classes]
    key = artifacts.digest([keys, labels, splits.digest(), VERSION, asked, study.seed, study.threads])
    about |= {} if seed is None else {"seed": seed}
    return Bench(study, task, encoder, model, splits, home, external, embedded, about, key, other_seed=seed)


def answered(bench: Bench, protocol: str, fold: Fold, answers: Answers, **run: Any) -> pd.DataFrame:
    """Return the rows of a predictions file: validation, test, and all of the external cohorts; ``run`` replaces its columns."""
    train = bench.home.frame.iloc[fold.train]
    run = {
        "fold": fold.number,
        "encoder": bench.encoder,
        "protocol": protocol,
        "n_patients": train["patient"].nunique(),
        "seed": bench.seed,
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
    made = {**provenance.provenance(), "threads": bench.study.threads, "peak_memory": machine.peak_memory()}
    sidecar = {
        "study": asdict(bench.study),
        "study_hash": artifacts.digest(asdict(bench.study)),
        "splits": bench.splits.digest(),
        "encoder": bench.about,
        "provenance": made,
    }
    predictions.write(path, rows, bench.task, {**sidecar, **about})


def choices(files: list[Path]) -> pd.DataFrame:
    """Return what each fold chose: one row per predictions file, from the sidecars; with the seed where there are several."""
    rows = []
    for path in files:
        about = artifacts.checked(path)
        told = {name: value for name, value in about["chosen"].items() if name not in ("curve", "index")}
        fold, seed = results.run_of(path, about["study"]["seed"])
        rows.append({"fold": fold, "seed": seed, **told})
    table = pd.DataFrame(rows)
    return table if table["seed"].nunique() > 1 else table.drop(columns="seed")
