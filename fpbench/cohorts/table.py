"""A cohort is a file: a table of images, and one YAML file that says which column is what and which word means what.

Its fields are those of `Table`; errors name the table, the row as a person sees it, the value, and the line to write. Columns
that are not listed are never looked at. An image is called by its cell without the suffix, a patient by its cells:
``kampala/ward 2/0017_a`` and ``kampala/Mulago/00017``; a number is a person only together with what makes it one, so a patient
at two centres, or on both sides of a split, is an error. Contents: ``describe``, `Table`.
"""

import difflib
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from fpbench import images
from fpbench.cohorts import pictures
from fpbench.cohorts.cells import EXCEL, PARQUET, open_table
from fpbench.cohorts.source import COLUMNS, Source, check_plain, filled, joined, rows_error
from fpbench.cohorts.vocabulary import UNKNOWN, guess, quoted
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths, records
from fpbench.images.folders import files_below
from fpbench.tasks import TASKS

KINDS = (".csv", ".tsv", ".txt", *EXCEL, *PARQUET)  # of tables, as their files are called
KEYS = ("image", "patient")
OURS = ("plane", "brain_plane", "machine", "operator", "centre", "split")  # what a table may have; others are kept
SIDES = ("train", "test")
# set by fpbench, beside the columns of a cohort
SET = ("group", "cohort", "population", "label", "part", "fold", "size", "distinct", "order")
RESERVED = {*COLUMNS, *images.SCAN, *SET} - {*KEYS, *OURS}
NUMBER = r"[+-]?\d+([.,]\d+)?"  # a cell that is no formula though it begins like one


def words_of(column: str) -> tuple[str, ...]:
    """Return the words that one of our columns may hold without a translation; none: any."""
    if column == "split":
        return SIDES
    found = [name for task in TASKS.values() if task.label == column for name in task.classes]
    return tuple(dict.fromkeys([*found, "other"])) if found else ()


