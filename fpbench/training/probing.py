"""Probes: from the embeddings of an encoder to predictions, on every fold.

Each fold writes its own predictions file; a restart skips the files that are there and current. The strength of a probe is
chosen on the fold's validation rows: test rows enter only afterwards.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import predictions, results
from fpbench.cohorts import Cohort
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.protocols import PROTOCOLS, Protocol
from fpbench.splits import Fold
from fpbench.training.bench import Bench, answered, write
from fpbench.training.probes.heads import Scores

Fit = Callable[[Bench, list[Fold]], list[tuple[Scores, dict]]]  # folds -> scores of each, and what was chosen


def run_probe(bench: Bench, probe: str, folds: Sequence[Fold] = (), question: str = "") -> list[Path]:
    """Fit one probe on all folds that lack a current predictions file, and write them.

    Parameters
    ----------
    folds
        Default: those of ``bench.splits``.
    question
        Name of a side question, whose files lie apart (``results.path``).

    Returns
    -------
    list of Path
        The predictions files of all folds.
    """
    started = time.perf_counter()
    folds = list(folds) or [bench.splits.fold(number) for number in range(bench.splits.folds)]
    files = [bench.path(probe, fold.number, question) for fold in folds]
    key = artifacts.digest([bench.run_key, probe])
    todo = [(fold, path) for fold, path in zip(folds, files, strict=True) if not predictions.is_current(path, key)]
    fitted = fit_of(probe)(bench, [fold for fold, _ in todo]) if todo else []
    for (fold, path), (scores, chosen) in zip(todo, fitted, strict=True):
        about = {"key": key, "chosen": chosen, "seconds": time.perf_counter() - started}
        shown = bench.embeddings | bench.shown
        rows = answered(bench, probe, fold, partial(_answer, scores, shown))
        write(bench, path, rows, about)
    return files


def _answer(scores: Scores, shown: dict[str, np.ndarray], cohort: Cohort, rows: np.ndarray) -> np.ndarray:
    return scores(shown[cohort.name][rows])


def fit_of(probe: str) -> Fit:
    """Return the function that fits a probe: its own, or that of ``training/probes/<probe>.py``."""
    return PROTOCOLS[probe].fit or import_module(f"fpbench.training.probes.{probe}").fit


def register_probe(name: str, title: str, fit: Fit) -> None:
    """Add a probe of your own, e.g. from an extension of a study.

    Parameters
    ----------
    name, title
        In the study and in file names; in tables.
    fit
        Returns, for every fold, a function from embeddings to logits, and what was chosen, for the sidecar (``name`` and
        ``strength`` at least). It may use the fold's training and validation rows. Embeddings are (n, D) float32, logits
        (n, K) in the order of the task's classes.

    Raises
    ------
    InputError
        There is a protocol of that name.
    """
    if name in PROTOCOLS:
        raise InputError(f"there is a protocol {name!r} already: expected a new name")
    PROTOCOLS[name] = Protocol(name, title, fit=fit)


def curves(files: list[Path]) -> pd.DataFrame:
    """Return validation loss against strength, from the sidecars: columns strength, loss, fold."""
    tables = []
    for path in files:
        curve = artifacts.checked(path)["chosen"]["curve"]
        tables.append(pd.DataFrame(curve, columns=["strength", "loss"]).assign(fold=results.run_of(path)[0]))
    return pd.concat(tables, ignore_index=True)
