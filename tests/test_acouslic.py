"""Blind sweeps: an archive with the real set's frame runs is read as published, and whatever is wrong with one is an error."""

import ast
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Case, write_acouslic
from PIL import Image
from typer.testing import CliRunner

from fpbench import cohorts, images, loading, predictions
from fpbench.cli import app
from fpbench.cohorts import Cohort, acouslic, load_cohort
from fpbench.cohorts import audit as audits
from fpbench.cohorts.audit import audit
from fpbench.cohorts.source import check_counts, locate
from fpbench.errors import InputError, MissingError
from fpbench.images import Geometry, mha
from fpbench.splits import SHARED, conclusion, make_splits, prove_disjoint
from fpbench.study import CohortSpec, EncoderSpec, Study
from fpbench.tasks import get_task

SOURCE = acouslic.SOURCE
QUALITY = get_task("quality")
AC = ["187.123456789012345", "", "", "301.5", "", ""]  # of sweeps 1 and 4


def few() -> list[Case]:
    """Four cases of six sweeps of four frames; the first two are of one subject."""
    found = []
    for number, subject in enumerate(("000", "000", "01", "2")):
        quality = np.zeros(24, np.uint8)
        quality[[1, 2, 13]] = 2, 1, 2 - (number == 3)
        found.append(Case(f"0000000{number}-aaaa-4bbb-8ccc-dddddddddddd", subject, AC, quality))
    return found


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The small archive, registered with its own counts."""
    counts = {
        "total": {"images": 32, "patients": 3, "cases": 4, "sweeps": 8},
        "quality": {"optimal": 5, "sub-optimal": 7},
    }
    monkeypatch.setitem(cohorts.SOURCES, "acouslic", replace(SOURCE, counts=counts))
    return write_acouslic(tmp_path / "acouslic", few())


def table(root: Path) -> Path:
    return root / SOURCE.csv


# ---- the real set's statistics ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """300 cases with the frame runs of the real set; 281 made-up subjects, 19 of them with two neighbouring cases."""
    runs = pd.read_csv(shared / "data" / "acouslic" / "sweep_statistics.csv", dtype=str)
    cases, subject, rng = [], -1, np.random.default_rng(0)
    twice = {int(row) for row in rng.choice(np.arange(1, 300, 2), 19, replace=False)}
    for row, (uuid, *columns) in enumerate(runs[["filestem", "opt_seq", "subopt_seq"]].itertuples(index=False)):
        quality = np.zeros(840, np.uint8)
        for value, said in enumerate(columns, 1):
            for first, last in ast.literal_eval(said):
                quality[first : last + 1] = value
        there = quality.reshape(6, 140).any(axis=1)
        there[0] |= not there.any()  # the case whose mask is empty has an AC
        subject += row not in twice
        cells = [f"{rng.uniform(155, 350):.15f}" if one else "" for one in there]
        cases.append(Case(uuid, f"{subject:03d}", cells, quality))
    return write_acouslic(tmp_path_factory.mktemp("real") / "acouslic", cases)


@pytest.fixture(scope="module")
def rows(real):
    """Its rows, read once, and again from the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPBENCH_RESULTS", str(real.parent / "results"))
        patch.setattr(os, "fsync", lambda handle: None)  # 1,200 waits for the disk, where every file is written anew
        acouslic.read(table(real))
        began = time.process_time()
        frame = acouslic.read(table(real))
        assert time.process_time() - began < 0.02 * 300
    return frame


