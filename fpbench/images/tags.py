"""The part of a DICOM header that pixels need. All other tags, a patient's among them, are stepped over unread.

That is why the header is walked here and not by pydicom, which reads what it passes (sequences) and quotes values in its
warnings. Known are files with and without preamble and meta header, implicit and explicit VR, both byte orders, defined and
undefined lengths. What a header lacks, or holds in another form, is an ImageError that names the tag and never its value.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from fpbench.images.raster import ImageError

TAGS = {
    0x00280002: "SamplesPerPixel", 0x00280004: "PhotometricInterpretation", 0x00280006: "PlanarConfiguration",
    0x00280008: "NumberOfFrames", 0x00280010: "Rows", 0x00280011: "Columns", 0x00280100: "BitsAllocated",
    0x00280101: "BitsStored", 0x00280102: "HighBit", 0x00280103: "PixelRepresentation", 0x00280301: "BurnedInAnnotation",
    0x00281050: "WindowCenter", 0x00281051: "WindowWidth", 0x00281052: "RescaleIntercept", 0x00281053: "RescaleSlope",
    0x00281056: "VOILUTFunction", 0x00281101: "RedPaletteColorLookupTableDescriptor",
    0x00281102: "GreenPaletteColorLookupTableDescriptor", 0x00281103: "BluePaletteColorLookupTableDescriptor",
    0x00281201: "RedPaletteColorLookupTableData", 0x00281202: "GreenPaletteColorLookupTableData",
    0x00281203: "BluePaletteColorLookupTableData", 0x00283000: "ModalityLUTSequence", 0x00283010: "VOILUTSequence",
    0x00283002: "LUTDescriptor", 0x00283006: "LUTData", 0x7FE00001: "ExtendedOffsetTable",
    0x7FE00002: "ExtendedOffsetTableLengths",
}  # fmt: skip
FUNCTIONAL = (0x52009229, 0x52009230)  # groups in which an enhanced multi-frame file keeps its windows
PIXELS, FLOATS = 0x7FE00010, (0x7FE00008, 0x7FE00009)
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # 4 bytes of length
LARGEST = 1 << 22  # bytes of a value that is read; the largest lookup table has 131,072
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"


class Form(NamedTuple):
    """How elements are written."""

    implicit: bool  # without their VR
    order: str  # "<" or ">"


class Element(NamedTuple):
    """Where an element lies."""

    tag: int
    vr: str  # empty in implicit files
    start: int  # of its value, bytes from the start of the file
    length: int  # of its value, bytes; UNDEFINED for coded pixel data


@dataclass(frozen=True)
class Header:
    """The values of TAGS, as bytes, and where the pixel data lies."""

    values: dict[str, bytes]
    form: Form
    syntax: str  # UID of the transfer syntax; empty: the file has no meta header
    pixels: Element
    functional: bool  # windows may lie in groups that are not read

    def number(self, name: str, default: int | None = None) -> int:
        """Return an unsigned whole number; without a default, it must be there."""
        value = self.values.get(name, b"")
        if not value and default is not None:
            return default
        return self.shorts(name, 1)[0]

    def shorts(self, name: str, count: int) -> tuple[int, ...]:
        """Return the first 16-bit words of a value."""
        value = self.values.get(name, b"")
        if len(value) < 2 * count:
            raise ImageError(f"expected {count} number(s) in the tag {name}, found fewer: is it whole?")
        return struct.unpack(f"{self.form.order}{count}H", value[: 2 * count])

    def text(self, name: str) -> str:
        """Return the first of several texts; empty if there is none."""
        return self.values.get(name, b"").split(b"\\")[0].strip(b" \0").decode("ascii", "replace")

    def decimal(self, name: str) -> float | None:
        """Return the first of several decimal numbers; None if there is none."""
        if not (text := self.text(name)):
            return None
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        if not abs(found) < 1e30:
            raise ImageError(f"expected a decimal number in the tag {name}, found something else")
        return found

    def item(self, name: str) -> "Header":
        """Return the values in the first item of a sequence."""
        handle = io.BytesIO(self.values[name])
        size, element = len(self.values[name]), _head(handle, self.form)
        if element.tag != ITEM:
            raise ImageError(f"expected a sequence in the tag {name}, found something else")
        end = size if element.length == UNDEFINED else min(size, element.start + element.length)
        values = {TAGS[one.tag]: _value(handle, one) for one in _elements(handle, self.form, end) if one.tag in TAGS}
        return Header(values, self.form, self.syntax, self.pixels, False)


def read(handle: BinaryIO) -> Header:
    """Return the header of an open DICOM file, up to its pixel data."""
    size = handle.seek(0, 2)
    handle.seek(128)
    if handle.read(4) != b"DICM":
        handle.seek(0)
    syntax = _meta(handle)
    if syntax == DEFLATED:
        raise ImageError("expected a file that is not deflated as a whole: convert it, `dcmconv +te` of DCMTK")
    order = ">" if syntax == BIG_ENDIAN else "<"
    start = handle.tell()
    vr = handle.read(6)[4:]
    handle.seek(start)
    form = Form(not (vr.isalpha() and vr.isupper()), order)  # of some files the meta header says it wrongly
    values: dict[str, bytes] = {}
    functional = False
    for element in _elements(handle, form, size):
        functional |= element.tag in FUNCTIONAL
        if element.tag in FLOATS:
            raise ImageError("expected whole numbers as pixels, found floating-point ones: save it with 8 or 16 bits")
        if element.tag == PIXELS:
            if element.length != UNDEFINED and element.start + element.length > size:
                there = f"{size - element.start:,} of {element.length:,} bytes of its pixels"
                raise ImageError(f"expected a whole file, found {there}; is the download complete?")
            return Header(values, form, syntax, element, functional)
        if element.tag in TAGS:
            values[TAGS[element.tag]] = _value(handle, element)
    raise ImageError("expected a picture, found a DICOM file without pixels: a report, or a file cut in its header")


def _meta(handle: BinaryIO) -> str:
    """Step over the meta header, if there is one, and return the transfer syntax."""
    syntax = ""
    while True:
        start = handle.tell()
        if handle.read(2) != b"\x02\x00":
            handle.seek(start)
            return syntax
        handle.seek(start)
        element = _head(handle, Form(False, "<"))
        if element.tag == 0x00020010:
            syntax = _value(handle, element).strip(b" \0").decode("ascii", "replace")
        if element.length == UNDEFINED:
            raise ImageError("expected a DICOM file, found a meta header that cannot be read")
        handle.seek(element.start + element.length)


def _elements(handle: BinaryIO, form: Form, end: int) -> Iterator[Element]:
    """Yield the elements of one level, the pixel data as the last; the caller may read in between."""
    while handle.tell() + 8 <= end:
        element = _head(handle, form)
        if element.tag in (PIXELS, *FLOATS, ITEM_END, SEQUENCE_END):
            if element.tag not in (ITEM_END, SEQUENCE_END):
                yield element
            return
        after = element.start + element.length
        if element.length == UNDEFINED:
            after = _skip(handle, form)
            element = element._replace(length=after - 8 - element.start)
        if after > end:
            raise ImageError("expected a whole file, found one cut in its header; is the download complete?")
        yield element
        handle.seek(after)


def _skip(handle: BinaryIO, form: Form) -> int:
    """Step over a value of undefined length, items in items; return where it ends."""
    depth = 1
    while depth:
        element = _head(handle, form)
        if element.tag in (ITEM_END, SEQUENCE_END):
            depth -= 1
        elif element.length == UNDEFINED:
            depth += 1
        else:
            handle.seek(element.length, 1)
    return handle.tell()


def _head(handle: BinaryIO, form: Form) -> Element:
    """Read tag, VR and length; the handle is left at the value."""
    raw = handle.read(8)
    if len(raw) < 8:
        raise ImageError("expected a whole file, found one cut in its header; is the download complete?")
    group, number = struct.unpack(f"{form.order}HH", raw[:4])
    vr = raw[4:6]
    if form.implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):  # items, and some writers' sequences
        vr, length = b"", struct.unpack(f"{form.order}I", raw[4:])[0]
    elif vr in LONG:
        raw = handle.read(4)
        length = struct.unpack(f"{form.order}I", raw)[0] if len(raw) == 4 else 0
    else:
        length = struct.unpack(f"{form.order}H", raw[6:])[0]
    return Element(group << 16 | number, vr.decode("ascii"), handle.tell(), length)


def _value(handle: BinaryIO, element: Element) -> bytes:
    if element.length > LARGEST:
        raise ImageError(f"expected a few bytes in a tag, found {element.length:,}: is the file whole?")
    handle.seek(element.start)
    return handle.read(element.length)
