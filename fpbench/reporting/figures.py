"""Figures: a tidy frame (or arrays of pictures) in, axes out. One style file, one fixed colour per encoder, colour-blind safe.

Importing this module applies the style. ``save`` writes PNG (300 dpi) and PDF with the study's label in the picture itself and its stamp in the file, and shows it.
"""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fpbench import metrics, predictions, results
from fpbench.analysis import calibration
from fpbench.analysis.claims import primary_view
from fpbench.analysis.scoring import spaces, summarise
from fpbench.encoders import MINI
from fpbench.encoders.inspection import Sight
from fpbench.files import artifacts
from fpbench.protocols import titles
from fpbench.study import Study
from fpbench.tasks import Task

if TYPE_CHECKING:
    from fpbench.training.segmentation.runs import Example

COLOURS = {  # Okabe and Ito's palette
    "usfm": "#0072B2",
    "mofo": "#E69F00",
    "ultrasam": "#009E73",
    "fetalclip": "#D55E00",
    "resnet50": "#999999",
    "efficientnetv2_s": "#56B4E9",
    "dinov3": "#CC79A7",
}
OTHERS = ("#332288", "#117733", "#882255", "#44AA99", "#AA4499", "#DDCC77")


def colours(encoders: Iterable[str]) -> dict[str, str]:
    """Return one colour per encoder, in the order of the paper: fixed for its seven and their miniatures, then others."""
    places, others = {name: place for place, name in enumerate(COLOURS)}, cycle(OTHERS)
    names = sorted(set(encoders), key=lambda name: (places.get(name.removesuffix(MINI), len(places)), name))
    return {name: COLOURS.get(name.removesuffix(MINI)) or next(others) for name in names}


