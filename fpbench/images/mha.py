"""MetaImage (``.mha``): a picture, or a stack of grey ones, behind a header of text lines, as ITK writes it.

Read are pixels of 8 bits (MET_UCHAR) that lie in the file itself, as they are or in one zlib or gzip stream. DimSize is x, y and z: z
frames of y rows and x columns, frame 0 first. Byte order, spacing and place in space say nothing of the pixels; keys that are not in
KEYS are stepped over, and no message quotes a text of the file.

A stream can only be inflated from its start. ``frames`` does so once for all frames that are wanted, with one of them in memory; the
last one is handed out when the whole stack has passed and was what the header says.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fpbench.images import raster
from fpbench.images.raster import ImageError

SUFFIX = ".mha"
STARTS = (b"ObjectType", b"NDims")
TRUE, FALSE = ("true", "1"), ("false", "0")
KEYS = {  # key -> what may stand there, in small letters; () is read below
    "ObjectType": ("image",), "NDims": ("2", "3"), "DimSize": (), "ElementType": (), "BinaryData": TRUE, "BinaryDataByteOrderMSB": (*TRUE, *FALSE),
    "ElementByteOrderMSB": (*TRUE, *FALSE), "CompressedData": (*TRUE, *FALSE), "CompressedDataSize": (), "ElementNumberOfChannels": ("1",),
    "HeaderSize": ("0", "-1"), "ElementToIntensityFunctionSlope": ("1",), "ElementToIntensityFunctionOffset": ("0",), "ElementDataFile": (),
}  # fmt: skip
NEEDED = ("NDims", "DimSize", "ElementType")
TYPES = tuple(
    f"MET_{name}{kind}"
    for name in ("CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG", "ULONG_LONG", "FLOAT", "DOUBLE")
    for kind in ("", "_ARRAY")
)  # fmt: skip
HEADER = 1 << 16  # bytes of a header; ITK's have 400
LARGEST = 1 << 32  # bytes of a stack, inflated; the real ones have 351 million
RATIO = 1032  # bytes that one byte of a zlib or gzip stream becomes, at most
PIECE = 1 << 15  # bytes of the stream that are read at once
SKIPPED = 1 << 20  # bytes that are passed over at once


class Header(NamedTuple):
    """What a header says, and where the pixels begin."""

    width: int
    height: int
    depth: int  # frames
    packed: bool  # in a zlib or gzip stream
    start: int  # of the pixels, bytes


def write(path: Path, frames: np.ndarray, spacing: float = 1.0) -> None:
    """Write a stack in one zlib stream.

    Parameters
    ----------
    path
        Of the new file.
    frames
        uint8, (N, H, W).
    spacing
        Distance of pixels, and of frames, mm.
    """
    content = zlib.compress(frames.astype(np.uint8).tobytes(), 2)
    said = {  # the lines that ITK writes
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": True,
        "CompressedDataSize": len(content), "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI", "ElementSpacing": " ".join([f"{spacing:g}"] * 3), "DimSize": " ".join(map(str, frames.shape[::-1])),
        "ElementType": "MET_UCHAR", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in said.items()).encode() + content)


def is_mha(handle: BinaryIO, suffix: str) -> bool:
    """Return whether an open file is a MetaImage: by how it starts, or by its suffix."""
    start = handle.read(max(map(len, STARTS)))
    handle.seek(0)
    return start.startswith(STARTS) or suffix.lower() == SUFFIX


def read(handle: BinaryIO, frame: int | None) -> tuple[np.ndarray, list[str]]:
    """Return a frame of an open file, uint8, (H, W), and no notes."""
    (picture,) = frames(handle, [raster.choose(head(handle).depth, frame)])
    return picture, []


def head(handle: BinaryIO) -> Header:
    """Return the header of an open file; of pixels that are not packed, hold the size of the file to it."""
    values = _values(handle)
    for key, known in KEYS.items():
        if known and values.get(key, known[0]).lower() not in known:
            raise ImageError(f"expected {' or '.join(known)} as {key}, found something else: save it anew")
    if lacking := [key for key in NEEDED if key not in values]:
        raise ImageError(f"expected {', '.join(NEEDED)} in the header, found no {lacking[0]}: is it a whole .mha?")
    if values["ElementDataFile"].upper() != "LOCAL":
        raise ImageError("expected pixels behind the header (LOCAL), found them in other files: save it as one .mha")
    if (kind := values["ElementType"]) != "MET_UCHAR":
        found = kind if kind in TYPES else "another type"
        raise ImageError(f"expected pixels of 8 bits (MET_UCHAR), found {found}: save it with 0 to 255")
    width, height, count = _sizes(values)
    header = Header(width, height, count, values.get("CompressedData", "false").lower() in TRUE, handle.tell())
    there = handle.seek(0, 2) - header.start
    said = values.get("CompressedDataSize", str(there)) if header.packed else str(width * height * count)
    if said != str(there):
        said = f"{int(said):,}" if _is_number(said) else "no number"
        raise ImageError(f"expected {said} bytes behind the header, as it says, found {there:,}; is the file whole?")
    if width * height * count > there * RATIO:
        found = f"{count:,} frames of {width} x {height} in {there:,} bytes"
        raise ImageError(f"expected pixels that a stream of this length can hold, found {found}: is the file whole?")
    return header


def _values(handle: BinaryIO) -> dict[str, str]:
    """Return the KEYS of a header; the handle is left at the pixels."""
    values: dict[str, str] = {}
    while "ElementDataFile" not in values:
        line = handle.readline(HEADER - handle.tell())
        if not line.endswith(b"\n"):
            found = "a longer one" if handle.tell() >= HEADER else "the end of the file"
            raise ImageError(f"expected a header below {HEADER:,} bytes that ElementDataFile ends, found {found}")
        key, mark, value = (part.strip() for part in line.decode("ascii", "replace").partition("="))
        if not (mark and line.isascii()):
            raise ImageError("expected a header of lines `Key = value` in ASCII, found another: is it a .mha?")
        if key in values:
            raise ImageError(f"expected one {key} in the header, found two: save it anew")
        if key in KEYS:
            values[key] = value
    return values


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 12


def _sizes(values: dict[str, str]) -> tuple[int, int, int]:
    """Return width, height and frames."""
    sizes = [int(word) if _is_number(word) else 0 for word in values["DimSize"].split()]
    if len(sizes) != int(values["NDims"]) or not all(sizes):
        wanted = f"{values['NDims']} whole numbers above 0 as DimSize"
        raise ImageError(f"expected {wanted}, as NDims says, found others: save it anew")
    width, height, count = (*sizes, 1)[:3]
    raster.check_size(width, height)
    if width * height * count > LARGEST:
        found = f"{count:,} frames of {width} x {height}"
        raise ImageError(f"expected a stack of at most {LARGEST:,} bytes, found {found}: cut it in parts")
    return width, height, count


def frames(handle: BinaryIO, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames of an open file, uint8, (H, W).

    Parameters
    ----------
    handle
        At its start.
    wanted
        Numbers of frames that are there, rising; equal ones are read once.
    """
    handle.seek(0)
    header = head(handle)
    handle.seek(header.start)
    pixels, size, place = (_Packed if header.packed else _Plain)(handle), header.width * header.height, 0
    content = b""
    for number, following in zip(wanted, (*wanted[1:], None), strict=True):
        if number * size >= place:
            pixels.skip(number * size - place)
            content, place = pixels.take(size), (number + 1) * size
        if following is None:
            pixels.skip(header.depth * size - place)
            pixels.end()
        yield np.frombuffer(content, np.uint8).reshape(header.height, header.width)


