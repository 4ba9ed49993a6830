import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from fpbench import load_cohort, make_splits
from fpbench.cohorts import Cohort, spain
from fpbench.errors import InputError
from fpbench.splits import SCHEMES, balance, load_splits, prove_disjoint
from fpbench.tasks import TASKS, Task, get_task

PLANES = TASKS["planes"]


@pytest.fixture
def home(small):
    return load_cohort("spain", small["spain"])


@pytest.fixture(scope="module")
def real(shared):
    """The whole real table with made-up pixels: every image its own, but for one that crosses the published split."""
    frame = spain.read(shared / "data" / "spain" / spain.CSV).sort_values("image_id", ignore_index=True)
    frame["pixels"] = frame["image_id"]
    train = frame.index[(frame["official_split"] == "train") & (frame["plane"] == "femur")][0]
    test = frame.index[(frame["official_split"] == "test") & (frame["plane"] == "femur")][0]
    frame.loc[train, "pixels"] = frame.loc[test, "pixels"]
    from fpbench.cohorts import group_patients

    frame.insert(3, "group", group_patients(frame["patient"], frame["pixels"]))
    return Cohort(spain.SOURCE, frame), frame.loc[train, "patient"]


@pytest.mark.parametrize("task", ["planes", "brain_planes"])
@pytest.mark.parametrize("scheme", SCHEMES[:2])
def test_no_test_group_is_in_a_set_that_influences_a_choice(real, task, scheme):
    cohort, _ = real
    splits = make_splits(cohort, get_task(task), scheme)
    assert not prove_disjoint(splits, cohort).iloc[:, 2:].to_numpy().any()
    frame, tested = cohort.frame, []
    for number in range(5):
        fold = splits.fold(number)
        groups = [set(frame["group"].iloc[rows]) for rows in (fold.train, fold.validation, fold.test)]
        assert all(groups)
        assert not groups[0] & groups[1]
        assert not groups[2] & (groups[0] | groups[1])
        tested.append(frozenset(fold.test))
        for rows in (fold.train, fold.validation, fold.test):
            assert set(frame[get_task(task).label].iloc[rows]) == set(get_task(task).classes)
    if scheme == "official":
        assert len(set(tested)) == 1
        expected = (frame["official_split"] == "test") & frame[get_task(task).label].isin(get_task(task).classes)
        assert set(tested[0]) == set(np.flatnonzero(expected))
    else:
        assert (
            sum(map(len, tested))
            == len(frozenset.union(*tested))
            == frame[get_task(task).label].isin(get_task(task).classes).sum()
        )


def test_a_training_group_linked_to_a_test_group_is_dropped_and_counted(real):
    cohort, crossing = real
    splits = make_splits(cohort, PLANES, "official")
    dropped = splits.frame[splits.frame["part"] == "dropped"]
    assert set(dropped["patient"]) == {crossing}
    assert f"dropped: {len(dropped)} images, 1 patients (linked to a test patient" in splits.summary()
    assert "dropped" not in set(make_splits(cohort, PLANES, "crossval").frame["part"])


def test_folds_are_balanced(real):
    table = balance(make_splits(real[0], PLANES, "crossval"))
    shares = table[list(PLANES.classes)].div(table["images"], axis=0)
    assert (shares.max() - shares.min()).max() < 0.03
    assert table["patients"].max() / table["patients"].min() < 1.25


@pytest.mark.parametrize("scheme", SCHEMES[:2])
def test_the_order_of_rows_in_the_label_file_changes_no_fold(small, home, scheme):
    before = make_splits(home, PLANES, scheme, folds=4)
    path = small["spain"] / spain.CSV
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[::-1]]) + "\n")
    after = make_splits(load_cohort("spain", small["spain"]), PLANES, scheme, folds=4)
    pd.testing.assert_frame_equal(before.frame, after.frame)
    assert before.digest() == after.digest()


