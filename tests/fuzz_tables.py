"""For the fuzzer: tables of other people, the files that describe them, answers, words, and the tables that fpbench keeps itself."""

import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis
import pandas as pd
import yaml
from fuzz_inputs import NASTY, Reader, mutated, plain
from hypothesis import strategies as st
from PIL import Image

from fpbench import cohorts, submissions
from fpbench.cohorts import table, vocabulary
from fpbench.cohorts.sketch import sketch
from fpbench.errors import InputError
from fpbench.files import artifacts, hashes, paths, records
from fpbench.tasks import TASKS

ROWS = [
    {"file": "a.png", "mrn": "007", "view": "Bauch", "site": "Mulago", "part": "train", "age": "31"},
    {"file": "b.png", "mrn": "17", "view": "head", "site": "Mulago", "part": "test", "age": ""},
    {"file": "ward 2/c.png", "mrn": "18", "view": "femur", "site": "Jinja", "part": "test", "age": "28,5"},
]
ABOUT = {
    "name": "kampala",
    "columns": {"image": "file", "patient": "mrn", "plane": "view", "centre": "site", "split": "part"},
    "words": {"plane": {"Bauch": "abdomen", "head": "brain"}},
}
CELLS = st.sampled_from([cell for row in ROWS for cell in row.values()]) | st.text(max_size=12) | st.sampled_from(NASTY).map(lambda b: b.decode("latin-1"))  # fmt: skip