class _Plain:
    """The pixels of a file in turn, as they lie there; ``head`` has counted them."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        content = self.handle.read(count)
        if len(content) < count:
            raise ImageError("expected as many pixels as the header says, found fewer; is the file whole?")
        return content

    def skip(self, count: int) -> None:
        """Pass over the next bytes."""
        self.handle.seek(count, 1)

    def end(self) -> None:
        """Refuse what is not whole."""


class _Packed(_Plain):
    """The pixels of a file in turn, inflated from one stream."""

    def __init__(self, handle: BinaryIO) -> None:
        super().__init__(handle)
        self.stream = zlib.decompressobj(wbits=47)  # zlib or gzip, as it starts

    def _inflate(self, count: int) -> bytes:
        """Return the next bytes, fewer where the stream ends."""
        parts: list[bytes] = []
        while count and not self.stream.eof:
            piece = self.stream.unconsumed_tail or self.handle.read(PIECE)
            try:
                part = self.stream.decompress(piece, count)
            except zlib.error:
                raise ImageError("expected a zlib or gzip stream, found a damaged one; is the file whole?") from None
            if not (piece or part):
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        content = self._inflate(count)
        if len(content) < count:
            found = "fewer" if self.stream.eof else "a stream that is cut"
            raise ImageError(f"expected as many pixels as the header says, found {found}; is the file whole?")
        return content

    def skip(self, count: int) -> None:
        """Pass over the next bytes."""
        while count:
            count -= len(self.take(min(count, SKIPPED)))

    def end(self) -> None:
        """Refuse a stream that goes on, that lacks its end, or behind which there is more."""
        if self._inflate(1):
            raise ImageError("expected as many pixels as the header says, found more: is its DimSize right?")
        if not self.stream.eof:
            raise ImageError("expected a whole zlib or gzip stream, found one without its end; is the file whole?")
        if self.stream.unused_data or self.handle.read(1):
            raise ImageError("expected one zlib or gzip stream, found more behind it: save it anew")
