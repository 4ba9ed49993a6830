"""Pictures as hospitals and converters leave them, each a small file made in memory: name -> bytes.

``NAMES`` are the words of a patient that every DICOM file here holds in its tags; they may come out nowhere.
"""

import gzip
import io
import struct
import zlib

import numpy as np
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

NAMES = ("DOE^JANE", "DOE", "ID-4711", "Musterfrau", "Dr^Whisper", "19470811", "OVERLAYTEXT")
GREY = np.random.default_rng(0).integers(0, 256, (18, 24), np.uint8)  # not square, so that turning shows
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
DEEP = GREY.astype(np.uint16) * 16 + 15  # 12 bits: 15 to 4095
BLACK = np.zeros_like(GREY)


def saved(array: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    """A file as Pillow writes it."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream := io.BytesIO(), kind, **options)
    return stream.getvalue()


def exif(turn: int) -> Image.Exif:
    """An EXIF block that says how to turn."""
    block = Image.Exif()
    block[0x0112] = turn
    return block


PACKERS = {"": bytes, "zlib": zlib.compress, "gzip": gzip.compress}


def mha(array: np.ndarray, packed: str = "", body: bytes | None = None, **keys: object) -> bytes:
    """A MetaImage of uint8, (H, W) or (N, H, W); ``keys`` replace what the header says, or leave it out (None)."""
    content = PACKERS[packed](array.tobytes()) if body is None else body
    size = {"CompressedDataSize": len(content)} if packed else {}
    said: dict = {
        "ObjectType": "Image", "NDims": array.ndim, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": bool(packed), **size,
        "ElementSpacing": " ".join(["0.28"] * array.ndim), "DimSize": " ".join(map(str, array.shape[::-1])), "ElementType": "MET_UCHAR",
        "ElementDataFile": "LOCAL",
    }  # fmt: skip
    last = {"ElementDataFile": keys.pop("ElementDataFile", said.pop("ElementDataFile"))}
    lines = [f"{key} = {value}\n" for key, value in {**said, **keys, **last}.items() if value is not None]
    return "".join(lines).encode("latin-1") + content


# ---- PNG and TIFF that Pillow does not write --------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG of rows that each start with their filter byte; ``more`` chunks stand before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + pixels


def png16(array: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits per channel: colour 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png(array.shape[1], array.shape[0], 16, colour, rows)


def tiff(array: np.ndarray, photometric: int, order: str = "<", **tags) -> bytes:
    """A TIFF of one strip; ``tags`` are t<number>=value(s) of 16 bits."""
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    channels = array.shape[2] if array.ndim == 3 else 1
    height, width = array.shape[:2]
    given = {int(name[1:]): value for name, value in tags.items()}
    fields = {
        256: width, 257: height, 258: [array.dtype.itemsize * 8] * channels, 259: 1, 262: photometric, 273: 8, 277: channels,
        278: height, 279: len(data), **given,
    }  # fmt: skip
    fields = {tag: value if isinstance(value, list) else [value] for tag, value in sorted(fields.items())}
    start = 8 + len(data) + len(data) % 2
    place, entries, beyond = start + 2 + 12 * len(fields) + 4, b"", b""
    for tag, values in fields.items():
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            beyond, packed = beyond + packed, struct.pack(f"{order}I", place + len(beyond))
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + data.ljust(start - 8, b"\0") + struct.pack(f"{order}H", len(fields)) + entries + bytes(4) + beyond


# ---- DICOM ------------------------------------------------------------------------------------------------------------


def dicom(
    array: np.ndarray, kind: str = "", syntax: str = uid.ExplicitVRLittleEndian, coded: tuple = (), **tags
) -> bytes:
    """A DICOM file of (H, W), (H, W, 3), or frames of them (``NumberOfFrames=n`` among the tags), of a patient with a name."""
    height, width, *more = array.shape[int("NumberOfFrames" in tags) :]
    channels = 3 if more == [3] else 1
    set_ = Dataset()
    set_.PatientName, set_.PatientID, set_.PatientBirthDate = NAMES[0], NAMES[2], NAMES[5]
    set_.SOPClassUID, set_.SOPInstanceUID, set_.Modality = uid.UltrasoundImageStorage, uid.generate_uid(), "US"
    set_.SpecificCharacterSet = "ISO_IR 100"
    asked, icon = Dataset(), Dataset()
    asked.ReferringPhysicianName, asked.Rows = NAMES[4], 9999
    icon.Rows, icon.Columns, icon.PixelData, icon.PatientName = 1, 2, b"\1\2", NAMES[0]
    icon["PixelData"].VR = "OW"
    set_.RequestAttributesSequence, set_.IconImageSequence = [asked], [icon]
    for name in ("RequestAttributesSequence", "IconImageSequence"):
        set_[name].is_undefined_length = True
    set_.private_block(0x0009, "ACME", create=True).add_new(1, "LO", NAMES[3])
    set_.add_new(0x60000010, "US", height)
    set_.add_new(0x60000011, "US", width)
    set_.add_new(0x60000022, "LO", NAMES[6])
    set_.add_new(0x60003000, "OW", b"\xff" * (height * width // 8 + 1 & ~1))
    set_.Rows, set_.Columns, set_.SamplesPerPixel = height, width, channels
    set_.PhotometricInterpretation = kind or ("RGB" if channels == 3 else "MONOCHROME2")
    set_.BitsAllocated = set_.BitsStored = array.dtype.itemsize * 8
    set_.PixelRepresentation = int(array.dtype.kind == "i")
    if channels == 3:
        set_.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(set_, name, value)
    set_.HighBit = tags.get("HighBit", set_.BitsStored - 1)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    data = encapsulate(list(coded)) if coded else array.astype(array.dtype.newbyteorder(order)).tobytes()
    set_.PixelData = data + bytes(len(data) % 2)
    set_["PixelData"].VR = "OB" if coded or array.dtype.itemsize == 1 else "OW"
    set_["PixelData"].is_undefined_length = bool(coded)
    set_.file_meta = FileMetaDataset()
    set_.file_meta.TransferSyntaxUID = syntax
    dcmwrite(stream := io.BytesIO(), set_, enforce_file_format=True)
    return stream.getvalue()


def rle(array: np.ndarray) -> bytes:
    """A frame of 8 bits in DICOM's run-length code, one segment per channel, literal runs."""
    planes = [array] if array.ndim == 2 else [array[..., channel] for channel in range(3)]
    segments = []
    for plane in planes:
        flat = plane.tobytes()
        parts = [flat[start : start + 128] for start in range(0, len(flat), 128)]
        segment = b"".join(bytes([len(part) - 1]) + part for part in parts)
        segments.append(segment + bytes(len(segment) % 2))
    places = np.cumsum([64, *map(len, segments)])[: len(segments)].tolist()
    return struct.pack("<16I", len(segments), *places, *[0] * (15 - len(segments))) + b"".join(segments)


def ybr(array: np.ndarray) -> np.ndarray:
    """RGB to YBR_FULL."""
    return np.asarray(Image.fromarray(array).convert("YCbCr"))


def lut_item(entries: np.ndarray, first: int, bits: int) -> Dataset:
    """An item of a lookup-table sequence, which has a patient's name too."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283003, "LO", NAMES[3])
    item.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return item


def palette(entries: np.ndarray, bits: int = 16) -> dict:
    """The tags of a palette of (N, 3) entries."""
    tags = {}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [len(entries), 0, bits]
        tags[f"{colour}PaletteColorLookupTableData"] = entries[:, number].astype("<u2" if bits > 8 else "u1").tobytes()
    return tags


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    """The file with some bytes replaced once."""
    assert data.count(old) >= 1
    assert len(old) == len(new)
    return data.replace(old, new, 1)


def short(tag: int, value: int) -> bytes:
    """An element of 16 bits, explicit and little endian."""
    return struct.pack("<HH2sHH", tag >> 16, tag & 0xFFFF, b"US", 2, value)


# ---- the corpus -------------------------------------------------------------------------------------------------------


def odd_pictures() -> dict[str, bytes]:
    """Every odd picture, by a name with its suffix."""
    return {**_png(), **_jpeg_and_bmp(), **_tiff(), **_dicom(), **_others()}


def _png() -> dict[str, bytes]:
    ramp = bytes(range(4)) * 4
    two_bits = b"".join(b"\0" + bytes([0b00011011, 0b11100100]) for _ in range(4))
    paletted = Image.fromarray(COLOUR).quantize(16)
    one = Image.fromarray(GREY // 64)
    one.putpalette([9, 9, 9] * 4)
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    grey = saved(GREY, "PNG")
    head, rest = grey[:33], grey[33:]
    return {
        "grey.png": grey,
        "bilevel.png": saved(Image.fromarray(GREY > 127), "PNG"),
        "two-bits.png": png(8, 4, 2, 0, two_bits),
        "four-bits.png": png(8, 4, 4, 0, b"".join(b"\0" + ramp[:4] for _ in range(4))),
        "palette.png": saved(paletted, "PNG"),
        "palette-clear.png": saved(paletted, "PNG", transparency=bytes(range(16))),
        "palette-of-one-colour.png": saved(one, "PNG"),
        "palette-in-alpha.png": saved(one, "PNG", transparency=bytes([0, 80, 160, 255])),
        "grey-clear.png": saved(GREY, "PNG", transparency=7),
        "rgb-clear.png": saved(COLOUR, "PNG", transparency=(1, 2, 3)),
        "la.png": saved(np.stack([GREY, 255 - GREY], -1), "PNG"),
        "la-in-alpha.png": saved(np.stack([BLACK, GREY], -1), "PNG"),
        "rgba.png": saved(np.dstack([COLOUR, GREY]), "PNG"),
        "rgba-in-alpha.png": saved(np.dstack([BLACK, BLACK, BLACK, GREY]), "PNG"),
        "rgba-all-clear.png": saved(np.dstack([COLOUR, BLACK]), "PNG"),
        "deep.png": saved(DEEP, "PNG"),
        "deep-with-8.png": saved(GREY.astype(np.uint16), "PNG"),
        "deep-rgb.png": png16(COLOUR.astype(np.uint16) * 257, 2),
        "deep-rgb-with-8.png": png16(COLOUR.astype(np.uint16), 2),
        "deep-la.png": png16(np.stack([DEEP, DEEP], -1), 4),
        "deep-rgba.png": png16(np.dstack([COLOUR, GREY]).astype(np.uint16) * 256, 6),
        "turned.png": saved(GREY, "PNG", exif=exif(6)),
        "turned-badly.png": head + chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff") + rest,
        "turned-by-nothing.png": head + chunk(b"eXIf", b"Exif\0\0II") + rest,
        "text-bomb.png": head + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000))) + rest,
        "profile-broken.png": head + chunk(b"iCCP", b"x\0\0no zlib") + rest,
        "animated.png": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "half.png": grey[: len(grey) // 2],
        "crc-broken.png": grey[:-20] + bytes([grey[-20] ^ 1]) + grey[-19:],
        "bomb.png": png(60_000, 60_000, 8, 0, b""),
        "empty-pixels.png": png(10, 10, 8, 0, b""),
    }


def _jpeg_and_bmp() -> dict[str, bytes]:
    jpeg = saved(COLOUR, "JPEG")
    grey = saved(GREY, "JPEG", exif=exif(8))
    cmyk = Image.fromarray(np.dstack([COLOUR, GREY]), "CMYK")
    bmp = saved(GREY, "BMP")
    flipped = bytearray(saved(COLOUR, "BMP"))
    flipped[22:26] = struct.pack("<i", -GREY.shape[0])
    high = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 0, 32, 0, 0, 0, 0)  # 5 bits per colour
    packed = b"BM" + struct.pack("<IHHI", 54 + 32, 0, 0, 54) + high + np.arange(16, dtype="<u2").tobytes()
    return {
        "grey.jpg": saved(GREY, "JPEG"),
        "colour.jpg": jpeg,
        "progressive.jpg": saved(COLOUR, "JPEG", progressive=True, subsampling=0),
        "cmyk.jpg": saved(cmyk, "JPEG"),
        "rgb-kept.jpg": saved(COLOUR, "JPEG", keep_rgb=True),
        "turned.jpg": grey,
        "turned-badly.jpg": patched(grey, b"MM\0*\0\0\0\x08", b"MM\0*\xff\xff\0\x08"),
        "turned-by-99.jpg": saved(GREY, "JPEG", exif=exif(99)),
        "half.jpg": jpeg[: len(jpeg) * 2 // 3],
        "two-in-one.jpg": saved(
            Image.fromarray(GREY), "MPO", save_all=True, append_images=[Image.fromarray(255 - GREY)]
        ),
        "head-alone.jpg": b"\xff\xd8\xff\xe0",
        "grey.bmp": bmp,
        "bilevel.bmp": saved(Image.fromarray(GREY > 127), "BMP"),
        "colour.bmp": saved(COLOUR, "BMP"),
        "alpha.bmp": saved(np.dstack([COLOUR, GREY]), "BMP"),
        "top-down.bmp": bytes(flipped),
        "five-bits.bmp": packed,
        "half.bmp": bmp[: len(bmp) * 2 // 3],
    }


def _tiff() -> dict[str, bytes]:
    grey, lab = Image.fromarray(GREY), Image.new("LAB", (8, 8), (50, 9, 9))
    wide = Image.fromarray(COLOUR)
    raw = saved(GREY, "TIFF")
    holes = GREY.astype(np.float32)
    holes[0, 0] = np.nan
    planes = np.concatenate([COLOUR[..., channel].astype(np.uint16) for channel in range(3)])
    apart = tiff(planes, 2, t277=3, t284=2, t258=[16] * 3, t257=GREY.shape[0], t278=GREY.shape[0])
    return {
        "grey.tif": raw,
        "white-is-0.tif": tiff(255 - GREY, 0),
        "packed.tif": saved(GREY, "TIFF", compression="tiff_lzw"),
        "deep.tif": saved(DEEP, "TIFF"),
        "deep-big-endian.tif": tiff(DEEP, 1, ">"),
        "deep-white-is-0.tif": tiff(4095 - DEEP, 0),
        "deep-packed.tif": saved(DEEP, "TIFF", compression="tiff_adobe_deflate"),
        "deep-signed.tif": tiff(DEEP.astype(np.int16) - 100, 1, t339=2),
        "deep-rgb.tif": tiff(COLOUR.astype(np.uint16) * 256, 2),
        "deep-rgb-apart.tif": apart,
        "signed.tif": tiff(GREY, 1, t339=2),
        "whole-32.tif": saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        "float.tif": saved(GREY.astype(np.float32) / 255, "TIFF"),
        "float-holes.tif": saved(holes, "TIFF"),
        "big-endian-rgb.tif": tiff(COLOUR, 2, ">"),
        "cmyk.tif": saved(Image.fromarray(np.dstack([COLOUR, GREY]), "CMYK"), "TIFF"),
        "ycbcr.tif": saved(wide.convert("YCbCr"), "TIFF"),
        "lab.tif": saved(lab, "TIFF"),
        "palette.tif": saved(wide.quantize(16), "TIFF"),
        "alpha.tif": saved(np.dstack([COLOUR, GREY]), "TIFF"),
        "alpha-multiplied.tif": tiff(np.stack([GREY // 2, np.full_like(GREY, 128)], -1), 1, t338=1),
        "five-channels.tif": tiff(np.dstack([COLOUR, GREY, GREY]), 2, t338=[0, 0]),
        "pages.tif": saved(grey, "TIFF", save_all=True, append_images=[wide]),
        "turned.tif": saved(GREY, "TIFF", tiffinfo={274: 6}),
        "turned-packed.tif": saved(GREY, "TIFF", tiffinfo={274: 6}, compression="tiff_lzw"),
        "half.tif": tiff(GREY, 1)[8 + GREY.size // 2 :],
        "strip-outside.tif": tiff(GREY, 1, t273=60000),
        "huge.tif": tiff(GREY, 1, t256=60000, t257=60000),
        "round.tif": raw[:-4] + struct.pack("<I", 8),
    }


def _dicom() -> dict[str, bytes]:
    film = np.stack([GREY, 255 - GREY, GREY // 2])
    yuv = ybr(COLOUR)
    pairs = np.concatenate([yuv[:, ::2, :1], yuv[:, 1::2, :1], yuv[:, ::2, 1:]], -1)  # Y Y Cb Cr
    jpeg, jpegs = saved(COLOUR, "JPEG"), [saved(one, "JPEG") for one in film]
    plain = dicom(GREY)
    window = {"BitsStored": 12, "WindowCenter": "2048", "WindowWidth": "4096"}
    colours = np.random.default_rng(1).integers(0, 65536, (256, 3))
    curve = [lut_item(np.arange(256)[::-1] * 16, 0, 12)]
    planar = COLOUR.transpose(2, 0, 1).reshape(COLOUR.shape)
    j2k = saved(COLOUR, "JPEG2000", irreversible=False, mct=1, no_jp2=True)
    return {
        "plain.dcm": plain,
        "implicit.dcm": dicom(GREY, syntax=uid.ImplicitVRLittleEndian),
        "big-endian.dcm": dicom(DEEP, syntax=uid.ExplicitVRBigEndian, **window),
        "big-endian-8.dcm": dicom(GREY, syntax=uid.ExplicitVRBigEndian),
        "no-suffix": plain,
        "no-preamble.dcm": plain[132:],
        "bare.dcm": bare(plain),
        "bare-implicit.dcm": bare(dicom(GREY, syntax=uid.ImplicitVRLittleEndian)),
        "inverted.dcm": dicom(GREY, "MONOCHROME1"),
        "burned.dcm": dicom(GREY, BurnedInAnnotation="YES"),
        "not-burned.dcm": dicom(GREY, BurnedInAnnotation="NO"),
        "windowed.dcm": dicom(DEEP, **window),
        "two-windows.dcm": dicom(DEEP, BitsStored=12, WindowCenter=["2048", "1"], WindowWidth=["4096", "9"]),
        "no-window.dcm": dicom(DEEP, BitsStored=12),
        "stated-too-deep.dcm": dicom(GREY.astype(np.uint16)),
        "window-outside.dcm": dicom(DEEP, BitsStored=12, WindowCenter="9000", WindowWidth="10"),
        "window-of-0.dcm": dicom(DEEP, BitsStored=12, WindowCenter="9", WindowWidth="0"),
        "window-no-number.dcm": patched(dicom(DEEP, **window), b"2048", b"DOE^"),
        "sigmoid.dcm": dicom(DEEP, **window, VOILUTFunction="SIGMOID"),
        "exact.dcm": dicom(DEEP, **window, VOILUTFunction="LINEAR_EXACT"),
        "function-unknown.dcm": dicom(DEEP, **window, VOILUTFunction="DOE"),
        "signed.dcm": dicom(GREY.astype(np.int16) - 100, RescaleSlope="2", RescaleIntercept="-5", WindowCenter="40", WindowWidth="400"),
        "signed-8.dcm": dicom((GREY.astype(np.int16) - 128).astype(np.int8)),
        "slope-0.dcm": dicom(GREY, RescaleSlope="0", RescaleIntercept="1"),
        "voi-table.dcm": dicom(GREY, VOILUTSequence=curve),
        "modality-table.dcm": dicom(GREY, ModalityLUTSequence=curve),
        "table-short.dcm": dicom(GREY, VOILUTSequence=[lut_item(np.arange(9), 0, 12)]),
        "overlay-in-bits.dcm": dicom(DEEP | 0x8000, **window),
        "high-bit.dcm": dicom(DEEP * 16, BitsStored=12, HighBit=15),
        "one-bit.dcm": dicom(
            np.packbits(GREY > 127, axis=-1, bitorder="little"), "MONOCHROME2", SamplesPerPixel=1, Columns=24, BitsAllocated=1, BitsStored=1,
        ),
        "rgb.dcm": dicom(COLOUR),
        "rgb-planar.dcm": dicom(planar, PlanarConfiguration=1),
        "ybr.dcm": dicom(yuv, "YBR_FULL"),
        "ybr-422.dcm": dicom(pairs, "YBR_FULL_422", Columns=24, SamplesPerPixel=3, PlanarConfiguration=0),
        "ybr-422-untrue.dcm": dicom(yuv, "YBR_FULL_422"),
        "ybr-partial.dcm": dicom(yuv, "YBR_PARTIAL_420"),
        "palette.dcm": dicom(GREY, "PALETTE COLOR", **palette(colours)),
        "palette-8-in-16.dcm": dicom(GREY, "PALETTE COLOR", **palette(colours // 256)),
        "palette-8.dcm": dicom(GREY, "PALETTE COLOR", **palette(colours // 256, 8)),
        "palette-missing.dcm": dicom(GREY, "PALETTE COLOR"),
        "palette-black.dcm": dicom(GREY, "PALETTE COLOR", **palette(colours * 0)),
        "cine.dcm": dicom(film, NumberOfFrames=3),
        "cine-jpeg.dcm": dicom(film, syntax=uid.JPEGBaseline8Bit, coded=tuple(jpegs), NumberOfFrames=3),
        "cine-rle.dcm": dicom(film, syntax=uid.RLELossless, coded=tuple(map(rle, film)), NumberOfFrames=3),
        "jpeg.dcm": dicom(COLOUR, "YBR_FULL_422", uid.JPEGBaseline8Bit, (jpeg,)),
        "jpeg-called-rgb.dcm": dicom(COLOUR, "RGB", uid.JPEGBaseline8Bit, (jpeg,)),
        "jpeg-half.dcm": dicom(COLOUR, "YBR_FULL_422", uid.JPEGBaseline8Bit, (jpeg[: len(jpeg) * 2 // 3],)),
        "jpeg-of-other-size.dcm": dicom(COLOUR, "YBR_FULL_422", uid.JPEGBaseline8Bit, (jpeg,), Rows=17),
        "jpeg-of-12-bits.dcm": dicom(DEEP, "MONOCHROME2", uid.JPEGExtended12Bit, (jpegs[0],), BitsStored=12),
        "jpeg-lossless.dcm": dicom(GREY, syntax=uid.JPEGLosslessSV1, coded=(jpegs[0],)),
        "jpeg-ls.dcm": dicom(GREY, syntax=uid.JPEGLSLossless, coded=(jpegs[0],)),
        "jpeg-2000.dcm": dicom(COLOUR, "YBR_RCT", uid.JPEG2000Lossless, (j2k,)),
        "rle.dcm": dicom(COLOUR, syntax=uid.RLELossless, coded=(rle(COLOUR),)),
        "rle-broken.dcm": dicom(COLOUR, syntax=uid.RLELossless, coded=(rle(COLOUR)[:200],)),
        "film.dcm": dicom(GREY, syntax=uid.MPEG4HP41, coded=(b"\0\0\1\xb3" * 9,)),
        "deflated.dcm": dicom(GREY, syntax=uid.DeflatedExplicitVRLittleEndian),
        "syntax-unknown.dcm": patched(plain, b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.DOE.1\0"),
        "half.dcm": plain[: -GREY.size // 2],
        "half-coded.dcm": dicom(film, syntax=uid.JPEGBaseline8Bit, coded=tuple(jpegs), NumberOfFrames=3)[:-300],
        "half-in-header.dcm": plain[:400],
        "bomb.dcm": patched(plain, short(0x00280010, 18), short(0x00280010, 65535)),
        "bomb-of-pixels.dcm": dicom(GREY, Rows=65535, Columns=65535),
        "bomb-of-frames.dcm": dicom(film, NumberOfFrames=2147483647),
        "bomb-of-coded-frames.dcm": dicom(film, syntax=uid.RLELossless, coded=tuple(map(rle, film)), NumberOfFrames=2**31 - 1),
        "no-pixels.dcm": plain[: plain.rindex(b"\xe0\x7f\x10\0")],
        "no-rows.dcm": patched(plain, short(0x00280010, 18), short(0x00280014, 18)),
        "kind-unknown.dcm": dicom(GREY, "DOE JANE"),
        "float-pixels.dcm": patched(plain, b"\xe0\x7f\x10\0OB", b"\xe0\x7f\x08\0OF"),
        "deep-32.dcm": dicom(GREY.astype(np.uint32)),
        "windows-in-groups.dcm": dicom(DEEP, BitsStored=12, SharedFunctionalGroupsSequence=[]),
    }  # fmt: skip


def bare(data: bytes) -> bytes:
    """A file without preamble and meta header."""
    return data[132 + 12 + struct.unpack("<I", data[140:144])[0] :]


def _others() -> dict[str, bytes]:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    return {
        "frames.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "picture.webp": saved(COLOUR, "WEBP"),
        "page.png": b"<html>not found</html>",
        "nothing.png": b"",
        "named-only.dcm": saved(GREY, "PNG"),
        "nothing.dcm": b"",
        "zeros.dcm": bytes(4096),
        "mark-alone.dcm": bytes(128) + b"DICM",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
