"""Tables as text: CSV, TSV, Excel and parquet, every cell as a person sees it, every row with the number that a person sees.

Nothing is dropped but empty rows, empty columns at the end, and the blanks around a cell. Contents: ``open_table``, `Raw`, and
what a table that cannot be read is told: which separator or encoding to try.
"""

import codecs
import csv
import datetime
import difflib
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fpbench.errors import InputError, MissingError

SEPARATORS = (",", ";", "\t", "|")  # those that are tried
EXCEL, PARQUET = (".xlsx", ".xlsm"), (".parquet", ".pq")
ROW = "row"  # name of an index that numbers rows as a person sees them
# of a cell that no column is called: a number, a date, the name of a picture
DATA = re.compile(r"[\d.,:/-]+|.*\.(png|jpe?g|tiff?|bmp|dcm)(#\d+)?", re.I)


@dataclass(frozen=True)
class Raw:
    """A table as it was found."""

    path: Path
    header: list[str]
    rows: list[list[str]]  # as many cells each as the header has
    numbers: list[int]  # of the rows: 1 is the first line of a text or a sheet, the first row of a parquet file
    sheet: str = ""  # of a workbook: the one that was read
    sheets: tuple[str, ...] = ()  # and the others

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return some columns as text, rows numbered (index ROW); InputError says which columns there are."""
        for name in columns:
            if self.header.count(name) != 1:
                raise InputError(f"{self.path}: {self._lack(name)}")
        places = [self.header.index(name) for name in columns]
        cells = [[row[place] for place in places] for row in self.rows]
        frame = pd.DataFrame(cells, columns=list(columns), index=pd.Index(self.numbers, name=ROW), dtype=str)
        if self.path.suffix.lower() in EXCEL and (frame == "").any(axis=None):
            _refuse_formulas(self, frame)
        return frame

    def _lack(self, name: str) -> str:
        if name in self.header:
            return f"{self.header.count(name)} columns are called {name!r}: expected one, rename the others"
        if any(map(DATA.fullmatch, self.header)):
            return f"no column {name!r}: the first row looks like data; expected the names of the columns there"
        close = difflib.get_close_matches(name, self.header, 1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(map(ascii_name, self.header[:40]))
        if len(self.header) == 1 and (other := [one for one in SEPARATORS if one in self.header[0]]):
            most = max(other, key=self.header[0].count)
            hint = f": is it separated otherwise? write `separator: {yaml_of(most)}`"
        where = f"sheet {self.sheet!r} (others: {', '.join(self.sheets) or 'none'})" if self.sheet else "the table"
        return f"no column {name!r} in the first row of {where}, which names {shown}{hint}"


def ascii_name(text: str) -> str:
    """Return a name of a column as it may stand in a message: printable, at most 60 characters."""
    return repr(text)[1:-1][:60]


def yaml_of(separators: str | Sequence[str]) -> str:
    """Return a separator, or a list of them, as it is written in YAML."""
    if isinstance(separators, str):
        return "tab" if separators == "\t" else f'"{separators}"'
    return f"[{', '.join(map(yaml_of, separators))}]"


def open_table(path: Path, separators: Sequence[str] = (), encoding: str = "utf-8", sheet: str = "") -> Raw:
    """Read a whole table.

    Parameters
    ----------
    path
        Its suffix says what it is: .xlsx, .xlsm, .parquet, .pq; any other is a text.
    separators
        Of a text: one character each; of several, a row has the first that gives it the header's number of cells. Default: a
        tab for .tsv, else a comma.
    encoding, sheet
        Of a text, of a workbook (default: the first sheet).

    Raises
    ------
    MissingError
        It is not there.
    InputError
        It is no table; the message names the row and what to write.
    """
    if not os.path.isfile(path):  # also where no file could have such a name
        raise MissingError(f"expected a table at {path}, found nothing: correct the path")
    kind = path.suffix.lower()
    if kind in (".xls", ".xlsb", ".ods", ".numbers"):
        raise InputError(f"{path}: cannot read {kind}: save it as .xlsx, or as CSV")
    if kind in PARQUET:
        return _parquet(path)
    if kind in EXCEL:
        return _excel(path, sheet)
    return _text(path, decoded(path, encoding), separators or (("\t",) if kind in (".tsv", ".tab") else (",",)))


def _filled(raw: Raw) -> Raw:
    if not raw.rows:
        raise InputError(
            f"{raw.path}: expected a row with the names of the columns and rows of images, found no such rows"
        )
    return raw


def _trimmed(cells: list[str]) -> list[str]:
    """Return the cells without empty ones at the end."""
    return cells[: max((n for n, cell in enumerate(cells, 1) if cell), default=0)]


# ---- text -------------------------------------------------------------------------------------------------------------


def decoded(path: Path, encoding: str) -> str:
    """Return the text of a file, without its byte order mark; InputError says which encoding to write."""
    data = path.read_bytes()
    if data[:2] == b"PK":
        raise InputError(f"{path}: expected a text, found a packed file: is it a workbook? call it .xlsx")
    try:
        name = codecs.lookup(encoding).name
        text = data.removeprefix(codecs.BOM_UTF8).decode(encoding)
    except LookupError:
        raise InputError(f"{path}: unknown encoding {encoding!r}: write `encoding: {guess_encoding(data)}`") from None
    except UnicodeError as error:
        row = data[: getattr(error, "start", 0)].count(b"\n") + 1
        say = f"write `encoding: {guess_encoding(data)}`"
        raise InputError(f"{path}, row {row}: the text is not {encoding}: {say}") from None
    if name != "utf-8" and not data.isascii() and guess_encoding(data) == "utf-8":
        raise InputError(f"{path}: the text is UTF-8, not {encoding}: write `encoding: utf-8`")
    if "\0" in text:
        raise InputError(f"{path}: expected a text, found zero bytes: write `encoding: {guess_encoding(data)}`")
    return text.removeprefix("\ufeff")


def guess_encoding(data: bytes) -> str:
    """Return the encoding that a text of bytes most probably has."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in data[:1000]:
        return "utf-16-le" if data[1:1000:2].count(0) >= data[:1000:2].count(0) else "utf-16-be"
    for name in ("utf-8", "cp1252"):
        try:
            data.removeprefix(codecs.BOM_UTF8).decode(name)
        except UnicodeError:
            continue
        return name
    return "latin-1"


