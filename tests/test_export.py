"""Embeddings out: the same bits as a study's, however the pictures are named."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from fpbench import embed_cohort, embed_images, load_cohort, load_encoder
from fpbench.cli import app
from fpbench.errors import InputError, MissingError
from fpbench.training import export
from fpbench.training.export import find

MINI = "resnet50-mini"


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    return load_encoder(MINI, "random")


def vectors(path):
    table = pd.read_parquet(path)
    return table.iloc[:, 2:].to_numpy(), table


def test_files_folder_pattern_and_cohort_give_the_same_bits(small, encoder, tmp_path, monkeypatch):
    cohort = load_cohort("spain", small["spain"])
    known = {"spain": ("spain", small["spain"], "error")}
    asked = {
        "cohort": "spain",
        "folder": str(small["spain"] / "Images"),
        "pattern": str(small["spain"] / "Images" / "*.png"),
    }
    expected = embed_cohort(encoder, cohort)
    for name, word in asked.items():
        monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / name))  # nothing is taken from another's cache
        found = find(word, known)
        export.export(encoder, [found], tmp_path / f"{name}.parquet")
        got, table = vectors(tmp_path / f"{name}.parquet")
        assert np.array_equal(got, expected)
        assert got.dtype == np.float32
        assert list(table)[:3] == ["image_id", "path", "e0"]
        assert table["path"].tolist() == [str(path) for path in cohort.frame["path"]]
    assert table["image_id"].iat[0].endswith("/Patient00001_Plane2_1_of_3")
    assert np.array_equal(embed_images(encoder, cohort.frame["path"]), expected)


def test_both_formats_hold_their_provenance(small, encoder, tmp_path):
    found = [find(str(small[name])) for name in ("spain", "africa")]
    for suffix in export.FORMATS:
        export.export(encoder, found, tmp_path / f"out{suffix}", batch_size=16)
    about = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[export.METADATA])
    arrays = np.load(tmp_path / "out.npz")
    assert json.loads(str(arrays["provenance"]))["encoder"] == about["encoder"]
    assert about["encoder"]["weights"]["source"] == "random"
    assert about["batch_size"] == 16
    assert sum(about["pictures"].values()) == len(arrays["image_id"]) == 144 + 54
    got, table = vectors(tmp_path / "out.parquet")
    assert np.array_equal(arrays["embeddings"], got)
    assert arrays["image_id"].tolist() == table["image_id"].tolist()


def test_what_cannot_be_embedded_is_named(small, encoder, tmp_path):
    for word, says in (("nowhere", "folder, file, pattern or cohort"), ("*.nothing", "expected a pattern")):
        with pytest.raises(MissingError, match=says):
            find(str(tmp_path / word))
    found = find(str(small["africa"]))
    with pytest.raises(InputError, match="54 pictures are named twice"):
        export.export(encoder, [found, found], tmp_path / "out.parquet")
    with pytest.raises(InputError, match=r"expected a file \.parquet or \.npz, found \.csv"):
        export.export(encoder, [found], tmp_path / "out.csv")
    (small["africa"] / "Ghana" / "half.png").write_bytes(b"\x89PNG nothing")
    (small["africa"] / "Ghana" / ".hidden.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 55 pictures cannot be read, the first: .*half\.png"):
        find(str(small["africa"]))
    with pytest.raises(InputError, match="expected picture files"):
        embed_images(encoder, [])
    assert not list(tmp_path.glob("out.*"))


def command(small, tmp_path):
    words = [sys.executable, "-m", "fpbench.cli", "embed", MINI, str(small["spain"]), "--weights", "random"]
    return [*words, "--batch-size", "1", "--out", str(tmp_path / "out.parquet")]


def test_a_killed_run_goes_on_and_gives_the_same_bits(small, encoder, tmp_path):
    threads = torch.get_num_threads()
    environment = {**os.environ, "FPBENCH_CACHE": str(tmp_path / "killed"), "OMP_NUM_THREADS": "1"}
    shards = tmp_path / "killed" / "embeddings"
    process = subprocess.Popen(
        command(small, tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while process.poll() is None and len(list(shards.glob("*.shards/*.npy"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "out.parquet").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.shards/*.npy")}
    assert 2 <= len(kept) < 9
    done = subprocess.run(command(small, tmp_path), env=environment, capture_output=True, text=True, check=True)
    assert "144 pictures, " in done.stdout
    assert not list(shards.glob("*.shards"))
    resumed, _ = vectors(tmp_path / "out.parquet")
    torch.set_num_threads(1)  # as the command was told
    try:
        assert np.array_equal(embed_cohort(encoder, load_cohort("spain", small["spain"]), batch_size=1), resumed)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_600_real_images_have_the_embeddings_of_the_study(shared, tmp_path, monkeypatch):
    """The study's own, from a cache of its own; then the folders of the archives, from another."""
    from fpbench import load_study, loading

    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "study"))
    study = load_study("sample").begin()
    spec, encoder = study.encoder_spec("mobilenetv2-112"), loading.load_encoder(study, "mobilenetv2-112")
    home, external = loading.load_cohorts(study)
    expected = [embed_cohort(encoder, one, spec.batch_size, spec.bf16) for one in (home, *external)]
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "embed"))
    data = shared / "data"
    options = ["--study", "sample", "--out", str(tmp_path / "out.parquet")]
    done = CliRunner().invoke(app, ["embed", spec.name, str(data / "spain"), str(data / "africa"), *options])
    assert done.exit_code == 0, done.output
    assert "600 pictures, 1280 numbers each" in done.output
    got, _ = vectors(tmp_path / "out.parquet")
    assert np.array_equal(got, np.concatenate(expected))
