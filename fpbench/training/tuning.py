"""Every fine-tuning of an encoder, on every fold: which learning rate, which run, which predictions file.

Each fold writes its own predictions file; a restart skips the files that are there and current. Learning rate and epoch are
chosen on the fold's validation rows: test rows enter only afterwards. The training itself is ``training.finetuning``.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from fpbench import loading, predictions, recipe, results
from fpbench.cohorts import Cohort
from fpbench.encoders import Encoder
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.splits import Fold, Splits
from fpbench.study import Study
from fpbench.training import finetuning
from fpbench.training.adaptation import movement
from fpbench.training.bench import Bench, answered, write
from fpbench.training.finetuning import Classifier, Part, Pictures


def run_finetuning(bench: Bench, mode: str, folds: Sequence[int] = ()) -> list[Path]:
    """Fine-tune on some folds (default: all) where there is no current predictions file, and write them.

    Under ``official`` the learning rate is chosen on fold 0 and used for all; under ``crossval`` every fold chooses its own.

    Raises
    ------
    InputError
        Some folds failed (a loss that was not finite, too little memory); the others were finished first.
    """

    key, failed = tuning_key(bench, mode), {}
    files = [results.path(bench.study, bench.encoder, mode, fold) for fold in folds or range(bench.splits.folds)]
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
    from fpbench.training.finetuning import finetune

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
    first = results.path(bench.study, bench.encoder, mode, 0)
    done = predictions.is_current(first, key)
    chosen = artifacts.checked(first)["chosen"] if done else _tune(bench, mode, bench.splits.fold(0), pictures, key)[1]
    return [chosen["strength"]], "best on the validation part of fold 0"


def classifier(bench: Bench, mode: str) -> "Classifier":
    """Return a fresh copy of the encoder with a new head."""
    from fpbench.training.finetuning import Classifier

    fresh = replace(bench.model, module=copy.deepcopy(bench.model.module))
    return Classifier(fresh, bench.classes, bench.study.recipe, mode, bench.spec, bench.study.seed)


def learning_part(bench: Bench, fold: Fold, pictures: "Pictures") -> "Part":
    """Return what a run on this fold may see."""
    from fpbench.training.finetuning import Part

    names = bench.home.frame["image_id"].to_numpy()
    return Part(pictures, bench.labels, names, fold.train, fold.validation)


def _weights(bench: Bench, mode: str, path: Path) -> Path:
    """Return where the weights behind a predictions file of ``run_finetuning`` lie."""
    rate, fold = artifacts.checked(path)["chosen"]["strength"], int(path.stem.removeprefix("fold"))
    return run_folder(bench, mode, tuning_key(bench, mode), fold, rate) / "best.safetensors"


def tuned(bench: Bench, mode: str, fold: int) -> "Classifier":
    """Return the model behind a predictions file of ``run_finetuning``."""
    from fpbench.training.finetuning import restore

    weights = _weights(bench, mode, results.path(bench.study, bench.encoder, mode, fold))
    return restore(classifier(bench, mode), weights.parent)


def movements(bench: Bench, mode: str, files: list[Path]) -> pd.DataFrame:
    """Return how far each layer of each tuned model moved: columns fold, layer, change."""

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


def costs(
    study: Study, home: Cohort, splits: Splits, tunings: Sequence[tuple[str, str]] = (), disk: bool = False
) -> pd.DataFrame:
    """Return what fine-tunings of the study (default: all) would take on this device, the choice of the rate included.

    The networks are built with random weights and timed on one pass; nothing is trained and no weights file is needed.
    """
    from fpbench.training.finetuning import Classifier, estimate

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
    return loading.load_encoder(replace(study, encoders=[spec], tuned={}, pretraining={}), name)
