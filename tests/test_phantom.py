"""Phantom cohorts: the bytes of the archives' layout, known duplicates, determinism, causes, crash safety."""

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from fpbench.cohorts import phantoms as phantom
from fpbench.cohorts.phantoms import drawing, facts, layout
from fpbench.errors import InputError
from fpbench.files import paths

REPOSITORY = paths.home()
SPAIN_COUNTS, AFRICA_COUNTS = (source.counts for source in phantom.SOURCES)
NUMBERS = {
    "Other": "1", "Fetal abdomen": "2", "Fetal brain": "3", "Maternal cervix": "4", "Fetal femur": "5", "Fetal thorax": "6",
}  # fmt: skip


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    return {
        "spain": (folder / "spain", phantom.ensure(folder / "spain", "spain", patients=6)),
        "africa": (folder / "africa", phantom.ensure(folder / "africa", "africa")),
    }


def tree(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def spanish_rows(root):
    return csv.DictReader((root / "FETAL_PLANES_DB_data.csv").read_text().splitlines(), delimiter=";")


def pixels(entry):
    return np.asarray(drawing.draw_plane(*entry.recipe)).astype(float)


def test_spanish_table_has_the_bytes_of_the_archive(cohorts):
    root, _ = cohorts["spain"]
    text = (root / "FETAL_PLANES_DB_data.csv").read_bytes().decode("ascii")
    lines = text.split("\n")
    assert lines[0] == "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "
    assert text.endswith("\n")
    assert "\r" not in text
    assert all(line.endswith((";1 ", ";0 ")) and line.count(";") == 6 for line in lines[1:-1])


def test_spanish_names_repeat_patient_and_plane_and_groups_are_complete(cohorts):
    root, _ = cohorts["spain"]
    groups = defaultdict(set)
    for row in spanish_rows(root):
        patient, plane, k, n = re.fullmatch(r"Patient(\d{5})_Plane(\d)_(\d+)_of_(\d+)", row["Image_name"]).groups()
        assert int(patient) == int(row["Patient_num"])
        assert plane == NUMBERS[row["Plane"]]
        assert (row["Brain_plane"] == "Not A Brain") == (row["Plane"] != "Fetal brain")
        assert (root / "Images" / f"{row['Image_name']}.png").is_file()
        groups[patient, plane, n].add(int(k))
    assert all(found == set(range(1, int(n) + 1)) for (_, _, n), found in groups.items())


def test_machine_fixes_size_and_operators_keep_to_their_machine():
    rows = [entry.row for entry in phantom.spain_entries()]
    assert {row[5] for row in rows if row[4] in ("Op. 1", "Op. 2")} == {"Voluson E6"}
    assert {row[5] for row in rows if row[4] == "Op. 3"} == {"Aloka"}
    assert {row[6] for row in rows if row[5] == "Voluson S10"} == {"0 "}
    other = [row[5] for row in rows if row[2] == "Other"]
    assert other.count("Aloka") > 0.6 * len(other)


def test_pictures_have_the_size_of_machine_and_centre(cohorts):
    root, _ = cohorts["spain"]
    for row in spanish_rows(root):
        with Image.open(root / "Images" / f"{row['Image_name']}.png") as picture:
            assert (picture.size, picture.mode) == (facts.MACHINES[row["US_Machine"]].size, "L")


def test_african_table_and_names(cohorts):
    root, _ = cohorts["africa"]
    lines = (root / "African_planes_database.csv").read_bytes().decode("ascii").split("\n")
    assert lines[0] == "Patient_num,Plane,Train,Center,Filename"
    assert lines[-1] == ""
    planes = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")
    for line in lines[1:-1]:
        patient, plane, train, centre, name = line.split(",")
        iso = facts.CENTRES[centre].iso
        assert name == f"patient{int(patient):03d}_{iso}_plane{planes.index(plane)}"
        assert train in "01"
        assert (root / centre / f"{name}.png").is_file()
        assert not (plane == "Fetal thorax" and centre in ("Ghana", "Uganda"))


def test_african_numbers_restart_in_every_centre():
    numbers = defaultdict(set)
    for entry in phantom.africa_entries():
        numbers[entry.row[3]].add(entry.row[0])
    assert numbers["Algeria"] & numbers["Malawi"]
    assert sum(map(len, numbers.values())) == 40 > len(set.union(*numbers.values()))


def test_only_egypt_is_in_colour_and_one_picture_truly(cohorts):
    root, _ = cohorts["africa"]
    coloured = 0
    for path in root.glob("*/*.png"):
        with Image.open(path) as picture:
            assert (picture.mode == "RGB") == (path.parent.name == "Egypt")
            assert picture.size == facts.CENTRES[path.parent.name].setting.size
            if picture.mode == "RGB":
                values = np.asarray(picture)
                coloured += bool((values != values[..., :1]).any())
    assert coloured == 1


@pytest.mark.parametrize("kind", ["spain", "africa"])
def test_planted_duplicates_are_exactly_those_found_by_hashing(cohorts, kind):
    root, manifest = cohorts[kind]
    same = defaultdict(list)
    for path in root.glob("*/*.png"):
        with Image.open(path) as picture:
            same[hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()].append(str(path.relative_to(root)))
    found = sorted(tuple(sorted(pair)) for copies in same.values() for pair in combinations(copies, 2))
    assert found == phantom.planted(root) == [tuple(pair) for pair in manifest["planted"]]
    assert len(found) >= 3


def test_one_spanish_pair_crosses_the_split_and_the_others_stay_within_a_patient():
    entries = {entry.path: entry for entry in phantom.spain_entries()}
    pairs = [(entry, entries[entry.copy]) for entry in entries.values() if entry.copy]
    across = [(a, b) for a, b in pairs if a.patient != b.patient]
    assert len(across) == 1
    assert {e.facts["official_split"] for e in across[0]} == {"train", "test"}
    assert all(a.row[2:6] == b.row[2:6] for a, b in pairs)
    assert len(pairs) > 5


def test_african_pairs_have_two_patients_of_one_centre_and_some_cross_the_split():
    entries = {entry.path: entry for entry in phantom.africa_entries()}
    pairs = [(entry, entries[entry.copy]) for entry in entries.values() if entry.copy]
    assert all(a.patient != b.patient and a.row[1] == b.row[1] and a.row[3] == b.row[3] for a, b in pairs)
    crossing = sum(a.row[2] != b.row[2] for a, b in pairs)
    assert 0 < crossing < len(pairs)


def test_counts_are_those_of_the_files_and_the_defaults_suffice_for_five_folds(cohorts):
    for root, manifest in cohorts.values():
        assert manifest["counts"]["total"]["images"] == len(list(root.glob("*/*.png")))
    assert SPAIN_COUNTS["total"]["patients"] == 120
    assert AFRICA_COUNTS["total"] == {"images": 144, "patients": 40}
    patients = defaultdict(set)
    for entry in phantom.spain_entries():
        if entry.facts["official_split"] == "train":
            patients[entry.row[2], entry.row[3]].add(entry.patient)
    assert len(patients) == 9
    assert min(map(len, patients.values())) >= 5


def test_same_seed_same_bytes_another_seed_others(cohorts, tmp_path):
    root, _ = cohorts["spain"]
    phantom.ensure(tmp_path / "again", "spain", patients=6)
    assert tree(tmp_path / "again") == tree(root)
    one, other = phantom.spain_entries(0)[0], phantom.spain_entries(1)[0]
    assert (pixels(one) != pixels(other)).any()


def test_some_planes_alone_are_those_of_the_whole_cohort():
    whole, some = layout.spain_entries(3, 40), layout.spain_entries(3, 40, "tvcb")
    brains = [entry for entry in whole if entry.facts["plane"] == "brain"]
    assert [(entry.path, entry.recipe, entry.copy) for entry in some] == [(e.path, e.recipe, e.copy) for e in brains]
    assert {entry.facts["plane"] for entry in layout.spain_entries(3, 40, "a")} == {"abdomen"}


def test_more_patients_change_no_image():
    few = {e.path: e for e in phantom.spain_entries(patients=20)}
    many = {e.path: e for e in phantom.spain_entries(patients=40)}
    assert all(many[path] == few[path] for path in few)
    few = {e.path: e for e in phantom.africa_entries(patients=8)}
    many = {e.path: e for e in phantom.africa_entries(patients=9)}
    assert all(many[path] == few[path] for path in few)


def test_threads_change_no_byte():
    import cv2

    entry, before = phantom.spain_entries()[8], cv2.getNumThreads()
    pictures = []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            pictures.append(pixels(entry))
    finally:
        cv2.setNumThreads(before)
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("cause", ["gain", "resolution", "marks"])
def test_a_cause_changes_its_fields_and_nothing_else(cause):
    without, alone = phantom.africa_entries(causes=frozenset()), phantom.africa_entries(causes=frozenset({cause}))
    for a, b in zip(without, alone, strict=True):
        assert a._replace(recipe=()) == b._replace(recipe=())
        assert (a.recipe[0], *a.recipe[2:]) == (b.recipe[0], *b.recipe[2:])
        changed = {field for field in vars(a.recipe[1]) if getattr(a.recipe[1], field) != getattr(b.recipe[1], field)}
        assert changed <= set(facts.CAUSE_FIELDS[cause])
    assert any(a.recipe[1] != b.recipe[1] for a, b in zip(without, alone, strict=True))


def test_gain_changes_the_brightness_and_marks_only_some_pixels():
    def first_of_ghana(*causes):
        return next(e for e in phantom.africa_entries(causes=frozenset(causes)) if e.row[3] == "Ghana")

    plain, gain, marks = first_of_ghana(), first_of_ghana("gain"), first_of_ghana("marks")
    assert pixels(gain).mean() < 0.8 * pixels(plain).mean()
    changed = pixels(marks) != pixels(plain)
    assert 0 < changed.mean() < 0.08


def test_prior_balances_planes_and_its_absence_follows_spain():
    def share(causes):
        planes = [entry.facts["plane"] for entry in phantom.africa_entries(patients=80, causes=frozenset(causes))]
        return {plane: planes.count(plane) / planes.count("brain") for plane in ("abdomen", "femur", "thorax")}

    spain = SPAIN_COUNTS["plane"]
    assert share({"prior"}) == {"abdomen": 1.0, "femur": 1.0, "thorax": 0.6}
    for plane, value in share(()).items():
        assert value == pytest.approx(spain[plane] / spain["brain"], abs=0.12)
    assert {e.recipe[0] for e in phantom.africa_entries(causes=frozenset())} >= set("tvc")


def test_every_picture_says_phantom_in_the_same_place(cohorts):
    corners = set()
    for root, _ in cohorts.values():
        for path in root.glob("*/*.png"):
            with Image.open(path) as picture:
                corners.add(np.asarray(picture.getchannel(0))[-12:-1, 1:44].tobytes())
    assert len(corners) == 1
    assert sum(value > 50 for value in corners.pop()) > 40


def test_ensure_reuses_and_rewrites_only_another_phantom(tmp_path):
    root = tmp_path / "africa"
    first = phantom.ensure(root, "africa", patients=1)
    stamp = (root / "phantom.json").stat().st_mtime_ns
    assert phantom.ensure(root, "africa", patients=1) == first == json.loads((root / "phantom.json").read_text())
    assert (root / "phantom.json").stat().st_mtime_ns == stamp
    phantom.ensure(root, "africa", seed=1, patients=1)
    assert json.loads((root / "phantom.json").read_text())["seed"] == 1
    next(root.glob("*/*.png")).unlink()
    phantom.ensure(root, "africa", seed=1, patients=1)
    assert len(list(root.glob("*/*.png"))) == first["counts"]["total"]["images"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "spain").mkdir()
    (tmp_path / "spain" / "FETAL_PLANES_DB_data.csv").write_text("mine")
    with pytest.raises(InputError, match="not a phantom"):
        phantom.ensure(tmp_path / "spain", "spain", patients=1)
    assert (tmp_path / "spain" / "FETAL_PLANES_DB_data.csv").read_text() == "mine"


def test_unknown_kind_and_cause_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected 'spain', 'africa' or 'acouslic'"):
        phantom.ensure(tmp_path / "x", "france")
    with pytest.raises(InputError, match="unknown causes"):
        phantom.ensure(tmp_path / "x", "africa", causes={"weather"})


def start(root):
    code = f"from fpbench.cohorts import phantoms; phantoms.ensure({str(root)!r}, 'africa', patients=1)"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def test_a_killed_writer_leaves_no_half_cohort(tmp_path):
    root = tmp_path / "africa"
    writer = start(root)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".africa.*.tmp/*/*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert list(tmp_path.glob(".africa.*.tmp"))
    assert not root.exists()
    phantom.ensure(root, "africa", patients=1)
    assert not list(tmp_path.glob(".africa.*.tmp"))
    phantom.ensure(tmp_path / "first", "africa", patients=1)
    assert tree(root) == tree(tmp_path / "first")


def test_two_writers_at_once_both_succeed(tmp_path):
    root = tmp_path / "africa"
    writers = [start(root), start(root)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert (
        len(list(root.glob("*/*.png"))) == json.loads((root / "phantom.json").read_text())["counts"]["total"]["images"]
    )
    assert not list(tmp_path.glob(".africa.*.tmp"))