def test_the_real_runs_give_the_published_counts(real, rows, monkeypatch):
    monkeypatch.setenv("FPBENCH_RESULTS", str(real.parent / "results"))
    frame = rows
    check_counts(frame, SOURCE, real)
    positive = frame["usable"] == "plane"
    assert (positive.sum(), (frame["optimal"] == "optimal").sum()) == (6605, 2141)
    assert round(100 * positive.mean(), 2) == 8.53
    per_sweep = frame.drop_duplicates(["case", "sweep"])["sweep"].value_counts()
    assert per_sweep.sort_index().tolist() == [237, 135, 90, 31, 47, 13]
    assert frame.groupby(["case", "sweep"]).size().eq(140).all()
    assert frame["position"].max() == 139
    sweeps = acouslic.sweeps(table(real))
    assert (len(sweeps), sweeps["annotated"].sum(), sweeps["ac"].notna().sum()) == (1800, 553, 553)
    assert sweeps[sweeps["annotated"]]["runs"].value_counts().to_dict() == {1: 547, 2: 5, 0: 1}
    assert not sweeps.loc[~sweeps["annotated"], ["optimal", "sub-optimal"]].to_numpy().any()


@pytest.mark.parametrize("count", [("total", name) for name in ("images", "patients", "cases", "sweeps")] + [("quality", name) for name in acouslic.QUALITIES[1:]])  # fmt: skip
@pytest.mark.parametrize("by", [-1, 1])
def test_each_published_count_wrong_by_one_is_an_error(real, rows, count, by):
    column, value = count
    counts = {name: dict(values) for name, values in SOURCE.counts.items()}
    counts[column][value] += by
    with pytest.raises(
        InputError, match=rf"does not hold the published counts:\n  {column} {value}: expected .*\nIs the archive"
    ):
        check_counts(rows, replace(SOURCE, counts=counts), real)


# ---- what is read -----------------------------------------------------------------------------------------------------


def test_a_frame_of_the_cohort_is_a_frame_of_its_stack(archive):
    cohort = load_cohort("acouslic", archive)
    frame = cohort.frame
    assert list(frame.columns[:10]) == list(cohorts.COLUMNS)
    assert tuple(frame.columns[10:18]) == acouslic.FURTHER
    first = frame.iloc[0]
    assert first["image_id"] == "acouslic/00000000-aaaa-4bbb-8ccc-dddddddddddd/0000"
    assert (first["patient"], first["group"], first["case_row"], first["sweep"], first["position"]) == (
        "acouslic/000", "acouslic/000", 0, 1, 0,
    )  # fmt: skip
    assert frame["path"].iat[-1] == archive / "images/stacked_fetal_ultrasound" / f"{frame['case'].iat[-1]}.mha#15"
    assert frame["sweep"].tolist() == [1, 1, 1, 1, 4, 4, 4, 4] * 4
    assert frame["position"].tolist() == [0, 1, 2, 3] * 8
    assert frame["quality"].tolist()[:8] == [
        "none",
        "sub-optimal",
        "optimal",
        "none",
        "none",
        "sub-optimal",
        "none",
        "none",
    ]
    assert frame["optimal"].tolist()[-8:] == ["not optimal"] * 2 + ["optimal"] + ["not optimal"] * 2 + ["optimal"] + ["not optimal"] * 2  # fmt: skip
    assert frame["area"].unique().tolist() == [0, 31 / 64]
    assert frame["patient"].nunique() == 3
    assert cohort.source.confounder == "centre"
    stack = first["path"].parent / "00000000-aaaa-4bbb-8ccc-dddddddddddd.mha"
    with open(stack, "rb") as handle:
        frames = list(mha.frames(handle, range(24)))
    squares = cohort.array(Geometry("squash", 8))
    assert np.array_equal(squares[:8], np.stack(frames)[[0, 1, 2, 3, 12, 13, 14, 15]])


def test_masks_lie_on_their_frames(archive):
    cohort = load_cohort("acouslic", archive)
    masks = cohort.masks(Geometry("squash", 8, "nearest"))
    assert masks.shape == (32, 8, 8)
    value = np.array([acouslic.QUALITIES[::-1].index(word) + 1 for word in cohort.frame["quality"]]) % 3
    assert np.array_equal(masks.max(axis=(1, 2)), value)
    assert np.allclose((masks > 0).mean(axis=(1, 2)), cohort.frame["area"])
    assert np.array_equal(cohort.masks(Geometry("squash", 16, "nearest")), masks.repeat(2, axis=1).repeat(2, axis=2))
    with pytest.raises(InputError, match="expected the interpolation nearest, found bicubic"):
        cohort.masks(Geometry("squash", 8))


