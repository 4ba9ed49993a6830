import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from fpbench.errors import InputError
from fpbench.files import artifacts, machine, provenance


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def crash():
        with artifacts.atomic(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_temporaries_of_dead_processes_are_collected_and_living_ones_kept(tmp_path):
    import socket

    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    names = [f".x.{socket.gethostname()}.{pid}.abc.tmp" for pid in (int(dead.stdout), os.getpid())]
    for name in names:
        (tmp_path / name).touch()
    with artifacts.atomic(tmp_path / "x") as temporary:
        temporary.touch()
    assert not (tmp_path / names[0]).exists()
    assert (tmp_path / names[1]).exists()


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', '{"a": 2, "digest": "0"}'])
def test_a_damaged_json_is_refused(tmp_path, damage):
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"a": 1})
    assert artifacts.read_json(path) == {"a": 1}
    path.write_text(damage)
    with pytest.raises(InputError, match=r"a\.json"):
        artifacts.read_json(path)


def _count_build(folder, key, log):
    def build(path):
        with open(log, "a") as handle:
            handle.write("built\n")
        with open(path, "wb") as handle:
            np.save(handle, np.arange(5))

    return artifacts.cached_array(folder, key, build)


def test_cached_array_is_built_once_per_key_and_rebuilt_when_a_byte_flips(tmp_path):
    log = tmp_path / "log"
    for key in ({"a": 1}, {"a": 1}, {"a": 2}):
        assert _count_build(tmp_path / "c", key, log).tolist() == [0, 1, 2, 3, 4]
    assert log.read_text().count("built") == 2
    for path in (tmp_path / "c").glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    assert _count_build(tmp_path / "c", {"a": 1}, log).tolist() == [0, 1, 2, 3, 4]
    assert log.read_text().count("built") == 3


def _five(path):
    with open(path, "wb") as handle:
        np.save(handle, np.arange(5))


def test_a_part_may_vanish_once_another_process_has_made_the_whole(tmp_path, monkeypatch):
    """Where a lock is granted to everyone, the other one clears up between our writing and our reading."""
    parts, whole, commit = tmp_path / "parts", tmp_path / f"{artifacts.digest({'a': 1})[:32]}.npy", artifacts.commit

    def overtaken(path, about):
        commit(path, about)
        if path.parent == parts:
            _five(whole)
            commit(whole, {"key": {"a": 1}})
            artifacts.discard(parts)

    def build(path):
        artifacts.cached_array(parts, {"part": 1}, _five)

    monkeypatch.setattr(artifacts, "commit", overtaken)
    assert artifacts.cached_array(tmp_path, {"a": 1}, build).tolist() == [0, 1, 2, 3, 4]


def test_an_array_that_reads_back_otherwise_than_it_was_written_is_an_error(tmp_path, monkeypatch):
    commit = artifacts.commit
    monkeypatch.setattr(artifacts, "commit", lambda path, about: commit(path, about) or path.write_bytes(b"other"))
    with pytest.raises(InputError, match="could not be read back"):
        artifacts.cached_array(tmp_path, {"a": 1}, _five)


def test_two_processes_on_one_key_build_it_once(tmp_path):
    log = tmp_path / "log"
    jobs = [
        multiprocessing.get_context("fork").Process(target=_count_build, args=(tmp_path / "c", {"k": 1}, log))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    assert log.read_text().count("built") == 1


def test_provenance_names_versions():
    about = provenance.provenance()
    assert about["versions"]["torch"]
    assert machine.peak_memory() > 10_000_000
