"""How well the masks of a segmenter lie on the true ones, on test frames of the home cohort, written beside its predictions.

A frame is compared in the square that the encoder sees, with what is above 0.5. COLUMNS: ``true``, ``predicted`` and ``common`` are shares
of that square, ``dice`` is 2 common / (true + predicted), and empty where nothing is to be found, ``area_error`` is abs(true - predicted).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fpbench import results
from fpbench.files import artifacts
from fpbench.files.progress import Progress
from fpbench.training import tuning
from fpbench.training.bench import Bench
from fpbench.training.finetuning import Pictures
from fpbench.training.segmentation import VERSION
from fpbench.training.segmentation.decoder import Segmenter
from fpbench.training.segmentation.trainer import foreground, masks, target

MODE = "segmentation"
IDENTITY = ("image_id", "group", "cohort", "population", "fold", "encoder", "protocol", "seed")  # as in predictions
COLUMNS = (*IDENTITY, "true", "predicted", "common", "dice", "area_error")


@dataclass(frozen=True)
class Example:
    """A test frame as the encoder sees it, what is to be found in it, and what was found."""

    picture: np.ndarray  # uint8 (S, S) or (S, S, 3)
    truth: np.ndarray  # bool (S, S)
    found: np.ndarray  # bool (S, S)
    dice: float


def measure(bench: Bench, files: Sequence[Path]) -> list[Path]:
    """Return the tables of some predictions files of ``tuning.run_finetuning``, one row per test frame; those that are not current are made."""
    tables = [results.masks(path) for path in files]
    for path, table in zip(files, tables, strict=True):
        key = artifacts.digest([artifacts.checked(path)["key"], VERSION])
        if artifacts.whole(table).get("key") != key:
            rows = _measured(bench, path)
            with artifacts.atomic(table) as temporary:
                rows.to_parquet(temporary, index=False)
            artifacts.commit(table, {"key": key, "predictions": artifacts.checked(path)["sha256"]})
    return tables


def _measured(bench: Bench, path: Path) -> pd.DataFrame:
    rows = pd.read_parquet(path).query("split == 'test' and cohort == @bench.home.name")[list(IDENTITY)]
    pairs = _compared(bench, path, rows["image_id"], f"{bench.encoder}, {path.stem}: masks")
    sums = [(t.float().mean((1, 2)), p.float().mean((1, 2)), (t & p).float().mean((1, 2))) for _, t, p in pairs]
    true, predicted, common = (torch.cat(one).cpu().numpy() for one in zip(*sums, strict=True))
    dice = np.where(true > 0, 2 * common / np.maximum(true + predicted, 1e-9), np.nan)
    found = {"true": true, "predicted": predicted, "common": common, "dice": dice}
    return rows.assign(**found, area_error=np.abs(true - predicted))


def examples(bench: Bench, path: Path, count: int = 8) -> list[Example]:
    """Return some test frames of a predictions file in which there is something to find, from the lowest Dice to the highest."""
    frames = pd.read_parquet(results.masks(path)).dropna(subset="dice").sort_values(["dice", "image_id"])
    frames = frames.iloc[np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]
    parts = [(one.cpu().numpy() for one in part) for part in _compared(bench, path, frames["image_id"])]
    shown = zip(*(np.concatenate(one) for one in zip(*parts, strict=True)), frames["dice"], strict=True)
    return [Example(*one) for one in shown]


@torch.inference_mode()
def _compared(bench: Bench, path: Path, names: pd.Series, title: str = "") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pictures, true and predicted foreground, (n, S, S) each, of some frames of the home cohort at a time."""
    model, home = tuning.tuned(bench, MODE, path).eval(), bench.home
    assert isinstance(model, Segmenter)
    rows = pd.Index(home.frame["image_id"]).get_indexer(names)
    parts = [rows[start : start + model.micro] for start in range(0, len(rows), model.micro)]
    pictures = Pictures(home.array(model.encoder.geometry), model.encoder.device).batches(parts)
    both = zip(pictures, masks(home, model.encoder).batches(parts), strict=True)
    for batch, truth in Progress(both, total=len(parts), desc=title, unit="batch") if title else both:
        with model.encoder.autocast(model.bf16):
            pixels = model.pixels(model.encoder.normalise(batch))
        yield batch, foreground(truth, target(bench.task)[1]) > 0, pixels > 0
