"""One pass over the files: every picture decoded once for all arrays, each with the bytes that it has when made alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpbench import encoders, images, load_study, loading
from fpbench.cohorts import audit
from fpbench.files import artifacts, paths
from fpbench.images import BORDERS, THUMBNAIL, Geometry, decoding, filling

FIVE = [
    Geometry("squash", 32), Geometry("resize_crop", 32, crop=0.9), Geometry("pad_square", 40), Geometry("fit_pad", 48, "opencv-bilinear"),
    Geometry("squash", 36, "torch-bilinear"),
]  # fmt: skip
FOUR = FIVE[:4]  # without torch, whose import a process would wait for


def draw(folder, count=40, coloured=(), size=(60, 44)):
    """Noisy pictures, no two alike."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for number in range(count):
        shape = (*size[::-1], 3) if number in coloured else size[::-1]
        files.append(folder / f"{number:03d}.png")
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(files[-1])
    return files


@pytest.fixture
def decoded(monkeypatch):
    """How often each file is decoded from here on: a counter of names."""
    counts, look = Counter(), decoding.look

    def counted(path, bits=0):
        counts[path.name] += 1
        return look(path, bits)

    monkeypatch.setattr(decoding, "look", counted)
    return counts


def content():
    """The bytes of all arrays in the cache, by name."""
    return {path.name: path.read_bytes() for path in (paths.cache() / "images").glob("[!.]*.npy")}


def left():
    """What a pass leaves behind beside its arrays."""
    folder = paths.cache() / "images"
    return [path.name for path in (*folder.glob(".*.part"), *folder.glob(".*.json"), *folder.glob(".*.tmp"))]


def plainly(files, geometry, coloured, path):
    """The array as a loop into a memory map makes it: what the cache held before there were passes."""
    shape = (len(files), geometry.size, geometry.size) + ((3,) if coloured else ())
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    for row, file in enumerate(files):
        square = geometry(decoding.decode(file))
        array[row] = square if square.ndim == len(shape) - 1 else square[..., None]
    array.flush()
    return path.read_bytes()


@pytest.mark.parametrize("coloured", [(), (7,)])
def test_one_pass_decodes_once_and_every_array_has_the_bytes_that_it_has_alone(
    tmp_path, monkeypatch, decoded, coloured
):
    files = draw(tmp_path / "pictures", coloured=coloured)
    looked = images.scan(files)
    decoded.clear()
    for geometry in FIVE:
        images.cached_images(files, looked, geometry, also=FIVE)
    assert set(decoded.values()) == {1}
    assert decoded.total() == len(files)
    together = content()
    assert len(together) == 5
    assert not left()
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "alone"))
    for geometry in FIVE:
        name = Path(images.cached_images(files, looked, geometry).filename).name
        assert together[name] == content()[name] == plainly(files, geometry, coloured, tmp_path / "plain.npy")
        assert artifacts.read_json(artifacts.sidecar(tmp_path / "results" / "cache" / "images" / name))["key"]
    assert content() == together


CHILD = """
import sys, time
from pathlib import Path
from fpbench import images
from fpbench.images import Geometry, decoding, filling
folder, pause, log = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
look, filling.EVERY = decoding.look, 0.0
def slow(path, bits=0):
    time.sleep(pause)
    with open(log, "a") as handle:
        handle.write(path.name + chr(10))
    return look(path, bits)
files = sorted(folder.iterdir())
looked = images.scan(files)
decoding.look = slow
every = [Geometry(*one) for one in {geometries}]
images.cached_images(files, looked, every[int(sys.argv[4])], also=every)
"""


def child(folder, log, pause=0.0, asked=0, before="", geometries=FOUR):
    """The pass in a process of its own, which notes after every picture what is whole."""
    code = before + CHILD.replace("{geometries}", repr([(g.kind, g.size, g.interpolation, g.crop) for g in geometries]))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(pause), str(log), str(asked)], stderr=subprocess.PIPE
    )


