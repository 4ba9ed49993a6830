"""DICOM: a frame becomes an array as a viewer would show it first. Needs the extra ``dicom`` (pydicom).

Grey. Stored values pass the modality table or rescale slope and intercept, then the first window (linear, linear exact or
sigmoid; PS3.3 C.11.2.1) or, without one, the first VOI table. Without either, the range that BitsStored allows becomes 0 to
255: 8 bits stay as they are. Results are rounded to the nearest, halves to even; MONOCHROME1 is then inverted. Colour has 8
bits: RGB, YBR_FULL and YBR_FULL_422 (PS3.3 C.7.6.3.1.2), what JPEG 2000 makes of it, or a palette. Overlays are not drawn,
and the bits above BitsStored, where old files keep some, are cut off.

Privacy. Only the tags of ``tags.TAGS`` are read, whole tables among them, and no message quotes a text of the file. Text that is burned into the pixels
stays: what the file says of it is a note, and what a file says may be wrong.

Coded pixels. JPEG is decoded as a JPEG file is, so that both are the same picture; RLE and JPEG 2000 by pydicom with the one
plugin that is always there; others by a package that the message names. It is one per syntax: pixels do not depend on what
else is installed.
"""

import io
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from fpbench import extras
from fpbench.images import raster, tags
from fpbench.images.raster import ImageError
from fpbench.images.tags import Header

SUFFIXES = (".dcm", ".dicom")
OTHERS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")  # how a picture starts that only bears such a suffix
INVERTED = "inverted as MONOCHROME1 says"
BURNED = "DICOM says text is burned in"
UNSAID = "DICOM does not say whether text is burned in"


class Coding(NamedTuple):
    """How pixels are coded, and what decodes them."""

    name: str
    plugin: str  # of pydicom
    install: str = ""  # what brings the plugin, if neither pydicom nor Pillow does


UID = "1.2.840.10008.1.2"
NATIVE = (UID, f"{UID}.1", f"{UID}.2", "")
JPEG, EXTENDED, RLE, GDCM = f"{UID}.4.50", f"{UID}.4.51", f"{UID}.5", "python-gdcm"
CODINGS = {
    JPEG: Coding("JPEG baseline", "pillow"),
    EXTENDED: Coding("JPEG extended", "pillow"),  # of 12 bits only a GPL package decodes it: refused
    f"{UID}.4.57": Coding("JPEG lossless", "gdcm", GDCM),
    f"{UID}.4.70": Coding("JPEG lossless", "gdcm", GDCM),
    f"{UID}.4.80": Coding("JPEG-LS", "pyjpegls", "pyjpegls"),
    f"{UID}.4.81": Coding("JPEG-LS", "pyjpegls", "pyjpegls"),
    f"{UID}.4.90": Coding("JPEG 2000", "pillow"),
    f"{UID}.4.91": Coding("JPEG 2000", "pillow"),
    RLE: Coding("RLE", "pydicom"),
    **{f"{UID}.4.{n}": Coding("HTJ2K", "pylibjpeg", "pylibjpeg pylibjpeg-openjpeg") for n in (201, 202, 203)},
}
FILMS = tuple(f"{UID}.4.{number}" for number in range(100, 109))  # MPEG and its successors
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


def is_dicom(handle: BinaryIO, suffix: str) -> bool:
    """Return whether an open file is DICOM: by its mark, or by its suffix if it starts like no other picture."""
    start = handle.read(132)
    handle.seek(0)
    return start[128:] == b"DICM" or (suffix.lower() in SUFFIXES and not start.startswith(OTHERS))


def decoders() -> list[str]:
    """Return which packages for further codings are here: what can be read depends on them."""
    return [name for name in ("gdcm", "jpeg_ls", "pylibjpeg", "openjpeg") if find_spec(name)]


def read(handle: BinaryIO, frame: int | None) -> tuple[np.ndarray, list[str]]:
    """Return a frame of an open file, uint8, (H, W) or (H, W, 3), and the notes of what was done to it."""
    _need_pydicom()
    try:
        header = tags.read(handle)
        _check(header)
        count = _count(handle, header)
        return _shown(header, _decode(handle, header, count, raster.choose(count, frame)))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom's own words may quote the file
        raise ImageError(f"not readable DICOM ({type(error).__name__} in its header or pixels); is it whole?") from None