@dataclass(frozen=True)
class Table:
    """A cohort as a YAML file describes it; paths are relative to that file."""

    file: Path  # the YAML file
    name: str  # first part of every image_id and patient
    table: str  # path: CSV, TSV, Excel (.xlsx) or parquet
    columns: dict[str, str | list[str]]  # ours -> theirs; a list is joined by "/", and may name ours too
    title: str = ""  # for headings; empty: the name
    population: str = ""  # the word that tasks use; empty: the name
    licence: str = "not stated"
    citation: str = "not stated"
    separator: str | list[str] = (
        ""  # of a text; empty: a comma, in .tsv a tab; of several each row has the first that fits
    )
    encoding: str = "utf-8"  # of a text
    sheet: str = ""  # of a workbook; empty: the first
    images: str = "."  # folder that the column `image` is relative to
    suffix: str = ""  # appended to the cells of the column `image`
    words: dict[str, dict[str, str | None]] = field(default_factory=dict)  # our column -> theirs -> ours; null: none
    across_centres: bool = False  # one number at two centres is one person
    digits: int = 0  # to which numbers of patients are filled with zeros: 17 is 00017
    bits: int = 0  # of pictures that hold more than 8
    label: str = ""  # stands on every figure: what these pictures are not
    expect: dict[str, dict[str, int]] = field(
        default_factory=dict
    )  # column -> value -> images; total -> images, patients

    def __post_init__(self) -> None:
        """Refuse what cannot be read; the message names the key."""
        if not re.fullmatch(r"[\w.-]*[^\W_][\w.-]*", self.name):
            raise InputError(f"{self.file}: name: expected letters, digits, '-', '_' and '.', found {self.name!r}")
        if lacking := [name for name in KEYS if not self.theirs(name)]:
            raise InputError(f"{self.file}: columns: missing {', '.join(lacking)}")
        if bad := [name for name in self.columns if name in RESERVED or not re.fullmatch(r"[a-z]\w*", name, re.ASCII)]:
            close = difflib.get_close_matches(bad[0], (*KEYS, *OURS), 1)
            rule = "expected small letters, digits and _, and none that fpbench sets itself"
            hint = f"did you mean {close[0]!r}?" if close else rule
            raise InputError(f"{self.file}: columns: {bad[0]!r} cannot be a name of ours: {hint}")
        for name in self.further:
            close = difflib.get_close_matches(name, OURS, 1, cutoff=0.83)
            if close and close[0] not in self.columns and not name.startswith(close[0]):
                how = f"did you mean {close[0]!r}? A further column has another name"
                raise InputError(f"{self.file}: columns: {name}: {how}")
        if empty := [name for name in self.columns if not self.theirs(name) or not all(self.theirs(name))]:
            raise InputError(f"{self.file}: columns: {empty[0]}: expected the name of a column, found an empty one")
        if bad := [one for one in self.separators if len(one) != 1]:
            raise InputError(f"{self.file}: separator: expected one character, or tab, found {bad[0]!r}")
        if not 0 <= self.digits <= 20 or not 0 <= self.bits <= 32:
            raise InputError(f"{self.file}: expected digits 0 to 20, bits 0 to 32, found {self.digits} and {self.bits}")
        self._check_words()
        for column, counts in self.expect.items():
            known = ("images", "patients") if column == "total" else counts
            if column not in ("total", *self.columns) or column in KEYS or not set(counts) <= set(known):
                wanted = "total: {images, patients}, or a column and its words"
                raise InputError(f"{self.file}: expect: {column}: expected {wanted}, found {', '.join(counts)}")

    def _check_words(self) -> None:
        for column, words in self.words.items():
            if column not in self.columns or column in KEYS:
                names = ", ".join(name for name in self.columns if name not in KEYS) or "none"
                raise InputError(f"{self.file}: words: {column}: expected one of our columns that are listed ({names})")
            ours = words_of(column)
            for their, our in words.items():
                where = f"{self.file}: words: {column}: {their}"
                if our == "":
                    raise InputError(f"{where}: expected a word, or null: takes no part; found an empty text")
                if column == "split" and our not in SIDES:
                    way = "leave the row out of the table, or give its plane null"
                    raise InputError(f"{where}: expected train or test, found {our}: what is neither, {way}")
                if our and ours and our not in ours and our != their:
                    close = difflib.get_close_matches(our, ours, 1, cutoff=0.75)
                    if close:
                        raise InputError(
                            f"{where}: did you mean {close[0]!r}? A class of your own stands as `{our}: {our}`"
                        )

    # ---- what it says

    @property
    def path(self) -> Path:
        """Return where the table lies."""
        return paths.expand(self.table, self.file.parent)

    @property
    def folder(self) -> Path:
        """Return the folder that images are relative to."""
        return paths.expand(self.images, self.file.parent)

    @property
    def separators(self) -> list[str]:
        """Return the separators, each a character; none: that of the kind of file."""
        given = self.separator if isinstance(self.separator, list) else [self.separator] if self.separator else []
        return ["\t" if one == "tab" else one for one in given]

    @property
    def further(self) -> tuple[str, ...]:
        """Return the columns that are kept as they are."""
        return tuple(name for name in self.columns if name not in (*KEYS, *OURS))

    def theirs(self, ours: str) -> list[str]:
        """Return the columns of the table that make up one of ours."""
        found = self.columns.get(ours, [])
        return found if isinstance(found, list) else [found]

    def digest(self) -> str:
        """Return a digest of what the file says, and of the bytes of the table."""
        said = {name: value for name, value in asdict(self).items() if name != "file"}
        return artifacts.digest([said, artifacts.file_sha256(self.path)])

    # ---- reading

    def read(self, path: Path, name: str) -> pd.DataFrame:
        """Read the table.

        Returns
        -------
        pandas.DataFrame
            One row per image, in file order: COLUMNS, then `further`; absolute paths; the index numbers the rows as a person
            sees them.

        Raises
        ------
        InputError
            As the module says.
        """
        raw = open_table(path, self.separators, self.encoding, self.sheet)
        plain = [one for one in self.columns if one not in KEYS]
        keys = [one for name in KEYS for one in self.theirs(name)]
        borrowed = [one for one in dict.fromkeys(keys) if one not in raw.header and one in plain]
        named = [*(one for one in keys if one not in borrowed), *(their for one in plain for their in self.theirs(one))]
        theirs = raw.frame(list(dict.fromkeys(named)))
        check_plain(theirs.where(~theirs.apply(lambda cells: cells.str.fullmatch(NUMBER)), ""), path)
        ours = {one: self._translated(one, theirs[self.theirs(one)], path) for one in plain}
        cells = theirs.assign(**{one: ours[one].fillna("") for one in borrowed})
        image, patient = (self._key(cells[self.theirs(one)], one, path) for one in KEYS)
        where = self._placed(image)
        short = where.map(pictures.short)
        rows = pd.DataFrame({"image_id": name + "/" + (short if short.nunique() == where.nunique() else where)})
        rows["path"] = [str(self.folder / one) for one in image]
        rows["patient"] = name + "/" + patient
        for one in OURS:
            rows["official_split" if one == "split" else one] = ours.get(one, name if one == "centre" else None)
        for one in self.further:
            rows[one] = ours[one]
        self._check(rows, path)
        return rows[[*COLUMNS, *self.further]]

    def _translated(self, column: str, parts: pd.DataFrame, path: Path) -> pd.Series:
        """Return one of our columns in our words; missing where it is empty, or its word is translated by null."""
        cells, known, ours = joined(parts), self.words.get(column, {}), words_of(column)
        table = {word: word for word in (*ours, *known.values()) if word} | known
        if not table:
            return cells.where(cells != "", None)
        table |= {} if column == "split" or "" in table else {"": None}
        if len(unknown := cells[~cells.isin(list(table))]):
            counts = unknown.value_counts(sort=False).sort_values(ascending=False, kind="stable")
            wait = "train or test" if column == "split" else "null"
            meant = {word: guess(column, word) for word in counts.index[:30]}
            lines = [
                f"    {quoted(word)}: {quoted(one) if one != UNKNOWN else wait}  # {counts[word]:,}"
                for word, one in meant.items()
            ]
            lines += [f"    # and {len(counts) - 30:,} more"] if len(counts) > 30 else []
            what = f"{', '.join(ours)}, or one of your own" if ours else "a word"
            what = "train or test" if column == "split" else f"{what}; null: takes no part"
            how = "\n".join([f": write into {self.file} what each means ({what})", "words:", f"  {column}:", *lines])
            raise rows_error(path, unknown, f"{column} {unknown.iat[0]!r} has no translation", how)
        return cells.map(table)

    def _key(self, parts: pd.DataFrame, what: str, path: Path) -> pd.Series:
        """Return the name that the cells of every row make up: of an image a path, of a patient what stays the same."""
        for name, cells in parts.items():
            if len(empty := cells[cells == ""]):
                raise rows_error(
                    path, empty, f"expected a name of {what}, found an empty cell of {name!r}", ": fill it in"
                )
        if what == "image":
            return joined(parts).map(lambda cell: pictures.completed(pictures.tidy(cell), self.suffix))
        parts = parts.apply(filled, digits=self.digits)
        key = joined(parts)
        if parts.shape[1] > 1 and len(odd := key[parts.apply(lambda cells: cells.str.contains("/")).any(axis=1)]):
            said = f"patient {odd.iat[0]!r} has a '/' in one of its parts"
            raise rows_error(path, odd, said, ": two could look like one; put another character there")
        number = joined(parts.apply(lambda cells: cells.where(~cells.str.isdecimal(), cells.str.lstrip("0"))))
        if len(two := key[key.groupby(number).transform("nunique") > 1]):
            first, digits = (
                two[number == number[two.index[0]]],
                parts.apply(lambda cells: cells.str.len()).loc[two.index],
            )
            other = first[first != first.iat[0]]
            said = f"patient {other.iat[0]!r} is {first.iat[0]!r} in row {first.index[0]}; zeros were lost"
            raise rows_error(path, two.loc[other.index], said, f": write `digits: {digits.to_numpy().max()}`")
        return key

    def _placed(self, image: pd.Series) -> pd.Series:
        """Return the paths of images relative to their folder; those outside of it without the first slash."""
        top = f"{self.folder}/"
        return image.map(lambda one: one.removeprefix(top).lstrip("/"))

    def _check(self, rows: pd.DataFrame, path: Path) -> None:
        """Raise InputError for an image named twice, and for a patient at two centres or on both sides of the split."""
        check_plain(rows[["image_id", "patient"]], path)
        if (again := rows["image_id"].duplicated()).any():
            row, name = again.idxmax(), rows.at[again.idxmax(), "image_id"]
            said = f"image {name!r} is named in row {(rows['image_id'] == name).idxmax()} too"
            raise InputError(
                f"{path}: {said}, here in row {row} ({again.sum():,} such rows): keep one row of each image"
            )
        self._hold(rows, "official_split", path)
        if not self.across_centres:
            self._hold(rows, "centre", path)

    def _hold(self, rows: pd.DataFrame, column: str, path: Path) -> None:
        """Raise InputError for a patient with two words of a column."""
        both = rows[rows[column].groupby(rows["patient"]).transform("nunique") > 1]
        if not len(both):
            return
        first = both[(both["patient"] == both["patient"].iat[0]) & both[column].notna()].drop_duplicates(column)
        found = " and ".join(f"{value!r} (row {row})" for row, value in first[column].items())
        said = (
            f"patient {both['patient'].iat[0]!r} is in {found}; {both['patient'].nunique():,} patients are in several"
        )
        side, number = ", ".join(self.theirs("split")), ", ".join(self.theirs("patient"))
        how = {
            "centre": f"if a number is another person at each, write `patient: [{', '.join(self.theirs('centre'))}, {number}]`; if it "
            "is one person, `across_centres: true`",
            "official_split": f"correct {side!r}; or take `split: {side}` out, and write `split: crossval` into the study",
        }[column]
        raise InputError(f"{path}: {said}: {how}")

    def advise(self, lost: pd.DataFrame) -> str:
        """Return what to do about images whose files are not there: another folder or suffix, if they are there then."""
        plain = [str(path).removeprefix(f"{self.folder}/").removesuffix(self.suffix) for path in lost["path"]]
        near = [self.folder, self.file.parent, self.path.parent]
        found = pictures.match(plain, files_below([one for one in dict.fromkeys(near) if os.path.isdir(one)]))
        if not found.found:
            other = f"; there is {found.others[0]}: another folder, suffix or case?" if found.others else ""
            return f"correct `images` or `suffix` in {self.file}{other}; or load what is there with missing='drop'"
        lines = {"images": _beside(found.folder, self.file.parent), "suffix": found.suffix or '""'}
        was = {"images": _beside(self.folder, self.file.parent), "suffix": self.suffix or '""'}
        changed = " and ".join(f"`{key}: {value}`" for key, value in lines.items() if value != was[key])
        return f"{found.found:,} of them would be there with {changed} in {self.file}"


