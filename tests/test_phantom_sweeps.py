"""The phantom of blind sweeps: the quirks of the real table, planes where the seed says, masks that are what is drawn."""

import csv
import hashlib
import re
import uuid
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from fpbench.cohorts import SOURCES, acouslic, phantoms
from fpbench.cohorts.phantoms import passes, sweeps
from fpbench.cohorts.source import check_counts
from fpbench.errors import InputError
from fpbench.images import decoding

COHORT = sweeps.stacks(6)
REAL = np.array([237, 135, 90, 31, 47, 13]) / 300  # annotated sweeps of the archive


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The smallest cohort, drawn; its manifest and its stacks."""
    root = tmp_path_factory.mktemp("phantom") / "acouslic"
    return root, phantoms.ensure(root, "acouslic", 3, 5, frames=10), sweeps.stacks(3, 5, 10)


def annotated(cohort):
    return [sweep for stack in cohort for sweep in stack.sweeps if sweep.annotated]


def runs(values):
    """The runs of frames with a plane, each a tuple of its values."""
    return [tuple(group) for usable, group in groupby(values, bool) if usable]


# ---- what the seed decides --------------------------------------------------------------------------------------------


def test_sweeps_are_annotated_as_often_as_the_real_ones():
    many = sweeps.stacks(1, 600)
    shares = [np.mean([stack.sweeps[number].annotated for stack in many]) for number in range(6)]
    assert np.abs(shares - REAL).max() < 0.06
    assert sum(shares) == pytest.approx(1.84, abs=0.12)
    assert all(any(sweep.annotated for sweep in stack.sweeps) for stack in many)


def test_some_subjects_have_two_stacks_in_neighbouring_rows():
    for cohort, twice in ((COHORT, 4), (sweeps.stacks(0, 5), 1), (sweeps.stacks(0, 300), 19)):
        rows = defaultdict(list)
        for row, stack in enumerate(cohort):
            rows[stack.subject].append(row)
        assert Counter(map(len, rows.values())) == {1: len(cohort) - 2 * twice, 2: twice}
        assert all(pair[-1] - pair[0] == len(pair) - 1 for pair in rows.values())


def test_runs_are_short_ordered_early_and_rarely_two():
    found = [runs(sweep.shown) for sweep in annotated(COHORT)]
    assert all(1 <= len(run) <= sweeps.FRAMES // 5 for of in found for run in of)
    assert all(re.fullmatch("2*1*2*", "".join(map(str, run))) for of in found for run in of)
    assert Counter(map(len, found)).keys() == {1, 2}
    assert sum(len(of) == 2 for of in found) == 3
    places = [np.mean(np.flatnonzero(sweep.shown)) / sweeps.FRAMES for sweep in annotated(COHORT)]
    assert 0.3 < np.median(places) < 0.5
    assert np.std(places) > 0.12


def test_some_stacks_lack_optimal_some_sub_optimal_frames_and_one_a_mask():
    shown = [{value for sweep in stack.sweeps for value in sweeps.labels(sweep)} - {0} for stack in COHORT]
    assert Counter(map(frozenset, shown))[frozenset()] == 1
    assert {frozenset({1}), frozenset({2}), frozenset({1, 2})} < set(map(frozenset, shown))
    (empty,) = (stack for stack, values in zip(COHORT, shown, strict=True) if not values)
    assert [sweep.annotated for sweep in empty.sweeps] == [True] + [False] * 5
    assert any(any(s.shown) and not s.annotated and not any(sweeps.labels(s)) for stack in COHORT for s in stack.sweeps)


def test_the_counts_are_the_sources_and_say_how_rare_a_plane_is():
    assert SOURCES["phantom-acouslic"].counts == (counts := sweeps.counts(COHORT))
    assert counts["total"]["images"] == sweeps.FRAMES * len(annotated(COHORT))
    assert counts["total"]["patients"] == 56
    assert sum(counts["quality"].values()) == sum(counts["usable"].values()) == counts["total"]["images"]
    assert 0.06 < counts["usable"]["plane"] / counts["total"]["images"] < 0.14
    assert 0.25 < counts["optimal"]["optimal"] / counts["usable"]["plane"] < 0.55


def test_too_few_stacks_or_frames_are_refused(tmp_path):
    for wrong in ({"patients": 4}, {"frames": 9}):
        with pytest.raises(InputError, match="expected 5 stacks of 10 frames a sweep or more"):
            phantoms.ensure(tmp_path / "acouslic", "acouslic", **wrong)


# ---- files ------------------------------------------------------------------------------------------------------------


def test_the_table_has_the_quirks_of_the_real_one(drawn):
    root, _, cohort = drawn
    text = (root / sweeps.TABLE).read_bytes().decode("ascii")
    assert text.count("\r\n") == text.count("\n") == 6
    head, *rows = csv.reader(text.splitlines())
    assert head == ["uuid", "subject_id", *(f"sweep_{number}_ac_mm" for number in range(1, 7))]
    assert [row[0] for row in rows] == [stack.name for stack in cohort]
    assert all(uuid.UUID(row[0]).version == 4 and str(uuid.UUID(row[0])) == row[0] for row in rows)
    assert rows[0][1] == "000"
    cells = [cell for row in rows for cell in row[2:]]
    assert "" in cells
    assert all(cell == "" or (150 < float(cell) < 350 and len(cell.partition(".")[2]) > 9) for cell in cells)


def test_simpleitk_reads_stacks_and_masks_and_writes_the_same_header(drawn, tmp_path):
    itk = pytest.importorskip("SimpleITK")
    root, _, cohort = drawn
    for stack in cohort:
        picture, mask = (
            itk.ReadImage(str(root / folder / f"{stack.name}.mha")) for folder in (sweeps.IMAGES, sweeps.MASKS)
        )
        assert picture.GetSize() == mask.GetSize() == (186, 140, 60)
        assert picture.GetSpacing() == mask.GetSpacing() == (1.12,) * 3
        values = itk.GetArrayFromImage(mask)
        assert [sorted({*np.unique(frame)} - {0}) for frame in values] == [
            [value] if value else [] for sweep in stack.sweeps for value in sweeps.labels(sweep)
        ]
    fresh = itk.GetImageFromArray(values)
    fresh.SetSpacing(mask.GetSpacing())
    itk.WriteImage(fresh, str(tmp_path / "again.mha"), True)
    header, again = (
        re.sub(rb"(Size|Spacing) = .*", b"", path.read_bytes().partition(b"LOCAL\n")[0])
        for path in (root / sweeps.MASKS / f"{stack.name}.mha", tmp_path / "again.mha")
    )
    assert header == again


def test_the_reader_of_the_archive_reads_it_and_finds_its_counts(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    root, manifest, cohort = drawn
    rows = acouslic.read(root / sweeps.TABLE)
    source = SOURCES["phantom-acouslic"]
    check_counts(rows, replace(source, counts=manifest["counts"]), root)
    assert rows["quality"].tolist() == [sweeps.QUALITY[v] for sweep in annotated(cohort) for v in sweeps.labels(sweep)]
    area = rows.loc[rows["usable"] == "plane", "area"]
    assert 0.05 < area.min() <= area.median() < 0.2


def test_a_mask_is_the_ellipse_whose_circumference_is_in_the_table(drawn):
    root, _, cohort = drawn
    seen = 0
    for stack in cohort:
        masks = np.stack(list(decoding.frames(root / sweeps.MASKS / f"{stack.name}.mha"))).reshape(6, 10, 140, 186) > 0
        for sweep, frames in zip(stack.sweeps, masks, strict=True):
            for frame in frames[frames.any(axis=(1, 2))]:
                axes = 2 * np.sqrt(np.linalg.eigvalsh(np.cov(np.argwhere(frame).T))) * sweeps.SPACING  # of an ellipse
                assert sweep._replace(axes=tuple(axes)).circumference == pytest.approx(sweep.circumference, rel=0.04)
                seen += 1
    assert seen > 5


def test_same_seed_same_bytes_and_a_lost_file_is_drawn_again(drawn, tmp_path):
    def tree(root):
        return {path.relative_to(root): hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.*")}

    root, manifest, cohort = drawn
    again = tmp_path / "again"
    assert phantoms.ensure(again, "acouslic", 3, 5, frames=10) == manifest
    assert tree(again) == tree(root)
    assert phantoms.is_drawn(again, "acouslic", seed=3, patients=5, frames=10)
    assert not phantoms.is_drawn(again, "acouslic", seed=4, patients=5, frames=10)
    (again / sweeps.MASKS / f"{cohort[0].name}.mha").unlink()
    assert not phantoms.is_drawn(again, "acouslic", seed=3, patients=5, frames=10)


# ---- pictures ---------------------------------------------------------------------------------------------------------


def dark_share(shown):
    """How much of the abdomen is black, mean over sweeps whose middle frames show that."""
    shares = []
    for seed in range(6):
        sweep = sweeps.Sweep(1, (0,) * 4 + (shown,) * 2 + (0,) * 4, (38.0, 35.0), True, True)
        pictures, masks = passes.draw_sweep((seed, "test"), sweep)
        shares += [np.mean(pictures[k][masks[k] > 0] < 12) for k in (4, 5)]
    return np.mean(shares)


def test_optimal_frames_show_more_of_the_marks_than_sub_optimal_ones():
    optimal, lesser = dark_share(sweeps.OPTIMAL), dark_share(sweeps.SUB_OPTIMAL)
    assert optimal > 1.3 * lesser


def test_neighbours_are_alike_and_speckle_is_new():
    sweep = COHORT[1].sweeps[0]
    pictures, _ = passes.draw_sweep(COHORT[1].key, sweep._replace(annotated=True))
    values = pictures.reshape(len(pictures), -1).astype(float)
    near = np.mean([np.corrcoef(values[k], values[k + 1])[0, 1] for k in range(19)])
    far = np.mean([np.corrcoef(values[k], values[k + 10])[0, 1] for k in range(10)])
    assert far + 0.03 < near < 0.99
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_every_frame_says_phantom():
    pictures, _ = passes.draw_sweep(COHORT[0].key, COHORT[0].sweeps[5])
    corners = {picture[-12:-1, 1:44].tobytes() for picture in pictures}
    assert len(corners) == 1
    assert sum(value > 50 for value in corners.pop()) > 40
