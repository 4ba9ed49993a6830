"""Six faults of ``benchmarks/faults.py``, each as small as it can be: what is broken is noticed, and ends with the same bytes."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import start_pipeline
from test_finetuning import SHORT, Trainer, run, state
from test_pipeline import bench_of, hashes

from fpbench import load_study
from fpbench.files import artifacts, paths
from fpbench.grid.run import alone
from fpbench.training import probing


def flip(path, where=0.6, bit=4):
    """Change one bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 100 kB; returns its folder and a function that gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a small disk")
    yield folder, lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(small_study, tmp_path, small_disk):
    small_study.write_text(small_study.read_text().replace("[logistic, ridge, knn, sgd]", "[ridge, knn]"))
    folder, resize = small_disk
    whole = start_pipeline(small_study, tmp_path / "whole")
    out, err = start_pipeline(small_study, folder).communicate(timeout=300)
    assert "No space left on device" in err  # and not a crash, when a page of the mapped array is written
    full = pytest.raises(OSError, match="No space left on device")
    with full, artifacts.atomic(folder / "x.npy") as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.zeros(100_000))
    assert not list(folder.rglob("*.tmp"))
    resize("50m")
    assert "done" in whole.communicate(timeout=300)[0]
    out, err = start_pipeline(small_study, folder).communicate(timeout=300)
    assert "done" in out, err
    assert len(hashes(folder)) == 8
    assert hashes(folder) == hashes(tmp_path / "whole")


def test_two_runs_at_once_where_every_lock_is_granted_to_everyone(small_study, tmp_path, monkeypatch):
    """As on some network file systems: work is done twice, and nothing else happens."""
    small_study.write_text(small_study.read_text().replace("[logistic, ridge, knn, sgd]", "[ridge, knn]"))
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    grant = "import fcntl\nfcntl.flock = lambda *_: None\n"
    runs = [start_pipeline(small_study, tmp_path / name, grant) for name in ("one", "two", "two")]
    for process in runs:
        out, err = process.communicate(timeout=300)
        assert "done" in out, err
    assert len(hashes(tmp_path / "one")) == 8
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert not list(tmp_path.rglob("*.tmp"))


def content(path):
    """Return the bytes of a file of the cache; of remembered hashes without when they were made."""
    remembered = (path.parent.name, path.suffix) == ("hashes", ".parquet")
    return pd.read_parquet(path).drop(columns="hashed").to_csv() if remembered else path.read_bytes()


def test_a_flipped_bit_in_any_file_of_the_cache_is_never_read_as_good(small_study):
    study, cache = load_study(small_study).begin(), paths.cache()
    probing.run_probe(bench_of(study), "ridge")
    before, found = hashes(paths.results()), {}
    files = [path for path in sorted(cache.rglob("*.*")) if not path.name.startswith(".")]
    folders = ("scans", "images", "fingerprints", "embeddings", "hashes")
    assert {path.parent.name for path in files} == set(folders)
    for folder in folders:
        for path in (cache / folder).glob("[!.]*.*"):
            found[path] = content(path)
            flip(path)
    for path in (cache / "embeddings").glob("*"):
        path.unlink()  # so that the pictures are read
    for path in paths.results().rglob("ridge/*"):
        path.unlink()
    probing.run_probe(bench_of(study), "ridge")
    assert hashes(paths.results()) == before
    for path, good in found.items():
        assert path.suffix == ".json" or content(path) == good, path
        assert path.suffix != ".json" or artifacts.read_json(path)
    for path in (cache / "embeddings").glob("*.npy"):
        flip(path)
    for path in paths.results().rglob("ridge/*"):
        path.unlink()
    probing.run_probe(bench_of(study), "ridge")
    assert hashes(paths.results()) == before


def test_a_flipped_bit_in_a_checkpoint_costs_one_epoch(tmp_path, monkeypatch, capsys):
    """Killed in the third epoch, the checkpoint of the second damaged: the first one's is taken."""
    recipe, epochs, original = replace(SHORT, epochs=3), [], Trainer.train_epoch
    whole, wanted, _ = run("usfm", tmp_path, recipe=recipe, folder="whole")

    def noted(trainer, *arguments):
        epochs.append(trainer.state.epoch)
        if epochs == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "train_epoch", noted)
    with pytest.raises(KeyboardInterrupt):
        run("usfm", tmp_path, recipe=recipe)
    last = tmp_path / "run" / "last.pt"
    assert artifacts.is_sealed(last)
    for where in np.linspace(0, 0.99999, 50):
        flip(last, where)
        assert not artifacts.is_sealed(last)
        flip(last, where)
    flip(last)
    model, history, _ = run("usfm", tmp_path, recipe=recipe)
    assert epochs == [0, 1, 2, 1, 2]
    assert "damaged; going on from before.pt" in capsys.readouterr().out
    assert history["loss"].equals(wanted["loss"])
    assert all(torch.equal(value, state(model)[key]) for key, value in state(whole).items())
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.json", "best.safetensors", "history.csv"]
    flip(tmp_path / "run" / "best.safetensors")
    model, _, _ = run("usfm", tmp_path, recipe=recipe)
    assert epochs[5:] == [0, 1, 2]  # nothing is left to go on from
    assert all(torch.equal(value, state(model)[key]) for key, value in state(whole).items())


def test_a_second_driver_on_one_folder_waits_for_the_first(tmp_path, capsys):
    def second() -> float:
        with alone(tmp_path):
            return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        with alone(tmp_path):
            waiting = pool.submit(second)
            time.sleep(0.5)
            assert not waiting.done()
            left = time.monotonic()
        assert waiting.result(timeout=30) >= left
    assert "another run of this study is at work" in capsys.readouterr().out