def test_a_cohort_without_masks_says_so(small):
    with pytest.raises(InputError, match="africa has no masks"):
        load_cohort("africa", small["africa"]).masks(Geometry("squash", 8, "nearest"))


def test_a_mask_is_inflated_once(archive, monkeypatch):
    frame, counted = acouslic.read(table(archive)), Counter()
    frames = acouslic.decoding.frames
    monkeypatch.setattr(acouslic.decoding, "frames", lambda file: counted.update([file.parent.name]) or frames(file))
    pd.testing.assert_frame_equal(acouslic.read(table(archive)), frame)
    assert not counted
    mask = next((archive / "masks").glob("*/00000002*.mha"))
    mha.write(mask, np.zeros((24, 8, 8), np.uint8))
    assert (acouslic.read(table(archive))["quality"] != "none").sum() == 9
    assert counted == {"stacked_fetal_abdomen": 1}


@pytest.mark.parametrize(
    "moved",
    [
        {"images/stacked_fetal_ultrasound": "images/stacked-fetal-ultrasound", "masks/stacked_fetal_abdomen": "masks/stacked-fetal-abdomen"},
        {"masks/stacked_fetal_abdomen": "images/stacked_fetal_abdomen"},
        {"masks": "images/masks"},
    ],
)  # fmt: skip
def test_the_known_layouts_are_read(archive, moved):
    before = load_cohort("acouslic", archive)
    masks = before.masks(Geometry("squash", 8, "nearest"))
    for old, new in moved.items():
        (archive / old).rename(archive / new)
    cohort = load_cohort("acouslic", archive.parent)  # below a folder of any name
    assert cohort.fingerprint() == before.fingerprint()
    assert np.array_equal(cohort.masks(Geometry("squash", 8, "nearest")), masks)


def test_the_table_is_found_below_the_folder(archive, tmp_path):
    assert locate(tmp_path, SOURCE) == locate(archive, SOURCE) == archive
    with pytest.raises(MissingError, match=r"run 'fpbench fetch acouslic'"):
        locate(tmp_path / "nothing", SOURCE)


def test_what_nobody_annotated_is_in_the_table_of_sweeps_alone(archive):
    cases = few()
    cases[1].quality[:] = 0
    cases[1].quality[20] = 1  # of sweep 6, without an AC
    write_acouslic(archive.parent / "other", cases)
    sweeps = acouslic.sweeps(table(archive.parent / "other"))
    assert len(sweeps) == 24
    assert sweeps[sweeps["annotated"]].groupby("case").size().tolist() == [2] * 4
    own = sweeps[sweeps["case"] == cases[1].uuid].set_index("sweep")
    assert own["annotated"].tolist() == [True, False, False, True, False, False]
    assert own["optimal"].tolist() == [0, 0, 0, 0, 0, 1]
    frame = acouslic.read(table(archive.parent / "other"))
    assert set(frame["sweep"]) == {1, 4}
    assert len(frame) == 32


# ---- what is refused --------------------------------------------------------------------------------------------------

