"""Hashes are remembered by path, size, time and inode; what changed under the same stamp is found where all is read."""

import os
import time

import pytest

from fpbench import images
from fpbench.files import artifacts, hashes


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Enough files to be remembered, written an hour ago."""
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{n}.bin" for n in range(hashes.FEWEST)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%08d" % number)
        old(path)
    return paths


def old(path, hours=1.0):
    stamp = time.time_ns() - int(hours * 3600e9)
    os.utime(path, ns=(stamp, stamp))


def asked(files, **options):
    """What is hashed, the sums, and what changed under its stamp."""
    seen = []

    def compute(some):
        seen.extend(some)
        return [artifacts.file_sha256(path) for path in some]

    sums, changed = hashes.sha256s(files, compute, **options)
    assert sums == [artifacts.file_sha256(path) for path in files]
    return seen, sums, changed


def test_a_file_is_read_once_and_again_when_its_size_time_or_inode_changes(files):
    assert asked(files)[0] == files
    assert asked(files)[0] == []
    files[3].write_bytes(b"longer than before")
    old(files[3], 2)
    files[5].write_bytes(b"%08d" % 99)  # as long as before, but now
    other = files[7].with_suffix(".new")
    other.write_bytes(b"%08d" % 77)
    os.utime(other, ns=(files[7].stat().st_atime_ns, files[7].stat().st_mtime_ns))  # as cp -p would
    other.replace(files[7])
    assert asked(files)[0] == [files[3], files[5], files[7]]
    assert asked(files)[0] == [files[5]]  # changed a moment before it was hashed: not trusted yet
    old(files[5])
    asked(files)
    assert asked(files)[0] == []


def test_what_changed_under_the_same_stamp_is_found_where_all_is_read(files):
    asked(files)
    stamp = files[9].stat()
    with open(files[9], "r+b") as handle:  # in place: a flipped bit on the disk
        handle.write(b"99999999")
    os.utime(files[9], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    unseen = hashes.sha256s(files, lambda some: [])[0]
    assert unseen[9] != artifacts.file_sha256(files[9])
    assert images.verify(files, keep=False) == [files[9]]  # `doctor --full`: changes nothing
    assert images.verify(files) == [files[9]]  # a run
    assert asked(files, whole=True)[2] == []
    assert asked(files)[0] == []


def test_a_damaged_memory_or_one_that_cannot_be_written_costs_time_alone(files, monkeypatch):
    asked(files)
    (memory,) = (hashes.paths.cache() / "hashes").glob("*.parquet")
    memory.write_bytes(b"nonsense")
    assert asked(files)[0] == files
    monkeypatch.setenv("FPBENCH_CACHE", "/proc/nowhere")
    assert asked(files)[0] == files


def test_few_files_are_not_remembered(files):
    for _ in range(2):
        assert asked(files[:5])[0] == files[:5]
    assert not (hashes.paths.cache() / "hashes").exists()
