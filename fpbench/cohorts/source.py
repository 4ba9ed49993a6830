"""One table of facts per cohort, and the checks that hold a folder to them.

A ``Source`` says how an archive is laid out and what it must hold; the published counts are executable. All readers return
the same columns, one row per image.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fpbench.cohorts.cells import ROW, records
from fpbench.cohorts.download import FACTS, Archive
from fpbench.errors import InputError, MissingError

if TYPE_CHECKING:
    from fpbench.cohorts.table import Table

COLUMNS: tuple[str, ...] = (
    "image_id", "path", "patient", "plane", "brain_plane", "machine", "operator", "centre", "official_split",
)  # fmt: skip
SWEEP = ("case", "sweep")  # what names the sweep of a frame, in a cohort of sweeps
CONFOUNDERS = ("machine", "centre", "operator")  # of a cohort that says none, the first that has two values
# of a cell: short, printable, no formula to a spreadsheet
PLAIN = re.compile(r"(?![=+@-].)[^\x00-\x1f\x7f-\x9f]{0,200}")


@dataclass(frozen=True)
class Source:
    """What is known of a cohort before a file is opened."""

    name: str  # first part of every image_id and patient
    title: str  # for headings
    population: str  # the word that tasks use; an archive and its phantom share it
    csv: str  # the label file, relative to the root folder
    read: Callable[[Path, str], pd.DataFrame]  # (label file, name) -> rows with COLUMNS
    counts: dict[str, dict[str, int]]  # column -> value -> images; "total" -> those of ``totals``
    confounder: str  # the column that goes with the class besides anatomy; empty: see CONFOUNDERS
    licence: str
    citation: str
    archive: Archive | None = None  # where it is fetched from
    csv_sha256: str = ""  # of the label file as published
    label: str = ""  # "phantom" where the pictures are not of people; stands on every figure
    further: tuple[str, ...] = ()  # columns that ``read`` gives behind COLUMNS; they stand behind them in the frame
    bits: int = 0  # of pictures that hold more than 8, as ``images.decode`` takes it
    mask_of: Callable[[Path], Path] | None = None  # path of a picture -> of its mask, where there are masks
    sweeps: Callable[[Path], pd.DataFrame] | None = None  # label file -> one row per sweep, also those without a row
    table: "Table | None" = None  # what a YAML file says of it, if it is described by one
    prepare: Callable[[Path], object] | None = field(default=None, compare=False)  # makes the folder if it is absent
    prepared: Callable[[Path], bool] = field(default=lambda root: True, compare=False)  # is it as `prepare` leaves it


def published(archive: Archive, read: Callable[[Path, str], pd.DataFrame], **more: Any) -> Source:
    """Return the facts of a public cohort, from `public.yaml`, and ``more`` fields."""
    facts = FACTS[archive.name]["cohort"]
    return Source(read=read, licence=archive.licence, citation=archive.citation, archive=archive, **facts, **more)


def read_table(path: Path, separator: str, columns: list[str]) -> pd.DataFrame:
    """Read a label file as text, header and values stripped; InputError unless it has exactly ``columns`` and plain cells."""
    try:
        lines = records(path.read_bytes().decode("utf-8-sig"), separator)
        if (found := next(lines, (1, []))[1]) != columns:
            shown = ascii(", ".join(found))[1:-1][:400]
            raise InputError(f"{path}: expected the columns {', '.join(columns)}; found {shown}")
        rows = [row for _, row in lines]
    except (UnicodeError, csv.Error) as error:
        bad = f"{path}: not a table separated by {separator!r} ({error})"
        raise InputError(f"{bad}: is it the file of the archive?") from None
    if ragged := [number for number, row in enumerate(rows, 1) if len(row) != len(columns)]:
        raise InputError(f"{path}: not a table: expected {len(columns)} cells in data row {ragged[0]}, found others")
    frame = pd.DataFrame(rows, columns=columns, dtype=str)
    check_plain(frame, path)
    return frame


def check_plain(frame: pd.DataFrame, path: Path | str) -> None:
    """Raise InputError for a cell that is not PLAIN: cells go into names, messages, and tables that spreadsheets open."""
    for column, cells in frame.items():
        if odd := [one for one in cells.unique().tolist() if isinstance(one, str) and not PLAIN.fullmatch(one)]:
            odd = cells[cells.isin(odd)].drop_duplicates()
            problem = f"expected short printable text without =, +, - or @ in front, found {column} {odd.iat[0][:40]!r}"
            raise rows_error(path, odd, problem)


def translate(frame: pd.DataFrame, words: dict[str, dict[str, str | None]], path: Path) -> pd.DataFrame:
    """Translate the words of some columns into ours (column -> theirs -> ours); InputError names the rows with any other."""
    for column, names in words.items():
        if len(unknown := frame[~frame[column].isin(names)]):
            problem = f"unknown {column} {unknown[column].iat[0]!r}"
            raise rows_error(path, unknown, problem, f"; expected one of {', '.join(names)}")
    return pd.DataFrame({column: frame[column].map(names) for column, names in words.items()})


def joined(parts: pd.DataFrame) -> pd.Series:
    """Return the cells of every row, joined by "/"; a row of empty cells is empty."""
    text = parts.iloc[:, 0]
    for place in range(1, parts.shape[1]):
        text = text + "/" + parts.iloc[:, place]
    return text.where(text.str.strip("/") != "", "")


def filled(numbers: pd.Series, digits: int) -> pd.Series:
    """Return numbers with zeros in front, to so many digits: 17 is 00017; cells that are no numbers stay."""
    return numbers.where(~numbers.str.isdecimal(), numbers.str.zfill(digits))


def rows_error(path: Path | str, rows: pd.DataFrame, problem: str, hint: str = "") -> InputError:
    """Return the error that wrong ``rows`` of a label file call for; ``problem`` is that of the first."""
    row = f"row {rows.index[0]}" if rows.index.name == ROW else f"data row {rows.index[0] + 1}"
    return InputError(f"{path}: {problem} in {row} ({len(rows)} such rows){hint}")


def check_rows(frame: pd.DataFrame, path: Path) -> None:
    """Raise InputError for a duplicated row or a patient on both sides of the published split."""
    if len(twice := frame.loc[frame["image_id"].duplicated(), "image_id"]):
        listed = f"{len(twice)} images are listed twice, the first is {twice.iloc[0]}"
        raise InputError(f"{path}: {listed}: expected one row each")
    sides = frame.groupby("patient")["official_split"].nunique()
    if (both := int((sides > 1).sum())) > 0:
        split = f"{both} patients are on both sides of the published split, the first is {sides.idxmax()}"
        raise InputError(f"{path}: {split}: expected none; is this the file of the archive?")


def totals(frame: pd.DataFrame) -> dict[str, int]:
    """Return how many images and patients there are; where images are frames of sweeps, how many cases and sweeps."""
    found = {"images": len(frame), "patients": frame["patient"].nunique()}
    if has_sweeps(frame):
        found |= {"cases": frame["case"].nunique(), "sweeps": len(frame[list(SWEEP)].drop_duplicates())}
    return found


def has_sweeps(frame: pd.DataFrame) -> bool:
    """Return whether images are frames of sweeps."""
    return {*SWEEP} <= {*frame}


def check_counts(frame: pd.DataFrame, source: Source, path: Path) -> None:
    """Hold the rows to the published counts; InputError lists every count that differs."""
    found = {"total": totals(frame)}
    found |= {column: frame[column].value_counts().to_dict() for column in source.counts if column != "total"}
    wrong = [
        f"\n  {column} {value}: expected {expected:,}, found {found[column].get(value, 0):,}"
        for column, values in source.counts.items()
        for value, expected in values.items()
        if found[column].get(value, 0) != expected
    ]
    if wrong and source.table:
        how = f"correct the table, or `expect` in {source.table.file}"
        raise InputError(f"{path} does not hold the counts that are expected:{''.join(wrong)}\n{how}")
    if wrong:
        raise InputError(f"{path} does not hold the published counts:{''.join(wrong)}\nIs the archive complete?")


def locate(root: Path, source: Source) -> Path:
    """Return the folder that holds the label file: ``root`` or its only subfolder that does; a YAML file says it itself."""
    if source.table:
        return source.table.path.parent
    if (root / source.csv).is_file():
        return root
    inside = [folder for folder in sorted(root.glob("*")) if (folder / source.csv).is_file()]
    if len(inside) == 1:
        return inside[0]
    how = f"run 'fpbench fetch {source.name}'" if source.archive else "check the folder in the study file"
    raise MissingError(f"expected {source.csv} in {root}, found {len(inside)} such files below it: {how}")
