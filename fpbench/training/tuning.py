"""Every fine-tuning of an encoder, on every fold and with every seed: which learning rate, which run, which predictions file.

Each fold writes its own predictions file, one for each of the study's ``seeds``; a restart skips the files that are there and current.
Learning rate and epoch are chosen on the fold's validation rows, by ``Task.selection``: test rows enter only afterwards. The learning
rate is chosen with the first seed, and serves the others. The training itself is ``training.finetuning``.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fpbench import loading, predictions, recipe, results
from fpbench.cohorts import Cohort
from fpbench.encoders import Encoder
from fpbench.encoders.checkpoint import repeated
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.protocols import PROTOCOLS, SEGMENTATION
from fpbench.splits import Fold, Splits
from fpbench.study import EncoderSpec, Study
from fpbench.tasks import RANKED, Task
from fpbench.training import finetuning, segmentation
from fpbench.training.adaptation import movement
from fpbench.training.bench import Bench, answered, write
from fpbench.training.finetuning import Classifier, Learner, Part, Pictures, Trainer
from fpbench.training.segmentation.decoder import Segmenter
from fpbench.training.segmentation.trainer import MaskedPart, SegmentationTrainer, masks, target


def run_finetuning(bench: Bench, mode: str, folds: Sequence[int] = ()) -> list[Path]:
    """Fine-tune on some folds (default: all), with all seeds, where there is no current predictions file, and write them.

    Under ``official`` the learning rate is chosen on fold 0 and used for all; under ``crossval`` every fold chooses its own.

    Raises
    ------
    InputError
        Some folds failed (a loss that was not finite, too little memory); the others were finished first.
    """

    benches = [bench.of_seed(seed) for seed in bench.study.seeds_of(mode, bench.encoder)]
    runs = {one.path(mode, fold): (one, fold) for one in benches for fold in folds or range(bench.splits.folds)}
    files, failed = list(runs), {}
    todo = {path: run for path, run in runs.items() if not _is_done(run[0], mode, path)}
    pictures = {
        c.name: finetuning.Pictures(c.array(bench.model.geometry), bench.model.device) for c in bench.cohorts if todo
    }
    for path, (one, number) in todo.items():
        started, fold, key = time.perf_counter(), bench.splits.fold(number), tuning_key(one, mode)
        try:
            model, chosen = _tune(one, mode, fold, pictures, key)
        except (finetuning.Diverged, torch.OutOfMemoryError) as error:
            failed[f"fold {number}{_told(one, mode)}"] = str(error)
            continue
        title = f"{bench.encoder}, {mode}, fold {fold.number}: answers"
        answers = partial(_answer, model, pictures, title=title)
        about = {"key": key, "chosen": chosen, "seconds": time.perf_counter() - started}
        write(one, path, answered(one, mode, fold, answers), about)
    if failed:
        why = "\n".join(f"{run}: {reason}" for run, reason in failed.items())
        what = "folds" if len(benches) == 1 else "runs"
        raise InputError(f"{bench.encoder}, {mode}: {len(failed)} of {len(files)} {what} failed:\n{why}")
    return files


def _answer(model: Learner, pictures: dict[str, Pictures], cohort: Cohort, rows: np.ndarray, title: str) -> np.ndarray:
    return finetuning.predict(model, pictures[cohort.name], rows, title)


def _is_done(bench: Bench, mode: str, path: Path) -> bool:
    """Return whether a fold has its predictions, and the weights behind them."""
    return predictions.is_current(path, tuning_key(bench, mode)) and bool(artifacts.whole(_weights(bench, mode, path)))


def _told(bench: Bench, mode: str) -> str:
    """Return which seed it is, in words, where there are several."""
    return f", seed {bench.seed}" if len(bench.study.seeds_of(mode, bench.encoder)) > 1 else ""


def _tune(bench: Bench, mode: str, fold: Fold, pictures: "dict[str, Pictures]", key: str) -> "tuple[Learner, dict]":
    """Train once per learning rate; return the best model, and what was chosen and why."""
    rates, rule = _rates(bench, mode, fold, pictures)
    runs, score = [], bench.task.selection
    for rate in rates:
        model, part = learner(bench, mode), learning_part(bench, mode, fold, pictures[bench.home.name])
        folder = run_folder(bench, mode, key, fold.number, rate)
        run_key = artifacts.digest([key, fold.number, rate])
        title = f"{bench.encoder}, {mode}, fold {fold.number}{_told(bench, mode)}, rate {rate:g}"
        trainer = SegmentationTrainer if PROTOCOLS[mode].job == SEGMENTATION else Trainer
        history, epoch = finetuning.finetune(
            model, part, bench.study.recipe, rate, folder, run_key, _seed(bench, mode, fold), title, trainer
        )
        runs.append((history.iloc[epoch], rate, model))
        runs = [min(runs, key=lambda run: (-run[0][score], run[0]["NLL"]))] if len(runs) > 1 else runs
    (row, rate, model), grid = runs[0], bench.study.recipe.grid(mode)
    chosen = {
        "name": "learning rate", "strength": rate, "rule": rule, "epoch": int(row["epoch"]), "loss": float(row["NLL"]),
        score: float(row[score]), "at_edge": len(grid) > 1 and rate in (min(grid), max(grid)),
    }  # fmt: skip
    return model, chosen


def _rates(bench: Bench, mode: str, fold: Fold, pictures: dict) -> tuple[list[float], str]:
    """Return the learning rates that this fold tries, and by what rule."""
    grid, first = bench.study.recipe.grid(mode), bench.of_seed(bench.study.seeds_of(mode, bench.encoder)[0])
    number = fold.number if bench.splits.scheme == "crossval" else 0  # of the fold that chooses
    own, other = number == fold.number, first.seed != bench.seed
    if (own and not other) or len(grid) == 1:
        return grid, "best on the validation part of this fold"
    path, key = first.path(mode, number), tuning_key(first, mode)
    if predictions.is_current(path, key):
        chosen = artifacts.checked(path)["chosen"]
    else:
        _, chosen = _tune(first, mode, bench.splits.fold(number), pictures, key)
    told = "this fold" if own else f"fold {number}"
    return [chosen["strength"]], f"best on the validation part of {told}" + f", with seed {first.seed}" * other


def learner(bench: Bench, mode: str) -> Learner:
    """Return a fresh copy of the encoder with a new head, or decoder."""
    return _begun(bench.model, bench.task, bench.study, mode, bench.spec, bench.seed)


def _begun(encoder: Encoder, task: Task, study: Study, mode: str, spec: EncoderSpec, seed: int = 0) -> Learner:
    encoder = replace(encoder, module=copy.deepcopy(encoder.module))
    if PROTOCOLS[mode].job == SEGMENTATION:
        return Segmenter(encoder, target(task)[0], study.recipe, spec, seed)
    return Classifier(encoder, len(task.classes), study.recipe, mode, spec, seed)


def learning_part(bench: Bench, mode: str, fold: Fold, pictures: Pictures) -> Part:
    """Return what a run on this fold may see."""
    task, names = bench.task, bench.home.frame["image_id"].to_numpy()
    seen = (pictures, bench.labels, names, fold.train, fold.validation, task.selection, task.positive_code)
    if PROTOCOLS[mode].job == SEGMENTATION:
        return MaskedPart(*seen, masks=masks(bench.home, bench.model), foreground=target(task)[1])
    return Part(*seen)


def _weights(bench: Bench, mode: str, path: Path) -> Path:
    """Return where the weights behind a predictions file of ``run_finetuning`` lie."""
    rate, fold = artifacts.checked(path)["chosen"]["strength"], results.run_of(path)[0]
    return run_folder(bench, mode, tuning_key(bench, mode), fold, rate) / "best.safetensors"


def tuned(bench: Bench, mode: str, path: Path) -> Learner:
    """Return the model behind a predictions file of ``run_finetuning``."""
    bench = bench.of_seed(results.run_of(path, bench.study.seed)[1])
    return finetuning.restore(learner(bench, mode), _weights(bench, mode, path).parent)


def movements(bench: Bench, mode: str, files: list[Path]) -> pd.DataFrame:
    """Return how far each layer of each tuned model moved: columns fold, seed, layer, change."""

    rows = []
    for path in files:
        moved = movement(bench.model.module, tuned(bench, mode, path).body)
        run = dict(zip(("fold", "seed"), results.run_of(path, bench.study.seed), strict=True))
        rows += [{**run, "layer": layer, "change": change} for layer, change in moved.items()]
    return pd.DataFrame(rows)


def tuning_key(bench: Bench, mode: str) -> str:
    """Return a digest of everything that a fine-tuning depends on: that of another seed also on the one that chose the learning rate."""
    spec = [bench.spec.micro or bench.spec.batch_size, bench.spec.checkpointing]
    first = [seed for seed in bench.study.seeds_of(mode, bench.encoder)[:1] if seed != bench.seed]
    own: list[list] = [[score, bench.task.positive]] if (score := bench.task.selection) in RANKED else []
    own += [["step segmentation", segmentation.VERSION]] if PROTOCOLS[mode].job == SEGMENTATION else []
    return artifacts.digest([bench.run_key, mode, asdict(bench.study.recipe), recipe.VERSION, spec, *first, *own])


def run_folder(bench: Bench, mode: str, key: str, fold: int, rate: float) -> Path:
    """Return where one training run keeps its checkpoint, its best weights and its history."""
    return bench.study.folder / "finetuning" / bench.encoder / mode / key[:12] / f"fold{fold}" / f"rate{rate:g}"


def histories(bench: Bench, mode: str) -> pd.DataFrame:
    """Return the training histories of all runs of a mode: columns fold, seed, rate, epoch, loss, the score that chooses, NLL."""
    tables = []
    for one in map(bench.of_seed, bench.study.seeds_of(mode, bench.encoder)):
        folder = bench.study.folder / "finetuning" / bench.encoder / mode / tuning_key(one, mode)[:12]
        for path in sorted(folder.glob("fold*/rate*/best.json")):
            history = pd.DataFrame(artifacts.read_json(path)["history"])
            tables.append(history.assign(fold=int(path.parent.parent.name.removeprefix("fold")), seed=one.seed))
    return pd.concat(tables, ignore_index=True)


def _seed(bench: Bench, mode: str, fold: Fold) -> int:
    return int(artifacts.digest([bench.seed, bench.encoder, mode, fold.number])[:12], 16)


def costs(
    study: Study, home: Cohort, splits: Splits, tunings: Sequence[tuple[str, str]] = (), disk: bool = False
) -> pd.DataFrame:
    """Return what fine-tunings of the study (default: all) would take on this device, the choice of the rate included.

    The networks are built with random weights and timed on one pass; nothing is trained and no weights file is needed.
    """
    wanted, rows = tunings or study.tunings(), []
    for name in dict.fromkeys(name for name, _ in wanted):
        encoder = blank(study, name)
        modes = [mode for one, mode in wanted if one == name]
        rows += [{"encoder": name, "mode": mode, **cost(study, splits, encoder, mode, disk)} for mode in modes]
    return pd.DataFrame(rows)


def cost(study: Study, splits: Splits, encoder: Encoder, mode: str, disk: bool = False) -> dict[str, float]:
    """Return what one fine-tuning of an encoder (of ``blank``) would take, a row of ``costs``."""
    images, name = len(splits.fold(0).train), encoder.name
    grid = len(study.recipe.grid(mode))
    choosing = study.folds if splits.scheme == "crossval" else 1  # folds whose first seed tries the whole grid
    runs = len(study.seeds_of(mode, name)) * study.folds + choosing * (grid - 1)
    model = _begun(encoder, study.the_task, study, mode, study.encoder_spec(name))
    row = {"runs": runs, **finetuning.estimate(model, study.recipe, images, runs)}
    if disk:  # the best epoch of every run; a checkpoint holds two moments of every number besides
        held = sum(tensor.nbytes for tensor in model.changing().values()) / 1e9
        row |= {"weights GB": runs * held, "checkpoint GB": 3 * held}
    return row


def blank(study: Study, name: str) -> Encoder:
    """Return an encoder of the study with random weights: as large and as slow, and no file is needed."""
    spec = replace(study.encoder_spec(name), weights="random", ignore=[])
    with repeated():
        return loading.load_encoder(replace(study, encoders=[spec], tuned={}, pretraining={}), name)
