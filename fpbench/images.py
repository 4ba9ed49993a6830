"""Pictures: decoding, geometry, and a uint8 cache that every encoder reads.

Arrays are uint8, ``(H, W)`` for grey and ``(H, W, 3)`` RGB for truly coloured pictures; a colour file whose three channels
are equal is grey. Nothing here knows cohorts: it works on lists of paths.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fpbench.errors import InputError
from fpbench.files import artifacts, machine, paths
from fpbench.files.progress import Progress

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # alone: for others (EPS) Pillow starts programs of the system
VERSION = 2  # of decoding and geometry; raise it when their pixels change
MAX_PIXELS = 40_000_000  # a larger picture is refused unread: the largest real one has 1.2 million
KINDS = ("squash", "resize_crop", "pad_square", "fit_pad")
PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
OPENCV = {"opencv-bilinear": 1}  # cv2.INTER_LINEAR: no antialias, as UltraSam's authors resize
TORCH = {"torch-bilinear": "bilinear", "torch-bicubic": "bicubic"}  # antialiased, on uint8: as DINOv3's authors resize
INTERPOLATIONS = (*PILLOW, *OPENCV, *TORCH)


class ImageError(InputError):
    """A file that is no usable picture."""


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square of ``size`` pixels.

    ``squash``: both sides to size, aspect ratio lost. ``resize_crop``: short side to size / crop, then the central square.
    ``pad_square``: centred on a black square, then resized. ``fit_pad``: long side to size, the other in proportion, black
    to the right and below.
    """

    kind: str  # one of KINDS
    size: int  # side of the result, pixels
    interpolation: str = "bicubic"  # one of INTERPOLATIONS; Pillow's and torch's are antialiased
    crop: float = 1.0  # resize_crop only: share of the short side that is kept

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        words = {"geometry": (self.kind, KINDS), "interpolation": (self.interpolation, INTERPOLATIONS)}
        for word, (value, known) in words.items():
            if value not in known:
                raise InputError(f"unknown {word} {value!r}: expected one of {', '.join(known)}")
        numbers = isinstance(self.size, int) and isinstance(self.crop, int | float)
        if not (numbers and 8 <= self.size <= 4096 and 0 < self.crop <= 1):
            raise InputError(f"expected size 8 to 4096 (pixels) and crop in (0, 1], found {self.size} and {self.crop}")

    def describe(self) -> str:
        """Return a line for tables."""
        crop = f", crop {self.crop:g}" if self.kind == "resize_crop" else ""
        return f"{self.kind} {self.size}, {self.interpolation}{crop}"

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return ``picture`` as a uint8 array of shape (size, size) or (size, size, 3)."""
        return getattr(self, f"_{self.kind}")(picture)

    def _squash(self, picture: np.ndarray) -> np.ndarray:
        return self._resize(picture, self.size, self.size)

    def _resize_crop(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        side = int(np.floor(self.size / self.crop))
        short = min(height, width)
        resized = self._resize(picture, side * width // short, side * height // short)
        top, left = (round((edge - self.size) / 2) for edge in resized.shape[:2])
        return resized[top : top + self.size, left : left + self.size]

    def _pad_square(self, picture: np.ndarray) -> np.ndarray:
        side = max(picture.shape[:2])
        top, left = ((side - edge) // 2 for edge in picture.shape[:2])
        return self._resize(_on_black(picture, side, top, left), self.size, self.size)

    def _fit_pad(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = self.size / max(height, width)  # a float, and cut off: mmdetection's 784 * (1024 / 784) is 1023
        return _on_black(self._resize(picture, max(1, int(width * scale)), max(1, int(height * scale))), self.size)

    def _resize(self, picture: np.ndarray, width: int, height: int) -> np.ndarray:
        if self.interpolation in OPENCV:
            import cv2

            cv2.setNumThreads(1)  # `_parallel` already fills the cores
            return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=OPENCV[self.interpolation])
        if self.interpolation in TORCH:
            return _torch_resize(picture, width, height, TORCH[self.interpolation])
        return np.asarray(Image.fromarray(picture).resize((width, height), PILLOW[self.interpolation]))


def _on_black(picture: np.ndarray, side: int, top: int = 0, left: int = 0) -> np.ndarray:
    square = np.zeros((side, side, *picture.shape[2:]), np.uint8)
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square


def _torch_resize(picture: np.ndarray, width: int, height: int, mode: str) -> np.ndarray:
    import torch

    tensor = torch.from_numpy(np.array(picture)).view(*picture.shape[:2], -1).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(tensor, (height, width), mode=mode, antialias=True)
    return resized[0].permute(1, 2, 0).reshape(height, width, *picture.shape[2:]).numpy()


def decode(path: Path) -> np.ndarray:
    """Return the picture in a file: uint8, (H, W) if grey, (H, W, 3) RGB if truly coloured.

    Raises
    ------
    ImageError
        The file is missing, truncated, no picture, animated, not 8-bit, or larger than MAX_PIXELS.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_array(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: not a readable picture ({error}); is the download complete?") from None


def damaged(files: Sequence[Path]) -> list[str]:
    """Return what is wrong with each file that is no whole picture, also by the checksums that decoding skips."""
    return [damage for damage in _parallel(_damage, files, "opening pictures") if damage]


def _damage(path: Path) -> str:
    try:
        decode(path)
        with Image.open(path, formats=FORMATS) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        return f"{path.name}: {str(error).removeprefix(f'{path}: ')}"
    return ""


def to_array(image: Image.Image) -> np.ndarray:
    """Return an open picture as uint8: (H, W) if grey, (H, W, 3) RGB if truly coloured."""
    _refuse(image)
    array = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return array[..., 0] if array.ndim == 3 and (array == array[..., :1]).all() else array


def _refuse(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise ImageError(f"expected at most {MAX_PIXELS:,} pixels, found {size}: refused unread")
    if (frames := getattr(image, "n_frames", 1)) != 1:
        raise ImageError(f"expected one picture, found an animation of {frames} frames")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise ImageError(f"expected 8 bits per channel (grey or RGB), found mode {image.mode}")


def _parallel(function: Callable, items: Sequence, title: str) -> list:
    with ThreadPoolExecutor(machine.workers()) as pool:
        return list(Progress(pool.map(function, items), total=len(items), desc=title, unit="image"))


SCAN = ("sha256", "pixels", "width", "height", "coloured", "error")


def scan(files: Sequence[Path]) -> pd.DataFrame:
    """Look at every file once: hash of its bytes, hash of its pixels, size, colour; or what is wrong with it.

    Returns
    -------
    pandas.DataFrame
        One row per file, columns SCAN. Two files with equal ``pixels`` show the same picture, whatever their format.
        Decoding is cached by content: the second call on the same files only reads and hashes their bytes.
    """
    sums = _parallel(artifacts.file_sha256, files, "hashing files")
    path = paths.cache() / "scans" / f"{artifacts.digest([VERSION, sums])[:32]}.parquet"
    if artifacts.whole(path):
        return pd.read_parquet(path)
    rows = _parallel(_look, files, "looking at pictures")
    frame = pd.DataFrame(rows, columns=SCAN[1:]).astype({"width": "int32", "height": "int32", "coloured": bool})
    frame.insert(0, "sha256", sums)
    with artifacts.atomic(path) as temporary:
        frame.to_parquet(temporary, index=False)
    artifacts.commit(path, {"files": len(files)})
    return frame


def _look(path: Path) -> tuple:
    try:
        picture = decode(path)
    except ImageError as error:
        return "", 0, 0, False, str(error)
    content = hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest()
    return content, picture.shape[1], picture.shape[0], picture.ndim == 3, ""


def cached_images(files: Sequence[Path], looked: pd.DataFrame, geometry: Geometry) -> np.ndarray:
    """Return all pictures in one geometry, decoded once and kept as a memory-mapped array.

    Parameters
    ----------
    files
        N paths.
    looked
        Their rows of ``scan`` (same order).
    geometry
        What to make of them.

    Returns
    -------
    numpy.ndarray
        uint8, (N, size, size) where all pictures are grey, else (N, size, size, 3).
    """
    if len(bad := looked.index[looked["error"] != ""]):
        raise ImageError(f"{len(bad)} unreadable pictures, the first in row {bad[0]}: {looked['error'].loc[bad[0]]}")
    pixels = artifacts.digest(looked["pixels"].tolist())
    key = {"step": "images", "version": VERSION, "geometry": asdict(geometry), "pixels": pixels}
    shape = (len(files), geometry.size, geometry.size) + ((3,) if looked["coloured"].any() else ())

    def build(path: Path) -> None:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        if hasattr(os, "posix_fallocate"):  # on a full disk an error here, not a crash (SIGBUS) when a page is written
            with open(path, "rb+") as handle:
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)

        def fill(row: int) -> None:
            picture = geometry(decode(files[row]))
            array[row] = picture if picture.ndim == len(shape) - 1 else picture[..., None]

        _parallel(fill, range(len(files)), f"decoding to {geometry.kind} {geometry.size}")
        array.flush()

    return artifacts.cached_array(paths.cache() / "images", key, build)