def _text(path: Path, text: str, separators: Sequence[str]) -> Raw:
    """Return the table in a text; InputError for a row with another number of cells than the header has."""
    found = records(text, separators)
    try:
        number, header = next(found, (1, []))
        lines = list(found)
    except csv.Error as error:
        raise InputError(
            f"{path}: not a table separated by {yaml_of(separators[0])} ({error}): mind the quotes"
        ) from None
    width = len(header := _trimmed(header))
    lines = [(number, row[:width] if not any(row[width:]) else row) for number, row in lines]
    if bad := [(number, row) for number, row in lines if len(row) != width]:
        number, row = bad[0]
        where = f"expected {width} cells as in the header, found {len(row)} in row {number} ({len(bad)} such rows)"
        raise InputError(f"{path}: {where}: {_other(text, separators, width, len(bad))}")
    return _filled(Raw(path, header, [row for _, row in lines], [number for number, _ in lines]))


def _other(text: str, separators: Sequence[str], width: int, bad: int) -> str:
    """Return what to write where rows do not fit the header: further separators, if they help."""
    for one in SEPARATORS:
        tried = [*separators, one]
        if one not in separators and sum(len(row) != width for _, row in records(text, tried)) < bad:
            return f"some rows are separated otherwise; write `separator: {yaml_of(tried)}`"
    return "a separator within a cell needs quotes around the cell; correct the row"