def noted():
    """How many rows the notes of the cache call whole, the fewest of all arrays."""
    counts = [
        sum(map(bool, json.loads(path.read_text())["rows"])) for path in (paths.cache() / "images").glob(".*.rows.json")
    ]
    return min(counts) if len(counts) == len(FOUR) else 0


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A pass that was killed after ten pictures or more, and what it would have made: files, the arrays, rows noted."""
    files = draw(tmp_path / "pictures", coloured=(30,))
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "whole"))
    images.cached_images(files, images.scan(files), FOUR[0], also=FOUR)
    whole = content()
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    process, stop = child(tmp_path / "pictures", tmp_path / "log", 0.05), time.monotonic() + 60
    while noted() < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < stop
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not content()  # no array is there
    return files, whole, noted()


def test_a_killed_pass_goes_on_and_gives_the_same_bytes(killed, decoded):
    files, whole, rows = killed
    assert 10 <= rows < 40
    looked = images.scan(files)
    decoded.clear()
    images.cached_images(files, looked, FOUR[2], also=FOUR)
    assert content() == whole
    assert decoded.total() <= 40 - rows
    assert not left()


def test_rows_that_were_damaged_in_between_are_made_anew(killed, decoded):
    files, whole, _ = killed
    looked = images.scan(files)
    for part in (paths.cache() / "images").glob(".*.part"):
        with open(part, "r+b") as handle:  # a byte of the first row, and all behind the middle
            handle.seek(200)
            byte = handle.read(1)
            handle.seek(200)
            handle.write(bytes([byte[0] ^ 1]))
            handle.truncate(part.stat().st_size // 2)
    notes = sorted((paths.cache() / "images").glob(".*.rows.json"))
    notes[0].write_text(notes[0].read_text()[:-20])  # and a note that is no longer one: nothing is believed
    images.cached_images(files, looked, FOUR[0], also=FOUR)
    assert content() == whole


def test_two_processes_share_one_pass(tmp_path):
    files = draw(tmp_path / "pictures")
    images.scan(files)
    both = [child(tmp_path / "pictures", tmp_path / "log", 0.02, asked) for asked in (0, 3)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert Counter((tmp_path / "log").read_text().split()) == Counter(file.name for file in files)
    assert len(content()) == 4
    assert not left()


def test_two_processes_where_every_lock_is_granted_to_everyone(tmp_path, monkeypatch):
    files = draw(tmp_path / "pictures")
    looked = images.scan(files)
    grant = "import fcntl\nfcntl.flock = lambda *_: None\n"
    both = [child(tmp_path / "pictures", tmp_path / "log", 0.02, asked, grant) for asked in (0, 3)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert max(Counter((tmp_path / "log").read_text().split()).values()) == 2  # work is done twice
    found = content()
    assert not left()
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "alone"))
    images.cached_images(files, looked, FOUR[0], also=FOUR)
    assert content() == found


def test_a_damaged_array_is_made_anew_and_no_other(tmp_path, decoded):
    files = draw(tmp_path / "pictures")
    looked = images.scan(files)
    arrays = [images.cached_images(files, looked, one, also=FOUR).filename for one in FOUR]
    whole, times = content(), [os.stat(name).st_mtime_ns for name in arrays]
    with open(arrays[1], "r+b") as handle:
        handle.seek(5000)
        handle.write(b"damage")
    decoded.clear()
    images.cached_images(files, looked, FOUR[0], also=FOUR)
    assert not decoded  # what is asked for is whole
    images.cached_images(files, looked, FOUR[1], also=FOUR)
    assert set(decoded.values()) == {1}
    assert content() == whole
    changed = [os.stat(name).st_mtime_ns != then for name, then in zip(arrays, times, strict=True)]
    assert changed == [False, True, False, False]


def test_an_interrupt_leaves_what_the_same_process_goes_on_with(tmp_path, monkeypatch, decoded):
    files = draw(tmp_path / "pictures")
    looked, put = images.scan(files), filling.Array.put

    def stopping(array, row, picture):
        if row == 20:
            raise KeyboardInterrupt
        return put(array, row, picture)

    monkeypatch.setattr(filling.Array, "put", stopping)
    with pytest.raises(KeyboardInterrupt):
        images.cached_images(files, looked, FOUR[0])
    (part,) = [name for name in left() if name.endswith(".part")]
    assert ".free." in part
    monkeypatch.setattr(filling.Array, "put", put)
    decoded.clear()
    images.cached_images(files, looked, FOUR[0])
    assert 0 < decoded.total() <= 20
    assert not left()


def test_what_comes_along_never_fails_what_is_asked_for(tmp_path, monkeypatch):
    """No room for a large array, a geometry that cannot be made: both are left to the job that needs them, which says why."""
    files = draw(tmp_path / "pictures", 6)
    looked, allocate = images.scan(files), os.posix_fallocate

    def full(handle, start, size):
        if size > 1e6:
            raise OSError(28, "No space left on device")
        allocate(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(Geometry, "_pad_square", lambda self, picture: 1 / 0)
    large, odd = Geometry("squash", 512), Geometry("pad_square", 20)
    images.cached_images(files, looked, FOUR[0], also=[large, odd, FOUR[1]])
    assert len(content()) == 2
    assert not left()
    with pytest.raises(OSError, match="No space left"):
        images.cached_images(files, looked, large, also=FOUR[:2])
    with pytest.raises(ZeroDivisionError):
        images.cached_images(files, looked, odd, also=FOUR[:2])
    assert len(content()) == 2
    assert not [name for name in left() if name.endswith(".part")]


def test_what_nobody_went_on_with_is_deleted_after_a_week_and_what_another_host_writes_is_left_alone(tmp_path):
    files = draw(tmp_path / "pictures", 3)
    looked, folder = images.scan(files), paths.cache() / "images"
    name = filling.Array(folder, {"x": 1}, FOUR[0], (3, 32, 32)).path.stem
    old, live = folder / f".{name}.there.1.aaaa.part", folder / f".{name}.there.2.bbbb.part"
    folder.mkdir(parents=True)
    for path in (old, live):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    images.cached_images(files, looked, FOUR[0])
    assert not old.exists()
    assert live.exists()
    assert not filling._nobodys(live)
    os.utime(live, (time.time() - 2 * filling.QUIET,) * 2)
    assert filling._nobodys(live)


MEMORY = """
import sys
from pathlib import Path
from fpbench import images
from fpbench.files import machine
files = sorted(Path(sys.argv[1]).iterdir())
looked, two = images.scan(files), [images.Geometry("squash", 1024), images.Geometry("pad_square", 1000)]
images.cached_images(files[:2], looked[:2], two[0], also=two)  # what libraries need
before = machine.peak_memory()
array = images.cached_images(files, looked, two[0], also=two)
print(machine.peak_memory() - before, array.nbytes)
"""


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    draw(tmp_path / "pictures", 150)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "pictures")]
    grown, size = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert size > 150e6
    assert grown < 30e6  # of two arrays of 150 MB each


def test_an_audit_decodes_every_picture_once_for_its_hashes_and_its_thumbnail(small, decoded):
    audit.audit("africa", small["africa"])
    assert set(decoded.values()) == {1}
    (found,) = content().values()
    africa = loading.cohorts.load_cohort("africa", small["africa"])
    first = africa.frame[~africa.frame["pixels"].duplicated()]
    assert len(first) < len(africa)
    for path in (paths.cache() / "images").iterdir():
        path.unlink()
    images.cached_images(first["path"].tolist(), first, THUMBNAIL)
    assert list(content().values()) == [found]


TWO = """
  - {name: two, model: resnet50-mini, weights: random, geometry: {kind: pad_square}}
  - {name: three, model: timm:mobilenetv3_small_050, weights: random, batch_size: 8}
  - {name: four, model: ultrasam, weights: absent.pth}
