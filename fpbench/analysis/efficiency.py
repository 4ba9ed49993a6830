"""Label efficiency, read from predictions: the score against the patients per class. They are those of ``training.efficiency``."""

from collections.abc import Iterable

import pandas as pd

from fpbench.analysis import statistics
from fpbench.analysis.scoring import view_title
from fpbench.tasks import Task


def curves(predicted: Iterable[pd.DataFrame], task: Task, resamples: int = statistics.RANK_RESAMPLES) -> pd.DataFrame:
    """Return the headline score against the patients per class, mean over folds and draws, with interval by patient group.

    Parameters
    ----------
    predicted
        Predictions of ``run``, one frame per encoder.

    Returns
    -------
    pandas.DataFrame
        Columns encoder, scoring.VIEW, patients per class, value, sd (over the draws), low, high, reason.
    """
    rows = []
    for frame in predicted:
        name = frame["encoder"].iloc[0]
        for sample in statistics.samples(frame.assign(encoder=frame["seed"].astype(str)), task):
            boot = statistics.bootstrap(sample, [task.headline], resamples)
            values, draws, out = (one[task.headline] for one in (boot.folds, boot.draws, boot.jackknife))
            for protocol, members in sample.families.items():
                mine = values.mean(0)[members]
                ends = statistics.interval(
                    draws[:, members].mean(1), mine.mean(), out, sample.stratum, "percentile", undefined=sample.why(0.0)
                )
                size = int(protocol.split()[0])
                rows.append((name, *sample.view, size, mine.mean(), mine.std(ddof=1), *ends))
    columns = ["encoder", *statistics.VIEW, "patients per class", "value", "sd", "low", "high", "reason"]
    return pd.DataFrame(rows, columns=columns).sort_values(["encoder", "patients per class"], kind="stable")


def sentences(curves: pd.DataFrame) -> list[str]:
    """Return one sentence per encoder and cohort as published, open: the fewest patients that give nine tenths of its best score."""
    shown = curves[(curves["rule"] == "open") & (curves["duplicates"] == "as published")]
    lines = []
    for (encoder, population, classes), part in shown.groupby(["encoder", "population", "classes"], sort=False):
        enough = part[part["value"] >= 0.9 * part["value"].max()]["patients per class"].min()
        where = f"{encoder}, {view_title(population, classes, 'open')}"
        lines.append(
            f"{where}: nine tenths of its best mean score ({part['value'].max():.3f}) with {enough} patients per class."
        )
    return lines
