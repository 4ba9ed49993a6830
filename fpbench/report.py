"""The report: one self-contained HTML page of a study that was run, readable anywhere, without a network.

What it shows is data (``report.yaml``), how it looks is a template (``report.html``); tables, figures and findings are those
that the notebooks wrote. What is missing is named, with the notebook that would make it.
"""

import base64
import io
from dataclasses import asdict
from datetime import date
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from fpbench import artifacts, probing, statistics
from fpbench.errors import MissingError
from fpbench.recipe import MODES
from fpbench.study import Study
from fpbench.tables import PROTOCOLS

HERE = Path(__file__).parent
WIDEST = 1400  # pixels of a figure on the page


def build(study: Study, out: Path | None = None) -> Path:
    """Write the page of a study (default: ``report.html`` in its folder) and return its path.

    Raises
    ------
    MissingError
        The study has no table yet.
    """
    if not (study.folder / "tables").is_dir():
        raise MissingError(f"expected tables in {study.folder}, found none: run `fpbench run {study.name}` first")
    layout = yaml.safe_load((HERE / "report.yaml").read_text())
    used, sections = [layout["headline"]["figure"]], []
    for section in layout["sections"]:
        wanted = section.get("figures", [])
        used += [one["name"] for one in wanted]
        figures = [figure for one in wanted for figure in _figures(study, one["name"], one["caption"])]
        told = [artifacts.read_json(path) for path in sorted((study.folder / "findings").glob("*.json"))]
        tables = [_table(study, name) for name in section.get("tables", [])]
        sections.append(
            section | {"tables": tables, "figures": figures, "told": told if section.get("findings") else []}
        )
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html").render(
        study=study,
        headline=_figures(
            study, layout["headline"]["figure"], "Macro F1 in every view, with its 95 % interval by patient group."
        ),
        table1=_table(study, layout["headline"]["table"]),
        sections=sections,
        encoders=[_encoder(study, spec.name) for spec in study.encoders],
        task=study.the_task,
        grid=probing.GRID,
        resamples=(statistics.RESAMPLES, statistics.RANK_RESAMPLES),
        protocols=PROTOCOLS,
        deviations=layout["deviations"],
        checklist=layout["checklist"],
        stamp=study.stamp(),
        provenance=artifacts.provenance(),
        today=date.today().isoformat(),
    )
    out = out or study.folder / "report.html"
    with artifacts.atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _table(study: Study, name: str) -> dict:
    """Return a table of the study as text, which columns hold numbers, and its caption; None for rows if it is not there."""
    path = study.folder / "tables" / f"{name}.csv"
    if not path.is_file():
        return {"name": name, "caption": f"{name}: not made in this run", "columns": [], "rows": None, "numbers": []}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    numbers = [bool(pd.to_numeric(frame[column].replace("", "0"), errors="coerce").notna().all()) for column in frame]
    caption = artifacts.read_json(path.with_suffix(".json"))["caption"]
    return {
        "name": name,
        "caption": caption,
        "columns": list(frame),
        "rows": frame.to_numpy().tolist(),
        "numbers": numbers,
    }


def _figures(study: Study, pattern: str, caption: str) -> list[dict]:
    """Return the figures of a pattern as data: URIs, at most WIDEST pixels wide, in a palette of 256 colours."""
    found = []
    for path in sorted((study.folder / "figures").glob(f"{pattern}.png")):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((WIDEST, 4 * WIDEST), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        found.append(
            {"name": path.stem, "uri": uri, "width": picture.width, "height": picture.height, "caption": caption}
        )
    return found


def _encoder(study: Study, name: str) -> dict:
    """Return what is known of one encoder: its figures, its notebooks, and the predictions that are missing."""
    asked = [*study.probes, *(mode for mode in MODES if name in getattr(study, mode))]
    missing = [
        PROTOCOLS[one]
        for one in asked
        if not all(study.predictions(name, one, k).is_file() for k in range(study.folds))
    ]
    notebooks = sorted(
        path.name for path in (study.folder / "notebooks").glob("*.ipynb") if fnmatch(path.name, f"*.{name}.*")
    )
    patterns = {f"06_confusion_{name}": "Confusion matrices.", f"04_strength_{name}": "Choice of the probe's strength."}
    patterns |= {f"05_{what}_{name}_{mode}": f"{PROTOCOLS[mode].capitalize()}: {text}." for mode in MODES for what, text in (("training", "training curves"), ("moved", "change of the weights"))}  # fmt: skip
    figures = [figure for pattern, caption in patterns.items() for figure in _figures(study, pattern, caption)]
    return {
        "name": name,
        "spec": asdict(study.encoder_spec(name)),
        "missing": missing,
        "notebooks": notebooks,
        "figures": figures,
    }
