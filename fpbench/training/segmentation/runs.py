"""How well the masks of a segmenter lie on the true ones, on test frames of the home cohort, written beside its predictions.

A frame is compared in the square that the encoder sees, with what is above 0.5. COLUMNS: ``true``, ``predicted`` and ``common`` are shares
of that square, ``dice`` is 2 common / (true + predicted), and empty where nothing is to be found, ``area_error`` is abs(true - predicted).
``dice_cut`` and ``area_error_cut`` are those of what is above ``cut``: that of CUTS with the highest mean Dice on the fold's validation
frames in which there is something to find.
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
from fpbench.training.segmentation import MEASURES
from fpbench.training.segmentation.decoder import Segmenter
from fpbench.training.segmentation.trainer import foreground, masks, target

MODE = "segmentation"
IDENTITY = ("image_id", "group", "cohort", "population", "fold", "encoder", "protocol", "seed")  # as in predictions
COLUMNS = (*IDENTITY, "true", "predicted", "common", "dice", "area_error", "cut", "dice_cut", "area_error_cut")
CUTS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)  # probabilities of a pixel


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
        key = artifacts.digest([artifacts.checked(path)["key"], MEASURES])
        if artifacts.whole(table).get("key") != key:
            rows = _measured(bench, path)
            with artifacts.atomic(table) as temporary:
                rows.to_parquet(temporary, index=False)
            artifacts.commit(table, {"key": key, "predictions": artifacts.checked(path)["sha256"]})
    return tables


def _measured(bench: Bench, path: Path) -> pd.DataFrame:
    rows = pd.read_parquet(path).query("cohort == @bench.home.name")
    chosen, rows = (rows.loc[rows["split"] == split, list(IDENTITY)] for split in ("val", "test"))
    dice = _dice(_shares(bench, path, chosen["image_id"], CUTS))
    there = dice[~np.isnan(dice[:, 0])]
    cut = CUTS[int(there.mean(axis=0).argmax())] if len(there) else CUTS[0]
    shares = _shares(bench, path, rows["image_id"], (CUTS[0], cut))
    true, predicted, common = shares[:, 0].T
    dice, error = _dice(shares), np.abs(shares[..., 0] - shares[..., 1])
    found = {"true": true, "predicted": predicted, "common": common, "dice": dice[:, 0], "area_error": error[:, 0]}
    return rows.assign(**found, cut=cut, dice_cut=dice[:, 1], area_error_cut=error[:, 1])


def _shares(bench: Bench, path: Path, names: pd.Series, cuts: Sequence[float]) -> np.ndarray:
    """Return the shares of the square that are true, found and both, (frames, cuts, 3), of pixels above some probabilities."""
    logits, parts = torch.logit(torch.tensor(cuts, dtype=torch.float64)).tolist(), []
    for _, truth, pixels in _compared(bench, path, names, f"{bench.encoder}, {path.stem}: masks"):
        for found in (pixels > logit for logit in logits):
            parts.append(torch.stack([one.float().mean((1, 2)) for one in (truth, found, truth & found)], dim=-1).cpu())
    by_cut = [torch.cat(parts[number :: len(cuts)]) for number in range(len(cuts))]
    return torch.stack(by_cut, dim=1).numpy()


def _dice(shares: np.ndarray) -> np.ndarray:
    """Return Dice of ``_shares``; NaN where nothing is to be found."""
    true, predicted, common = np.moveaxis(shares, -1, 0)
    return np.where(true > 0, 2 * common / np.maximum(true + predicted, 1e-9), np.nan)


def examples(bench: Bench, path: Path, count: int = 8) -> list[Example]:
    """Return some test frames of a predictions file in which there is something to find, from the lowest Dice to the highest."""
    frames = pd.read_parquet(results.masks(path)).dropna(subset="dice").sort_values(["dice", "image_id"])
    frames = frames.iloc[np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]
    found = _compared(bench, path, frames["image_id"])
    parts = [(one.cpu().numpy() for one in (picture, truth, pixels > 0)) for picture, truth, pixels in found]
    shown = zip(*(np.concatenate(one) for one in zip(*parts, strict=True)), frames["dice"], strict=True)
    return [Example(*one) for one in shown]


@torch.inference_mode()
def _compared(bench: Bench, path: Path, names: pd.Series, title: str = "") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pictures, true foreground and logits of it, (n, S, S) each, of some frames of the home cohort at a time."""
    model, home = tuning.tuned(bench, MODE, path).eval(), bench.home
    assert isinstance(model, Segmenter)
    rows = pd.Index(home.frame["image_id"]).get_indexer(names)
    parts = [rows[start : start + model.micro] for start in range(0, len(rows), model.micro)]
    pictures = Pictures(home.array(model.encoder.geometry), model.encoder.device).batches(parts)
    both = zip(pictures, masks(home, model.encoder).batches(parts), strict=True)
    for batch, truth in Progress(both, total=len(parts), desc=title, unit="batch") if title else both:
        with model.encoder.autocast(model.bf16):
            pixels = model.pixels(model.encoder.normalise(batch))
        yield batch, foreground(truth, target(bench.task)[1]) > 0, pixels
