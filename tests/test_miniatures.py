"""The miniatures have learnt something: shipped, small, pinned, made again by one command."""

import os
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from fpbench import load_encoder
from fpbench.encoders import facts, miniatures
from fpbench.encoders.catalogue import PAPER as NAMES
from fpbench.errors import InputError
from fpbench.files import artifacts, paths


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(paths.home() / "tools" / "miniatures.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_miniature_is_shipped_small_and_pinned(name):
    encoder = load_encoder(f"{name}-mini")
    file = miniatures.FOLDER / f"{name}.safetensors"
    assert encoder.weights.source == "file"
    assert encoder.weights.file_sha256 == miniatures.pins()[name] == artifacts.file_sha256(file)
    assert file.stat().st_size <= 300_000
    assert encoder.weights.notes == (miniatures.NOTES[miniatures.CORPUS[name]],)
    assert encoder.weights.licence == miniatures.LICENCE
    assert facts([encoder])["saw spain"].tolist() == ["no"]
    other = load_encoder(f"{name}-mini", "random")
    assert other.weights.sha256 != encoder.weights.sha256


def test_the_four_of_ultrasound_saw_ultrasound_and_no_other():
    seen = {name for name, corpus in miniatures.CORPUS.items() if corpus == "ultrasound"}
    assert seen == {"fetalclip", "usfm", "mofo", "ultrasam"}
    assert set(miniatures.CORPUS) == set(miniatures.pins()) == set(NAMES)


def test_another_file_under_a_miniatures_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "usfm.safetensors").write_bytes((miniatures.FOLDER / "usfm.safetensors").read_bytes()[:-1] + b"x")
    monkeypatch.setattr(miniatures, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="expected SHA-256"):
        load_encoder("usfm-mini")


def test_an_encoder_of_ones_own_has_no_shipped_miniature():
    with pytest.raises(InputError, match="has no weights of its own"):
        miniatures.source("mine")


def test_textures_are_drawn_by_number_and_hold_no_two_alike(tool):
    some = tool["textures"](12)
    assert some.shape == (12, tool["SIDE"], tool["SIDE"])
    assert some.dtype == np.uint8
    assert np.array_equal(some[:5], tool["textures"](5))
    assert len({picture.tobytes() for picture in some}) == 12
    assert all(picture.std() > 5 for picture in some)


def test_phantoms_that_are_learnt_from_are_nobodys_of_a_study(tool):
    pictures, planes, halves = tool["ultrasound"]("squash", tool["DRAWN"][0], 2)
    again, *_ = tool["ultrasound"]("squash", 0, 2)
    assert len(pictures) == len(planes) == len(halves)
    assert not {picture.tobytes() for picture in pictures} & {picture.tobytes() for picture in again}
    assert len({0, tool["DRAWN"][0], tool["WATCHED"][0]}) == 3


def test_the_same_bits_twice(tool):
    pictures, threads = tool["textures"](64), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = [tool["learn"](load_encoder("usfm-mini", "random"), pictures, 0, epochs=2) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    start = load_encoder("usfm-mini", "random").module.state_dict()
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name
    moved = [name for name, tensor in runs[0].items() if not torch.equal(tensor, start.get(f"trunk.{name}", tensor))]
    assert len(moved) > 10


@pytest.mark.slow
def test_a_miniature_that_has_learnt_beats_the_same_one_that_has_not(tmp_path):
    """In linear probing on patients that neither has seen; and from ultrasound more than from textures."""
    environment = {**os.environ, "FPBENCH_RESULTS": str(tmp_path / "results")}
    target = str(tmp_path / "results" / "demo-origins" / "tables" / "table1.csv")
    command = [sys.executable, "-m", "fpbench.cli", "run", "demo-origins", "--", target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = pd.read_csv(tmp_path / "results" / "demo-origins" / "tables" / "comparisons.csv")
    home = pairs[pairs["population"].eq("spain") & pairs["classes"].eq("all classes")]
    gained = home[home["encoder"].eq("usfm-random")].set_index("other")
    assert (gained.loc[["usfm-ultrasound", "usfm-textures"], "high"] < 0).all(), gained
    assert home.set_index(["encoder", "other"]).loc[("usfm-textures", "usfm-ultrasound"), "high"] < 0, home
