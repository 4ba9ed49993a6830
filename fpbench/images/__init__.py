"""Pictures: decoding, geometry, and a uint8 cache that every encoder reads.

Arrays are uint8, ``(H, W)`` for grey and ``(H, W, 3)`` RGB for truly coloured pictures; a colour file whose three channels
are equal is grey. Nothing here knows cohorts: it works on lists of paths, where ``FILE#k`` is frame k of a stack.

``raster`` reads PNG, JPEG, BMP and TIFF, ``dicom`` (by way of ``tags``) DICOM, ``mha`` MetaImage, ``decoding`` chooses between them,
``walking`` goes over many of them in threads, ``geometry`` makes squares, ``filling`` all squares that are wanted in one pass. A picture
is read as it is or refused; what had to be done to it is a note of ``scan``.

A picture is decoded twice, however many encoders look at it: by ``scan`` (with its thumbnail), and by the pass that makes squares. The
two stay apart, since the name and the shape of an array follow from the pixels and the colour of all its pictures, and since who only
counts and cuts folds shall not wait for gigabytes of squares. Each time a compressed stack is inflated once for all its frames.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench.errors import InputError
from fpbench.files import artifacts, hashes, machine, paths, progress
from fpbench.files.progress import Progress
from fpbench.images import decoding, dicom, filling, raster, walking
from fpbench.images.decoding import decode, file_of
from fpbench.images.geometry import BORDERS, INTERPOLATIONS, KINDS, OPENCV, PILLOW, THUMBNAIL, TORCH, Geometry
from fpbench.images.raster import FORMATS, MAX_PIXELS, ImageError, to_array

__all__ = [
    "BLANK", "BORDERS", "FORMATS", "INTERPOLATIONS", "KINDS", "MAX_PIXELS", "OPENCV", "PILLOW", "SCAN", "THUMBNAIL", "TORCH", "VERSION",
    "Geometry", "ImageError", "cached_images", "damaged", "decode", "file_of", "notes", "scan", "sha256s", "to_array",
    "verify",
]  # fmt: skip

VERSION = 2  # of decoding and geometry; raise it when their pixels change
LOOKS = 5  # of the columns and refusals of ``scan``; raise it when they change, so that it looks again
BLANK = "one grey value"  # a note of a picture that shows nobody, the last of its notes
SCAN = ("sha256", "pixels", "width", "height", "coloured", "error", "note")


def damaged(files: Sequence[Path], bits: int = 0) -> list[str]:
    """Return what is wrong with each file that is no whole picture, also by the checksums that decoding skips."""
    found = [""] * len(files)

    def look(group: list[int]) -> Iterator[None]:
        said = decoding.damages(paths := [files[row] for row in group], bits).removeprefix(paths[0].name)
        for row in group:
            found[row] = said and files[row].name + said
            yield

    _walk(look, files, "opening pictures")
    return [damage for damage in found if damage]


def _walk(work: Callable[[list[int]], Iterator], files: Sequence[Path], title: str) -> None:
    for _ in Progress(walking.walk(work, walking.groups(files)), total=len(files), desc=title, unit="image"):
        pass


def _parallel(function: Callable, items: Sequence, title: str) -> list:
    with ThreadPoolExecutor(machine.workers()) as pool:
        return list(Progress(pool.map(function, items), total=len(items), desc=title, unit="image"))


def scan(files: Sequence[Path], bits: int = 0, small: Geometry | None = None) -> pd.DataFrame:
    """Look at every picture once: hash of its bytes, hash of its pixels, size, colour; or what is wrong with it.

    Parameters
    ----------
    files
        N paths, of files or of frames ``FILE#k``.
    bits
        As for ``decode``.
    small
        A geometry in which different pictures are kept as well, in the order of ``files``, for ``cached_images`` to find: where
        pictures are looked at anew, so that a thumbnail costs no second decoding. All of them are held in memory.

    Returns
    -------
    pandas.DataFrame
        One row per path, columns SCAN. Two rows with equal ``pixels`` show the same picture, whatever their format. ``note``
        says what was done to it, in fixed words joined by "; ". A frame's ``sha256`` is the digest of its file's and of k.
        Decoding is cached by content: the second call on the same files only reads and hashes their bytes.
    """
    raster.check_bits(bits)
    sums = sha256s(files)
    key = {"scan": LOOKS, "version": VERSION, "bits": bits, "sha256": sums, "decoders": dicom.decoders()}
    path = artifacts.place(paths.cache() / "scans" / f"{artifacts.digest(key)[:32]}.parquet")
    if not artifacts.whole(path):
        progress.begin("looking at pictures, or waiting for a job that does")
        with artifacts.lock(path):
            if not artifacts.whole(path):
                _scan(path, files, sums, bits, small)
    frame = pd.read_parquet(io.BytesIO(path.read_bytes()))  # at once: another process may put an equal one there
    for row in np.flatnonzero(frame["error"] != "").tolist():
        frame.loc[row, "error"] = f"{files[row]}: {frame.loc[row, 'error']}"
    return frame


def _scan(path: Path, files: Sequence[Path], sums: list[str], bits: int, small: Geometry | None) -> None:
    """Write what ``scan`` reads, and the small pictures."""
    rows: list[tuple] = [()] * len(files)

    def look(group: list[int]) -> Iterator[None]:
        try:
            for row, (picture, said) in zip(group, decoding.looks([files[row] for row in group], bits), strict=True):
                rows[row] = _seen(picture, said, small)
                yield
        except ImageError as error:  # in words that are the same wherever the files lie
            for row in group:
                rows[row] = "", 0, 0, False, str(error).removeprefix(f"{files[group[0]]}: "), "", None

    _walk(look, files, "looking at pictures")
    looked = [row[:-1] for row in rows]
    frame = pd.DataFrame(looked, columns=SCAN[1:]).astype({"width": "int32", "height": "int32", "coloured": bool})
    frame.insert(0, "sha256", sums)
    if small:
        different = (frame["error"] == "") & ~frame["pixels"].duplicated()
        _keep(_array(frame[different], small), [rows[row][-1] for row in np.flatnonzero(different)])
    with artifacts.atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)
    artifacts.commit(path, {"files": len(files)})


def _keep(array: filling.Array, squares: list[np.ndarray]) -> None:
    """Keep squares that are made, grey ones in colour where one is coloured."""

    def build(path: Path) -> None:
        fit = [one if one.ndim == len(array.shape) - 1 else one[..., None] for one in squares]
        with open(path, "wb") as handle:
            np.save(handle, np.stack([np.broadcast_to(one, array.shape[1:]) for one in fit]))

    if squares:
        artifacts.cached_array(array.path.parent, array.key, build)


def verify(files: Sequence[Path], keep: bool = True) -> list[Path]:
    """Read every file anew, whatever is remembered of its hash; return those that changed under the same time and size.

    ``keep``: what is found is remembered instead.
    """
    distinct = list(dict.fromkeys(decoding.split(path)[0] for path in files))
    return hashes.sha256s(distinct, _hash, whole=True, keep=keep)[1]


def _hash(files: list[Path]) -> list[str]:
    return _parallel(artifacts.file_sha256, files, "hashing files") if files else []


def sha256s(files: Sequence[Path]) -> list[str]:
    """Return the hash of every picture's bytes, remembered where it can be; the file of many frames is read once."""
    named = [decoding.split(path) for path in files]
    distinct = list(dict.fromkeys(file for file, _ in named))
    sums = dict(zip(distinct, hashes.sha256s(distinct, _hash)[0], strict=True))
    return [sums[file] if frame is None else artifacts.digest([sums[file], frame]) for file, frame in named]