def _beside(folder: Path, base: Path) -> str:
    return str(folder.relative_to(base)) if folder.is_relative_to(base) else str(folder)


def describe(file: str | Path) -> Source:
    """Return the facts of the cohort that a YAML file describes; only that file is read.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        Not YAML, an unknown or missing key, a wrong type, or a word that cannot be; the message names the key.
    """
    file = paths.here(file)
    if not os.path.isfile(file):
        raise MissingError(
            f"expected a file that describes a cohort at {file}, found nothing: `fpbench init-cohort TABLE` writes one"
        )
    content = records.plain_yaml(file.read_bytes(), str(file), text_keys=True)
    if isinstance(content, dict):
        if content.get("separator") == "\t":
            content["separator"] = "tab"
        content["columns"] = content["columns"] or {} if "columns" in content else {}
        if isinstance(words := content.get("words"), dict):  # a column whose words wait for a person has none yet
            content["words"] = {column: {} if said is None else said for column, said in words.items()}
    table = records.build(Table, content, str(file), file=file)
    if table.path.suffix == ".yaml":
        raise InputError(f"{file}: table: expected a table, found {table.table}")
    return Source(
        name=table.name,
        title=table.title or table.name,
        population=table.population or table.name,
        csv=table.path.name,
        read=table.read,
        counts={"official_split" if column == "split" else column: counts for column, counts in table.expect.items()},
        confounder="",
        licence=table.licence,
        citation=table.citation,
        label=table.label,
        further=table.further,
        bits=table.bits,
        table=table,
    )