BAD_TABLES = {
    "uuid-twice": (lambda text: text + text.splitlines()[1] + "\r\n", r"the uuid 00000000.* stands twice in data row 5"),
    "no-ac": (lambda text: text + "ee,4,,,,,,\r\n", "no sweep has an AC in data row 5"),
    "ac-zero": (lambda text: text.replace("301.5", "0.0", 1), "expected mm above 0, or nothing, as sweep_4_ac_mm, found '0.0'"),
    "ac-word": (lambda text: text.replace("301.5", "nan", 1), "as sweep_4_ac_mm, found 'nan'"),
    "ac-minus": (lambda text: text.replace("301.5", "-3", 1), "found sweep_4_ac_mm '-3'"),
    "subject": (lambda text: text.replace(",01,", ",,"), "as subject_id, found ''"),
    "uuid": (lambda text: text.replace("00000003-", "../3-"), "as uuid, found '../3-"),
    "header": (lambda text: text.replace("sweep_6_ac_mm", "sweep_6"), "expected the columns uuid, subject_id, sweep_1_ac_mm"),
    "empty": (lambda text: text.splitlines()[0] + "\r\n", "expected a row for every stack, found none"),
    "stack-without-row": (lambda text: "".join(text.splitlines(True)[:-1]), "1 stacks of .* are in no row, the first is 00000003"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_in_a_sentence(archive, name):
    change, said = BAD_TABLES[name]
    table(archive).write_bytes(change(table(archive).read_bytes().decode()).encode())
    with pytest.raises(InputError, match=said) as caught:
        load_cohort("acouslic", archive)
    assert "\n" not in str(caught.value)


def changed(**values: int) -> np.ndarray:
    """A mask of 24 frames whose frame 2 has other values in two pixels."""
    mask = np.zeros((24, 8, 8), np.uint8)
    mask[2, 0, :2] = list(values.values())
    return mask


BAD_MASKS = {
    "value": (changed(a=1, b=3), "expected the values 0, 1 and 2, found 3 in frame 2"),
    "both": (changed(a=1, b=2), "frame 2 has optimal and sub-optimal pixels"),
    "shape": (np.zeros((24, 8, 9), np.uint8), "expected one shape of stack and mask, found 24 frames of 8 x 8 and 24 frames of 9 x 8"),
    "frames": (np.zeros((18, 8, 8), np.uint8), "found 24 frames of 8 x 8 and 18 frames of 8 x 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_bad_mask_is_refused_in_a_sentence(archive, name):
    array, said = BAD_MASKS[name]
    mask = next((archive / "masks").glob("*/00000001*.mha"))
    mha.write(mask, array)
    with pytest.raises(InputError, match=said) as caught:
        load_cohort("acouslic", archive)
    assert "00000001" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_that_are_no_six_sweeps_are_refused(archive):
    for file in archive.glob("*/*/00000001*.mha"):
        mha.write(file, np.zeros((23, 8, 8), np.uint8))
    with pytest.raises(InputError, match="expected six sweeps of as many frames, found 23 frames"):
        load_cohort("acouslic", archive)


def test_a_damaged_mask_is_refused_by_name(archive):
    mask = next((archive / "masks").glob("*/00000001*.mha"))
    mask.write_bytes(mask.read_bytes()[:-5])
    with pytest.raises(images.ImageError, match=r"00000001.*bytes behind the header"):
        load_cohort("acouslic", archive)


def test_what_is_not_there_is_named(archive):
    next((archive / "masks").glob("*/00000001*.mha")).unlink()
    with pytest.raises(MissingError, match=r"1 masks are not in .*stacked_fetal_abdomen, the first is 00000001"):
        load_cohort("acouslic", archive)
    (archive / "masks").rename(archive / "mask")
    with pytest.raises(
        MissingError, match="one of the folders masks/stacked_fetal_abdomen, masks/stacked-fetal-abdomen, images/"
    ):
        load_cohort("acouslic", archive)


def test_a_stack_that_is_not_there_is_missed_or_left_out(archive):
    next((archive / "images").glob("*/00000001*.mha")).unlink()
    with pytest.raises(MissingError, match="8 of 32 images of acouslic are not in"):
        load_cohort("acouslic", archive)
    cohort = load_cohort("acouslic", archive, missing="drop")
    assert (len(cohort), cohort.absent) == (24, 8)


def test_two_folders_of_one_kind_are_refused(archive):
    (archive / "images" / "stacked-fetal-ultrasound").mkdir()
    with pytest.raises(InputError, match="expected one folder stacked_fetal_ultrasound, found 2"):
        load_cohort("acouslic", archive)


# ---- who is linked, who trains ----------------------------------------------------------------------------------------


def blackened(root: Path, *uuids: str) -> None:
    """The first frame of some stacks is black, their second one is that of the first stack."""
    second = None
    for uuid in uuids:
        (file,) = root.glob(f"images/*/{uuid}*.mha")
        with open(file, "rb") as handle:
            frames = np.stack(list(mha.frames(handle, range(24))))
        frames[0] = 0
        second = frames[1].copy() if second is None else second
        frames[1] = second if uuid != uuids[-1] else frames[1]
        mha.write(file, frames)


def test_black_frames_link_no_subjects_and_equal_pictures_do(archive):
    blackened(archive, "00000001", "00000002", "00000003")
    cohort = load_cohort("acouslic", archive)
    groups = cohort.frame.groupby("case_row")["group"].unique().map(list).tolist()
    assert groups == [["acouslic/000"], ["acouslic/000"], ["acouslic/000"], ["acouslic/2"]]
    dark = cohort.frame["note"] == images.BLANK
    assert cohort.frame.loc[dark, "position"].tolist() == [0, 0, 0]
    assert cohort.frame["pixels"].nunique() == 32 - 2 - 1


def crossing() -> tuple[Cohort, dict[tuple[str, str], int]]:
    """300 cases of one annotated sweep of four frames, and how many of the subjects were planted on both sides of the published cut."""
    drawn = np.random.default_rng(9872398152123123767126).permutation(300)
    subject, planted = (
        [f"{row:03d}" for row in range(300)],
        {("train", "test"): 5, ("train", "validation"): 1, ("validation", "test"): 2},
    )
    part = {"train": list(drawn[:210]), "validation": list(drawn[210:240]), "test": list(drawn[240:])}
    for pair, count in planted.items():
        for _ in range(count):
            one, two = (part[name].pop() for name in pair)
            subject[two] = subject[one]
    rows = pd.DataFrame({"case_row": np.repeat(np.arange(300), 4), "position": list(range(4)) * 300, "sweep": 1})
    rows["case"] = [f"case-{299 - row:03d}" for row in rows["case_row"]]  # another order than the table's
    rows["image_id"] = "acouslic/" + rows["case"] + "/" + rows["position"].astype(str)
    rows["patient"] = ["acouslic/" + subject[row] for row in rows["case_row"]]
    rows["usable"] = np.where(rows["position"] == 2, "plane", "no plane")
    rows = rows.assign(group=rows["patient"], pixels=rows["image_id"], note="", official_split=None, centre=None)
    source = replace(SOURCE, counts={"total": {"cases": 300}})
    return Cohort(source, rows.sort_values("image_id", ignore_index=True)), planted


def test_the_published_cut_is_by_case_and_says_who_is_on_both_sides():
    cohort, planted = crossing()
    splits = make_splits(cohort.by_case(), QUALITY, "published", 1)
    fold = splits.fold(0)
    assert [len(rows) for rows in (fold.train, fold.validation, fold.test)] == [840, 120, 240]
    drawn = np.random.default_rng(9872398152123123767126).permutation([f"case-{299 - row:03d}" for row in range(300)])
    assert set(cohort.frame["case"].iloc[fold.train]) == set(drawn[:210])
    assert set(cohort.frame["case"].iloc[fold.test]) == set(drawn[240:])
    assert splits.on_both_sides() == planted
    said = "patients on both sides: train and validation 1, train and test 5, validation and test 2"
    assert f"cut by case, and cases are what is resampled; {said}" in splits.summary()
    proof = prove_disjoint(splits, cohort.by_case()).set_index("parts")
    assert proof["shared groups"].eq(0).all()
    told = "train / test 5 shared patients, 0 shared groups, 0 shared images"
    assert told in conclusion(prove_disjoint(splits, cohort.by_case()))
    assert proof["shared patients"].to_dict() == {" / ".join(pair): count for pair, count in planted.items()}


def test_the_published_cut_proves_that_no_case_is_on_both_sides():
    cohort, _ = crossing()
    splits = make_splits(cohort.by_case(), QUALITY, "published", 1)
    wrong = splits.frame["part"].to_numpy(copy=True)
    wrong[splits.fold(0).test[0]] = "train"
    with pytest.raises(InputError, match=r"expected disjoint parts, found overlaps"):
        prove_disjoint(replace(splits, frame=splits.frame.assign(part=wrong)), cohort.by_case())


def test_predictions_of_the_published_cut_have_the_case_as_group():
    cohort, _ = crossing()
    for grouped, refused in ((cohort.by_case(), False), (cohort, True)):
        fold = make_splits(cohort.by_case(), QUALITY, "published", 1).fold(0)
        said = {"fold": 0, "encoder": "e", "protocol": "logistic", "n_patients": 1, "seed": 0}
        parts = [
            predictions.rows(grouped, QUALITY, rows, np.zeros((len(rows), 2)), split=name, **said)
            for name, rows in (("val", fold.validation), ("test", fold.test))
        ]
        if refused:
            with pytest.raises(InputError, match="is in validation and test of one fold"):
                predictions.validate(pd.concat(parts, ignore_index=True), QUALITY, "here")
        else:
            predictions.validate(pd.concat(parts, ignore_index=True), QUALITY, "here")


def test_what_the_published_cut_needs_is_said():
    cohort, _ = crossing()
    with pytest.raises(InputError, match=r"by case: expected `Cohort.by_case\(\)`"):
        make_splits(cohort, QUALITY, "published", 1)
    with pytest.raises(InputError, match="one fold: expected `folds: 1`, found 5"):
        make_splits(cohort.by_case(), QUALITY, "published", 5)
    less = cohort.by_case().select(cohort.frame["case_row"] != 299)
    with pytest.raises(InputError, match="draws among all cases: expected 300, found 299"):
        make_splits(less, QUALITY, "published", 1)
    none = cohort.frame.assign(usable="no plane")
    with pytest.raises(InputError, match="published train part of acouslic has no image of plane"):
        make_splits(replace(cohort, frame=none).by_case(), QUALITY, "published", 1)


def test_no_subject_crosses_a_fold(real, rows):
    """Of the archive with the real runs, whose 19 subjects have two cases."""
    frame = rows.assign(group=rows["patient"], pixels=rows["image_id"], note="").sort_values(
        "image_id", ignore_index=True
    )
    cohort = Cohort(SOURCE, frame)
    for task in (QUALITY, get_task("quality_optimal")):
        splits = make_splits(cohort, task, "crossval", 5)
        assert not prove_disjoint(splits, cohort)[list(SHARED)].to_numpy().any()
        sides = splits.frame.groupby("patient")["part"].nunique()
        assert (len(sides), sides.max()) == (281, 1)
    assert frame.drop_duplicates("case").groupby("patient").size().value_counts().to_dict() == {1: 262, 2: 19}


@pytest.mark.parametrize(
    ("split", "folds", "fits"), [("published", 1, True), ("published", 5, False), ("crossval", 1, False)]
)
def test_one_fold_is_for_the_published_split_alone(archive, split, folds, fits):
    def study() -> Study:
        specs = (
            [CohortSpec("acouslic", root=str(archive))],
            [EncoderSpec("one", "timm:mobilenetv3_small_050", "random")],
        )
        return Study("quality", "Quality", *specs, task="quality", split=split, folds=folds)

    if not fits:
        with pytest.raises(
            InputError, match=f"split {split}, folds {folds}: expected 1 with published, more with any other"
        ):
            study()
        return
    home, external = loading.load_cohorts(study())
    assert not external
    assert home.frame["group"].nunique() == 4
    assert loading.load_cohorts(replace(study(), split="crossval", folds=5))[0].frame["group"].nunique() == 3


# ---- audit, keys, fetching --------------------------------------------------------------------------------------------


def test_the_audit_knows_sweeps(tmp_path, monkeypatch):
    cases = few()
    cases[0].quality[12:16] = 0  # sweep 4 has an AC and no mask
    cases[1].quality[20] = 1  # of sweep 6, without an AC
    root = write_acouslic(tmp_path / "acouslic", cases)
    blackened(root, "00000001", "00000002", "00000003")
    monkeypatch.setitem(cohorts.SOURCES, "acouslic", replace(SOURCE, counts={}))
    found = audit("acouslic", root)
    summary = found.summary()
    told = {name: summary[name] for name in ("files", "cases", "sweeps", "annotated sweeps")}
    assert told == {"files": 32, "cases": 4, "sweeps": 24, "annotated sweeps": 8}
    assert [summary[f"frames {word}"] for word in acouslic.QUALITIES] == [21, 6, 5]
    tables = found.tables()
    assert tables["sweep x quality (frames of annotated sweeps)"].loc[4].tolist() == [13, 2, 1]
    (lost,) = tables["AC without a mask (sweeps)"].itertuples()
    assert (lost.case, lost.sweep, lost.ac) == (cases[0].uuid, 4, 301.5)
    (unused,) = tables["mask without an AC (sweeps; nothing of it is used)"].itertuples()
    assert (unused.case, unused.sweep, unused.optimal) == (cases[1].uuid, 6, 1)
    assert CliRunner().invoke(app, ["audit", "acouslic", "--root", str(root)]).output.count("sweeps") >= 5
    assert f"3 pictures: {images.BLANK}" in str(found)


def test_near_duplicates_are_those_of_two_cases(tmp_path, monkeypatch):
    root = write_acouslic(tmp_path / "acouslic", few(), side=32)
    rng, files = np.random.default_rng(1), sorted(root.glob("images/*/*.mha"))
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 200, (24, 24), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    )
    with open(files[0], "rb") as first, open(files[2], "rb") as third:
        stacks = [np.stack(list(mha.frames(handle, range(24)))) for handle in (first, third)]
    for stack, places in zip(stacks, ([0, 1], [15]), strict=True):
        stack[places] = smooth[None] + rng.integers(0, 3, (len(places), 32, 32), np.uint8)
    mha.write(files[0], stacks[0])
    mha.write(files[2], stacks[1])
    monkeypatch.setitem(cohorts.SOURCES, "acouslic", replace(SOURCE, counts={}))
    found = audit("acouslic", root)
    ends = [tuple(name[-4:] for name in pair) for pair in found.near[["image", "copy"]].to_numpy()]
    assert sorted(ends) == [("0000", "0015"), ("0001", "0015")]  # and not the first two, of one sweep
    monkeypatch.setattr(audits, "NEAR_MOST", 1)
    fewer = audit("acouslic", root)
    assert (fewer.near_total, fewer.near["correlation"].tolist()) == (2, [found.near["correlation"].max()])


def test_the_key_of_a_cohort_holds_its_masks(archive):
    before = cohorts.pictures_in(cohorts.SOURCES["acouslic"], archive)
    assert len(before) == 8
    mask = next((archive / "masks").glob("*/00000001*.mha"))
    mha.write(mask, np.zeros((24, 8, 8), np.uint8))
    assert cohorts.pictures_in(cohorts.SOURCES["acouslic"], archive) != before


def test_a_study_of_quality_is_looked_at_by_the_first_notebook(archive):
    found = audit("acouslic", archive)
    assert audits.classes_table([found.cohort], QUALITY)["images"].tolist() == [20, 12]
    assert audits.sizes_table([found.cohort])["size"].tolist() == ["8 x 8"]
    examples = found.cohort.examples(QUALITY.label, QUALITY.classes)
    assert {name: len(pictures) for name, pictures in examples.items()} == {"no plane": 3, "plane": 3}