"""


def test_a_study_knows_its_geometries_without_building_a_model(small_study, monkeypatch):
    small_study.write_text(
        small_study.read_text().replace("squash, size: 32}", "squash, size: 32, interpolation: bicubic}") + TWO
    )
    study = load_study(small_study)
    monkeypatch.setattr(encoders, "load_encoder", None)
    tiny, two = Geometry("squash", 32), Geometry("pad_square", 64)
    assert loading.geometries(study) == (BORDERS, tiny, two)  # three's is its library's, four has no weights
    (small_study.parent / "absent.pth").write_bytes(b"x")
    named = replace(study, encoders=[replace(study.encoders[3], weights=str(small_study.parent / "absent.pth"))])
    assert loading.geometries(named) == (BORDERS, Geometry("fit_pad", 1024, "opencv-bilinear"))
    smaller = replace(named, encoders=[replace(named.encoders[0], geometry={"size": 512})])
    assert loading.geometries(smaller)[1].size == 512
    wrong = replace(named, encoders=[replace(named.encoders[0], geometry={"size": 500})])
    assert loading.geometries(wrong) == (BORDERS,)  # the matter of its own job
    artifacts.write_json(study.folder / "missing.json", {"two/probing": "failed"})
    assert loading.geometries(study) == (BORDERS, tiny)


def test_what_the_study_declares_is_what_its_encoders_say(small_study):
    small_study.write_text(
        small_study.read_text().replace("squash, size: 32}", "squash, size: 32, interpolation: bicubic}") + TWO
    )
    demo = load_study("demo")
    for study, names in ((load_study(small_study), ["tiny", "two"]), (demo, [spec.name for spec in demo.encoders])):
        for name in names:
            spec = study.encoder_spec(name)
            assert (
                encoders.declared(spec.model, spec.pooling, spec.geometry) == loading.load_encoder(study, name).geometry
            )


def test_the_first_array_of_a_study_brings_the_others_and_a_part_of_a_cohort_brings_none(small_study, decoded):
    small_study.write_text(
        small_study.read_text().replace("squash, size: 32}", "squash, size: 32, interpolation: bicubic}") + TWO
    )
    home, (africa,) = loading.load_cohorts(load_study(small_study))
    assert set(decoded.values()) == {1}
    for geometry in (Geometry("pad_square", 64), BORDERS, Geometry("squash", 32)):
        africa.array(geometry)
    assert len(content()) == 3 + 2  # and the thumbnails of both cohorts
    names = {path.name for path in africa.frame["path"]}
    assert all(decoded[name] == 1 + (name in names) for name in decoded)
    home.select(np.arange(len(home)) < 20).array(BORDERS)
    assert len(content()) == 6