def test_another_seed_cuts_otherwise_and_the_same_seed_the_same(home):
    cuts = [make_splits(home, PLANES, "crossval", 4, seed).digest() for seed in (0, 0, 1)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_crossval_validates_on_the_next_fold(home):
    splits = make_splits(home, PLANES, "crossval", 4)
    for number in range(4):
        assert np.array_equal(splits.fold(number).validation, splits.fold((number + 1) % 4).test)
        assert len(splits.fold(number).train) == len(home) - len(splits.fold(number).test) - len(
            splits.fold(number).validation
        )


@pytest.mark.parametrize("column", ["patient", "group", "pixels"])
def test_a_leak_is_an_error(home, column):
    splits = make_splits(home, PLANES, "crossval", 4)
    fold, frame = splits.fold(0), home.frame.copy()
    frame.loc[fold.train[0], column] = frame.loc[fold.test[0], column]
    with pytest.raises(InputError, match="expected disjoint parts"):
        prove_disjoint(splits, replace(home, frame=frame))


def test_a_training_image_in_an_external_cohort_is_a_leak(home, small):
    other = load_cohort("africa", small["africa"])
    splits = make_splits(home, PLANES, "crossval", 4)
    prove_disjoint(splits, home, (other,))
    frame = other.frame.copy()
    frame.loc[0, "pixels"] = home.frame["pixels"].iloc[splits.fold(0).train[0]]
    with pytest.raises(InputError, match="africa"):
        prove_disjoint(splits, home, (replace(other, frame=frame),))


def test_too_few_patients_say_which_class_and_how_many(home):
    few = home.select(
        (home.frame["plane"] != "femur")
        | home.frame["patient"].isin(home.frame["patient"][home.frame["plane"] == "femur"].unique()[:2])
    )
    with pytest.raises(InputError, match="4 folds need at least 4 patient groups of every class; found femur 2"):
        make_splits(few, PLANES, "crossval", 4)
    with pytest.raises(InputError, match="unknown split"):
        make_splits(home, PLANES, "random")
    with pytest.raises(InputError, match="at least 3"):
        make_splits(home, PLANES, "crossval", 2)


def test_a_saved_cut_is_read_back_and_refused_for_other_images(home, tmp_path):
    splits, path = make_splits(home, PLANES, "official", 4), tmp_path / "splits.csv"
    splits.save(path)
    again = load_splits(path, home)
    assert again.digest() == splits.digest()
    assert pd.read_csv(path).columns.tolist() == ["image_id", "patient", "group", "label", "part"]
    with pytest.raises(InputError, match="other images"):
        load_splits(path, home.select(np.arange(len(home)) > 0))
    path.write_text(path.read_text().replace("fold1", "fold2", 1))
    with pytest.raises(InputError, match="damaged"):
        load_splits(path, home)


def test_adding_a_task_needs_no_other_module(home, monkeypatch):
    monkeypatch.setitem(
        TASKS,
        "machines",
        Task("machines", "official_split", ("train", "test"), train="spain"),
    )
    splits = make_splits(home, get_task("machines"), "crossval", 4)
    assert set(splits.frame["label"]) == {"train", "test"}
    with pytest.raises(InputError, match="unknown task"):
        get_task("nothing")


def made_up(rng: np.random.Generator) -> tuple[Cohort, Task, int]:
    """A cohort of few patients with several classes each, as a hospital has them; also the fewest groups of a class."""
    classes, groups, rows = int(rng.integers(2, 7)), int(rng.integers(5, 40)), []
    for group in range(groups):
        count = int(rng.integers(1, 12))
        drawn = rng.choice(classes, count, p=rng.dirichlet(np.ones(classes) / 2))
        rows += [(f"g{group:02d}/{n}", f"g{group:02d}", f"c{k}") for n, k in enumerate(drawn)]
    frame = pd.DataFrame(rows, columns=["image_id", "patient", "plane"])
    frame = frame.assign(group=frame["patient"], pixels=frame["image_id"], official_split=None)
    task = Task("made up", "plane", tuple(f"c{k}" for k in range(classes)), train="spain")
    fewest = frame.groupby("plane")["group"].nunique().reindex(task.classes, fill_value=0).min()
    return Cohort(spain.SOURCE, frame), task, int(fewest)


def test_the_cut_that_left_a_fold_without_a_class_is_cut_with_the_next_seed():
    cohort, task, fewest = made_up(np.random.default_rng(12))
    assert fewest >= 5
    labels, groups = cohort.frame["plane"].to_numpy(str), cohort.frame["group"].to_numpy(str)
    cutter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    plain = [set(labels[held_out]) for _, held_out in cutter.split(labels, labels, groups)]
    assert set(task.classes) - plain[2] == {"c4"}  # what was returned before, without a word
    splits = make_splits(cohort, task, "crossval", 5, 0)
    assert f"cut with seed {splits.seed}: seed 0 leaves fold2 without c4; cut by the rarest" in splits.summary()
    assert make_splits(cohort, task, "crossval", 5, 0).digest() == splits.digest()


def test_every_part_of_every_fold_holds_every_class_or_the_cut_fails():
    cut, other, failed = 0, 0, []
    for number in range(120):
        cohort, task, fewest = made_up(np.random.default_rng(number))
        try:
            splits = make_splits(cohort, task, "crossval", 5, 0)
        except InputError as error:
            failed.append((r"c\d \d" if fewest < 5 else r"fold\d without c\d", str(error)))
            continue
        assert fewest >= 5
        cut, other = cut + 1, other + bool(splits.why)
        for fold in map(splits.fold, range(5)):
            for rows in (fold.train, fold.validation, fold.test):
                assert set(cohort.frame["plane"].iloc[rows]) == set(task.classes)
    assert cut > 20
    assert other > 3
    assert failed
    assert all(re.search(pattern, text) for pattern, text in failed)


def test_as_many_groups_as_folds_of_one_class_each_cannot_be_cut_into_empty_folds():
    frame = pd.DataFrame({"image_id": [f"{n}" for n in range(10)], "patient": [f"p{n % 5}" for n in range(10)]})
    frame = frame.assign(group=frame["patient"], plane=["a", "b"] * 5, pixels=frame["image_id"], official_split=None)
    task = Task("two", "plane", ("a", "b"), train="spain")
    splits = make_splits(Cohort(spain.SOURCE, frame), task, "crossval", 5)
    assert all(len(splits.fold(n).test) == 2 for n in range(5))
    with pytest.raises(InputError, match="no test part: write `split: crossval`"):
        make_splits(Cohort(spain.SOURCE, frame), task, "official", 5)


def test_a_published_test_part_without_a_class_is_refused(home):
    frame = home.frame.assign(
        official_split=home.frame["official_split"].where(home.frame["plane"] != "femur", "train")
    )
    with pytest.raises(InputError, match="no image of femur: write `split: crossval`"):
        make_splits(Cohort(spain.SOURCE, frame), PLANES, "official", 4)
