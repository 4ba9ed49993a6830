"""Formats of a hospital: every file here is made in the test, and what must come out of it is computed by hand."""

import inspect
import io
import logging
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from odd_pictures import (
    BLACK,
    COLOUR,
    DEEP,
    GREY,
    NAMES,
    dicom,
    exif,
    lut_item,
    odd_pictures,
    palette,
    patched,
    png16,
    rle,
    saved,
    short,
    tiff,
    ybr,
)  # fmt: skip
from PIL import Image, ImageFile
from pydicom import dcmread, uid
from pydicom.pixels import apply_modality_lut, apply_windowing

from fpbench import extras, images
from fpbench.errors import InputError
from fpbench.images import ImageError, decode
from fpbench.images.dicom import BURNED, INVERTED, UNSAID
from fpbench.images.raster import ALPHA, FLAT, TURNED

CORPUS = odd_pictures()
TURNED_GREY = {  # EXIF orientation -> what is to be seen
    1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T, 6: GREY[::-1].T, 7: GREY[::-1, ::-1].T, 8: GREY[:, ::-1].T,
}  # fmt: skip


@pytest.fixture
def look(tmp_path):
    """Decode some bytes as a file of a name: the array and the notes."""

    def one(data: bytes, name: str = "x.dcm", bits: int = 0) -> tuple[np.ndarray, list[str]]:
        file = images.file_of(tmp_path / name)
        file.write_bytes(data)
        array, notes = images.decoding.look(tmp_path / name, bits)
        assert array.dtype == np.uint8
        return array, notes

    return one


@pytest.fixture
def refused(look):
    """Return what a file is refused with."""

    def one(data: bytes, name: str = "x.dcm", bits: int = 0) -> str:
        with pytest.raises(ImageError) as error:
            look(data, name, bits)
        return str(error.value)

    return one


# ---- the corpus -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 12])
def test_every_odd_picture_is_a_picture_or_an_explained_refusal(tmp_path, bits):
    assert len(CORPUS) >= 40
    decoded = 0
    for name, data in CORPUS.items():
        (tmp_path / name).write_bytes(data)
        for path in (tmp_path / name, tmp_path / f"{name}#1"):
            try:
                picture = decode(path, bits)
            except InputError as error:
                message = str(error)
                assert 20 < len(message) < 4000, name
                assert "Traceback" not in message
                assert not [word for word in NAMES if word in message], message
            else:
                assert picture.min() < picture.max(), name
                decoded += 1
    assert decoded > 60


def test_a_scan_and_the_doctor_go_over_the_whole_corpus(tmp_path):
    for name, data in CORPUS.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in CORPUS]
    looked = images.scan(paths)
    bad = looked["error"] != ""
    damaged = {line.partition(": ")[0] for line in images.damaged(paths)}
    assert {path.name for path, one in zip(paths, bad, strict=True) if one} <= damaged
    assert damaged - {path.name for path, one in zip(paths, bad, strict=True) if one} == {"crc-broken.png"}
    assert (looked["note"][bad] == "").all()
    good = looked[~bad]
    square = images.cached_images(
        [path for path, one in zip(paths, ~bad, strict=True) if one], good, images.Geometry("squash", 16)
    )
    assert len(square) == len(good) > 60


# ---- PNG, JPEG, BMP, TIFF: the same pixels as ever ---------------------------------------------------------------------


def test_what_decoded_before_gives_the_same_pixels(look):
    for name in (
        "grey.png",
        "la.png",
        "rgba.png",
        "rgba-all-clear.png",
        "palette-clear.png",
        "grey-clear.png",
        "alpha.tif",
        "alpha.bmp",
    ):
        with Image.open(io.BytesIO(CORPUS[name])) as image, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            before = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        assert np.array_equal(look(CORPUS[name], name)[0], images.raster.grey(before)), name
    assert np.array_equal(look(CORPUS["white-is-0.tif"], "x.tif")[0], GREY)
    assert np.array_equal(look(CORPUS["big-endian-rgb.tif"], "x.tif")[0], COLOUR)
    assert np.array_equal(look(CORPUS["five-channels.tif"], "x.tif")[0], COLOUR)
    assert np.array_equal(look(CORPUS["top-down.bmp"], "x.bmp")[0], COLOUR[::-1])
    assert np.array_equal(look(CORPUS["bilevel.png"], "x.png")[0], (GREY > 127) * np.uint8(255))
    expected = np.tile(np.array([0, 85, 170, 255, 255, 170, 85, 0]), (4, 1))
    assert np.array_equal(look(CORPUS["two-bits.png"], "x.png")[0], expected)


