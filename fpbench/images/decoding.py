"""From a file to an array: which file, which frame, which reader.

A frame of any stack (a DICOM cine loop, a .mha, a TIFF of several pages, an animated PNG) is named ``FILE#k``, k from 0: the path is
cut at its last ``#`` if only digits follow, unless a file of the whole name is there.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fpbench import extras
from fpbench.images import dicom, mha, raster
from fpbench.images.raster import FORMATS, ImageError

NAMED = re.compile(r"(.+)#([0-9]{1,9})", re.DOTALL)
KNOWN = ", ".join(FORMATS)
SAYING = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning)  # their words are for people


def split(path: Path) -> tuple[Path, int | None]:
    """Return the file that ``path`` names and the frame in it, None where none is named."""
    path = path if isinstance(path, Path) else Path(path)  # of ten thousands of frames it is felt
    if (found := NAMED.fullmatch(path.name)) and not os.path.isfile(path):
        return path.parent / found[1], int(found[2])
    return path, None


def file_of(path: Path) -> Path:
    """Return the file that holds a picture or a frame ``FILE#k``; it need not be there."""
    return split(path)[0]


def decode(path: Path, bits: int = 0) -> np.ndarray:
    """Return the picture in a file, or a frame ``FILE#k`` of a stack: uint8, (H, W) if grey, (H, W, 3) RGB if truly coloured.

    Parameters
    ----------
    path
        PNG, JPEG, BMP, TIFF, MetaImage (.mha); DICOM where the extra ``dicom`` is installed.
    bits
        How many bits of a picture of more than 8 are used: 0 to 2^bits - 1 becomes 0 to 255. 0: such a picture is refused.
        8-bit pictures and DICOM, which says so itself, are not touched by it.

    Raises
    ------
    ImageError
        The file is missing, half, no picture, a stack without ``#k``, deeper than 8 bits, or larger than MAX_PIXELS.
    MissingExtra
        It is DICOM, and pydicom is not installed.
    """
    return look(path, bits)[0]


def look(path: Path, bits: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return what ``decode`` does, and notes of what was done to the picture on the way."""
    raster.check_bits(bits)
    file, frame = split(path)
    with _refusing(path), open(file, "rb") as handle, raster.whole_files():
        if dicom.is_dicom(handle, file.suffix):
            return dicom.read(handle, frame)
        if mha.is_mha(handle, file.suffix):
            return mha.read(handle, frame)
        with Image.open(handle, formats=FORMATS) as image:
            return raster.read(image, frame, bits)


def looks(paths: Sequence[Path], bits: int = 0) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield what ``look`` returns of each path: one, or frames of one file that is ``stacked``, by number, read in one go.

    The last one is yielded when the whole file is known to be sound; an error that comes before is one of all frames.
    """
    if len(paths) == 1:
        yield look(paths[0], bits)
        return
    named = [split(path) for path in paths]
    with _refusing(paths[0]), open(named[0][0], "rb") as handle:
        for picture in mha.frames(handle, [frame or 0 for _, frame in named]):
            yield picture, []


def stacked(file: Path) -> int:
    """Return how many frames a file holds that must be read from its start (a .mha); 0 for any other, and what is none."""
    try:
        with open(file, "rb") as handle:
            whole = mha.is_mha(handle, file.suffix) and not dicom.is_dicom(handle, file.suffix)
            return mha.head(handle).depth if whole else 0
    except (OSError, ImageError):  # ``look`` says why
        return 0


def shape(file: Path) -> tuple[int, int, int]:
    """Return frames, height and width of a MetaImage, by its header alone; ImageError as of ``decode``."""
    with _refusing(file), open(file, "rb") as handle:
        header = mha.head(handle)
        return header.depth, header.height, header.width


def frames(file: Path) -> Iterator[np.ndarray]:
    """Yield all frames of a MetaImage, one in memory at a time; ImageError as of ``decode``."""
    with _refusing(file), open(file, "rb") as handle:
        yield from mha.frames(handle, range(mha.head(handle).depth))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Let nothing but ImageError out, which names the path."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (extras.MissingExtra, MemoryError):
        raise
    except Exception as error:  # on damaged files the readers raise whatever comes
        raise ImageError(f"{path}: not a readable picture ({_reason(error)}); is the download complete?") from None


def damage(path: Path, bits: int = 0) -> str:
    """Return what is wrong with a file that is no whole picture, also by the checksums that decoding skips; or nothing."""
    return damages([path], bits)


def damages(paths: Sequence[Path], bits: int = 0) -> str:
    """Return what is wrong with a picture, or with the frames of a file that ``looks`` reads together; or nothing."""
    path = paths[0]
    try:
        for _ in looks(paths, bits):
            pass
        with open(file := file_of(path), "rb") as handle, raster.whole_files():
            if not dicom.is_dicom(handle, file.suffix) and not mha.is_mha(handle, file.suffix):
                with Image.open(handle, formats=FORMATS) as image:
                    image.verify()
    except ImageError as error:
        return f"{path.name}: {str(error).removeprefix(f'{path}: ')}"
    except (extras.MissingExtra, MemoryError):
        raise
    except Exception as error:
        return f"{path.name}: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"none of {KNOWN}, DICOM, MetaImage"
    return str(error)[:300] if isinstance(error, SAYING) else type(error).__name__
