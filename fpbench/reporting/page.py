"""The report: one self-contained HTML page of a study that was run, readable anywhere, without a network.

What it shows is data (``page.yaml``), how it looks is a template (``page.html``); tables, figures and findings are those
that the notebooks wrote. What is missing is named, with the notebook that would make it.
"""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import chain
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from fpbench import results
from fpbench.analysis import statistics
from fpbench.errors import MissingError
from fpbench.files import artifacts, provenance
from fpbench.files.machine import workers
from fpbench.protocols import PROTOCOLS, titles, tunings
from fpbench.recipe import GRID
from fpbench.study import EncoderSpec, Study

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
    layout = yaml.safe_load((HERE / "page.yaml").read_text(encoding="utf-8"))
    told = [artifacts.read_json(path) for path in sorted((study.folder / "findings").glob("*.json"))]
    made = {path.stem for path in (study.folder / "tables").glob("*.csv")}  # no cohort need be there
    layout["sections"] = [
        one
        for one in layout["sections"]
        if not (need := one.get("needs")) or need in made or getattr(study, need, None)
    ]
    for section in layout["sections"]:
        section["tables"] = [_table(study, one) for name in section.get("tables", []) for one in _tables(study, name)]
        section["figures"] = _figures(study, section.get("figures", []))
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("page.html").render(
        {
            **layout,
            "study": study,
            "told": told,
            "task": study.the_task,
            "grid": GRID,
            "protocols": titles(),
            "stamp": results.stamp(study),
        },
        headline=_figures(study, layout["headline"]),
        table1=_table(study, "table1", whole=True),
        encoders=[_encoder(study, spec, layout["each"]) for spec in study.encoders],
        resamples=(statistics.RESAMPLES, statistics.RANK_RESAMPLES),
        provenance=provenance.provenance(),
        today=date.today().isoformat(),
    )
    out = out or study.folder / "report.html"
    with artifacts.atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _tables(study: Study, name: str) -> list[str]:
    """Return the tables that a name with a * stands for, sorted; any other name as it is."""
    return sorted(path.stem for path in (study.folder / "tables").glob(f"{name}.csv")) if "*" in name else [name]


def _table(study: Study, name: str, whole: bool = False) -> dict:
    """Return a table of the study as text, which columns hold numbers, and its caption; rows are None if it is not there.

    Columns that say the same in every row are named once, as ``alike``, unless the table is to stay ``whole``.
    """
    path = study.folder / "tables" / f"{name}.csv"
    if not path.is_file():
        return {"name": name, "rows": None}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    same = [one for one in frame if len(frame) > 1 and frame[one].nunique() == 1 and not whole]
    alike = ", ".join(f"{one} {frame[one].iat[0]}" for one in same if frame[one].iat[0])
    frame = frame.drop(columns=same)
    numbers = [bool(pd.to_numeric(frame[column].replace("", "0"), errors="coerce").notna().all()) for column in frame]
    caption, rows = artifacts.read_json(path.with_suffix(".json"))["caption"], frame.to_numpy().tolist()
    return {"name": name, "caption": caption, "columns": list(frame), "rows": rows, "numbers": numbers, "alike": alike}


def _figures(study: Study, listed: list[dict], **names: str) -> list[dict]:
    """Return the figures of a list as data: URIs, at most WIDEST pixels wide, in a palette of 256 colours."""
    paths = [sorted((study.folder / "figures").glob(one["name"].format(**names) + ".png")) for one in listed]
    captions = [one["caption"] for one, found in zip(listed, paths, strict=True) for _ in found]
    with ThreadPoolExecutor(workers()) as pool:
        return list(pool.map(_figure, chain(*paths), captions))


def _figure(path: Path, caption: str) -> dict:
    picture, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    picture.thumbnail((WIDEST, 4 * WIDEST), Image.Resampling.LANCZOS)
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"uri": uri, "width": picture.width, "height": picture.height, "caption": caption}


def _encoder(study: Study, spec: EncoderSpec, listed: list[dict]) -> dict:
    """Return what is known of one encoder: its figures, its notebooks, and the predictions that are missing."""
    asked = [*study.probes, *(one for one in tunings() if spec.name in study.encoders_of(one))]
    folds = {one: [results.path(study, spec.name, one, fold) for fold in range(study.folds)] for one in asked}
    missing = [PROTOCOLS[one].title for one, files in folds.items() if not all(path.is_file() for path in files)]
    notebooks = sorted(path.name for path in (study.folder / "notebooks").glob(f"*.{spec.name}.*ipynb"))
    figures = _figures(study, listed, encoder=spec.name)
    return {"spec": spec, "missing": missing, "notebooks": notebooks, "figures": figures}
