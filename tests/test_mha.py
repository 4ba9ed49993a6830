"""Frames of a MetaImage: read as SimpleITK reads them, refused in one sentence, inflated once, and in little memory."""

import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from odd_pictures import mha as written
from PIL import Image

from fpbench import images
from fpbench.files import machine, paths
from fpbench.images import THUMBNAIL, Geometry, ImageError, decode, decoding
from fpbench.images import mha as reader

FILM = np.random.default_rng(0).integers(0, 256, (7, 18, 24), np.uint8)
FORMS = [written(FILM, packed, BinaryDataByteOrderMSB=big) for packed in ("", "zlib", "gzip") for big in (True, False)]
SQUARES = [Geometry("squash", 32), Geometry("fit_pad", 40)]


def frames_of(path: Path, count: int) -> list[Path]:
    return [path.with_name(f"{path.name}#{number}") for number in range(count)]


@pytest.fixture
def stack(tmp_path):
    """A compressed stack of seven frames."""
    path = tmp_path / "stack.mha"
    path.write_bytes(written(FILM, "zlib"))
    return path


@pytest.fixture
def inflated(monkeypatch):
    """How many bytes are inflated from here on, by what begins anew: "streams" and "bytes"."""
    counts, begin = Counter(), zlib.decompressobj

    class Counted:
        def __init__(self, wbits):
            counts["streams"] += 1
            self.stream = begin(wbits=wbits)

        def decompress(self, data, most):
            content = self.stream.decompress(data, most)
            counts["bytes"] += len(content)
            return content

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setattr(reader.zlib, "decompressobj", Counted)
    return counts


# ---- equality with SimpleITK ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_a_stack_of_ours_is_the_same_to_simpleitk(tmp_path, number):
    path = tmp_path / "a.mha"
    path.write_bytes(FORMS[number])
    assert all(np.array_equal(decode(one), frame) for one, frame in zip(frames_of(path, 7), FILM, strict=True))
    itk = pytest.importorskip("SimpleITK")
    assert np.array_equal(itk.GetArrayFromImage(itk.ReadImage(str(path))), FILM)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(7, 18, 24), (1, 18, 24), (18, 24), (5, 1, 1)])
def test_a_file_of_simpleitk_is_the_same_to_us(tmp_path, shape, packed):
    itk = pytest.importorskip("SimpleITK")
    array, path = np.random.default_rng(1).integers(0, 256, shape, np.uint8), tmp_path / "a.mha"
    image = itk.GetImageFromArray(array)
    image.SetMetaData("0010|0010", "DOE^JANE")
    itk.WriteImage(image, str(path), packed)
    assert (b"CompressedData = True" in path.read_bytes()) == packed
    for one, frame in zip(frames_of(path, 9), array if array.ndim == 3 else [array], strict=False):
        assert np.array_equal(decode(one), frame)
    if array.ndim == 2 or len(array) == 1:
        assert np.array_equal(decode(path), array.reshape(18, 24))


def test_what_writers_vary_is_read(tmp_path):
    plain = written(FILM)
    head = plain[: -FILM.size]
    forms = [
        head.replace(b"\n", b"\r\n"), head.replace(b" = ", b"="), head.replace(b"True", b"true").replace(b"False", b"0"),
        head.replace(b"ObjectType = Image\n", b""), head.replace(b"LOCAL", b"Local"), head.replace(b"BinaryData = True\n", b""),
        head.replace(b"NDims", b"Comment = by hand\nComment = twice\nNDims"), head.replace(b"NDims", b"HeaderSize = -1\nNDims"),
    ]  # fmt: skip
    for number, form in enumerate(forms):
        assert form != head
        (path := tmp_path / f"{number}.mha").write_bytes(form + FILM.tobytes())
        assert np.array_equal(decode(path.with_name(f"{number}.mha#6")), FILM[6])
    (path := tmp_path / "no-suffix").write_bytes(plain)
    assert np.array_equal(decode(path.with_name("no-suffix#3")), FILM[3])
    (tmp_path / "size-unsaid.mha").write_bytes(written(FILM, "zlib", CompressedDataSize=None))
    assert np.array_equal(decode(tmp_path / "size-unsaid.mha#3"), FILM[3])


# ---- refusals ---------------------------------------------------------------------------------------------------------