def records(text: str, separators: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a text that are not empty, numbered from 1: the header first, cells stripped."""
    if len(separators) == 1:
        rows: Iterator[list[str]] = csv.reader(io.StringIO(text, newline=""), delimiter=separators[0], strict=True)
    else:
        rows = _mixed(io.StringIO(text, newline=None), separators)
    for number, row in enumerate(rows, 1):
        if any(row := [cell.strip() for cell in row]):
            yield number, row


def _mixed(lines: Iterator[str], separators: Sequence[str]) -> Iterator[list[str]]:
    """Yield the cells of every line by the first separator that gives it as many as the first line has at most."""
    width = 0
    for line in lines:
        ways = [[line.rstrip("\n")]]  # where none fits
        for one in separators:
            try:
                ways.append(next(csv.reader([line.rstrip("\n")], delimiter=one, strict=True), []))
            except csv.Error:  # quotes that are none to this separator
                continue
        wide = [len(_trimmed([cell.strip() for cell in way])) for way in ways]
        width = width or max(wide)
        fitting = [way for way, cells in zip(ways, wide, strict=True) if len(way) >= width >= cells]
        yield (fitting or ways[1:] or ways)[0]


# ---- workbooks, parquet -----------------------------------------------------------------------------------------------


def shown(value: Any, pattern: str = "General") -> str:
    """Return a value of a cell as a person sees it: 17.0 is 17, a day has no time; ``pattern``: its number format in Excel."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float) and math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):0{len(pattern) if set(pattern) == {'0'} else 1}d}"  # 17 under the format 00000
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return str(value).strip()


def _excel(path: Path, sheet: str) -> Raw:
    """Return the table in one sheet of a workbook; cells to the right of the header are nobody's."""
    with _workbook(path) as book:
        names = [one.title for one in book.worksheets]
        if sheet and sheet not in names:
            raise InputError(f"{path}: no sheet {sheet!r}: expected one of {', '.join(names)}")
        chosen = book[sheet or names[0]]
        chosen.reset_dimensions()  # those in the file may be wrong
        rows = [[shown(cell.value, getattr(cell, "number_format", "")) for cell in row] for row in chosen.iter_rows()]
    others = tuple(name for name in names if name != chosen.title)
    (_, header), *lines = [(number, row) for number, row in enumerate(rows, 1) if any(row)] or [(1, [])]
    width = len(header := _trimmed(header))
    cells = [(row + [""] * width)[:width] for _, row in lines]
    return _filled(Raw(path, header, cells, [number for number, _ in lines], chosen.title, others))


class _workbook:
    """A workbook, open for reading: values as they were last computed, or formulas."""

    def __init__(self, path: Path, formulas: bool = False) -> None:
        try:
            from openpyxl import load_workbook
        except ModuleNotFoundError:
            how = 'pip install "fpbench[excel]", or save the sheet as CSV'
            raise InputError(f"{path}: reading a workbook needs what is not installed here: {how}") from None
        try:
            self.book = load_workbook(path, read_only=True, data_only=not formulas)
        except Exception as error:  # of zip, of XML, of openpyxl
            raise InputError(f"{path}: not a workbook ({error}): is it a text? call it .csv") from None

    def __enter__(self) -> Any:
        return self.book

    def __exit__(self, *_: object) -> None:
        self.book.close()


def _refuse_formulas(raw: Raw, frame: pd.DataFrame) -> None:
    """Raise InputError for a cell that is empty because its formula was never computed."""
    with _workbook(raw.path, formulas=True) as book:
        chosen = book[raw.sheet]
        chosen.reset_dimensions()
        for number, row in enumerate(chosen.iter_rows(values_only=True), 1):
            for name in frame.columns if number in frame.index else ():
                value = row[place] if (place := raw.header.index(name)) < len(row) else None
                if frame.at[number, name] == "" and str(value).startswith("="):
                    how = "open the workbook in Excel and save it, or put values in place of formulas"
                    raise InputError(f"{raw.path}: {name} in row {number} is a formula without a value: {how}")


def _parquet(path: Path) -> Raw:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        columns = [[shown(value) for value in column.to_pylist()] for column in table.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a parquet file ({str(error)[:200]})") from None
    rows = [list(row) for row in zip(*columns, strict=True)]
    kept = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    return _filled(Raw(path, table.column_names, [row for _, row in kept], [number for number, _ in kept]))
