"""PNG, JPEG, BMP and TIFF: an open Pillow image becomes an array, and notes of what was done to it on the way.

Rules. Alpha is dropped: the colours stay as they are stored, nothing is drawn on a background. What EXIF says of turning is
done. More than 8 bits per channel are refused unless ``bits`` says how many are used: then 0 to 2^bits - 1 becomes 0 to 255
in proportion, rounded to the nearest (for no ``bits`` is there a half); of colour, Pillow hands on the upper 8 of 16 bits.
A picture that these rules would make black, or one colour, is refused. CMYK and LAB are refused: without their colour
profile they have no one RGB.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile

from fpbench.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # alone: for others (EPS) Pillow starts programs of the system
MAX_PIXELS = 40_000_000  # a larger picture is refused unread: the largest real one has 1.2 million
ALPHA = "alpha dropped"
TURNED = "turned as EXIF says"
FLAT = "few greys are left"  # 17 or fewer
TURNS = {  # EXIF orientation -> the array as it is to be seen
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: np.rot90(array),
}
DIRECT = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB", "YCbCr": "RGB"}  # mode -> what it is converted to
WITH_ALPHA = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(InputError):
    """A file that is no usable picture."""


_lock, _inside, _before = threading.Lock(), 0, False


@contextmanager
def whole_files() -> Iterator[None]:
    """Let Pillow refuse half files, whatever its flag for them says (labelme sets it at import).

    The flag is one for the whole process, so it is put down when the first thread enters and back when the last one leaves.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = _before


def to_array(image: Image.Image, bits: int = 0) -> np.ndarray:
    """Return an open picture as uint8: (H, W) if grey, (H, W, 3) RGB if truly coloured; ImageError as ``decode`` says."""
    with whole_files():
        return read(image, bits=bits)[0]