RAW, PACKED = written(FILM), written(FILM, "zlib")
STREAM = zlib.compress(FILM.tobytes())
HOSTILE = {  # name -> bytes, and a word of what they are refused with
    "float": (written(FILM, ElementType="MET_FLOAT"), "MET_FLOAT"),
    "short": (written(FILM, ElementType="MET_SHORT"), "MET_SHORT"),
    "type-unknown": (written(FILM, ElementType="DOE^JANE"), "another type"),
    "channels": (written(FILM, ElementNumberOfChannels=3), "ElementNumberOfChannels"),
    "external": (written(FILM, ElementDataFile="DOE.raw"), "in other files"),
    "list": (written(FILM, ElementDataFile="LIST"), "in other files"),
    "pattern": (written(FILM, ElementDataFile="DOE%03d.raw 1 7 1"), "in other files"),
    "four-dims": (written(FILM[None]), "NDims"),
    "one-dim": (written(FILM[0, 0]), "NDims"),
    "dims-lie": (written(FILM, NDims=2), "DimSize"),
    "size-negative": (written(FILM, DimSize="24 -18 7"), "above 0"),
    "size-zero": (written(FILM, DimSize="24 18 0"), "above 0"),
    "size-no-number": (written(FILM, DimSize="24 18 DOE"), "above 0"),
    "size-superscript": (written(FILM, DimSize="24 18 ²"), "ASCII"),
    "size-huge": (written(FILM, "zlib", DimSize="60000 60000 7"), "40,000,000 pixels"),
    "size-endless": (written(FILM, "zlib", DimSize="24 18 " + "9" * 40), "above 0"),
    "stack-huge": (written(FILM, "zlib", DimSize="6000 6000 99999"), "at most 4,294,967,296 bytes"),
    "frames-endless": (written(FILM, "zlib", DimSize="1 1 4294967290"), "found 4,294,967,290 frames of 1 x 1 in 3,0"),
    "no-dims": (written(FILM, NDims=None), "no NDims"),
    "no-size": (written(FILM, DimSize=None), "no DimSize"),
    "no-type": (written(FILM, ElementType=None), "no ElementType"),
    "no-data-file": (RAW.replace(b"ElementDataFile = LOCAL\n", b""), "header"),
    "key-twice": (RAW.replace(b"NDims", b"DimSize = 24 18 7\nNDims"), "one DimSize"),
    "text": (written(FILM, BinaryData=False), "BinaryData"),
    "not-an-image": (written(FILM, ObjectType="Tube"), "ObjectType"),
    "intensities": (written(FILM, ElementToIntensityFunctionSlope=2), "Slope"),
    "packed-unclear": (written(FILM, CompressedData="perhaps"), "CompressedData"),
    "no-ascii": (RAW.replace(b"NDims", b"Name = M\xfcller\nNDims"), "ASCII"),
    "no-lines": (b"ObjectType" + bytes(range(256)) * 400, "header"),
    "no-key": (RAW.replace(b"NDims", b"DOE^JANE\nNDims"), "Key = value"),
    "header-endless": (RAW.replace(b"NDims", b"A = 1\n" * 20_000 + b"NDims"), "65,536"),
    "header-cut": (RAW[:90], "header"),
    "empty": (b"", "header"),
    "raw-short": (RAW[:-1], "3,024"),
    "raw-long": (RAW + b"\0", "3,025"),
    "raw-called-packed": (written(FILM, CompressedData=True), "damaged"),
    "packed-called-raw": (written(FILM, "zlib", CompressedData=False), "3,024"),
    "packed-size-lies": (written(FILM, "zlib", CompressedDataSize=7), "7 bytes"),
    "packed-size-negative": (written(FILM, "zlib", CompressedDataSize=-7), "no number"),
    "packed-size-superscript": (written(FILM, "zlib", CompressedDataSize="1" * 5000), "no number"),
    "packed-short": (written(FILM, "zlib", zlib.compress(FILM.tobytes()[:-1])), "fewer"),
    "packed-long": (written(FILM, "zlib", zlib.compress(FILM.tobytes() + b"\0")), "more"),
    "packed-cut": (written(FILM, "zlib", STREAM[:-300]), "cut"),
    "packed-without-sum": (written(FILM, "zlib", STREAM[:-2]), "without its end"),
    "packed-flipped": (written(FILM, "zlib", STREAM[:-1] + bytes([STREAM[-1] ^ 1])), "damaged"),
    "packed-nothing": (written(FILM, "zlib", b""), "in 0 bytes"),
    "packed-bare": (written(FILM, "zlib", STREAM[2:-4]), "damaged"),
    "two-streams": (written(FILM, "zlib", zlib.compress(FILM[:4].tobytes()) + zlib.compress(FILM[4:].tobytes())), "fewer"),
    "stream-and-more": (written(FILM, "zlib", STREAM + b"more"), "more behind it"),
    "bomb": (written(FILM, "zlib", zlib.compress(bytes(300_000_000), 9)), "more"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_sentence_alone_and_among_others(tmp_path, name):
    content, word = HOSTILE[name]
    (path := tmp_path / "x.mha").write_bytes(content)
    with pytest.raises(ImageError) as error:
        decode(tmp_path / "x.mha#6")
    said = str(error.value)
    assert said.startswith(f"{path}#6: expected ")
    assert word in said
    assert ", found " in said
    assert len(said.splitlines()) == 1
    assert "DOE" not in said
    assert "not a readable picture" not in said
    looked = images.scan(frames_of(path, 7))
    assert looked["error"].tolist() == [said.replace("#6:", f"#{number}:") for number in range(7)]
    assert len(images.damaged(frames_of(path, 7))) == 7


def test_a_frame_that_is_not_there_is_refused_and_no_other(stack):
    named = [*frames_of(stack, 9), stack, stack.with_name("stack.mha#2")]
    looked = images.scan(named)
    assert np.flatnonzero(looked["error"] != "").tolist() == [7, 8, 9]
    assert "found #7: the file holds 7 frames" in looked["error"][7]
    assert "name one frame, `FILE#0` to `FILE#6`" in looked["error"][9]
    assert looked["pixels"][2] == looked["pixels"][10]


def test_the_real_file_is_refused_by_its_type():
    path = paths.shared() / "data" / "acouslic" / "fov_mask.mha"
    if not path.is_file():
        pytest.skip(f"needs the real sample: set FPBENCH_SHARED ({path} is not there)")
    with pytest.raises(ImageError, match=r"expected pixels of 8 bits \(MET_UCHAR\), found MET_FLOAT: save it"):
        decode(path)


# ---- walks over many frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", "zlib"])
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_give_what_the_same_pictures_as_png_give(tmp_path, monkeypatch, packed, threads):
    monkeypatch.setattr(machine, "workers", lambda: threads)
    frames, pngs = [], []
    for name in "ab":
        film = np.random.default_rng(ord(name)).integers(0, 256, FILM.shape, np.uint8)
        (path := tmp_path / f"{name}.mha").write_bytes(written(film, packed))
        frames += frames_of(path, 7)
        pngs += [tmp_path / f"{name}{number}.png" for number in range(7)]
        for png, picture in zip(pngs[-7:], film, strict=True):
            Image.fromarray(picture).save(png)
    order = np.random.default_rng(2).permutation(14).tolist()  # rows of two stacks, mixed
    frames, pngs = ([named[row] for row in order] for named in (frames, pngs))
    frames.insert(3, pngs[5])  # and a picture of another kind, which is a frame as well
    pngs.insert(3, pngs[5])
    found = []
    for named in (frames, pngs):
        monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / f"cache-{len(found)}"))
        looked = images.scan(named, small=THUMBNAIL)
        arrays = [images.cached_images(named, looked, one, also=SQUARES) for one in SQUARES]
        kept = {one.name: one.read_bytes() for one in (paths.cache() / "images").glob("[!.]*.npy")}
        found.append((looked.drop(columns="sha256"), arrays, kept))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert all(np.array_equal(*both) for both in zip(found[0][1], found[1][1], strict=True))
    assert len(found[0][2]) == 3
    assert found[0][2] == found[1][2]  # byte for byte: thumbnails and squares


