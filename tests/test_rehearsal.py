"""The rehearsal's archives hold what the real ones do, and a study gives the same bytes however many jobs run at once."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fpbench.cohorts import africa, spain
from fpbench.cohorts.source import check_counts, check_rows
from fpbench.errors import InputError
from fpbench.files import paths

FOLDER = paths.home() / "benchmarks"


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import stand_in as module

    return module


@pytest.mark.parametrize("source", [spain.SOURCE, africa.SOURCE], ids=lambda one: one.name)
def test_made_up_labels_have_the_published_counts(stand_in, source, tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_SHARED", str(tmp_path / "none"))
    table = stand_in.labels(source)
    table.to_csv(tmp_path / source.csv, sep=";" if source is spain.SOURCE else ",", index=False)
    rows = source.read(tmp_path / source.csv, source.name)
    check_rows(rows, tmp_path / source.csv)
    counts = dict(source.counts)
    if source is africa.SOURCE:
        del counts["official_split"]  # every other patient
    check_counts(rows, replace(source, counts=counts), tmp_path / source.csv)
    assert counts.pop("total") == {"images": len(rows), "patients": rows["patient"].nunique()}
    for column, known in counts.items():
        assert rows[column].value_counts().to_dict() == known, column


def test_a_share_keeps_the_proportions_and_every_plane_of_every_half(stand_in):
    table = stand_in.made_up_spain()
    part = stand_in.thinned(table, 0.1)
    assert abs(len(part) - 1240) <= 12
    whole, some = (rows.groupby(["Train", "Plane"]).size() for rows in (table, part))
    assert (np.abs(some - whole / 10) <= 0.5).all()
    few = stand_in.thinned(table, 0.0001)
    assert (few.groupby(["Train", "Plane"]).size() == stand_in.LEAST).all()
    assert (few.groupby(["Train", "Plane"])["Patient_num"].nunique() == stand_in.LEAST).all()
    assert stand_in.thinned(table, 1.0) is table


def test_archives_are_drawn_once_in_the_true_layout_and_sizes(stand_in, tmp_path):
    held = stand_in.make(tmp_path / "archive", 1)
    assert held["spain"]["images"] == 12 * stand_in.LEAST
    for source in (spain.SOURCE, africa.SOURCE):
        folder = tmp_path / "archive" / source.name
        rows = source.read(folder / source.csv, source.name)
        assert {"images": len(rows), "patients": rows["patient"].nunique()} == held[source.name]
        for path, place in zip(rows["path"], rows["machine"].fillna(rows["centre"]), strict=True):
            with Image.open(folder / path) as picture:
                assert picture.size in [size[:2] for size in stand_in.SIZES[place]]
                assert picture.mode == ("RGB" if place == "Egypt" else "L")
    sizes = [path.stat().st_size for path in (tmp_path / "archive").rglob("*.png")]
    assert 0.1e6 < np.mean(sizes) < 0.25e6  # 12,850 of them: about 2 GB, as the real ones
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "archive").rglob("*.png")}
    assert stand_in.make(tmp_path / "archive", 1) == held
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "archive").rglob("*.png")} == drawn
    (tmp_path / "else").mkdir()
    with pytest.raises(InputError, match="holds something that is no stand-in"):
        stand_in.make(tmp_path / "else", 1)


def test_a_disk_without_room_is_refused_before_anything_is_drawn(stand_in, tmp_path):
    import rehearsal

    rehearsal.check_room(tmp_path, 100, ["usfm"], 1, 1024)
    with pytest.raises(InputError, match=r"GB free in .*smaller --largest"):
        rehearsal.check_room(tmp_path, 10**12, ["usfm"], 1, 1024)


@pytest.mark.slow
def test_a_rehearsal_measures_every_job_and_gives_the_same_bytes_with_one_job_and_with_two(tmp_path):
    command = [
        sys.executable,
        str(FOLDER / "rehearsal.py"),
        "--folder",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path / "r.json"),
    ]
    command += [
        "--pictures",
        "240",
        "--jobs",
        "1",
        "2",
        "--encoders",
        "resnet50",
        "usfm",
        "--largest",
        "224",
        "--epochs",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["predictions"] == {"files": told["predictions"]["files"], "same": True, "jobs": [1, 2]}
    assert told["predictions"]["files"] > 2 * 4 * 5  # encoders, probes, folds, and the side questions
    for workers in (1, 2):
        jobs = {
            one["case"].split(",")[0]: one
            for one in told["entries"]
            if one["key"].endswith("_job") and f"{workers} at once" in one["case"]
        }
        assert {"job 01_cohorts", "job 04_linear_probing.usfm-mini", "job 08_shortcuts", "job report"} <= set(jobs)
        assert all(one["ours"] > 0 for one in jobs.values())
        assert jobs["job 04_linear_probing.usfm-mini"]["value"] > 0.05
    assert not any(
        one["key"] in ("rehearsal", "rehearsal_memory") for one in told["entries"]
    )  # no goal is about a share
