import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T

from fpbench import images
from fpbench.errors import InputError
from fpbench.images import Geometry, ImageError, decode


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (66, 96), np.uint8)


def test_squash_and_crop_equal_torchvision(grey):
    pil = Image.fromarray(grey)
    squash = T.Resize((32, 32), InterpolationMode.BICUBIC)(pil)
    assert np.array_equal(Geometry("squash", 32)(grey), np.asarray(squash))
    for size, crop in ((32, 0.875), (24, 0.95), (33, 1.0)):
        reference = T.Compose([T.Resize(int(size / crop), InterpolationMode.BILINEAR), T.CenterCrop(size)])(pil)
        assert np.array_equal(Geometry("resize_crop", size, "bilinear", crop)(grey), np.asarray(reference))


def test_pad_square_keeps_everything_and_centres(grey):
    wide = Geometry("pad_square", 96)(grey)
    assert np.array_equal(wide[15:81], grey)
    assert not wide[:15].any()
    assert not wide[81:].any()


def test_fit_pad_truncates_the_short_side_and_pads_right_and_below():
    picture = np.full((787, 1137), 200, np.uint8)
    out = Geometry("fit_pad", 1024, "opencv-bilinear")(picture)
    assert (out[:708] == 200).all()  # int(787 * 1024 / 1137) = 708, rounding would give 709
    assert not out[708:].any()
    tall = Geometry("fit_pad", 64, "opencv-bilinear")(np.full((100, 50, 3), 9, np.uint8))
    assert tall.shape == (64, 64, 3)
    assert (tall[:, :32] == 9).all()
    assert not tall[:, 32:].any()


@pytest.mark.parametrize(
    "fields",
    [("stretch", 32), ("squash", 0), ("squash", 32, "magic"), ("resize_crop", 32, "bilinear", 0.0), ("squash", 3.5)],
)
def test_a_wrong_geometry_is_refused(fields):
    with pytest.raises(InputError, match="expected"):
        Geometry(*fields)


def test_grey_valued_rgb_is_grey_and_truly_coloured_stays_rgb(tmp_path, grey):
    for name, array in (("l", grey), ("rgb", np.stack([grey] * 3, -1))):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    colour = np.stack([grey, grey, 255 - grey], -1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    looked = images.scan([tmp_path / f"{name}.png" for name in ("l", "rgb", "c")])
    assert looked["pixels"][0] == looked["pixels"][1] != looked["pixels"][2]
    assert looked["sha256"].nunique() == 3
    assert looked["coloured"].tolist() == [False, False, True]
    assert np.array_equal(decode(tmp_path / "c.png"), colour)
    array = images.cached_images(
        [tmp_path / f"{n}.png" for n in ("l", "c")], looked.iloc[[0, 2]], Geometry("squash", 16)
    )
    assert array.shape == (2, 16, 16, 3)
    assert np.array_equal(array[0, ..., 0], Geometry("squash", 16)(grey))
    assert np.array_equal(array[0, ..., 0], array[0, ..., 2])


def _bomb(path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def _truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:800])


def _deep(path):
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(path)


def _animated(path):
    frames = [Image.fromarray(np.full((5, 5), value, np.uint8)) for value in (0, 9)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_bomb, "pixel"),
        (_truncated, "not a readable picture"),
        (_deep, "8 bits"),
        (_animated, "animation"),
        (lambda path: path.write_text("<html>"), "not a readable picture"),
        (lambda path: path.write_bytes(b""), "not a readable picture"),
    ],
)
def test_a_bad_file_is_named_and_explained(tmp_path, make, says):
    path = tmp_path / "bad.png"
    make(path)
    with pytest.raises(ImageError, match=r"bad\.png") as error:
        decode(path)
    assert says in str(error.value)
    looked = images.scan([path])
    assert says in looked["error"][0]
    with pytest.raises(ImageError, match="row 0"):
        images.cached_images([path], looked, Geometry("squash", 16))


def test_the_cache_key_covers_pixels_geometry_and_version(tmp_path, grey, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)

    def build(geometry):
        return images.cached_images([path], images.scan([path]), geometry)

    first = build(Geometry("squash", 16))
    assert build(Geometry("squash", 16)).filename == first.filename
    others = [Geometry("squash", 17), Geometry("pad_square", 16), Geometry("squash", 16, "bilinear")]
    names = {build(other).filename for other in others} | {first.filename}
    monkeypatch.setattr(images, "VERSION", 99)
    names.add(build(Geometry("squash", 16)).filename)
    monkeypatch.undo()
    grey[0, 0] ^= 1
    Image.fromarray(grey).save(path)
    names.add(build(Geometry("squash", 16)).filename)
    assert len(names) == 6
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1


def test_a_scan_is_read_from_the_cache_and_made_anew_if_damaged(tmp_path, grey, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    before = images.scan([path])
    looks = []
    original = images.decoding.look
    monkeypatch.setattr(images.decoding, "look", lambda *asked: looks.append(asked) or original(*asked))
    pd.testing.assert_frame_equal(images.scan([path]), before)
    assert not looks
    (stored,) = (tmp_path / "results").rglob("scans/*.parquet")
    stored.write_bytes(stored.read_bytes()[:-7])
    pd.testing.assert_frame_equal(images.scan([path]), before)
    assert looks


def test_normalisation_of_grey_and_rgb_agree(grey):
    from fpbench.encoders import load_encoder

    encoder = load_encoder("timm:mobilenetv3_small_050", "random", geometry=Geometry("squash", 32))
    small = Geometry("squash", 32)(grey)
    one = encoder.normalise(torch.from_numpy(small[None].copy()))
    three = encoder.normalise(torch.from_numpy(np.stack([small] * 3, -1)[None]))
    assert torch.equal(one, three)
    reference = T.functional.normalize(
        torch.from_numpy(small.copy()).expand(3, -1, -1).float() / 255, encoder.mean, encoder.std
    )
    assert torch.allclose(one[0], reference, atol=1e-6)