def _need_pydicom() -> None:
    extras.need("dicom")
    try:
        import pydicom.pixels  # noqa: F401
    except Exception as error:  # a broken installation shall not look like broken files
        raise extras.MissingExtra(f"pydicom is there and cannot be imported ({error}): install it anew") from None


def _check(header: Header) -> None:
    """Refuse what cannot become a picture, before pixels are read."""
    if header.syntax in FILMS:
        raise ImageError("expected pictures, found a film (MPEG): cut it into frames, e.g. with ffmpeg")
    if header.syntax not in (*NATIVE, *CODINGS):
        raise ImageError("expected a known coding of pixels, found another: convert it, e.g. `dcmconv +te` of DCMTK")
    rows, columns, samples = (header.number(name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    raster.check_size(columns, rows)
    if not rows * columns:
        raise ImageError(f"expected a picture, found {columns} x {rows} pixels")
    known = {1: GREYS, 3: COLOURS}.get(samples, ())
    if header.text("PhotometricInterpretation") not in known:
        wanted = f"1 channel ({', '.join(GREYS)}) or 3 ({', '.join(COLOURS)})"
        raise ImageError(f"expected {wanted}, found {samples} and another PhotometricInterpretation: save it as RGB")
    allocated, stored = header.number("BitsAllocated"), header.number("BitsStored")
    if not 1 <= stored <= allocated <= 16 or allocated not in (1, 8, 16):
        raise ImageError(f"expected up to 16 bits stored in 1, 8 or 16, found {stored} in {allocated}: save it with 16")
    if header.syntax == EXTENDED and stored > 8:
        raise ImageError("expected JPEG of 8 bits, found it of 12: decompress it, e.g. `dcmdjpeg` of DCMTK")
    if samples == 3 and stored != 8:
        raise ImageError(f"expected colour of 8 bits, found {stored}: save it with 8")
    if header.number("HighBit", stored - 1) != stored - 1:
        raise ImageError(f"expected the highest bit to be {stored - 1} (HighBit), found another: save it anew")
    if header.number("PixelRepresentation", 0) > 1 or header.number("PlanarConfiguration", 0) > 1:
        raise ImageError("expected 0 or 1 as PixelRepresentation and PlanarConfiguration, found another")


def _count(handle: BinaryIO, header: Header) -> int:
    """Return the number of frames, held to the bytes that are there."""
    text = header.text("NumberOfFrames")
    if text and not (text.isdecimal() and len(text) <= 10):
        raise ImageError("expected a number of frames in the tag NumberOfFrames, found something else")
    count = int(text or 1) or 1  # some writers say 0
    if header.syntax in NATIVE:
        needed, there = (_bits(header) * count + 7) // 8, header.pixels.length
        if header.pixels.length == tags.UNDEFINED or there < needed:
            found = "a coded one" if there == tags.UNDEFINED else f"{there:,}"
            raise ImageError(f"expected {needed:,} bytes of pixels in {count:,} frame(s), found {found}; is it whole?")
        full = header.number("Rows") * header.number("Columns") * 3 * count
        if header.text("PhotometricInterpretation") == "YBR_FULL_422" and there >= full:
            raise ImageError("expected two bytes per pixel (YBR_FULL_422), found three: is it RGB? save it anew")
    elif (there := _fragments(handle, header)) < count:
        raise ImageError(f"expected {count:,} coded frame(s), found {there:,}; is the file whole?")
    return count


def _bits(header: Header) -> int:
    """Return the bits of one frame that is not coded."""
    samples = 2 if header.text("PhotometricInterpretation") == "YBR_FULL_422" else header.number("SamplesPerPixel")
    return header.number("Rows") * header.number("Columns") * samples * header.number("BitsAllocated")


def _fragments(handle: BinaryIO, header: Header) -> int:
    """Count the pieces of coded pixels behind their offset table; all must be whole and the end be marked."""
    if header.pixels.length != tags.UNDEFINED:
        raise ImageError("expected coded pixels in pieces, found them in one: is the transfer syntax right?")
    place, count = handle.seek(header.pixels.start), -1
    while True:
        raw = handle.read(8)
        tag = int.from_bytes(raw[:2], "little") << 16 | int.from_bytes(raw[2:4], "little")
        place += 8 + int.from_bytes(raw[4:8], "little")
        if len(raw) == 8 and tag == tags.SEQUENCE_END:
            return count
        if len(raw) < 8 or tag != tags.ITEM:
            found = f"found it cut after {count + 1} piece(s)"
            raise ImageError(f"expected a whole file, {found}; is the download complete?")
        count += 1
        handle.seek(place)


def _decode(handle: BinaryIO, header: Header, count: int, index: int) -> np.ndarray:
    """Return the stored values of a frame, (H, W); of colour, RGB (H, W, 3) uint8."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    handle.seek(header.pixels.start)
    options: dict[str, Any] = {
        "rows": header.number("Rows"), "columns": header.number("Columns"), "number_of_frames": count,
        "samples_per_pixel": header.number("SamplesPerPixel"), "bits_allocated": header.number("BitsAllocated"),
        "bits_stored": header.number("BitsStored"), "pixel_representation": header.number("PixelRepresentation", 0),
        "photometric_interpretation": header.text("PhotometricInterpretation"), "pixel_keyword": "PixelData",
        "planar_configuration": header.number("PlanarConfiguration", 0), "pixel_vr": header.pixels.vr or "OW",
    }  # fmt: skip
    if header.syntax in NATIVE:
        syntax = header.syntax or (UID if header.form.implicit else f"{UID}.1")
        return get_decoder(syntax).as_array(handle, index=index, **options)[0]
    places, lengths = (header.values.get(f"ExtendedOffsetTable{of}", b"") for of in ("", "Lengths"))
    offsets = (places, lengths) if places and lengths else None
    options["extended_offsets"] = offsets
    coding = CODINGS[header.syntax]
    if coding.plugin == "pillow":
        frame = get_frame(handle, index, number_of_frames=count, extended_offsets=offsets)
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            if image.size != (options["columns"], options["rows"]):
                raise ImageError("expected coded pixels of the size in the header, found another: is the file whole?")
            if image.format != "JPEG2000":
                return _jpeg(image, header)
    decoder = get_decoder(header.syntax)
    if coding.plugin not in decoder.available_plugins:
        raise ImageError(f"its pixels are coded as {coding.name}, which needs more: pip install {coding.install}")
    return decoder.as_array(handle, index=index, decoding_plugin=coding.plugin, **options)[0]


def _jpeg(image: Any, header: Header) -> np.ndarray:
    """Return a coded frame as it would come out of a JPEG file."""
    samples, ids = header.number("SamplesPerPixel"), [layer[0] for layer in image.layer]
    if len(ids) != samples or header.number("BitsStored") != 8:
        wanted = f"{samples} channel(s) of {header.number('BitsStored')} bits"
        raise ImageError(f"expected {wanted}, found coded pixels with {len(ids)} of 8: is the header right?")
    plain = not {"jfif", "adobe_transform"} & image.info.keys() and ids not in ([82, 71, 66], [114, 103, 98])
    if plain and header.text("PhotometricInterpretation") == "RGB":
        image.draft("YCbCr", image.size)  # nothing in the JPEG says so: leave the three channels as they are
    return np.asarray(image)


def _shown(header: Header, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return stored values as uint8, (H, W) or (H, W, 3), and the notes."""
    kind, burned = header.text("PhotometricInterpretation"), header.text("BurnedInAnnotation").upper()
    notes: list[str] = []
    if values.ndim == 3:
        array = raster.grey(values)
    elif kind == "PALETTE COLOR":
        array = _palette(header, values)
    else:
        array, notes = _grey(header, values)
        array = 255 - array if kind == "MONOCHROME1" else array
        notes = [*notes, INVERTED] if kind == "MONOCHROME1" else notes
    array = np.ascontiguousarray(array)
    return array, notes if burned == "NO" else [*notes, BURNED if burned == "YES" else UNSAID]


def _grey(header: Header, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    stored = header.number("BitsStored")
    table, low, high = _modality(header, values, stored)
    centre, width = header.decimal("WindowCenter"), header.decimal("WindowWidth")
    if centre is not None and width is not None:
        array = _window(table, centre, width, header.text("VOILUTFunction") or "LINEAR")
        way = f"{stored} bits scaled by its window"
        return array, [] if np.array_equal(array, values) else raster.judged(array, table, way, "the window")
    if header.values.get("VOILUTSequence"):
        table, top = _table(header.item("VOILUTSequence"), table)
        return raster.scaled(table, 0, top, f"{stored} bits scaled by its lookup table", "the table")
    if header.functional and stored > 8:
        found = "found it in functional groups, which are not read"
        raise ImageError(f"expected a window beside the pixels, {found}: save it anew")
    if (low, high) == (0, 255) and np.array_equal(table, values):
        return values.astype(np.uint8), []
    return raster.scaled(table, low, high, f"{stored} bits scaled by their full range", "BitsStored")


def _modality(header: Header, values: np.ndarray, stored: int) -> tuple[np.ndarray, float, float]:
    """Return the values behind the modality table or slope and intercept, and the least and most that they can be."""
    if header.values.get("ModalityLUTSequence"):
        table, top = _table(header.item("ModalityLUTSequence"), values)
        return table, 0, top
    half = 2 ** (stored - 1) if header.number("PixelRepresentation", 0) else 0
    slope, intercept = header.decimal("RescaleSlope"), header.decimal("RescaleIntercept") or 0.0
    slope = 1.0 if slope is None else slope
    if not slope:
        raise ImageError("expected a RescaleSlope that is not 0, found 0")
    ends = (-half * slope + intercept, (2**stored - 1 - half) * slope + intercept)
    return values * slope + intercept, min(ends), max(ends)


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Return PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255."""
    if width < (1 if function == "LINEAR" else 1e-6):
        raise ImageError("expected a WindowWidth of at least 1 (LINEAR) or above 0, found less")
    if function == "LINEAR":
        share = (values > centre - 0.5) * 1.0 if width == 1 else (values - centre + 0.5) / (width - 1) + 0.5
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    else:
        raise ImageError("expected VOILUTFunction LINEAR, LINEAR_EXACT or SIGMOID, found another")
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _table(item: Header, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the entries of an item's table for some values, and the largest that its bits allow."""
    table, first, bits = _entries(item, "LUTDescriptor", "LUTData")
    return _picked(table, first, values).astype(np.float64), float(2**bits - 1)


def _palette(header: Header, values: np.ndarray) -> np.ndarray:
    """Return the colours of indices, (H, W) or (H, W, 3); of 16-bit entries the upper 8 bits, where they hold any."""
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    tables = [_entries(header, f"{name}Descriptor", f"{name}Data")[:2] for name in names]
    wide = max(table.max() for table, _ in tables) > 255  # else 8 bits, though some writers put them into 16
    array = np.stack([_picked(table // 256 if wide else table, first, values) for table, first in tables], -1)
    array = array.astype(np.uint8)
    raster.carries(array, values, "palette")
    return raster.grey(array)


def _entries(header: Header, descriptor: str, data: str) -> tuple[np.ndarray, int, int]:
    """Return a lookup table, the value that its first entry is for, and the bits of its entries."""
    count, first, bits = header.shorts(descriptor, 3)
    raw, count = header.values.get(data, b""), count or 65536
    if not 8 <= bits <= 16 or len(raw) < count * (1 if bits == 8 else 2):
        wanted = f"{count:,} entries of 8 to 16 bits in {data}"
        raise ImageError(f"expected {wanted}, found fewer, or segments: save it anew")
    wide = bits > 8 or len(raw) >= 2 * count
    return np.frombuffer(raw, f"{header.form.order}u2" if wide else "u1", count), first, bits


def _picked(table: np.ndarray, first: int, values: np.ndarray) -> np.ndarray:
    """Return the entries for some values; those beyond an end take the entry there."""
    first = first - 65536 if first > 32767 and values.min() < 0 else first  # signed, as the values are
    return table[np.clip(values - float(first), 0, len(table) - 1).astype(np.int64)]
