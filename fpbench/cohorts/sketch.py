"""A first description of a cohort, written by looking at its table and its pictures: what a person then corrects.

What is only guessed says why; what a person must decide stands in a line with ``# ?``, and the file does not load, rather than
load something else, until it is decided. Nothing of a cell is written or shown but words of columns that say plane, split,
centre, machine or operator, and of columns with few words that no person can be known by. Contents: ``sketch``, `Sketch`.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fpbench.cohorts import cells, pictures, read_images
from fpbench.cohorts.source import PLAIN
from fpbench.cohorts.table import KEYS, OURS, SIDES, describe, words_of
from fpbench.cohorts.vocabulary import UNKNOWN, guess, plain, quoted, roles
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.images.folders import files_below

FEW = 12  # words of a column that may be shown
WORDS = 60  # of a column that is taken for a plane; of a machine, centre or operator
MARK = "# ?"  # begins what waits for a person


@dataclass
class _Column:
    """One column of the table: its cells, and what its name may mean."""

    name: str
    cells: list[str]
    counts: Counter = field(init=False)  # of words
    roles: set[str] = field(init=False)  # by its name

    def __post_init__(self) -> None:
        self.counts, self.roles = Counter(self.cells), roles(self.name)

    def share(self, ours: str) -> float:
        """Return the share of cells whose word is known for one of our columns."""
        known = sum(count for word, count in self.counts.items() if word and guess(ours, word) != UNKNOWN)
        return known / max(1, len(self.cells) - self.counts[""])


@dataclass(frozen=True)
class Sketch:
    """What was written, and what came of it."""

    file: Path
    text: str
    verdict: str  # what reading it gives

    @property
    def waiting(self) -> list[str]:
        """Return the lines that wait for a person, with their numbers."""
        lines = [*enumerate(self.text.splitlines(), 1)][2:]
        return [f"line {number}: {line.strip()}" for number, line in lines if MARK in line]

    def __str__(self) -> str:
        """Return what was found, what to edit, and what to type next."""
        known = "|".join((*KEYS, *OURS))
        lines = re.findall(rf"^  (?:{known}): .*$", self.text, re.M)
        lines += [f"lines that wait for you: {len(self.waiting)}", *self.waiting, self.verdict]
        return "\n".join([f"{self.file} is written; read it", *lines, f"next: fpbench audit {self.file}"])


def sketch(table: str | Path, images: str | Path | None = None, out: str | Path | None = None) -> Sketch:
    """Write a first description of a cohort.

    Parameters
    ----------
    table
        CSV, TSV, Excel or parquet, one row per image, names of columns in the first row.
    images
        The folder that its pictures lie in or below; default: that of the table.
    out
        The file to write; default: ``<folder>/<name of the folder>.yaml`` beside the table.

    Raises
    ------
    InputError
        There is such a file already, or the table is none.
    """
    table = paths.here(table)
    name = re.sub(r"[^a-z0-9.-]+", "-", plain(table.parent.name)).strip("-.") or "cohort"
    file = paths.here(out) if out else table.with_name(f"{name}.yaml")
    if file.exists():
        raise InputError(f"{file} is there already, and nothing is written over: name another with --out")
    top = paths.here(images) if images else table.parent
    if not os.path.isdir(top):
        raise InputError(f"expected a folder with pictures at {top}, found nothing: correct --images")
    raw, lines = _table(table, file.parent)
    if any(map(cells.DATA.fullmatch, raw.header)):
        raise InputError(f"{table}: the first row looks like data: expected the names of the columns there")
    columns = [_Column(name, [row[place] for row in raw.rows]) for place, name in enumerate(raw.header) if name]
    text = "\n".join([*_head(raw, name), *lines, *_columns(columns, top, file.parent), *_tail(raw)]) + "\n"
    with artifacts.atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Sketch(file, text, _verdict(file))


def _verdict(file: Path) -> str:
    try:
        rows, there = read_images(describe(file), Path(), "drop")
    except (InputError, OSError) as error:
        return f"it does not load yet: {error}"
    lost = "" if there.all() else f"; {there.sum():,} of the files are there: load it with missing='drop'"
    return f"it loads: {len(rows):,} images of {rows['patient'].nunique():,} patients{lost}"


def _head(raw: cells.Raw, name: str) -> list[str]:
    return [
        f"# {len(raw.rows):,} rows and {len(raw.header)} columns of {raw.path.name}, as `fpbench init-cohort` understands them.",
        f'# A line with "{MARK}" waits for you: decide, and take the mark away. Then `fpbench audit` shows what there is.',
        f"name: {quoted(name)}  # first part of the name of every image and patient",
        f"title: {quoted(name)}  # for headings",
        "licence: not stated",
        "citation: not stated",
    ]


def _tail(raw: cells.Raw) -> list[str]:
    return ["expect:  # to be told when the table changes", f"  total: {{images: {len(raw.rows)}}}"]


# ---- the table --------------------------------------------------------------------------------------------------------


def _table(path: Path, base: Path) -> tuple[cells.Raw, list[str]]:
    """Return the table, and the lines that say how it is read."""
    lines = [f"table: {quoted(_relative(path, base))}"]
    if path.suffix.lower() in (*cells.EXCEL, *cells.PARQUET):
        raw = cells.open_table(path)
        return raw, [*lines, *([f"sheet: {quoted(raw.sheet)}"] if raw.sheet else [])]
    if not os.path.isfile(path):
        return cells.open_table(path), lines  # says so
    encoding = cells.guess_encoding(path.read_bytes())
    separators, fitting, bad = _separators(cells.decoded(path, encoding))
    if not separators:
        raise InputError(
            f"{path}: expected a table, found no separator that gives its rows as many cells as its header"
        )
    mixed = "  # rows differ; each has the first that fits" if len(separators) > 1 else ""
    lines.append(f"separator: {cells.yaml_of(separators if len(separators) > 1 else separators[0])}{mixed}")
    lines += [f"encoding: {encoding}  # it is not UTF-8"] if encoding != "utf-8" else []
    if bad:
        numbers = ", ".join(map(str, bad[:10]))
        lines.append(
            f"{MARK} rows {numbers} ({len(bad)} in all) have other numbers of cells than the header: correct the table"
        )
    (_, header), *rows = fitting
    return cells.Raw(path, header, [row for _, row in rows], [number for number, _ in rows]), lines


def _separators(text: str) -> tuple[list[str], list[tuple[int, list[str]]], list[int]]:
    """Return the separators, the rows that they fit (the header first), and the numbers of the other rows."""

    def tried(separators: Sequence[str]) -> tuple[list[tuple[int, list[str]]], list[int]]:
        try:
            rows = list(cells.records(text, separators))
        except csv.Error:
            return [], []
        width = max((n for n, cell in enumerate(rows[0][1], 1) if cell), default=0) if rows else 0
        fits = [(number, row[:width]) for number, row in rows if len(row) >= width and not any(row[width:])]
        seen = {number for number, _ in fits}
        return (fits if width > 1 else []), [number for number, _ in rows if number not in seen]

    chosen: list[str] = []
    for _ in cells.SEPARATORS:
        ways = [[*chosen, one] for one in cells.SEPARATORS if one not in chosen]
        best = max(ways, key=lambda way: (len(found := tried(way)[0]), len(found[0][1]) if found else 0))
        if len(tried(best)[0]) <= (len(tried(chosen)[0]) if chosen else 1):
            break
        chosen = best
    return (chosen, *tried(chosen)) if chosen else ([], [], [])


def _relative(path: Path, base: Path) -> str:
    text = os.path.relpath(path, base)
    return str(path) if text.startswith(os.path.join("..", "..")) else text


# ---- the columns ------------------------------------------------------------------------------------------------------


def _columns(columns: list[_Column], top: Path, base: Path) -> Iterator[str]:
    """Yield the lines on pictures, columns and words."""
    image, found = _image(columns, top)
    taken = {one.name for one in image[-1:]}  # a folder may be a centre too
    yield from _pictures(image, found, len(columns[0].cells), top, base)
    yield "columns:  # ours: theirs"
    why = "the cells name files that are there" if found.found else "by its cells or its name"
    yield from _line("image", image, why)
    patient, sure = _patient([one for one in columns if one.name not in taken], len(columns[0].cells))
    taken |= {patient.name} if patient else set()
    left = [one for one in columns if one.name not in taken]
    labels = _labels(left)
    left = [one for one in left if one not in labels.values()]
    others = {ours: one for ours in ("centre", "machine", "operator") if (one := _by_name(left, ours))}
    key, why = _who(patient, others.get("centre"))
    why = why if sure else f"{why}; is each of them one person, and only one?"
    yield from _line("patient", key, why, sure)
    if split := labels.get("split"):
        both = _crossing(key, split)
        if both:
            yield f"  {MARK} split: {quoted(split.name)}  # left out; patients on both sides of it: {both:,}"
            del labels["split"]
    for ours, one in (labels | others).items():
        yield from _line(ours, [one], _why(ours, one))
    if "plane" not in labels:
        yield "  # no column looks like the plane; add `plane: ...` if there is one"
    yield from _digits(key)
    if labels:
        yield "words:  # theirs: ours  # images"
    for ours, one in labels.items():
        yield from _words(ours, one)
    used = {one.name for one in (*image, *key, *labels.values(), *others.values())}
    yield from _unused([one for one in columns if one.name not in used], key)


def _image(columns: list[_Column], top: Path) -> tuple[list[_Column], pictures.Match]:
    """Return the column, or two, whose cells name most files below a folder; else the likeliest by its cells and its name."""
    places = files_below([top])
    tried = [(one, pictures.match(one.cells, places)) for one in columns]

    def likely(one: tuple[_Column, pictures.Match]) -> tuple:
        column, found = one
        most = found.found * 2 > len(column.cells)  # numbers of patients may be names of a few files, by chance
        return most, "image" in column.roles, found.found, len(found.others), len(column.counts)

    column, found = max(tried, key=likely)
    named = "image" in column.roles
    best, folders = [column], {Path(folder).name for held in places.values() for folder in held}
    for one in columns:
        if one is not column and folders & {*one.counts}:
            joint = pictures.match([f"{a}/{b}" for a, b in zip(one.cells, column.cells, strict=True)], places)
            if joint.found > found.found:
                best, found = [one, column], joint
    return (best if found.found or found.others or named else []), found


def _pictures(image: list[_Column], found: pictures.Match, rows: int, top: Path, base: Path) -> Iterator[str]:
    """Yield the lines on folder and suffix."""
    if not found.found:
        other = f"; there is {quoted(found.others[0])}" if found.others else ""
        yield f"{MARK} no cell names a file below this folder: correct it, the suffix, or the table{other}"
        yield f"images: {quoted(_relative(top, base))}"
        return
    if found.folder == Path("/"):
        yield f"# the cells of the image column are whole paths, {found.found:,} of {rows:,} files are there"
        return
    yield f"images: {quoted(_relative(found.folder, base))}  # {found.found:,} of {rows:,} files are there"
    if found.suffix:
        yield f"suffix: {found.suffix}  # that the cells lack"


def _patient(columns: list[_Column], rows: int) -> tuple[_Column | None, bool]:
    """Return the column of patients: by its name, rather a number than what may be a name; and whether it is sure to be that."""
    named = [one for one in columns if "patient" in one.roles and len(one.counts) > 1]
    numbers = [one for one in columns if "number" in one.roles and 1 < len(one.counts) < rows]
    chosen = min(named or numbers, key=lambda one: ("private" in one.roles, -len(one.counts)), default=None)
    return chosen, bool(named)


def _labels(columns: list[_Column]) -> dict[str, _Column]:
    """Return the columns of plane, brain plane and split, by their words and their names."""
    few = [one for one in columns if len(one.counts) <= WORDS and "private" not in one.roles]
    found: dict[str, _Column] = {}
    for ours in ("brain_plane", "plane", "split"):
        left = [one for one in few if one not in found.values()]
        chosen = max(left, key=lambda one: (one.share(ours) + 0.5 * (ours in one.roles), len(one.counts)), default=None)
        own = words_of(ours)[:-1] if ours == "brain_plane" else ()  # "other" alone is no plane of the brain
        if chosen is None or (own and not {guess(ours, word) for word in chosen.counts} & {*own}):
            continue
        if chosen.share(ours) > 0.2 or ours in chosen.roles:
            found[ours] = chosen
    return {ours: found[ours] for ours in ("plane", "brain_plane", "split") if ours in found}


def _by_name(columns: list[_Column], ours: str) -> _Column | None:
    """Return the column that is called like one of ours, the one of fewest words."""
    named = [one for one in columns if ours in one.roles and len(one.counts) <= WORDS]
    return min(named, key=lambda one: len(one.counts), default=None)


def _who(patient: _Column | None, centre: _Column | None) -> tuple[list[_Column], str]:
    """Return the columns that make up a patient, and why."""
    if patient is None:
        return [], ""
    if centre is None or not (both := _crossing([patient], centre)):
        return [patient], f"{len(patient.counts):,} values"
    why = f"numbers at several centres: {both:,}; if each is one person: {patient.name} alone, and across_centres: true"
    return [centre, patient], why


def _crossing(key: list[_Column], column: _Column) -> int:
    """Return how many patients have several words of a column."""
    if not key:
        return 0
    rows = zip(zip(*(one.cells for one in key), strict=True), column.cells, strict=True)
    pairs = {(who, word) for who, word in rows if word}
    return sum(count > 1 for count in Counter(who for who, _ in pairs).values())


def _why(ours: str, column: _Column) -> str:
    if ours not in ("machine", "operator", "centre") or "private" in column.roles:
        return f"{len(column.counts)} words"
    words = ", ".join(f"{quoted(word)} {count:,}" for word, count in column.counts.most_common(FEW))
    return f"images: {words}" + (f", and {len(column.counts) - FEW} more" if len(column.counts) > FEW else "")


def _line(ours: str, found: list[_Column], why: str, sure: bool = True) -> Iterator[str]:
    """Yield the line of one column."""
    names = [quoted(one.name) for one in found]
    if not names:
        yield f"  {MARK} {ours}: name  # of the column that says it; without it nothing is read"
    else:
        name = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
        yield f"  {'' if sure else MARK + ' '}{ours}: {name}  # {why}"


def _digits(key: list[_Column]) -> Iterator[str]:
    """Yield a line where numbers of patients differ in zeros in front alone."""
    numbers = {cell for one in key[-1:] for cell in one.cells if cell.isdecimal()}
    if len({number.lstrip("0") for number in numbers}) < len(numbers):
        yield f"digits: {max(map(len, numbers))}  # some numbers of patients lack the zeros in front that others have"


def _words(ours: str, column: _Column) -> Iterator[str]:
    """Yield the translations of the words of a column; those that nobody can guess wait."""
    sides = [side for side in SIDES if side in column.name.casefold()] if ours == "split" else []
    if {*column.counts} == {"0", "1"} and len(sides) == 1:  # Train: 1; or test: 1
        known: dict[str, str | None] = {"1": sides[0], "0": SIDES[1 - SIDES.index(sides[0])]}
    else:
        known = {word: guess(ours, word) for word in column.counts if word}
    yield f"  {ours}:"
    wait = " or ".join(SIDES) if ours == "split" else "null"
    wanted = "" if ours == "split" else f": write one of {', '.join(words_of(ours))}; null: takes no part"
    ordered = column.counts.most_common()
    yield from (
        f"    {quoted(word)}: {quoted(known[word])}  # {n:,}" for word, n in ordered if word and known[word] != UNKNOWN
    )
    for word, count in ordered:
        if known.get(word, UNKNOWN) == UNKNOWN and (word or ours == "split"):
            yield f"    {MARK} {quoted(word)}: {wait}  # {count:,}{wanted}"


def _unused(columns: list[_Column], key: list[_Column]) -> Iterator[str]:
    """Yield a comment for every column that is not read; its words where they are few and say nothing of a person."""
    patients = len({*zip(*(part.cells for part in key), strict=True)})
    for one in columns:
        few = len(one.counts) <= FEW and len(one.counts) * 3 <= len(one.cells)
        short = all(PLAIN.fullmatch(word) and len(word) <= 30 and not re.search(r"\d{2}", word) for word in one.counts)
        person = (
            not key or one.roles & {"private", "patient"} or len(one.counts) * 2 > patients > 2 * _crossing(key, one)
        )
        words = [f"{quoted(word)} {count:,}" for word, count in one.counts.most_common()] if few and short else []
        shown = ", ".join(words) if words and not person else f"{len(one.counts):,} values"
        yield f"# not read: {quoted(one.name)} ({shown})"