def test_a_stack_is_inflated_once_per_walk(stack, inflated):
    named = frames_of(stack, 7)[::-1]
    looked = images.scan(named, small=THUMBNAIL)
    assert inflated == {"streams": 1, "bytes": FILM.size}
    images.cached_images(named, looked, SQUARES[0], also=SQUARES)
    assert inflated == {"streams": 2, "bytes": 2 * FILM.size}
    assert images.damaged(named) == []
    assert inflated == {"streams": 3, "bytes": 3 * FILM.size}
    images.scan(named, small=THUMBNAIL)
    images.cached_images(named, looked, SQUARES[1])
    assert inflated["streams"] == 3  # all is there


def test_a_bomb_is_left_where_the_header_ends(tmp_path, inflated):
    (path := tmp_path / "x.mha").write_bytes(HOSTILE["bomb"][0])
    images.scan(frames_of(path, 7))
    assert inflated["bytes"] <= FILM.size + 1


def test_rows_of_a_stack_count_as_whole_when_its_end_is_sound(stack, monkeypatch):
    """A stack that is damaged after it was scanned leaves nothing that the next pass would believe."""
    named, sound = frames_of(stack, 7), stack.read_bytes()
    looked = images.scan(named)
    stack.write_bytes(written(255 - FILM, "zlib")[:-1] + b"!")
    with pytest.raises(ImageError, match=r"stack\.mha#0: expected"):
        images.cached_images(named, looked, SQUARES[0])
    stack.write_bytes(sound)
    array = images.cached_images(named, looked, SQUARES[0])
    assert all(np.array_equal(square, SQUARES[0](frame)) for square, frame in zip(array, FILM, strict=True))


