"""How well predicted masks lie on the true ones, from what was measured of each test frame (``training.segmentation.runs``).

Unit: the frame; the subject is the group that is resampled. DICE is the mean over frames in which there is something to find; AREA the mean
over all test frames of abs(true - predicted), as shares of the square that the encoder sees; both of pixels above 0.5, and above the
probability that the validation frames of each fold chose.

Contents: ``read``, ``bootstraps`` (of ``statistics``), ``table``.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import results
from fpbench.analysis import samples, statistics
from fpbench.analysis.scoring import MODEL, RUN, spaces, told
from fpbench.analysis.statistics import Bootstrap
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts
from fpbench.tasks import Task

DICE, AREA, CUT = "Dice", "area error", ", cut by validation"
COLUMNS = {DICE: "dice", AREA: "area_error", DICE + CUT: "dice_cut", AREA + CUT: "area_error_cut"}
NAMES = tuple(COLUMNS)


def read(files: Iterable[Path]) -> pd.DataFrame:
    """Return what was measured of each test frame, of some predictions files of segmenters; MissingError where it was not."""
    tables = [results.masks(path) for path in files]
    for path in tables:
        if not path.is_file():
            raise MissingError(f"expected measures of masks at {path}, found nothing: run notebook 13")
        artifacts.checked(path)
    return pd.concat(map(pd.read_parquet, tables), ignore_index=True)


def bootstraps(predicted: pd.DataFrame, frames: pd.DataFrame, task: Task, seed: int = 0) -> list[Bootstrap]:
    """Return the bootstrap of NAMES of every population that was measured.

    Parameters
    ----------
    predicted
        Rows of the predictions files of segmenters.
    frames
        Of ``read``: a row for each of their test rows of such a population.

    Raises
    ------
    InputError
        A test row was not measured, or twice.
    """
    key = [*MODEL, *RUN, "population", "image_id"]
    rows = predicted[(predicted["split"] == "test") & predicted["population"].isin(frames["population"])]
    rows = rows.merge(frames[[*key, *COLUMNS.values()]], on=key)
    if len(rows) != len(frames) or rows.duplicated(key).any():
        wanted = f"expected each of {len(frames):,} measured frames once among the test rows"
        raise InputError(f"{wanted}, found {len(rows):,} pairs: read both of the same files")
    whole = [(name, task.space(classes), "open", "as published") for name, classes in spaces(task, rows).items()]
    found = samples.samples(rows, task, lambda *view: view in whole)
    measured = (samples.with_sums(sample, rows, _sums) for sample in found)
    return [statistics.bootstrap(sample, NAMES, seed=seed + sample.number) for sample in measured]


def _sums(_model: tuple, rows: pd.DataFrame, groups: pd.Index) -> dict[str, np.ndarray]:
    unit, found = groups.get_indexer(rows["group"]), {}
    for name, column in COLUMNS.items():
        there = rows[column].notna()  # an area error always is
        sums = (rows[column].fillna(0), there, there)
        found[name] = np.stack([np.bincount(unit, one, len(groups)) for one in sums], -1)
    return found


def table(boots: Iterable[Bootstrap], frames: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model and population: frames (with something to find, of all), groups, and NAMES with their intervals."""
    found = statistics.of_all(statistics.intervals, list(boots), methods=["percentile"])
    found = found.assign(text=found["value"].map("{:.3f}".format) + told(found))
    wide = found.pivot(index=[*MODEL, "population"], columns="metric", values="text")[list(NAMES)]
    first = frames.drop_duplicates(["population", "image_id"]).groupby("population")
    counts = {
        "frames": first.size(),
        "with something to find": first["dice"].count(),
        "groups": first["group"].nunique(),
    }
    return wide.reset_index().merge(pd.DataFrame(counts), on="population").rename_axis(columns=None)
