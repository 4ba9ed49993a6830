"""Figures of blind sweeps: one sweep as a strip of frames under the scores of the models, mistakes, precision against recall."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fpbench.protocols import titles
from fpbench.reporting.figures import blank, colours
from fpbench.tasks import QUALITIES

SHADES = dict(zip(QUALITIES, ("#e4e4e4", "#f5c04d", "#1b9e77"), strict=True))
LINES = {"logistic": ":", "lora": "-", "full": "-", "lora_mlp": "--", "segmentation": "-."}


def stops(frames: int, most: int = 12) -> np.ndarray:
    """Return the positions of the frames that a strip shows: at most so many, evenly spread over the sweep."""
    return np.unique(np.linspace(0, frames - 1, min(most, frames)).round().astype(int))


def strip(rows: pd.DataFrame, pictures: Sequence[np.ndarray], title: str) -> Figure:
    """Draw one sweep from its first frame to its last: some frames, the truth as a band below them, and the scores of models.

    Parameters
    ----------
    rows
        Of ``analysis.sweeps.scored``: test rows of one sweep, of some models.
    pictures
        The frames at ``stops`` of the sweep.
    title
        Above it.
    """
    quality = rows.drop_duplicates("position").sort_values("position")["quality"].tolist()
    places, colour = stops(len(quality)), colours(rows["encoder"])
    rows_high, columns_wide = pictures[0].shape[:2]
    tall = 6.7 / len(pictures) * rows_high / columns_wide  # inches of a picture: together they are as wide as the axes
    grid = {"height_ratios": [2 * tall / (2 - tall), 0.16, 1.9], "hspace": 0.06}
    figure, (top, band, ax) = plt.subplots(3, 1, figsize=(9.2, 4), sharex=True, gridspec_kw=grid)
    _pictures(top, pictures, len(quality), [SHADES[quality[place]] for place in places])
    for place, name in enumerate(quality):
        band.axvspan(place - 0.5, place + 0.5, color=SHADES[name], lw=0)
    band.set(yticks=[], ylabel="")
    for (encoder, protocol), part in rows.groupby(["encoder", "protocol"], sort=False):
        mean = part.groupby("position")["score"].mean()  # over seeds
        style = {"color": colour[encoder], "ls": LINES.get(protocol, "-"), "lw": 1.4}
        ax.plot(mean.index, mean, label=f"{encoder}, {titles()[protocol]}", **style)
        ax.plot(mean.idxmax(), mean.max(), "o", ms=5, color=colour[encoder])
    ax.set(xlabel="frame of the sweep", ylabel="score", xlim=(-0.5, len(quality) - 0.5), ylim=(-0.03, 1.06))
    ax.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = ax.get_legend_handles_labels()
    kinds = [Patch(color=shade, label=name) for name, shade in SHADES.items()]
    ax.legend([*handles, *kinds], [*labels, *SHADES], loc="center left", bbox_to_anchor=(1, 0.6), fontsize="x-small")
    figure.suptitle(title)
    return figure


def _pictures(ax: Axes, pictures: Sequence[np.ndarray], frames: int, edges: Sequence[str]) -> None:
    """Draw pictures side by side over the whole width of the axis; a line leads from each to its frame."""
    ax.set_axis_off()
    width = 1 / len(pictures)
    for number, (picture, edge, place) in enumerate(zip(pictures, edges, stops(frames), strict=True)):
        inner = ax.inset_axes((number * width + 0.002, 0.35, width - 0.004, 0.65))
        inner.imshow(picture, cmap="gray")
        inner.set(xticks=[], yticks=[], anchor="S")
        for spine in inner.spines.values():
            spine.set(color=edge, linewidth=2, visible=True)
        line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0, "shrinkB": 0}
        ends = (((place + 0.5) / frames, 0.0), ((number + 0.5) * width, 0.33))
        ax.annotate("", *ends, xycoords=ax.transAxes, textcoords=ax.transAxes, annotation_clip=False, arrowprops=line)


def mistakes(table: pd.DataFrame, pictures: Sequence[np.ndarray], title: str) -> Figure:
    """Draw the mistakes of ``analysis.sweeps.worst``, a picture per row of it: frames without a plane above, missed ones below."""
    words = {"false": "no plane", "missed": "missed"}
    kinds = [kind for kind in words if (table["mistake"] == kind).any()]
    figure, axes = blank(max(1, len(kinds)), max(1, *table.groupby("mistake").size()), 1.7, 1.75)
    place = table.groupby("mistake").cumcount()
    for row, column, picture in zip(table.itertuples(), place, pictures, strict=True):
        ax = axes[kinds.index(row.mistake), column]
        ax.imshow(picture, cmap="gray")
        ax.set_title(f"{row.quality if row.mistake == 'missed' else words['false']}, score {row.score:.2f}", fontsize=7)
    for kind, row in zip(kinds, axes, strict=False):
        row[0].set_ylabel({"false": "high, without a plane", "missed": "low, with a plane"}[kind])
    figure.suptitle(title)
    return figure


def precision_recall(curves: pd.DataFrame, prevalence: float) -> Figure:
    """Draw ``analysis.sweeps.precision_recall``, one panel per protocol, a line per encoder with its band; dashed is an order at random."""
    protocols = [name for name in titles() if name in set(curves["protocol"])]
    palette = colours(curves["encoder"])
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(2.9 * len(protocols) + 0.6, 2.9), sharey=True, squeeze=False
    )
    for ax, protocol in zip(axes.flat, protocols, strict=True):
        for encoder, part in curves[curves["protocol"] == protocol].groupby("encoder", sort=False):
            ax.plot(part["recall"], part["value"], lw=1.2, color=palette[encoder], label=encoder)
            ax.fill_between(part["recall"], part["low"], part["high"], color=palette[encoder], alpha=0.15, lw=0)
        ax.axhline(prevalence, color="0.5", lw=0.8, ls="--")
        ax.set(title=titles()[protocol], xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        ax.legend(fontsize="x-small", loc="upper right")
    axes[0, 0].set_ylabel("precision")
    return figure