def read(image: Image.Image, frame: int | None = None, bits: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return a picture, or a frame of a stack, and the notes of what was done to it. Call it within ``whole_files``."""
    check_size(image.width, image.height)
    if index := choose(getattr(image, "n_frames", 1), frame):
        image.seek(index)
        check_size(image.width, image.height)
    deep, turn = _is_deep(image), _orientation(image)  # both before Pillow loads it, and forgets
    if turn in TURNS and image.format == "TIFF":
        image.filename = ""  # a turned file that it opened by its path, Pillow maps into memory wrongly
    array, notes = _wide(image, bits) if deep else _eight(image)
    if turn in TURNS:
        notes.append(TURNED)
        array = (
            array if image.format == "TIFF" else np.ascontiguousarray(TURNS[turn](array))
        )  # Pillow turns TIFF itself
    return grey(array), notes


def check_size(width: int, height: int) -> None:
    """Refuse a picture of more than MAX_PIXELS, before it is read."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"expected at most {MAX_PIXELS:,} pixels, found {width} x {height}: refused unread")


def choose(count: int, frame: int | None) -> int:
    """Return which of the ``count`` frames of a file is meant; ``frame`` None is the only one."""
    if frame is None and count != 1:
        name = f"name one frame, `FILE#0` to `FILE#{count - 1}`"
        raise ImageError(f"expected one picture, found a stack or animation of {count} frames: {name}")
    if frame is not None and frame >= count:
        have = "one picture" if count == 1 else f"{count} frames, `FILE#0` to `FILE#{count - 1}`"
        raise ImageError(f"expected a frame that is there, found #{frame}: the file holds {have}")
    return frame or 0


def grey(array: np.ndarray) -> np.ndarray:
    """Return one channel if all three are equal, else the array."""
    return array[..., 0] if array.ndim == 3 and (array == array[..., :1]).all() else array


def scaled(
    values: np.ndarray, low: float, high: float, what: str, blamed: str = "`bits`"
) -> tuple[np.ndarray, list[str]]:
    """Map low..high to 0..255, rounded to the nearest; a value outside is an error, and ``blamed`` is asked about.

    Returns
    -------
    tuple
        uint8 of the same shape, and the notes of ``judged``.
    """
    if not np.isfinite(values).all():
        raise ImageError("expected numbers, found pixels that are none (NaN or infinite)")
    least, most = values.min(), values.max()
    if most > high:
        raise ImageError(f"expected at most {high:.10g}, found {most:.10g}: is {blamed} right?")
    if least < low:
        raise ImageError(f"expected at least {low:.10g}, found {least:.10g}: is {blamed} right?")
    small = np.rint((values.astype(np.float64) - low) * 255 / (high - low)).astype(np.uint8)
    return small, judged(small, values, what, blamed)


def judged(small: np.ndarray, values: np.ndarray, what: str, blamed: str) -> list[str]:
    """Return what was done as a note, with FLAT if few greys are left; ImageError if hardly two are, of what was a picture."""
    span, before = (float(one.max()) - float(one.min()) for one in (small, values))
    if span < min(2, before):
        found = f"found values {values.min():.10g} to {values.max():.10g} and hardly two greys, {what}"
        raise ImageError(f"expected a picture, {found}: is {blamed} right?")
    return [what, FLAT] if span < min(17, before) else [what]


def check_bits(bits: int) -> None:
    """Refuse a number of bits that is none."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 0 <= bits <= 32:
        raise InputError(f"expected bits=0 (8-bit pictures alone) or 1 to 32, found {bits!r}")


def _orientation(image: Image.Image) -> int:
    try:
        turn = image.getexif().get(0x0112, 1)
        return turn if isinstance(turn, int) else 1
    except Exception:  # a damaged block raises what it likes, and says nothing of the pixels
        return 1


def _is_deep(image: Image.Image) -> bool:
    """Return whether a channel has more than 8 bits; of colour Pillow's mode does not say so."""
    if image.format == "TIFF":
        return image.mode in DEEP or max(image.tag_v2.get(258, (1,))) > 8
    raw = [str(tile[3]) for tile in getattr(image, "tile", [])] if image.format == "PNG" else []
    return image.mode in DEEP or any(";16B" in one for one in raw)


def _wide(image: Image.Image, bits: int) -> tuple[np.ndarray, list[str]]:
    """Scale a picture of more than 8 bits per channel."""
    if image.mode not in DEEP:
        return _wide_colour(image, bits)
    if not bits:
        say = "say how many of its bits are used, e.g. bits=12 where 4095 is white"
        raise ImageError(f"expected 8 bits per channel, found more (mode {image.mode}): {say}")
    array, notes = scaled(np.asarray(image), 0, 2**bits - 1, f"{bits} bits scaled to 8")
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # 0 is white: Pillow inverts 8 bits alone
        array = 255 - array
    return array, notes


def _wide_colour(image: Image.Image, bits: int) -> tuple[np.ndarray, list[str]]:
    """Take the upper 8 of 16 bits: all that Pillow hands on."""
    planes = image.format == "TIFF" and image.tag_v2.get(284, 1) != 1  # each colour apart: Pillow mistakes their bytes
    if bits != 16 or planes:
        say = "save it with 8" if planes or bits else "save it with 8, or say bits=16 if 65535 is white"
        raise ImageError(f"expected 8 bits per channel, found colour or alpha of 16: {say}")
    array, notes = _eight(image)
    span = int(array.max()) - int(array.min())
    if span < 2:
        raise ImageError("expected colours from 0 to 65535, found hardly two once 16 bits are 8: is `bits` right?")
    return array, [*notes, "16 bits scaled to 8", *([FLAT] if span < 17 else [])]


def _eight(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Return the colours of an 8-bit picture without its alpha."""
    if image.format == "TIFF" and 2 in image.tag_v2.get(339, ()):
        raise ImageError("expected values 0 to 255, found signed ones (-128 to 127): save it as unsigned")
    clear = "transparency" in image.info
    mode = WITH_ALPHA.get(image.mode) or ("RGBA" if image.mode == "P" and clear else DIRECT.get(image.mode))
    if mode is None:
        say = "convert it to RGB by its colour profile"
        raise ImageError(f"expected grey, RGB or a palette, found {image.mode}: {say}")
    index = np.asarray(image) if image.mode in ("P", "PA") else np.zeros(1)
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    if mode in ("LA", "RGBA"):
        array, alpha = (array[..., 0] if mode == "LA" else array[..., :3]), array[..., -1]
        carries(array, alpha, "transparency")
    carries(array, index, "palette")
    return array, [ALPHA] if clear or image.mode in WITH_ALPHA else []


def carries(array: np.ndarray, other: np.ndarray, name: str) -> None:
    """Refuse a picture of one colour whose ``other`` channel is not constant."""
    if other.min() < other.max() and (array == array[:1, :1]).all():
        found = f"found one colour everywhere, and the picture in its {name} alone"
        raise ImageError(f"expected a picture in the colours, {found}: save it in grey or RGB, drawn on a background")