def prepared(folder: Path) -> Path:
    """Return a folder with the pictures of ROWS, made once."""
    top = folder / "kampala"
    for row in ROWS:
        (file := top / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.new("L", (9, 9), 7).save(file)
    return top


def text(frame: pd.DataFrame, separator: str = ",") -> bytes:
    """Return a table as text."""
    return frame.to_csv(index=False, sep=separator).encode()


def packed(frame: pd.DataFrame, kind: str) -> bytes:
    """Return a table as a workbook or a parquet file."""
    getattr(frame, f"to_{kind}")(stream := io.BytesIO(), index=False)
    return stream.getvalue()


def made_up(columns: list[str], cell: st.SearchStrategy = CELLS) -> st.SearchStrategy[pd.DataFrame]:
    """A few rows of any cells under the true header, or another."""
    header = st.just(columns) | st.lists(CELLS, min_size=1, max_size=6, unique=True)

    def rows(names: list[str]) -> st.SearchStrategy[pd.DataFrame]:
        row = st.lists(cell, min_size=len(names), max_size=len(names))
        return st.lists(row, max_size=4).map(lambda found: pd.DataFrame(found, columns=names))

    return header.flatmap(rows)


def written(frame: pd.DataFrame, kind: str) -> bytes:
    """Return a packed table; what cannot be written cannot be read."""
    try:
        return packed(frame, kind)
    except Exception:
        hypothesis.reject()


# ---- a cohort: its YAML file, its table -------------------------------------------------------------------------------


def read_described(file: Path) -> None:
    """As ``fpbench audit FILE`` begins."""
    cohorts.read_images(table.describe(file), Path(), "drop")


def cohort_reader() -> Reader:
    """Mutations of a description, one field replaced by any value, any value, and any words of a column."""
    full = {**ABOUT, "table": "labels.csv", "title": "K", "separator": [",", ";"], "digits": 3, "bits": 12, "suffix": "", "images": "kampala",
            "across_centres": True, "expect": {"total": {"images": 3}, "plane": {"abdomen": 1}}}  # fmt: skip
    fields = st.sampled_from([*table.Table.__dataclass_fields__, "colums"])
    changed = st.builds(lambda key, value: {**full, key: value}, fields, plain(CELLS | st.integers() | st.none()))
    columns = st.dictionaries(st.sampled_from([*ABOUT["columns"], "age", "grp"]) | CELLS, CELLS | st.lists(CELLS, max_size=3), max_size=6)  # fmt: skip
    other = st.builds(lambda one: {**full, "columns": {**ABOUT["columns"], **one}}, columns)
    dumped = (changed | other | plain()).map(lambda one: yaml.safe_dump(one, allow_unicode=True).encode("utf-8", "replace"))  # fmt: skip
    valid = yaml.safe_dump(full).encode()

    def write(path: Path, content: bytes) -> None:
        prepared(path.parent)
        path.with_name("labels.csv").write_bytes(text(pd.DataFrame(ROWS)))
        path.write_bytes(content)

    return Reader(".yaml", read_described, mutated(valid) | dumped, write)


def read_table(path: Path) -> None:
    """As a cohort, as a table of answers, and as what ``init-cohort`` looks at; all must refuse, or one may read."""
    file, refused = path.with_suffix(".yaml"), []
    separators: list = ([], [",", ";", "tab"], ["|"])[path.stat().st_size % 3]
    known = {**ABOUT, "table": path.name, "images": "kampala", "separator": separators, "across_centres": True}
    file.write_text(yaml.safe_dump(known), encoding="utf-8")
    refused += _refused(lambda: read_described(file))
    refused += _refused(lambda: submissions.read(path))
    (drawn := path.with_suffix(".drawn.yaml")).unlink(missing_ok=True)
    refused += _refused(lambda: sketch(path, path.parent / "kampala", drawn))
    if drawn.exists():
        _refused(lambda: read_described(drawn))
        records.plain_yaml(drawn.read_bytes(), str(drawn), text_keys=True)  # what it writes is YAML, whatever the cells
    if len(refused) == 3:
        raise refused[0]


def _refused(read: Callable[[], object]) -> list[InputError]:
    try:
        read()
    except InputError as error:
        if not 20 < len(str(error)) < 4000:
            raise ValueError(f"no message for people: {str(error)[:300]}") from None
        return [error]
    except OSError as error:  # MissingError; a word of the system, e.g. of a name that is too long
        return [InputError(f"the system said: {error}"[:3000])]
    return []


def table_reader(suffix: str) -> Reader:
    """Mutations of a valid table, and tables of any cells; of packed ones also cells of any kind."""
    frame, kind = pd.DataFrame(ROWS), {".xlsx": "excel", ".parquet": "parquet"}.get(suffix, "")
    if kind:
        value = CELLS | st.none() | st.booleans() | st.integers() | st.floats() | st.datetimes() | st.binary(max_size=4) | st.lists(st.integers(), max_size=2)  # fmt: skip
        files = mutated(packed(frame, kind)) | made_up(list(frame), value).map(lambda one: written(one, kind))
    else:
        separator = "\t" if suffix == ".tsv" else ","
        coded = st.builds(
            lambda one, code: text(one, separator).decode().encode(code, "replace"),
            made_up(list(frame)).map(lambda one: one.map(lambda cell: cell.encode("utf-8", "replace").decode())),
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
        )
        files = mutated(text(frame, separator), text(frame, ";")) | coded | st.binary(max_size=200)

    def write(path: Path, content: bytes) -> None:
        prepared(path.parent)
        path.write_bytes(content)

    return Reader(suffix, read_table, files, write)


# ---- words ------------------------------------------------------------------------------------------------------------


def read_words(path: Path) -> None:
    """What is guessed of a word is a word of ours; what is quoted is read as it was."""
    for word in path.read_text("utf-8").split("\0"):
        vocabulary.roles(word)
        for column in ("plane", "brain_plane", "split"):
            meant = vocabulary.guess(column, word)
            if meant not in (None, vocabulary.UNKNOWN, *table.words_of(column)):
                raise TypeError(f"{meant!r} is no word of {column}")
        if word.isprintable():
            said = yaml.safe_load(vocabulary.quoted(word))
            if said != word and word != vocabulary.UNKNOWN:
                raise ValueError(f"{word!r} became {said!r}")
    if not path.stat().st_size:
        raise InputError(f"{path}: expected words, found nothing")


def words_reader() -> Reader:
    """Any text; words of ours with others around them."""
    known = [word for words in vocabulary.facts()["words"].values() for all in words.values() for word in all]
    word = st.text(max_size=30) | st.lists(st.sampled_from([*known, "-", "_", "/", "3", "#", ": "]), max_size=5).map("".join)  # fmt: skip
    return Reader(".txt", read_words, st.lists(word, max_size=6).map(lambda one: "\0".join(one).encode("utf-8", "replace")), refuses=0)  # fmt: skip


# ---- answers of somebody else's model ---------------------------------------------------------------------------------


@cache
def opened(folder: Path) -> cohorts.Cohort:
    """Return the cohort that answers are joined with."""
    prepared(folder)
    (folder / "labels.csv").write_bytes(text(pd.DataFrame(ROWS)))
    about = {**ABOUT, "table": "labels.csv", "images": "kampala"}
    (file := folder / "ours.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    return cohorts.load_labels(file)


def read_answers(path: Path) -> None:
    """As ``fpbench import-answers`` reads and joins."""
    form = submissions.Form(**json.loads(path.with_suffix(".form").read_text("utf-8")))
    ours, task = opened(path.parent), TASKS["planes"]
    order = ours if form.in_order else None
    joined = submissions.join(submissions.read(path), [ours], task, form, path, order)
    json.dumps(joined.lines, ensure_ascii=True)


def answers_reader() -> Reader:
    """A table of answers, sound, mutated or made up, and any form."""
    classes = TASKS["planes"].classes
    n = len(ROWS)
    sound = pd.DataFrame({"image": [row["file"] for row in ROWS], "answer": ["abdomen", "head", "x"], "fold": range(n), "label": ["abdomen", "brain", "femur"]})  # fmt: skip
    logits = sound[["image"]].assign(**{name: 1 / len(classes) for name in classes})
    tables = [frame.to_json(orient=orient).encode() for frame in (sound, logits) for orient in ("records", "columns")]
    value = CELLS | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(st.integers(), max_size=2) | st.sampled_from(classes)  # fmt: skip
    names = st.sampled_from([*sound, *classes])
    any_rows = st.lists(st.dictionaries(names | CELLS, value | plain(), max_size=7), max_size=4)
    frames = st.sampled_from([sound, logits]).flatmap(lambda frame: made_up(list(frame), value))
    made = (any_rows | plain() | frames.map(lambda one: one.to_dict("records"))).map(lambda one: json.dumps(one).encode())  # fmt: skip
    column = st.sampled_from(["", "", *sound, "nobody"])
    form = st.fixed_dictionaries(
        {}, optional={"image": st.sampled_from(["image", "image", "", "x"]), "answer": column, "fold": column, "label": column,
                      "kind": st.sampled_from(["", "logits", "probabilities", "x"]), "in_order": st.booleans(),
                      "words": st.dictionaries(CELLS, st.sampled_from(classes) | CELLS, max_size=3)}
    )  # fmt: skip

    def write(path: Path, content: tuple[bytes, dict]) -> None:
        path.write_bytes(content[0])
        path.with_suffix(".form").write_text(json.dumps(content[1]), encoding="utf-8")

    return Reader(".json", read_answers, st.tuples(mutated(*tables) | made | st.sampled_from(tables), form), write)


# ---- hashes that are remembered ---------------------------------------------------------------------------------------


def read_hashes(path: Path) -> None:
    """Whatever a remembered table holds, the hashes are the files' own."""
    files = [path.with_name(f"picture{number}.bin") for number in range(hashes.FEWEST)]
    for number, file in enumerate(files):
        if not file.exists():
            file.write_bytes(b"%d" % number)
    place = paths.cache() / "hashes" / f"{artifacts.digest([str(file) for file in files])[:32]}.parquet"
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)
    artifacts.commit(place, {"files": len(files)})  # under a right hash
    found, other = hashes.sha256s(files, lambda some: [artifacts.file_sha256(one) for one in some], whole=True)
    if found != [artifacts.file_sha256(file) for file in files]:
        raise ValueError("other hashes than the files'")
    if other and not set(other) <= set(files):
        raise ValueError("strangers")


def hashes_reader() -> Reader:
    """Mutations of a table of hashes, columns of any kind, and any bytes: none is refused, all are made anew."""
    n = hashes.FEWEST
    frame = pd.DataFrame({"size": [1] * n, "changed": [1] * n, "inode": [1] * n, "sha256": ["a"] * n, "hashed": [2] * n})  # fmt: skip
    value = st.none() | st.booleans() | st.integers(-3, 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(max_size=4) | st.lists(st.integers(0, 3), max_size=2)  # fmt: skip

    def changed(column: str, cell: object, less: int) -> bytes:
        return written(frame.assign(**{column: pd.Series([cell] * n)}).head(n - less), "parquet")

    files = st.builds(changed, st.sampled_from([*frame, "x"]), value, st.sampled_from([0, 0, 0, 1]))
    dropped = st.sampled_from(list(frame)).map(lambda one: packed(frame.drop(columns=one), "parquet"))
    return Reader(
        ".parquet", read_hashes, mutated(packed(frame, "parquet")) | files | dropped | st.binary(max_size=60), refuses=0
    )


READERS: dict[str, Callable[[], Reader]] = {
    "cohort": cohort_reader,
    **{name: (lambda name=name: table_reader(f".{name}")) for name in ("csv", "tsv", "xlsx", "parquet")},
    "words": words_reader,
    "answers": answers_reader,
    "hashes": hashes_reader,
}