def _seen(picture: np.ndarray, said: list[str], small: Geometry | None) -> tuple:
    content = hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest()
    square, noted = small(picture) if small else None, [*said, *[BLANK] * bool(picture.min() == picture.max())]
    return content, picture.shape[1], picture.shape[0], picture.ndim == 3, "", "; ".join(noted), square


def notes(looked: pd.DataFrame) -> list[str]:
    """Return a line per note of some rows of ``scan``, e.g. "3 pictures: alpha dropped", the commonest first."""
    counts = looked["note"].str.split("; ").explode().value_counts()
    lines = [(-count, str(note)) for note, count in counts.items() if note]
    return [f"{-count:,} picture{'s' * (count < -1)}: {note}" for count, note in sorted(lines)]


def cached_images(
    files: Sequence[Path], looked: pd.DataFrame, geometry: Geometry, bits: int = 0, also: Iterable[Geometry] = ()
) -> np.ndarray:
    """Return all pictures in one geometry, decoded once and kept as a memory-mapped array.

    Parameters
    ----------
    files
        N paths, of files or of frames ``FILE#k``.
    looked
        Their rows of ``scan`` (same order).
    geometry
        What to make of them.
    bits
        As it was for ``scan``.
    also
        What else will be wanted of them: where pictures must be decoded, the same pass makes what is not there of these.

    Returns
    -------
    numpy.ndarray
        uint8, (N, size, size) where all pictures are grey, else (N, size, size, 3).
    """
    if len(bad := looked.index[looked["error"] != ""]):
        raise ImageError(f"{len(bad)} unreadable pictures, the first in row {bad[0]}: {looked['error'].loc[bad[0]]}")
    asked, *others = (_array(looked, one) for one in dict.fromkeys([geometry, *also]))
    progress.begin(f"checking pictures in {geometry.describe()}")
    if (array := asked.open()) is not None:
        return array
    progress.begin("decoding pictures, or waiting for a job that does")
    with artifacts.lock(asked.path.with_name(asked.key["pixels"][:32])):  # one pass at a time over the same pictures
        if (array := asked.open()) is None:
            filling.fill([asked, *(other for other in others if other.open() is None)], files, bits)
            array = asked.open()
    if array is None:
        raise InputError(f"{asked.path} could not be read back after it was written: is the disk failing?")
    return array


def _array(looked: pd.DataFrame, geometry: Geometry) -> filling.Array:
    """Return where pictures in one geometry lie."""
    pixels = artifacts.digest(looked["pixels"].tolist())
    key = {"step": "images", "version": VERSION, "geometry": asdict(geometry), "pixels": pixels}
    shape = (len(looked), geometry.size, geometry.size) + ((3,) if looked["coloured"].any() else ())
    return filling.Array(paths.cache() / "images", key, geometry, shape)