def blank(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes (rows, columns), each of a width and height in inches and made for a picture."""
    bare = {"xticks": [], "yticks": [], "frame_on": False}
    return plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, subplot_kw=bare)


def folded(title: str) -> str:
    """Return the title of a view in lines that fit above a panel: population, label space, the rest."""
    return "\n".join(line for part in title.split(", ", 2) for line in textwrap.wrap(part, 20, break_long_words=False))


def save(figure: Figure, study: Study, name: str) -> None:
    """Write ``figures/<name>.png`` and ``.pdf`` of the study, the study's label in the picture, and show it."""
    if study.label:
        figure.text(0.0, -0.01, study.label, ha="left", va="top", fontsize=7, color="0.4")
    figure.draw_without_rendering()
    # it is laid out and measured once, and drawn twice: savefig would set the layout of the style again
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        box, stamp = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"]), results.stamp(study)
        formats: dict[str, dict] = {  # less compression is half the time and a tenth more bytes
            "png": {"metadata": {"Software": None, "Description": stamp}, "pil_kwargs": {"compress_level": 3}},
            "pdf": {"metadata": {"CreationDate": None, "Subject": stamp}},
        }
        for suffix, options in formats.items():
            with artifacts.atomic(study.folder / "figures" / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, bbox_inches=box, **options)
    plt.close(figure)
    with Image.open(study.folder / "figures" / f"{name}.png") as picture:
        display(picture.convert("RGB").reduce(3), include=["image/png"])  # 100 dpi, for a screen


def gallery(pictures: dict[str, list[np.ndarray]], title: str) -> Figure:
    """Draw some pictures of every class, a row each; ``Cohort.examples``."""
    figure, axes = blank(len(pictures), max(map(len, pictures.values())), 1.7, 1.35)
    for row, (name, shown) in zip(axes, pictures.items(), strict=True):
        for ax, picture in zip(row, shown, strict=False):
            ax.imshow(picture)
        row[0].set_ylabel(name)
    figure.suptitle(title)
    return figure


def pairs(shown: list[dict[str, np.ndarray]]) -> Figure:
    """Draw pairs of pictures above each other, under their names; ``Audit.copies``."""
    figure, axes = blank(2, max(1, len(shown)), 2.3, 2)
    for column, pair in zip(axes.T, shown, strict=False):
        for ax, (name, picture) in zip(column, pair.items(), strict=True):
            ax.imshow(picture)
            ax.set_title(name, fontsize=6)
    return figure


def heatmap(table: pd.DataFrame, ax: Axes, fmt: str = "d", share: bool = True) -> Axes:
    """Draw a table of numbers; the colour is the share of its row, or the number itself, from 0 to 1."""
    values = table.to_numpy(float)
    colour = values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12) if share else values
    style = {"cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "linewidths": 0.5}
    sns.heatmap(colour, ax=ax, annot=table.to_numpy(), fmt=fmt, **style)
    ax.set_xticklabels(table.columns, rotation=40, ha="right")
    ax.set_yticklabels(table.index, rotation=0)
    ax.set(xlabel="", ylabel=table.index.name or "")
    return ax


def sights(pictures: dict[str, np.ndarray], seen: list[Sight]) -> Figure:
    """Draw pictures as each encoder gets them, and below each the encoder's last features as colours; ``inspection.sights``."""
    figure, axes = blank(2 * len(pictures), 1 + len(seen), 1.25, 1.4)
    for ax, (name, picture) in zip(axes[::2, 0], pictures.items(), strict=True):
        ax.imshow(picture)
        ax.set_title(f"{name}\n{picture.shape[1]} x {picture.shape[0]}", fontsize=6)
    for column, sight in zip(axes.T[1:], seen, strict=True):
        for row, picture in enumerate(sight.pictures):
            column[2 * row].imshow(picture)
            column[2 * row].set_title(f"{sight.encoder}\n{sight.geometry}", fontsize=6)
            if sight.features is not None:
                column[2 * row + 1].imshow(sight.features[row], interpolation="nearest")
    return figure


def strengths(curves: pd.DataFrame, chosen: pd.DataFrame, ax: Axes, title: str) -> Axes:
    """Draw validation loss against regularisation strength, one line per fold, the choice marked."""
    for fold, curve in curves.groupby("fold"):
        (line,) = ax.plot(curve["strength"], curve["loss"], label=f"fold {fold}")
        best = chosen[chosen["fold"] == fold].iloc[0]
        ax.plot(best["strength"], best["loss"], "o", color=line.get_color())
    ax.set(xscale="log", xlabel=title, ylabel="validation loss (nats)")
    ax.legend()
    return ax


def augmented(pictures: np.ndarray, title: str) -> Figure:
    """Draw pictures (B, S, S, C) in [0, 1] as training sees them; ``augmentation.examples``."""
    figure, axes = blank(2, -(-len(pictures) // 2), 1.1, 1.2)
    for ax, picture in zip(axes.flat, pictures, strict=False):
        ax.imshow(picture, vmin=0, vmax=1)
    figure.suptitle(title)
    return figure


def outlines(shown: "Sequence[Example]") -> Figure:
    """Draw frames with outlines of what is to be found (solid) and of what was found (dashed); ``segmentation.runs.examples``."""
    figure, axes = blank(2, -(-len(shown) // 2), 1.7, 1.85)
    for ax, one in zip(axes.flat, shown, strict=False):
        ax.imshow(one.picture)
        for mask, colour, style in ((one.truth, "#56B4E9", "solid"), (one.found, "#E69F00", "dashed")):
            if mask.any() and not mask.all():
                ax.contour(mask, [0.5], colors=colour, linestyles=style, linewidths=1)
        ax.set_title(f"Dice {one.dice:.2f}", fontsize=7)
    return figure


def training(histories: pd.DataFrame, score: str) -> Figure:
    """Draw training loss and the validation score that chooses, of every run over the epochs.

    Colour is the fold, style the learning rate; a line per seed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3))
    shown = histories.assign(**{"learning rate": histories["rate"].map("{:g}".format)})
    for ax, name in zip(axes, ("loss", score), strict=True):
        style = {"hue": "fold", "style": "learning rate", "palette": "colorblind", "marker": "o", "ms": 3}
        sns.lineplot(shown, x="epoch", y=name, ax=ax, **style, **_per_seed(shown))
        ax.get_legend().remove()
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("training loss (nats)")
    axes[1].set(ylabel=f"validation {score}", ylim=(0, 1.02))
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def views(wide: np.ndarray, local: np.ndarray) -> Figure:
    """Draw views of one picture as pretraining sees them, (n, S, S) and (m, s, s) in [0, 1]: global ones first, local ones smaller."""
    pictures, largest = [*wide, *local], wide.shape[-1]
    figure, axes = blank(2, -(-len(pictures) // 2), 1.1, 1.2)
    for ax, picture in zip(axes.flat, pictures, strict=False):
        edge = picture.shape[-1] / largest
        inner = ax.inset_axes((0.5 - edge / 2, 0.5 - edge / 2, edge, edge))
        inner.imshow(picture, cmap="gray", vmin=0, vmax=1)
        inner.set_axis_off()
    return figure


def pretraining(history: pd.DataFrame) -> Figure:
    """Draw k-NN, signs of collapse and losses over the epochs of a pretraining; epoch 0 is before the first step."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
    shown = {
        "k-NN, balanced accuracy": ["k-NN"],
        "share": ["entropy", "spread", "in use", "feature SD"],
        "loss (nats)": [name for name in ("DINO", "iBOT", "KoLeo") if name in history],
    }
    for ax, (title, columns) in zip(axes, shown.items(), strict=True):
        tidy = history.melt("epoch", columns, var_name="what").dropna()
        sns.lineplot(tidy, x="epoch", y="value", hue="what", palette="colorblind", marker="o", ms=3, ax=ax)
        ax.set(ylabel=title)
        ax.legend(title=None, fontsize="x-small")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].axhline(history["k-NN"].iat[0], color="0.6", ls="--", lw=1)
    axes[0].get_legend().remove()
    return figure


def movement(layers: pd.DataFrame, ax: Axes) -> Axes:
    """Draw how far the weights of every layer moved, one line per fold and seed; columns fold, seed, layer, change."""
    style = {"hue": "fold", "palette": "colorblind", "marker": "o", "ms": 4}
    sns.lineplot(layers, x="layer", y="change", ax=ax, **style, **_per_seed(layers))
    ax.set(xlabel="layer, from the picture to the head", ylabel="relative change of the weights", ylim=(0, None))
    locator: Any = ax.xaxis.get_major_locator()
    locator.set_params(integer=True)
    return ax


def _per_seed(runs: pd.DataFrame) -> dict[str, Any]:
    """Return what has seaborn draw a line for every seed, not their mean with a band."""
    return {"units": "seed", "estimator": None} if runs["seed"].nunique() > 1 else {}


def dots(table: pd.DataFrame, column: str, ax: Axes, places: list[str] | None = None) -> Axes:
    """Draw ``value`` with a line from ``low`` to ``high`` for every encoder, side by side at each value of ``column``."""
    palette, places = colours(table["encoder"]), places or list(dict.fromkeys(table[column]))
    for place, (encoder, colour) in enumerate(palette.items()):
        part = table[table["encoder"] == encoder]
        x = part[column].map(places.index) + (place - (len(palette) - 1) / 2) * 0.8 / len(palette)
        ax.plot(x, part["value"], "o", ms=3.5, color=colour, label=encoder)
        ax.vlines(x, part["low"], part["high"], lw=1, color=colour)
    ax.set_xticks(range(len(places)), places)
    ax.set_xlim(-0.6, len(places) - 0.4)
    return ax


def lines(
    table: pd.DataFrame, x: str, y: str, panel: str, ylabel: str = "", limits: tuple[float, float] = (0, 1.02)
) -> Figure:
    """Draw ``y`` against ``x``, one line per encoder, one panel per value of ``panel``; a band where there is low and high."""
    palette, names = colours(table["encoder"]), list(dict.fromkeys(table[panel]))
    figure, axes = panels(len(names), 2.6, 2.9, 5)
    for place, (ax, name) in enumerate(zip(axes, names, strict=True)):
        for encoder, colour in palette.items():
            part = table[(table[panel] == name) & (table["encoder"] == encoder)]
            ax.plot(part[x], part[y], "o-", ms=2.5, lw=1, color=colour, label=encoder)
            if "low" in part:
                ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
        ax.set(title=folded(name), xlabel=x, ylim=limits, ylabel="" if place % 5 else ylabel or y)
    legend(axes, 5)
    return figure


def panels(count: int, width: float, height: float, columns: int, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure and the axes of ``count`` panels, at most ``columns`` in a row; the last cells are left empty."""
    columns, rows = min(count, columns), -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), sharey=sharey, squeeze=False)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def legend(axes: list[Axes], columns: int) -> None:
    """Put one legend beside the first row of panels."""
    axes[min(len(axes), columns) - 1].legend(loc="center left", bbox_to_anchor=(1, 0.5))


def scores(summary: pd.DataFrame, ylabel: str) -> Figure:
    """Draw the mean over the fold models with its interval, one panel per view; ``scoring.overview`` with intervals."""
    table, views = summary.rename(columns={"mean": "value"}).replace({"protocol": titles()}), summary["view"].unique()
    figure, axes = panels(len(views), 2.3 if len(views) > 1 else 4, 3.4, 5)  # one alone has the legend beside it
    protocols = [name for name in titles().values() if name in set(table["protocol"])]
    for place, (ax, view) in enumerate(zip(axes, views, strict=True)):
        dots(table[table["view"] == view], "protocol", ax, protocols)
        ax.set_xticks(range(len(protocols)), protocols, rotation=30, ha="right")
        ax.set(title=folded(view), ylim=(0, 1.02), ylabel="" if place % 5 else ylabel)
    legend(axes, 5)
    return figure


def class_scores(scores: pd.DataFrame, task: Task) -> Figure:
    """Draw F1 of every class, one panel per test cohort and label space; mean and SD over the fold models."""
    part = summarise(scores[scores["metric"].str.startswith("F1 of ")]).rename(columns={"mean": "value"})
    part = part.assign(name=part["metric"].str.removeprefix("F1 of "), low=part["value"] - part["sd"])
    part = part.assign(high=part["value"] + part["sd"])
    views = list(dict.fromkeys(zip(part["population"], part["classes"], strict=True)))
    figure, axes = panels(len(views), 3.3, 3, 3)
    for ax, (population, classes) in zip(axes, views, strict=True):
        shown = part[(part["population"] == population) & (part["classes"] == classes)]
        dots(shown, "name", ax, [name for name in task.classes if name in set(shown["name"])])
        ax.tick_params("x", rotation=40)
        ax.set(title=folded(f"{population.capitalize()}, {classes}"), ylabel="F1", ylim=(0, 1.02))
    legend(axes, 3)
    return figure


def dot_figure(table: pd.DataFrame, column: str, ylabel: str, ylim: tuple | None = (0, 1.02)) -> Figure:
    """Draw ``dots`` in a figure of their own, with a line at 0 where the axis is free (``ylim`` None)."""
    figure, ax = plt.subplots(figsize=(6.7, 3))
    dots(table, column, ax).set(ylabel=ylabel)
    if ylim is None:
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    else:
        ax.set_ylim(ylim)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def gaps(steps: pd.DataFrame) -> Figure:
    """Draw the gap of every external cohort and label space, its parts and the residual, with a line at 0; ``shift.gaps``."""
    keys = list(dict.fromkeys(zip(steps["population"], steps["classes"], strict=True)))
    figure, axes = panels(len(keys), 6.7 if len(keys) == 1 else 5, 3, 2)
    for ax, (population, classes) in zip(axes, keys, strict=True):
        dots(steps[(steps["population"] == population) & (steps["classes"] == classes)], "step", ax)
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
        ax.set(ylabel="macro F1, home minus external", title=f"{population.capitalize()}, {classes}")
        ax.tick_params("x", rotation=20)
    legend(axes, 2)
    return figure


def parts(table: pd.DataFrame, ylabel: str) -> Figure:
    """Draw the score of every part of a cohort with its interval; ``table`` of ``shift.by_part``, one protocol and rule."""
    planes = table["present"].str.count(", ") + 1
    counts = table["groups"].astype(str) + " groups\n" + planes.astype(str) + " planes"
    return dot_figure(table.assign(named=table["part"] + "\n" + counts), "named", ylabel)


def reliability(answers: dict[str, pd.DataFrame], task: Task) -> Figure:
    """Draw reliability diagrams of the primary view of every cohort, bins of five images and more; ``answers`` state -> ``calibration.confidences``."""
    binned = {state: calibration.reliability(table) for state, table in answers.items()}
    every = next(iter(answers.values()))[["population", "classes", "rule", "view"]].drop_duplicates()
    views = [
        one.view
        for one in every.itertuples()
        if primary_view(task, one.population, one.classes, one.rule, "as published")
    ]
    parts = [t[t["view"] == view].assign(panel=f"{view}, {state}") for view in views for state, t in binned.items()]
    figure = lines(pd.concat(parts).query("images >= 5"), "confidence", "right", "panel", "share of right answers")
    for ax in figure.axes:
        ax.axline((0, 0), slope=1, color="0.6", lw=0.8, zorder=0)
    return figure


def errors(table: pd.DataFrame, pictures: list[np.ndarray]) -> Figure:
    """Show pictures with true class, answer and confidence, one row per centre; ``table`` of ``shift.worst``, a picture per row."""
    places, columns = table.groupby("centre").ngroup(), table.groupby("centre").cumcount()
    figure, axes = blank(places.max() + 1, columns.max() + 1, 2, 1.9)
    for row, column, one, picture in zip(places, columns, table.itertuples(), pictures, strict=True):
        ax = axes[row, column]
        ax.imshow(picture, cmap="gray")
        ax.set_title(f"{one.centre}: {one.true}, called\n{one.answer} ({one.confidence:.2f})", fontsize=7)
    return figure


def confusions(predicted: pd.DataFrame, task: Task) -> Figure:
    """Draw one confusion matrix per test cohort of one model, all folds together: shares of the true class, in percent.

    A row adds up to less than 100 where an answer was no class of the task.
    """
    test = predicted[predicted["split"] == "test"]
    known = spaces(task, test)
    figure, axes = panels(len(known), 3.4, 3.2, 3, sharey=False)
    for ax, (population, classes) in zip(axes, known.items(), strict=True):
        space = task.codes(classes)
        rows = test[(test["population"] == population) & test["y_true"].isin(space)]
        counts = metrics.confusion(rows["y_true"].to_numpy(), predictions.outputs(rows, task), space, len(task.classes))
        share = 100 * counts / rows["y_true"].value_counts().reindex(space, fill_value=1).to_numpy()[:, None]
        heatmap(pd.DataFrame(share, classes, task.classes), ax, ".0f")
        ax.set(xlabel="answer", ylabel="true class", title=population.capitalize(), aspect="equal")
    figure.suptitle(", ".join(sorted(set(test["encoder"]))))
    return figure


def embedding_map(points: pd.DataFrame, classes: Sequence[str], title: str) -> Figure:
    """Draw a map of embeddings: colour is the class, marker the cohort; ``points`` of ``embeddings.embedding_map``."""
    figure, ax = plt.subplots(figsize=(5.5, 4))
    style = {"hue": "class", "hue_order": classes, "style": "cohort", "palette": "colorblind", "linewidth": 0}
    sns.scatterplot(points, x="x", y="y", s=16, ax=ax, **style)
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[], title=title)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


plt.rcdefaults()  # whatever the user's own settings are
plt.style.use(Path(__file__).with_name("fpbench.mplstyle"))
