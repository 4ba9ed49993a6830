"""For the fuzzer: archives of others, as they are unpacked, and what lies in that of the blind sweeps."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from fuzz_inputs import NASTY, Reader, mutated
from fuzz_tables import made_up
from hypothesis import strategies as st
from odd_pictures import mha

from fpbench import cohorts, images
from fpbench.cohorts import acouslic, download
from fpbench.images import decoding

ODD = st.text(max_size=12) | st.sampled_from(NASTY).map(lambda b: b.decode("latin-1"))

# ---- blind sweeps: the table, stacks and masks ------------------------------------------------------------------------

COLUMNS = ["uuid", "subject_id", *acouslic.AC]
CASES = [["aa-1", "000", "187.123456789012345", "", "", "301.5", "", ""], ["b_2", "01", "", "", "250.", "", "", ""]]
FRAMES, HEIGHT, WIDTH = 12, 6, 5  # of a stack: two frames a sweep


def table(rows: list[list[str]]) -> bytes:
    """Return the table of an archive, as published: text, CRLF."""
    return "".join(",".join(cells) + "\r\n" for cells in (COLUMNS, *rows)).encode("utf-8", "replace")


@cache
def film() -> np.ndarray:
    """Return the frames of a stack."""
    return np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH), np.uint8)


@cache
def planes() -> np.ndarray:
    """Return a mask: an optimal plane in sweep 1, a sub-optimal one in sweeps 1 and 4."""
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    mask[[0, 1, 6], 1:3] = np.array([1, 2, 2], np.uint8)[:, None, None]
    return mask


def laid(root: Path) -> Path:
    """Return a sound archive of CASES, each file as it was."""
    files = {acouslic.CSV: table(CASES)}
    for uuid, *_ in CASES:
        files[f"{acouslic.PLACES[acouslic.STACKS][0]}/{uuid}.mha"] = mha(film(), "zlib")
        files[f"{acouslic.PLACES[acouslic.MASKS][0]}/{uuid}.mha"] = mha(planes(), "zlib")
    for name, content in files.items():
        (file := root / name).parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_bytes() != content:
            file.write_bytes(content)
    return root


@contextmanager
def own_cache(root: Path) -> Iterator[None]:
    """Keep what is kept of masks apart, and for a moment."""
    with mock.patch.dict("os.environ", FPBENCH_CACHE=str(root / "cache")), mock.patch("os.fsync"):
        try:
            yield
        finally:
            shutil.rmtree(root / "cache", ignore_errors=True)


def read_frames(root: Path) -> pd.DataFrame:
    """As a cohort is listed, then every frame; what the rows say of one is what its mask shows."""
    rows, _ = cohorts.read_images(replace(acouslic.SOURCE, counts={}), root, "error")
    for path, found in rows.groupby(rows["path"].map(images.file_of)):
        shown = [acouslic.QUALITIES[-int(frame.max())] for frame in decoding.frames(acouslic.mask_of(path))]
        number = [decoding.split(frame)[1] for frame in found["path"]]
        if [shown[one] for one in number] != found["quality"].tolist():
            raise ValueError(f"{path}: masks show {shown}, rows say {found['quality'].tolist()}")
        if len(list(decoding.frames(path))) != len(shown):
            raise ValueError(f"{path}: not as many frames as {len(shown)} of its mask")
    return rows


def read_table(path: Path) -> None:
    """A table, in an archive of CASES, and its sweeps: those that are annotated have rows."""
    root = laid(path.with_suffix(""))
    shutil.copy(path, root / acouslic.CSV)
    with own_cache(root):
        rows, sweeps = read_frames(root), acouslic.sweeps(root / acouslic.CSV)
    if sweeps["annotated"].sum() != len(rows[["case", "sweep"]].drop_duplicates()):
        raise ValueError(f"{sweeps['annotated'].sum()} sweeps are annotated, and others have rows")


def table_reader() -> Reader:
    """Mutations of the table, made-up rows under the true header or another, cells of it replaced, and any bytes."""
    words = st.sampled_from([*CASES[0], *CASES[1], "../b_2", "B_2", "-1", "0.0", "1e3", "nan", "٣", "12345", " 7 "]) | ODD  # fmt: skip

    def changed(row: int, column: int, cell: str) -> bytes:
        rows = [list(cells) for cells in CASES]
        rows[row][column] = cell
        return table(rows)

    cells = st.builds(changed, st.integers(0, 1), st.integers(0, len(COLUMNS) - 1), words)
    made = made_up(COLUMNS, words).map(lambda one: one.to_csv(index=False, lineterminator="\r\n"))
    coded = st.builds(lambda text, code: text.encode(code, "replace"), made, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))  # fmt: skip
    rows = st.lists(st.sampled_from(CASES), max_size=3).map(table)
    return Reader(".csv", read_table, mutated(table(CASES)) | cells | coded | rows | st.binary(max_size=100))


def read_mask(path: Path) -> None:
    """A mask and a stack, the second of an archive whose first case is sound."""
    root, name = laid(path.with_suffix("")), f"{CASES[1][0]}.mha"
    shutil.copy(path, root / acouslic.PLACES[acouslic.MASKS][0] / name)
    shutil.copy(path.with_suffix(".stack"), root / acouslic.PLACES[acouslic.STACKS][0] / name)
    with own_cache(root):
        read_frames(root)


def mask_reader() -> Reader:
    """Pairs of a mask and a stack: sound, mutated, of other shapes and values, with headers of any values."""
    packers = st.sampled_from(["", "zlib", "gzip"])
    side = st.sampled_from([1, HEIGHT, WIDTH, 40])
    shape = st.tuples(st.sampled_from([1, 6, 7, FRAMES, 24]), side, side)
    value = st.sampled_from([0, 1, 1, 2, 3, 255])
    filled = st.builds(np.full, shape, value, st.just(np.uint8)) | st.builds(lambda one, two: _set(planes(), one, two), value, value)  # fmt: skip
    sizes = st.sampled_from(["5 6 12", "6 5 12", "5 6", "1 1 4294967290", "5 6 4294967290", "99999 99999 6", "0 6 12", "360 1 1", "1 1 360"])  # fmt: skip
    said = st.fixed_dictionaries({}, optional={"DimSize": sizes, "NDims": st.sampled_from([2, 3, 4]), "ElementType": st.sampled_from(["MET_UCHAR", "MET_USHORT", "MET_FLOAT"]), "CompressedData": st.booleans()})  # fmt: skip
    other = st.builds(lambda array, packed: mha(array, packed), filled, packers)
    headed = st.builds(lambda packed, keys: mha(planes(), packed, **keys), packers, said)
    valid = [mha(planes(), packed) for packed in ("", "zlib", "gzip")]
    mask, stack = mutated(*valid) | other | headed, mha(film(), "zlib")
    alike = st.builds(lambda array, packed: (mha(array, packed), mha(np.zeros_like(array), "zlib")), filled, packers)
    pairs = st.tuples(mask, st.just(stack)) | st.tuples(st.sampled_from(valid), mask) | alike

    def write(path: Path, content: tuple[bytes, bytes]) -> None:
        path.write_bytes(content[0])
        path.with_suffix(".stack").write_bytes(content[1])

    return Reader(".mha", read_mask, pairs, write)


def _set(mask: np.ndarray, one: int, two: int) -> np.ndarray:
    """Return a mask with other values in two pixels of a frame."""
    mask = mask.copy()
    mask[3, 0, :2] = one, two
    return mask


# ---- archives that are unpacked ---------------------------------------------------------------------------------------


def read_archive(path: Path) -> None:
    """All of it is unpacked, into the folder alone, or nothing."""
    (top := path.with_suffix("")).mkdir(exist_ok=True)
    try:
        download.extract(path, folder := top / "new", top="spain")
        if any(file.is_symlink() or not (file.is_file() or file.is_dir()) for file in folder.rglob("*")):
            raise ValueError(f"not only files: {list(folder.rglob('*'))}")
    finally:
        left = {file.name for file in top.iterdir()} - {"new"}
        shutil.rmtree(top, ignore_errors=True)
        if left:
            raise ValueError(f"{left} was left behind")


FILES = {"spain/": b"", "spain/labels.csv": b"a;b\r\n1;2\r\n" * 3, "spain/Images/a.png": bytes(range(256)) * 2, "__MACOSX/x": b"x"}  # fmt: skip
NAMES = st.sampled_from([*FILES, "spain", "spain/Images", "spain/LABELS.csv", "/etc/x", "../x", "a\\b", "c:", "a/../../b", "a.", "a/", "//a", "ü", "ü", "n" * 300, "/".join("d" * 90), "", "."]) | ODD  # fmt: skip


def zipped(files: list[tuple[str, bytes]], how: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    """Return a zip file; ``mode``: what its entries are, to Unix."""
    with zipfile.ZipFile(stream := io.BytesIO(), "w", how) as archive:
        for name, content in files:
            (info := zipfile.ZipInfo(name)).external_attr = mode << 16
            archive.writestr(info, content, how)
    return stream.getvalue()


def tarred(files: list[tuple[str, bytes]], how: str = "", kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar file; ``kind``: what its entries are, but for folders."""
    with tarfile.open(mode=f"w:{how}", fileobj=(stream := io.BytesIO())) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = tarfile.DIRTYPE if name.endswith("/") else kind, len(content), "x"
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def archive_reader(suffix: str) -> Reader:
    """Mutations of sound archives of each packing, entries of any name and kind, and any bytes."""
    if suffix == ".zip":
        pack, hows = zipped, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])  # fmt: skip
        kinds = st.sampled_from([0, 0o100644, 0o040755, 0o120777, 0o020666])
        valid = [zipped([*FILES.items()], how) for how in (0, 8, 12, 14)]
    else:
        pack, hows = tarred, st.sampled_from(["", "gz", "bz2", "xz"])
        kinds = st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"?"])  # fmt: skip
        valid = [tarred([*FILES.items()], how) for how in ("", "gz", "bz2", "xz")]
    names = NAMES.map(lambda name: name.encode("utf-8", "replace").decode().replace("\0", "?"))
    files = st.lists(st.tuples(names, st.sampled_from([*FILES.values(), b"\0" * 5000])), max_size=4)
    return Reader(suffix, read_archive, mutated(*valid) | st.builds(pack, files, hows, kinds) | st.binary(max_size=60))


READERS: dict[str, Callable[[], Reader]] = {
    "acouslic": table_reader,
    "masks": mask_reader,
    **{name: (lambda name=name: archive_reader(f".{name}")) for name in ("zip", "tar")},
}
