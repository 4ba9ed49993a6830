"""Tables as people read them: a tidy frame of scores in, CSV, Markdown, LaTeX and HTML out."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fpbench import results
from fpbench.analysis.scoring import MODEL, overview, published, summarise, told, verdicts
from fpbench.files import artifacts
from fpbench.protocols import PROTOCOLS, SUBMITTED, titles
from fpbench.study import Study
from fpbench.tasks import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def table1(
    scores: pd.DataFrame, task: Task, intervals: pd.DataFrame | None = None, missing: dict[str, str] | None = None
) -> pd.DataFrame:
    """Return encoders x protocols against views, with the paper's public numbers and their verdicts beside them.

    A cell is ``mean [95 % interval by patient group] ± SD over folds`` of the task's headline, images as published; where a model was
    trained with several seeds ``± SD by fold, ± SD by seed``, a dash for one that was not; ``not answered`` where a model says nothing of a cohort, ``not told`` where its answers alone do not give the score.

    Parameters
    ----------
    scores
        Of ``scoring.evaluate``: one row per model, view, fold and metric.
    intervals
        Of ``statistics.intervals``, one method. Without them the interval is left out; where the data carry none, it is ``[none]``, or
        ``[none: CLASS has N patients]``.
    missing
        ``results.missing``: a row each, with the reason.

    Raises
    ------
    KeyError
        A protocol of the scores is not registered.
    """
    summary, order = overview(scores, task, intervals), list(PROTOCOLS)
    summary["text"] = summary["mean"].map("{:.3f}".format)
    if intervals is not None:
        summary["text"] += told(summary)
    summary["text"] += np.where(
        (summary["protocol"] == SUBMITTED) & ~(summary["sd"] > 0),  # one model, whose answers every fold repeats
        ", one model",
        " ± " + summary["sd"].map("{:.3f}".format) + _by_seed(summary),
    )
    summary.loc[summary["mean"].isna() & (summary["protocol"] == SUBMITTED), "text"] = "not told"
    table = summary.pivot(index=list(MODEL), columns="view", values="text")[summary["view"].unique()]
    table = table.fillna("not answered")
    if missing:
        keys = [
            (name, part if part in PROTOCOLS else "logistic") for name, part in (what.split("/") for what in missing)
        ]
        cells = [[f"missing: {reason}", *[""] * (table.shape[1] - 1)] for reason in missing.values()]
        rows = pd.DataFrame(cells, pd.MultiIndex.from_tuples(keys, names=MODEL), table.columns)
        table = pd.concat([table, rows])
    table = table.sort_index(key=lambda level: level.map(order.index) if level.name == "protocol" else level)
    table = table.rename(index=titles(), level="protocol").rename_axis(columns=None)
    public = verdicts(scores).set_index([*MODEL, "population"])
    for population in [one for one in dict.fromkeys(summary["population"]) if one in set(published()["population"])]:
        known = [public.loc[(*key, population)] if (*key, population) in public.index else None for key in table.index]
        texts = ["not public" if cell is None else f"{cell['paper']:.4f}, {cell['verdict']}" for cell in known]
        table[f"{population.capitalize()}, paper"] = texts
    return table.reset_index()


def _by_seed(summary: pd.DataFrame) -> pd.Series | str:
    """Return what a cell says of the variation by seed: nothing where no model has several."""
    if not (several := summary["seeds"] > 1).any():
        return ""
    return " by fold, " + ("± " + summary["sd_seeds"].map("{:.3f}".format)).where(several, "-") + " by seed"


def caption1(scores: pd.DataFrame, task: Task) -> str:
    """Return the caption of ``table1`` with intervals."""
    if scores.groupby(list(MODEL))["seed"].nunique().max() == 1:
        return f"{task.headline}, mean over the fold models [95 % interval by patient group] ± SD over the fold models; images as published"
    by_seed = "± SD by seed (of the means over folds; -: trained once)"
    score = f"{task.headline} of these runs, mean over folds and seeds [95 % interval by patient group]"
    return f"{score} ± SD by fold (of the means over seeds), {by_seed}; images as published"


def save(table: pd.DataFrame, study: Study, name: str, caption: str) -> pd.DataFrame:
    """Write a table as CSV, Markdown, LaTeX (booktabs) and HTML, with caption, label and stamp, and return it to be shown.

    The CSV holds the values alone; ``<name>.json`` beside it holds its caption and stamp.
    """
    folder, stamp = study.folder / "tables", results.stamp(study)
    note = caption + (f" ({study.label})" if study.label else "")
    html = table.to_html(index=False, border=0).replace("<table", f"<table aria-label={name!r}", 1)
    style = table.style.hide(axis="index").format(escape="latex", precision=3)
    texts = {
        "csv": table.to_csv(index=False),
        "md": f"{note}\n\n{table.to_markdown(index=False)}\n\n<!-- {stamp} -->\n",
        "tex": f"{style.to_latex(hrules=True, caption=_latex(note))}% {stamp}\n",
        "html": f"<figure>{html}<figcaption>{note}</figcaption></figure>\n<!-- {stamp} -->\n",
    }
    for suffix, text in texts.items():
        with artifacts.atomic(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    artifacts.commit(folder / f"{name}.csv", {"caption": caption, "label": study.label, "stamp": stamp})
    return table


def tell(lines: list[str], study: Study, name: str, title: str) -> None:
    """Print findings and write them to ``findings/<name>.json``, where the report reads them."""
    artifacts.write_json(study.folder / "findings" / f"{name}.json", {"title": title, "lines": lines})
    print(*lines, sep="\n")


def by_encoder(rows: dict[str, dict]) -> pd.DataFrame:
    """Return one row per encoder from what was found of each."""
    return pd.DataFrame([{"encoder": name, **row} for name, row in rows.items()])


def by_item(settings: "DataclassInstance") -> pd.DataFrame:
    """Return the fields of a dataclass, one row each; those of a dataclass within it are named with a dot."""
    flat = pd.json_normalize(asdict(settings)).iloc[0]
    return flat.map(str).rename_axis("setting").reset_index(name="value")


def _latex(text: str) -> str:
    return "".join("\\" + letter if letter in "&%$#_{}" else letter for letter in text)


def all_metrics(scores: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Return every metric of one protocol: encoders and views against metrics, means over the fold models."""
    part = scores[(scores["protocol"] == protocol) & (scores["duplicates"] == "as published")]
    names = list(dict.fromkeys(part["metric"]))
    table = summarise(part).pivot(index=["encoder", "population", "classes", "rule"], columns="metric", values="mean")
    return table[names].round(3).rename_axis(columns=None).reset_index()


def per_class(scores: pd.DataFrame) -> pd.DataFrame:
    """Return F1 of every class against encoders and views; ``scores`` of ``evaluate_classes``, one protocol and rule."""
    summary = summarise(scores[scores["metric"].str.startswith("F1 of ")])
    summary["text"] = summary["mean"].map("{:.3f}".format) + " ± " + summary["sd"].map("{:.3f}".format)
    summary["class"] = summary["metric"].str.removeprefix("F1 of ")
    classes = list(dict.fromkeys(summary["class"]))
    table = summary.pivot(index=["encoder", "population", "classes"], columns="class", values="text")
    return table[classes].fillna("").rename_axis(columns=None).reset_index()