def test_progress_counts_frames(stack, monkeypatch):
    counted = []
    monkeypatch.setattr(images.Progress, "update", lambda self, n=1: counted.append((self.facts["title"], n)))
    looked = images.scan(frames_of(stack, 7))
    images.cached_images(frames_of(stack, 7), looked, SQUARES[0])
    assert Counter(counted) == {("looking at pictures", 1): 7, ("decoding to squash 32", 1): 7, ("hashing files", 1): 1}


def test_the_first_error_in_order_is_raised_and_the_rest_is_left(monkeypatch):
    monkeypatch.setattr(machine, "workers", lambda: 2)
    begun = []

    def work(group):
        begun.extend(group)
        time.sleep(0.002)  # as pictures take; else a busy machine is through before the error is seen
        if group[0] in (3, 4):
            raise ValueError(group[0])
        yield

    with pytest.raises(ValueError, match="3"):
        list(images.walking.walk(work, [[row] for row in range(2000)]))
    assert len(begun) < 2000
    assert len(list(images.walking.walk(work, [[0, 1], [2]]))) == 3


def test_groups_are_made_of_stacks_alone(stack, tmp_path):
    Image.fromarray(FILM[0]).save(tmp_path / "a.png")
    named = [
        tmp_path / "a.png",
        *frames_of(stack, 3)[::-1],
        tmp_path / "a.png#0",
        stack,
        *frames_of(tmp_path / "no.mha", 2),
    ]
    assert images.walking.groups(named) == [[0], [3, 2, 1], [4], [5], [6], [7]]
    assert images.walking.groups(named, [1, 3, 5]) == [[3, 1], [5]]
    assert [decoding.stacked(one) for one in (stack, tmp_path / "a.png", tmp_path / "no.mha")] == [7, 0, 0]


LARGE = """
import sys
from pathlib import Path
from fpbench import images
from fpbench.files import machine
from fpbench.images import Geometry
path = Path(sys.argv[1])
machine.workers = lambda: 2
named = [path.with_name(f"{path.name}#{number}") for number in range(840)]
looked = images.scan(named)
assert (looked["error"] == "").all()
images.cached_images(named, looked, Geometry("squash", 224))
status = Path("/proc/self/status")  # not getrusage: a child begins with the peak of its parent
print(int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.is_file() else machine.peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["", "zlib"])
def test_a_stack_of_351_mb_is_read_in_less_than_its_own_size(tmp_path, packed):
    noise = np.random.default_rng(0).integers(0, 16, (562, 744), np.uint8)
    (path := tmp_path / "large.mha").write_bytes(
        written(np.stack([np.roll(noise, number, 0) for number in range(840)]), packed)
    )
    command = [sys.executable, "-c", LARGE, str(path)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 351e6  # libraries among it; the issue allows 1 GiB