def test_alpha_is_dropped_and_noted_and_never_the_picture_itself(look, refused):
    array, notes = look(saved(np.dstack([COLOUR, GREY]), "PNG"), "x.png")
    assert np.array_equal(array, COLOUR)
    assert notes == [ALPHA]
    assert look(CORPUS["palette-clear.png"], "x.png")[1] == [ALPHA]
    assert look(saved(COLOUR, "PNG"), "x.png")[1] == []
    for name in ("la-in-alpha.png", "rgba-in-alpha.png", "palette-in-alpha.png"):
        assert "in its transparency alone" in refused(CORPUS[name], name)
    white = np.dstack([np.full_like(COLOUR, 255), GREY])
    assert "one colour everywhere" in refused(saved(white, "PNG"), "x.png")
    assert look(saved(BLACK, "PNG"), "x.png")[0].max() == 0  # a black picture is one


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "BMP-like JPEG", "TIFF", "TIFF packed", "TIFF of 16 bits"])
def test_what_exif_says_of_turning_is_done_and_noted(look, kind, turn):
    bits = 0
    if kind == "PNG":
        data, expected = saved(GREY, "PNG", exif=exif(turn)), TURNED_GREY[turn]
    elif kind.endswith("JPEG"):
        flat = np.repeat(
            np.repeat(GREY[:3, :4] // 64 * 64, 8, 0), 8, 1
        )  # 8 x 8 blocks of one grey pass JPEG as they are
        data = saved(flat, "JPEG", exif=exif(turn), quality=100)
        straight = look(saved(flat, "JPEG", quality=100), "y.jpg")[0]
        expected = np.rot90(straight, {1: 0, 3: 2, 6: 3, 8: 1}[turn]) if turn in (1, 3, 6, 8) else None
    elif kind == "TIFF of 16 bits":
        data, expected, bits = saved(DEEP, "TIFF", tiffinfo={274: turn}), TURNED_GREY[turn], 12
        expected = np.rint((expected.astype(float) * 16 + 15) * 255 / 4095)
    else:
        packed = {"compression": "tiff_lzw"} if "packed" in kind else {}
        data, expected = saved(GREY, "TIFF", tiffinfo={274: turn}, **packed), TURNED_GREY[turn]
    array, notes = look(data, "x.png", bits)
    if expected is not None:
        assert np.array_equal(array, expected)
    assert (TURNED in notes) == (turn > 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_says_nothing_of_the_pixels(look):
    for name in ("turned-badly.png", "turned-by-nothing.png"):
        assert np.array_equal(look(CORPUS[name], name)[0], GREY)
    for name in ("turned-badly.jpg", "turned-by-99.jpg"):
        assert look(CORPUS[name], name)[0].shape == GREY.shape


def test_a_pillow_image_is_turned_too(tmp_path):
    (tmp_path / "x.tif").write_bytes(saved(GREY, "TIFF", tiffinfo={274: 6}))
    with Image.open(tmp_path / "x.tif") as image:  # by its path Pillow alone returns it scrambled
        assert np.array_equal(images.to_array(image), TURNED_GREY[6])
    assert np.array_equal(images.to_array(Image.fromarray(DEEP), bits=12), np.rint(DEEP * 255.0 / 4095))


# ---- more than 8 bits -------------------------------------------------------------------------------------------------


def test_deep_pictures_are_refused_or_scaled_knowingly(look, refused):
    values = np.array(
        [[0, 1, 8], [9, 2048, 4095]], np.uint16
    )  # 1 * 255 / 4095 = 0.06, 8 -> 0.498, 9 -> 0.56, 2048 -> 127.53
    expected = [[0, 0, 0], [1, 128, 255]]
    files = {
        "PNG": saved(values, "PNG"), "TIFF": saved(values, "TIFF"), "big endian": tiff(values, 1, ">"),
        "packed": saved(values, "TIFF", compression="tiff_adobe_deflate"), "white is 0": tiff(4095 - values, 0),
        "32 bits": saved(Image.fromarray(values.astype(np.int32)), "TIFF"), "float": saved(values.astype(np.float32), "TIFF"),
        "signed": tiff(values.astype(np.int16), 1, t339=2),
    }  # fmt: skip
    for kind, data in files.items():
        message = refused(data, "x.tif")
        assert "8 bits" in message, kind
        assert "bits=12" in message, kind
        array, notes = look(data, "x.tif", 12)
        assert notes == ["12 bits scaled to 8"], kind
        wanted = 255 - np.rint((4095.0 - values) * 255 / 4095) if kind == "white is 0" else expected
        assert np.array_equal(array, wanted), kind
    assert np.array_equal(look(CORPUS["grey.png"], "x.png", 12)[0], GREY)  # 8 bits stay as they are
    assert look(CORPUS["grey.png"], "x.png", 12)[1] == []


def test_a_wrong_number_of_bits_is_an_error_or_a_note(look, refused):
    values = np.array([[0, 60000]], np.uint16)
    assert "expected at most 4095, found 60000: is `bits` right?" in refused(saved(values, "PNG"), "x.png", 12)
    assert "at least 0, found -85" in refused(CORPUS["deep-signed.tif"], "x.tif", 12)
    assert "hardly two greys" in refused(saved(GREY.astype(np.uint16), "PNG"), "x.png", 16)
    assert look(saved(DEEP, "PNG"), "x.png", 16)[1] == ["16 bits scaled to 8", FLAT]
    assert "NaN" in refused(CORPUS["float-holes.tif"], "x.tif", 12)
    assert "signed" in refused(CORPUS["signed.tif"], "x.tif")
    for bits in (-1, 33, 1.5, True, "12"):
        with pytest.raises(InputError, match="bits"):
            look(CORPUS["grey.png"], "x.png", bits)


def test_colour_of_16_bits_is_refused_unless_all_are_used(look, refused):
    full = COLOUR.astype(np.uint16) * 257
    for data in (png16(full, 2), tiff(full, 2), tiff(full, 2, ">"), png16(np.dstack([full, full[..., 0]]), 6)):
        for bits in (0, 12):
            assert "16" in refused(data, "x.png", bits)
        array, notes = look(data, "x.png", 16)
        assert np.array_equal(array, COLOUR)
        assert "16 bits scaled to 8" in notes
    assert "hardly two" in refused(png16(COLOUR.astype(np.uint16), 2), "x.png", 16)
    assert "save it with 8" in refused(CORPUS["deep-rgb-apart.tif"], "x.tif", 16)


# ---- half files -------------------------------------------------------------------------------------------------------

WHOLE = {
    "x.png": CORPUS["grey.png"], "x.jpg": CORPUS["colour.jpg"], "x.bmp": CORPUS["grey.bmp"], "x.tif": tiff(GREY, 1, t273=600),
    "y.tif": CORPUS["packed.tif"], "x.dcm": CORPUS["plain.dcm"], "y.dcm": CORPUS["rle.dcm"], "z.dcm": CORPUS["jpeg.dcm"],
}  # fmt: skip


@pytest.mark.parametrize("flag", [False, True])
def test_half_files_are_refused_whatever_pillows_flag_says(refused, monkeypatch, tmp_path, flag):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", flag)
    for name, data in WHOLE.items():
        for share in (0.5, 0.75, 0.95):
            assert refused(data[: int(len(data) * share)], name), name
    for name in ("jpeg-half.dcm", "half.bmp", "half.jpg", "half-coded.dcm", "strip-outside.tif", "empty-pixels.png"):
        assert refused(CORPUS[name], name)
    (tmp_path / "x.png").write_bytes(CORPUS["crc-broken.png"])
    assert "checksum" in images.damaged([tmp_path / "x.png"])[0]
    assert flag is ImageFile.LOAD_TRUNCATED_IMAGES


def test_the_flag_is_put_down_for_all_threads_at_once_and_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    rng = np.random.default_rng(0)
    whole = saved(rng.integers(0, 256, (300, 300), np.uint8), "PNG")
    for number in range(24):
        (tmp_path / f"{number}.png").write_bytes(whole if number % 2 else whole[: len(whole) * 3 // 4])
    start = threading.Barrier(8)

    def run(first: int) -> list[bool]:
        start.wait(timeout=30)
        return [images.scan([tmp_path / f"{number}.png"])["error"][0] != "" for number in range(first, 24, 8)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(8)))
    assert found == [[first % 2 == 0] * 3 for first in range(8)]
    with images.raster.whole_files():
        with images.raster.whole_files():  # as another thread, which leaves first
            pass
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


# ---- stacks -----------------------------------------------------------------------------------------------------------


def test_a_frame_of_any_stack_is_named_by_its_number(tmp_path):
    film = [GREY, 255 - GREY, GREY // 2]
    pages = [Image.fromarray(one) for one in film]
    stacks = {
        "film.tif": saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        "film.png": saved(pages[0], "PNG", save_all=True, append_images=pages[1:]),
        "film.dcm": CORPUS["cine.dcm"], "rle.dcm": CORPUS["cine-rle.dcm"], "jpeg.dcm": CORPUS["cine-jpeg.dcm"],
    }  # fmt: skip
    for name, data in stacks.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError, match=r"3 frames: name one frame, `FILE#0` to `FILE#2`"):
            decode(path)
        with pytest.raises(ImageError, match=r"#3.*3 frames"):
            decode(Path(f"{path}#3"))
        for number, expected in enumerate(film):
            found = decode(Path(f"{path}#{number}"))
            if name == "jpeg.dcm":
                expected = np.asarray(Image.open(io.BytesIO(saved(expected, "JPEG"))))
            assert np.array_equal(found, expected), name
    looked = images.scan([tmp_path / f"film.dcm#{number}" for number in (0, 1, 0)])
    assert looked["sha256"][0] == looked["sha256"][2] != looked["sha256"][1]
    assert looked["pixels"].nunique() == 2
    array = images.cached_images([tmp_path / f"film.dcm#{k}" for k in (0, 1, 0)], looked, images.Geometry("squash", 18))
    assert array.shape == (3, 18, 18)
    assert images.damaged([tmp_path / "film.dcm#1"]) == []


def test_a_frame_of_a_single_picture_is_the_first_or_none(look, refused):
    assert np.array_equal(look(CORPUS["grey.png"], "x.png#0")[0], GREY)
    assert np.array_equal(look(CORPUS["plain.dcm"], "x.dcm#0")[0], GREY)
    for name in ("x.png#1", "x.png#00002"):
        assert "the file holds one picture" in refused(CORPUS["grey.png"], name)


def test_a_number_sign_in_a_name_is_one(tmp_path):
    (tmp_path / "case#7").write_bytes(CORPUS["grey.png"])
    (tmp_path / "a#b.png").write_bytes(CORPUS["grey.png"])
    assert np.array_equal(decode(tmp_path / "case#7"), GREY)
    assert np.array_equal(decode(tmp_path / "case#7#0"), GREY)
    assert np.array_equal(decode(tmp_path / "a#b.png"), GREY)
    assert images.file_of(tmp_path / "case#7") == tmp_path / "case#7"
    assert images.file_of(tmp_path / "case#7#0") == tmp_path / "case#7"
    assert images.file_of(tmp_path / "none.dcm#12") == tmp_path / "none.dcm"
    assert images.file_of(tmp_path / "none#x") == tmp_path / "none#x"
    with pytest.raises(ImageError, match="none"):
        decode(tmp_path / "none.dcm#1")


# ---- DICOM: grey ------------------------------------------------------------------------------------------------------


def test_eight_bits_stay_as_they_are(look):
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        assert np.array_equal(look(dicom(GREY, syntax=syntax))[0], GREY)
    for name in ("no-suffix", "no-preamble.dcm", "bare.dcm", "bare-implicit.dcm", "rle.dcm", "named-only.dcm"):
        expected = COLOUR if name == "rle.dcm" else GREY
        assert np.array_equal(look(CORPUS[name], name)[0], expected), name
    identity = dicom(GREY, WindowCenter="128", WindowWidth="256")
    assert np.array_equal(look(identity)[0], GREY)
    assert look(identity)[1] == [UNSAID]
    odd = GREY[:17, :23]
    film = np.stack([odd, 255 - odd, odd // 2])
    for syntax in (uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian):  # frames of an odd number of bytes
        assert np.array_equal(look(dicom(film, syntax=syntax, NumberOfFrames=3), "x.dcm#1")[0], 255 - odd)


def test_windows_as_the_standard_has_them(look):
    deep = np.array([[0, 1000], [2000, 4095]], np.uint16)  # (x - 2047.5) / 4095 + 0.5 = x / 4095: 0, 62.3, 124.5, 255
    wide = {"BitsStored": 12, "WindowCenter": "2048", "WindowWidth": "4096"}
    for syntax in (uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        array, notes = look(dicom(deep, syntax=syntax, **wide))
        assert array.tolist() == [[0, 62], [125, 255]]
        assert notes == ["12 bits scaled by its window", UNSAID]
    several = {**wide, "WindowCenter": ["2048", "9"], "WindowWidth": ["4096", "9"]}
    assert look(dicom(deep, **several))[0].tolist() == [[0, 62], [125, 255]]
    few = np.array([[0, 50, 100, 200]], np.uint8)
    for function, centre, width, expected in (
        ("LINEAR", "100.5", "101", [0, 0, 128, 255]),  # (x - 100) / 100 + 0.5: -0.5, 0, 0.5, 1.5
        ("LINEAR", "50", "1", [0, 255, 255, 255]),  # a step at 49.5
        ("LINEAR_EXACT", "100", "200", [0, 64, 128, 255]),  # x / 200: 0, 63.75, 127.5, 255
        ("SIGMOID", "100", "400", [69, 96, 128, 186]),  # 255 / (1 + exp(-4 (x - 100) / 400)): 68.6, 96.3, 127.5, 186.4
    ):
        data = dicom(few, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
        assert look(data)[0][0].tolist() == expected, function


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_pydicom_to_the_rounding(look, function):
    values = np.random.default_rng(3).integers(-2048, 2048, (20, 30)).astype(np.int16)
    data = dicom(values, BitsStored=12, RescaleSlope="1.5", RescaleIntercept="-7", WindowCenter="40", WindowWidth="3000", VOILUTFunction=function)  # fmt: skip
    dataset = dcmread(io.BytesIO(data))
    shown = apply_windowing(apply_modality_lut(values, dataset), dataset)
    least, most = -2048 * 1.5 - 7, 2047 * 1.5 - 7
    assert np.abs((shown - least) / (most - least) * 255 - look(data)[0]).max() <= 0.5 + 1e-9


def test_the_modality_comes_before_the_window(look):
    values = np.array(
        [[0, 50, 100, 150]], np.int16
    )  # 2 x - 100: -100, 0, 100, 200; (y - 50) / 300 + 0.5: 0, 1/3, 2/3, 1
    slope = {"RescaleSlope": "2", "RescaleIntercept": "-100", "WindowCenter": "50.5", "WindowWidth": "301"}
    assert look(dicom(values, **slope))[0].tolist() == [[0, 85, 170, 255]]
    assert look(dicom(values, "MONOCHROME1", **slope))[0].tolist() == [[255, 170, 85, 0]]
    assert INVERTED in look(dicom(values, "MONOCHROME1", **slope))[1]
    assert np.array_equal(look(dicom(GREY, RescaleSlope="-1", RescaleIntercept="255"))[0], 255 - GREY)


def test_without_a_window_the_range_of_the_bits_is_shown(look):
    deep = np.array([[0, 1000], [2000, 4095]], np.uint16)
    array, notes = look(dicom(deep, BitsStored=12))
    assert array.tolist() == [[0, 62], [125, 255]]
    assert notes == ["12 bits scaled by their full range", UNSAID]
    signed = np.array([[-128, 0, 127]], np.int8)
    assert look(dicom(signed))[0].tolist() == [[0, 128, 255]]
    twelve = np.array([[-2048, 0, 2047]], np.int16)  # 2048 * 255 / 4095 = 127.53
    assert look(dicom(twelve, BitsStored=12))[0].tolist() == [[0, 128, 255]]
    assert look(dicom(DEEP, BitsStored=16))[1] == ["16 bits scaled by their full range", FLAT, UNSAID]
    assert np.array_equal(look(CORPUS["one-bit.dcm"])[0], (GREY > 127) * np.uint8(255))


def test_lookup_tables(look):
    values = np.array([[0, 1, 2, 9]], np.uint8)  # first entry for 1; below and above the ends are kept
    curve = [lut_item(np.array([0, 2048, 4095]), 1, 12)]
    assert look(dicom(values, VOILUTSequence=curve))[0].tolist() == [[0, 0, 128, 255]]
    assert look(dicom(values, ModalityLUTSequence=curve))[0].tolist() == [[0, 0, 128, 255]]
    window = {"WindowCenter": "2048", "WindowWidth": "4096"}
    assert look(dicom(values, ModalityLUTSequence=curve, **window))[0].tolist() == [[0, 0, 128, 255]]


def test_bits_are_no_matter_of_dicom(look):
    data = dicom(DEEP, BitsStored=12)
    assert np.array_equal(look(data, bits=16)[0], look(data)[0])


def test_overlays_are_not_burned_in(look):
    window = {"BitsStored": 12, "WindowCenter": "2048", "WindowWidth": "4096"}
    assert np.array_equal(look(dicom(DEEP | 0xF000, **window))[0], look(dicom(DEEP, **window))[0])


# ---- DICOM: colour and codings ----------------------------------------------------------------------------------------


def test_colour_in_its_layouts(look):
    planar = COLOUR.transpose(2, 0, 1).reshape(COLOUR.shape)
    assert np.array_equal(look(dicom(COLOUR))[0], COLOUR)
    assert np.array_equal(look(dicom(planar, PlanarConfiguration=1))[0], COLOUR)
    grey = np.stack([GREY] * 3, -1)
    assert np.array_equal(look(dicom(grey))[0], GREY)
    yuv = np.array([[[100, 128, 128], [76, 85, 255]]], np.uint8)
    red = [254, 0, 0]  # 76 + 1.402 * 127 = 254.05; 76 - 0.3441 * -43 - 0.7141 * 127 = 0.1; 76 + 1.772 * -43 = -0.2
    assert look(dicom(yuv, "YBR_FULL"))[0].tolist() == [[[100, 100, 100], red]]
    pairs = np.array([[[100, 76], [85, 255]]], np.uint8)  # Y Y Cb Cr: both pixels share their colour
    two = look(dicom(pairs, "YBR_FULL_422", Columns=2, SamplesPerPixel=3, PlanarConfiguration=0))[0]
    assert two.tolist() == [[[255, 24, 24], red]]  # 100 + 178.05, 100 - 75.9, 100 - 76.2


def test_palettes(look):
    index = np.array([[0, 1, 2]], np.uint8)
    wide = np.array([[0x1200, 0x3400, 0x5600], [0xFF00, 0, 0xFFFF], [0, 0, 0]])
    assert look(dicom(index, "PALETTE COLOR", **palette(wide)))[0].tolist() == [
        [[0x12, 0x34, 0x56], [255, 0, 255], [0, 0, 0]]
    ]
    narrow = wide // 256
    for bits in (8, 16):  # 16: by writers that put 8 bits into 16
        found = look(dicom(index, "PALETTE COLOR", **palette(narrow, bits)))[0]
        assert found.tolist() == [[[0x12, 0x34, 0x56], [255, 0, 255], [0, 0, 0]]]


def test_a_jpeg_in_dicom_is_the_picture_of_the_jpeg_alone(look, tmp_path):
    for options in ({}, {"subsampling": 0}, {"progressive": True}):
        jpeg = saved(COLOUR, "JPEG", **options)
        alone = look(jpeg, "x.jpg")[0]
        for kind in ("YBR_FULL_422", "RGB"):  # JFIF says YCbCr, whatever the tag says
            assert np.array_equal(look(dicom(COLOUR, kind, uid.JPEGBaseline8Bit, (jpeg,)))[0], alone)
    grey = saved(GREY, "JPEG")
    assert np.array_equal(look(dicom(GREY, syntax=uid.JPEGBaseline8Bit, coded=(grey,)))[0], look(grey, "x.jpg")[0])
    assert np.array_equal(look(dicom(GREY, syntax=uid.JPEGExtended12Bit, coded=(grey,)))[0], look(grey, "x.jpg")[0])
    kept = saved(COLOUR, "JPEG", keep_rgb=True, quality=100)
    assert np.array_equal(look(dicom(COLOUR, "RGB", uid.JPEGBaseline8Bit, (kept,)))[0], look(kept, "x.jpg")[0])
    looked = images.scan([tmp_path / "x.jpg", tmp_path / "x.dcm"])
    assert looked["pixels"].nunique() == 1


def test_a_jpeg_without_a_mark_is_what_the_tag_says(look):
    channels = Image.merge("YCbCr", [Image.fromarray(COLOUR[..., channel]) for channel in range(3)])
    jpeg = saved(channels, "JPEG", subsampling=0, quality=100)
    start, length = jpeg.index(b"\xff\xe0"), 18  # cut the JFIF mark out
    plain = jpeg[:start] + jpeg[start + length :]
    as_rgb = look(dicom(COLOUR, "RGB", uid.JPEGBaseline8Bit, (plain,)))[0]
    assert np.abs(as_rgb.astype(int) - COLOUR).max() < 6
    as_ybr = look(dicom(COLOUR, "YBR_FULL", uid.JPEGBaseline8Bit, (plain,)))[0]
    assert np.array_equal(as_ybr, look(jpeg, "x.jpg")[0])


def test_rle_and_jpeg_2000(look):
    assert np.array_equal(look(dicom(GREY, syntax=uid.RLELossless, coded=(rle(GREY),)))[0], GREY)
    assert np.array_equal(look(dicom(COLOUR, syntax=uid.RLELossless, coded=(rle(COLOUR),)))[0], COLOUR)
    yuv = ybr(COLOUR)
    coded = look(dicom(COLOUR, "YBR_FULL", uid.RLELossless, (rle(yuv),)))[0]
    assert np.array_equal(coded, look(dicom(yuv, "YBR_FULL"))[0])
    lossless = {"irreversible": False, "no_jp2": True}
    grey, colour = saved(GREY, "JPEG2000", **lossless), saved(COLOUR, "JPEG2000", mct=1, **lossless)
    assert np.array_equal(look(dicom(GREY, syntax=uid.JPEG2000Lossless, coded=(grey,)))[0], GREY)
    assert np.array_equal(look(dicom(COLOUR, "YBR_RCT", uid.JPEG2000Lossless, (colour,)))[0], COLOUR)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("jpeg-lossless.dcm", "pip install python-gdcm"),
        ("jpeg-of-12-bits.dcm", "dcmdjpeg"),
        ("jpeg-ls.dcm", "pip install pyjpegls"),
        ("film.dcm", "ffmpeg"),
        ("deflated.dcm", "dcmconv"),
        ("syntax-unknown.dcm", "dcmconv"),
        ("stated-too-deep.dcm", "BitsStored"),
        ("window-outside.dcm", "window"),
        ("window-no-number.dcm", "WindowCenter"),
        ("windows-in-groups.dcm", "functional groups"),
        ("ybr-422-untrue.dcm", "is it RGB"),
        ("palette-black.dcm", "palette alone"),
        ("no-pixels.dcm", "without pixels"),
        ("bomb-of-pixels.dcm", "refused unread"),
        ("bomb-of-frames.dcm", "927,712,935,504 bytes"),
        ("bomb-of-coded-frames.dcm", "found 3"),
        ("jpeg-of-other-size.dcm", "size in the header"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_a_way_out(refused, name, says):
    if says.startswith("pip install") and images.dicom.decoders():
        pytest.skip("a decoder that the lock does not have is installed here")
    assert says in refused(CORPUS[name], name)


def test_a_bomb_is_refused_before_its_pixels_are_read(monkeypatch):
    seen = []

    class Spy(io.BytesIO):
        def read(self, size=-1):
            seen.append(size)
            return super().read(size)

    for name in ("bomb-of-pixels.dcm", "bomb-of-frames.dcm"):
        with pytest.raises(ImageError):
            images.dicom.read(Spy(CORPUS[name]), None)
    assert max(seen) < 64


def test_without_pydicom_one_line_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.dcm").write_bytes(CORPUS["plain.dcm"])
    (tmp_path / "x.png").write_bytes(CORPUS["grey.png"])
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    for run in (
        lambda: decode(tmp_path / "x.dcm"),
        lambda: images.scan([tmp_path / "x.dcm"]),
        lambda: images.damaged([tmp_path / "x.dcm"]),
    ):
        with pytest.raises(extras.MissingExtra, match=r'pip install "fpbench\[dicom\]"') as error:
            run()
        assert "\n" not in str(error.value)
    assert np.array_equal(decode(tmp_path / "x.png"), GREY)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    with pytest.raises(extras.MissingExtra, match="install it anew"):  # and not: the file is damaged
        images.scan([tmp_path / "x.dcm"])
    monkeypatch.undo()
    assert images.scan([tmp_path / "x.dcm"])["error"][0] == ""


# ---- privacy ----------------------------------------------------------------------------------------------------------


def spied(data: bytes) -> list[bytes]:
    """Everything that is read of a file."""
    pieces = []

    class Spy(io.BytesIO):
        def read(self, size=-1):
            pieces.append(super().read(size))
            return pieces[-1]

    images.dicom.read(Spy(data), None)
    return pieces


def test_a_patients_tags_are_stepped_over_unread():
    for name in ("plain.dcm", "implicit.dcm", "big-endian.dcm", "jpeg.dcm", "bare.dcm", "windowed.dcm"):
        assert all(word.encode() in CORPUS[name] for word in NAMES)
        assert not [piece for piece in spied(CORPUS[name]) if any(word.encode() in piece for word in NAMES)], name


def damages(data: bytes) -> list[bytes]:
    """Files with patients' words where pixels' tags should be, cut anywhere, and with bits turned."""
    patient, moved = b"\x10\0\x10\0PN\x08\0" + NAMES[0].encode(), []
    for tag in (0x00280010, 0x00280004, 0x00281050, 0x00281056, 0x00280301, 0x00280100, 0x00280008, 0x00080005):
        for vr in (b"PN", b"DS", b"US"):
            place = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
            gone = place[:2] + b"\x99\0"  # where the true one stood
            moved.append(data.replace(place, gone).replace(patient, place + vr + patient[6:]))
            assert moved[-1] != data
    cuts = [data[:size] for size in range(130, len(data), 61)]
    rng = np.random.default_rng(0)
    flips = []
    for _ in range(300):
        array = np.frombuffer(data, np.uint8).copy()
        array[rng.integers(132, len(data), 4)] ^= np.uint8(1) << rng.integers(0, 8, 4).astype(np.uint8)
        flips.append(array.tobytes())
    meta = [patched(data, b"1.2.840.10008.1.2.1\0", b"DOE^JANE DOE^JANE   ")]
    return [*moved, *cuts, *flips, *meta]


def test_a_patients_name_comes_out_nowhere(tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    window = {"WindowCenter": "128", "WindowWidth": "200"}
    files = {
        "whole": dicom(GREY, **window),
        "film": CORPUS["cine.dcm"],
        "rle": CORPUS["rle.dcm"],
        "burned": CORPUS["burned.dcm"],
    }
    damaged = {f"damaged-{number}": data for number, data in enumerate(damages(files["whole"]))}
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in {**files, **damaged}.items():
        (folder / name).write_bytes(data)
    paths = [folder / name for name in (*files, *damaged)] + [folder / "film#1"]
    looked = images.scan(paths)
    said = [*looked["error"], *looked["note"], *images.damaged(paths), *images.notes(looked)]
    good = (looked["error"] == "").to_numpy()
    assert 50 < good.sum() < len(paths) - 50  # of both there are many
    kept = [path for path, one in zip(paths, good, strict=True) if one]
    arrays = [decode(path).tobytes() for path in kept]
    arrays.append(images.cached_images(kept, looked[good], images.Geometry("squash", 8)).tobytes())
    cached = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(cached) >= 4
    text = "\n".join([*said, caplog.text, *capfd.readouterr()])
    for word in NAMES:
        assert word not in text
        for coded in (word.encode(), word.encode("utf-16-le")):
            assert not any(coded in data for data in [*arrays, *cached])


def test_what_dicom_says_of_burned_in_text_is_noted(look):
    assert look(dicom(GREY, BurnedInAnnotation="YES"))[1] == [BURNED]
    assert look(dicom(GREY, BurnedInAnnotation="NO"))[1] == []
    assert look(dicom(GREY))[1] == [UNSAID]


# ---- the scan ---------------------------------------------------------------------------------------------------------


def test_a_scan_notes_what_was_done_and_its_cache_knows_the_bits(tmp_path):
    names = ("grey.png", "rgba.png", "deep.png", "turned.png", "windowed.dcm")
    for name in names:
        (tmp_path / name).write_bytes(CORPUS[name])
    (tmp_path / "both.png").write_bytes(saved(np.dstack([COLOUR, GREY]), "PNG", exif=exif(3)))
    paths = [tmp_path / name for name in (*names, "both.png")]
    plain, scaled = images.scan(paths), images.scan(paths, bits=12)
    assert tuple(plain) == images.SCAN
    assert images.SCAN[-1] == "note"
    window = f"12 bits scaled by its window; {UNSAID}"
    assert plain["note"].tolist() == ["", ALPHA, "", TURNED, window, f"{ALPHA}; {TURNED}"]
    assert "8 bits" in plain["error"][2]
    assert scaled["error"].tolist() == [""] * 6
    assert scaled["note"][2] == "12 bits scaled to 8"
    assert images.scan(paths).equals(plain)
    assert images.notes(scaled)[:2] == [f"2 pictures: {ALPHA}", f"2 pictures: {TURNED}"]
    assert "1 picture: 12 bits scaled to 8" in images.notes(scaled)
    assert images.notes(scaled[:1]) == []
    array = images.cached_images(paths, scaled, images.Geometry("squash", 16), bits=12)
    assert array.shape == (6, 16, 16, 3)
    deep = [tmp_path / "deep.png"]
    twelve, sixteen = images.scan(deep, 12), images.scan(deep, 16)
    assert twelve["pixels"][0] != sixteen["pixels"][0]
    one, two = (
        images.cached_images(deep, looked, images.Geometry("squash", 16), bits)
        for looked, bits in ((twelve, 12), (sixteen, 16))
    )
    assert one.filename != two.filename
    assert one.max() > 10 * two.max()


def test_an_error_of_a_cached_scan_names_the_file_that_is_asked_for(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(CORPUS["half.png"])
    for folder in ("one", "two", "one"):
        path = tmp_path / folder / "x.png"
        (error,) = images.scan([path])["error"]
        assert error.count(str(path)) == 1
        assert error.startswith(f"{path}: not a readable picture")
    assert len(list((tmp_path / "results").rglob("scans/*.parquet"))) == 1


def test_a_scan_looks_again_when_another_decoder_is_there(tmp_path, monkeypatch):
    (tmp_path / "x.dcm").write_bytes(CORPUS["jpeg-lossless.dcm"])
    monkeypatch.setattr(images.dicom, "decoders", list)
    images.scan([tmp_path / "x.dcm"])
    monkeypatch.setattr(images.dicom, "decoders", lambda: ["gdcm"])
    images.scan([tmp_path / "x.dcm"])
    assert len(list((tmp_path / "results").rglob("scans/*.parquet"))) == 2


def test_all_names_are_where_they_were():
    names = "Geometry decode damaged to_array scan SCAN cached_images ImageError FORMATS VERSION MAX_PIXELS KINDS INTERPOLATIONS PILLOW"
    assert all(hasattr(images, name) for name in names.split())
    assert images.VERSION == 2
    for function in (decode, images.damaged, images.scan, images.cached_images, images.to_array):
        assert inspect.signature(function).parameters["bits"].default == 0
    assert short(0x00280010, 18) in CORPUS["plain.dcm"]
