"""What the embeddings know besides anatomy, and how many patients a probe needs: planted signals and their absence."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fpbench import load_study, loading, make_splits, predictions, results
from fpbench.analysis import efficiency as efficiency_read
from fpbench.analysis import shortcuts as read
from fpbench.cohorts import Cohort
from fpbench.files import artifacts
from fpbench.training import efficiency, embeddings, probing, shortcuts
from fpbench.training.bench import Bench
from fpbench.training.probes import logistic

ABOUT = {"name": "e", "fingerprint": {"dim": 2, "norm": 1.0, "values": [0.5] * 16, "digest": "a"}, "device": "cpu"}


@pytest.fixture(scope="module")
def cohorts(phantoms, session_cache):
    """The cohorts of the demo; nothing is embedded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPBENCH_DATA", str(phantoms))
        patch.setenv("FPBENCH_CACHE", str(session_cache))
        yield loading.load_cohorts(load_study("demo"))


def bench_of(cohorts, signal=None, seed=0, key=""):
    """A bench whose embeddings hold the class and, if asked for, a column of the cohort; the rest is noise."""
    study = load_study("demo")
    home, external = cohorts
    rng, seen = np.random.default_rng(seed), {}
    for cohort in (home, *external):
        columns = ["plane"] + ([signal] if signal else [])
        hot = [
            pd.get_dummies(cohort.frame[column]).reindex(columns=sorted(set(home.frame[column]))) for column in columns
        ]
        known = np.hstack([table.fillna(0).to_numpy(float) for table in hot])
        known[rng.random(len(cohort)) < 0.1] = 0  # a tenth says nothing, so that no score is perfect
        seen[cohort.name] = np.hstack([known, rng.normal(size=(len(cohort), 8))]).astype(np.float32)
    splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
    return Bench(
        study, study.the_task, "resnet50-mini", None, splits, home, external, seen, ABOUT, f"{signal}{seed}{key}"
    )


def test_a_planted_machine_is_read_and_noise_is_not(cohorts):
    knowing = read.knowledge(shortcuts.targets(bench_of(cohorts, "machine"))).set_index("asked")
    assert knowing.loc["spain: machine", "value"] > 0.85
    assert knowing.loc["spain: machine", "low"] > knowing.loc["spain: machine", "majority"]
    blind = read.knowledge(shortcuts.targets(bench_of(cohorts))).set_index("asked")
    assert abs(blind.loc["africa: centre", "balanced accuracy"] - blind.loc["africa: centre", "chance"]) < 0.12
    assert blind.loc["africa: centre", "low"] < 0.35
    assert blind.loc["spain: machine", "value"] < knowing.loc["spain: machine", "value"] - 0.2
    assert read.sentences(knowing.reset_index(), pd.DataFrame(columns=["population", "condition", "encoder", "value"]))[
        0
    ].startswith("spain: machine: read above guessing from 1 of 1 encoders")


def test_what_a_side_question_shares_with_the_others_is_computed_once(cohorts, monkeypatch):
    """Labels and the digest of the cut were made anew for every fold, the losses of the validation rows twice."""
    bench, asked = bench_of(cohorts), []
    losses = logistic.Path.losses
    monkeypatch.setattr(logistic.Path, "losses", lambda path, *rows: asked.append(len(rows[1])) or losses(path, *rows))
    files = probing.run_probe(bench, "logistic")
    assert len(asked) == len(files) == bench.study.folds
    chosen = artifacts.checked(files[0])["chosen"]
    assert chosen["loss"] == min(loss for _, loss in chosen["curve"])
    assert bench.labels is bench.labels
    assert bench.splits.digest() is bench.splits.digest()
    assert replace(bench, task=replace(bench.task, label="brain_plane")).labels is not bench.labels
    moved = bench.splits.frame.assign(part=bench.splits.frame["part"].replace({"fold0": "fold1", "fold1": "fold0"}))
    assert replace(bench.splits, frame=moved).digest() != bench.splits.digest()


def test_probes_that_choose_among_other_strengths_are_other_runs(cohorts):
    bench = bench_of(cohorts)
    fewer = replace(bench, strengths=bench.strengths[::3])
    assert len({bench.run_key, fewer.run_key, replace(bench, strengths=bench.strengths[::9]).run_key}) == 3
    files = probing.run_probe(fewer, "logistic", question="fewer")
    curve = artifacts.checked(files[0])["chosen"]["curve"]
    assert [strength for strength, _ in curve] == bench.strengths[::3].tolist()


def test_codes_are_those_of_the_values_in_whatever_they_come(cohorts):
    home, task = cohorts[0].frame, load_study("demo").the_task
    words = [*home["plane"][:50], None, "liver"]
    codes = [task.classes.index(word) if word in task.classes else -1 for word in words]
    for held in (
        words,
        tuple(words),
        pd.Series(words),
        np.array(words, object),
        pd.Series(words, dtype="category"),
        iter(words),
    ):
        assert task.codes(held) == codes


def test_targets_lie_apart_and_say_what_they_are(cohorts):
    bench = bench_of(cohorts)
    found = shortcuts.targets(bench)
    task, files = found["spain", "machine"]
    frame = predictions.read(files, task)
    assert set(frame["target"]) == {"machine"}
    assert len(files) == bench.study.folds
    assert not set(files) & set(results.files(bench.study))
    machine = cohorts[0].frame.set_index("image_id")["machine"]
    named = np.array(task.classes)[frame["y_true"]]
    assert (named == machine.loc[frame["image_id"]].to_numpy()).all()
    for _, rows in frame.groupby("fold"):
        sides = rows.groupby("split")["group"].unique()
        assert not set(sides["val"]) & set(sides["test"])


def test_a_machine_left_out_is_in_no_training_row_and_alone_in_the_test(cohorts, monkeypatch):
    seen = []
    true_run = shortcuts.run_probe
    monkeypatch.setattr(
        shortcuts,
        "run_probe",
        lambda bench, probe, folds, question: seen.append((question, folds)) or true_run(bench, probe, folds, question),
    )
    frame = shortcuts.without_each(bench_of(cohorts))
    machine = cohorts[0].frame["machine"].to_numpy()
    by_question = dict(seen)
    for name in frame["machine"].unique():
        slug = name.replace(" ", "-")
        for own, few in zip(by_question[f"without-it-{slug}"], by_question[f"as-few-images-{slug}"], strict=True):
            assert name not in machine[own.train]
            assert name in machine[few.train]
            assert set(machine[own.test]) == {name}
            assert len(own.train) == len(few.train) == len(set(few.train))
            assert not set(own.train) & set(own.test) | set(few.train) & set(few.validation)
    test = frame[frame["split"] == "test"]
    joined = test.merge(cohorts[0].frame[["image_id", "machine"]], on="image_id", suffixes=("", " there"))
    assert (joined["machine"] == joined["machine there"]).all()


def test_corners_are_black_and_the_rest_is_untouched():
    pictures = np.full((3, 50, 40), 200, np.uint8)
    for shape in (pictures, np.repeat(pictures[..., None], 3, axis=-1)):
        masked = embeddings.masked(shape, 0.2)
        dark = masked.reshape(3, 50, 40, -1).max(-1) == 0
        corners = np.zeros((50, 40), bool)
        corners[np.ix_([*range(10), *range(40, 50)], [*range(8), *range(32, 40)])] = True
        assert (dark == corners).all()
        assert (shape == 200).all()  # the cache is never written to
    assert embeddings.masked(pictures, 0.0) is pictures


def test_size_and_borders_are_what_they_say(cohorts):
    home, _ = cohorts
    values = shortcuts.borders(home)
    assert values.shape == (len(home), 11)
    assert np.exp(values[:, 0]) == pytest.approx(home.frame["width"].to_numpy(), rel=1e-5)
    assert values[:, 2] == pytest.approx((home.frame["width"] / home.frame["height"]).to_numpy(), rel=1e-5)
    pictures = home.array(shortcuts.BORDERS)
    assert values[:, 5] == pytest.approx((pictures < shortcuts.DARK).mean((1, 2)), abs=1e-5)
    assert values[:, 6] == pytest.approx(pictures[:, :13, :13].mean((1, 2)), rel=1e-4)


def test_size_and_borders_do_not_depend_on_the_encoder(cohorts):
    bench = bench_of(cohorts)
    one = predictions.read(shortcuts.without_anatomy(bench), bench.task)
    other = predictions.read(shortcuts.without_anatomy(replace(bench, encoder="f", key="other")), bench.task)
    pd.testing.assert_frame_equal(one, other)
    assert set(one["encoder"]) == {"size and borders"}


def test_the_masked_test_changes_answers_but_no_choice(cohorts, monkeypatch):
    bench = bench_of(cohorts)
    monkeypatch.setattr(shortcuts, "embed_cohort", lambda model, cohort, *rest: bench.embeddings[cohort.name] * 0)
    files = shortcuts.masked(bench)
    whole = probing.run_probe(bench, "logistic")
    for plain, tested in zip(whole, files["masked in the test"], strict=True):
        assert artifacts.checked(plain)["chosen"] == artifacts.checked(tested)["chosen"]
    answers = predictions.read(files["masked in the test"], bench.task)[bench.task.columns()].to_numpy()
    by_fold = predictions.read(files["masked in the test"], bench.task)["fold"].to_numpy()
    assert all(np.ptp(answers[by_fold == k], axis=0).max() < 1e-5 for k in range(5))  # every picture looks the same


def patients_by_hand(bench: Bench, cohort: Cohort, rows: np.ndarray) -> dict[str, set]:
    found = {}
    for row in rows:
        found.setdefault(cohort.frame["plane"].iat[row], set()).add(cohort.frame["group"].iat[row])
    return found


@pytest.mark.parametrize("size", [1, 4, 32])
def test_k_patients_per_class_are_k_patients_per_class(cohorts, size):
    bench, fold = bench_of(cohorts), bench_of(cohorts).splits.fold(1)
    there = patients_by_hand(bench, bench.home, fold.train)
    drawn = patients_by_hand(bench, bench.home, efficiency.draw(bench, fold, size, seed=3))
    assert {name: len(groups) for name, groups in drawn.items()} == {
        name: min(size, len(groups)) for name, groups in there.items()
    }
    assert all(drawn[name] <= there[name] for name in drawn)
    smaller = efficiency.draw(bench, fold, max(size // 2, 1), seed=3)
    assert set(smaller) <= set(efficiency.draw(bench, fold, size, seed=3))  # nested
    assert set(efficiency.draw(bench, fold, size, seed=3)) <= set(fold.train)
    if size < 32:
        assert set(efficiency.draw(bench, fold, size, seed=4)) != set(efficiency.draw(bench, fold, size, seed=3))


def test_more_patients_help_where_there_is_something_to_learn(cohorts):
    bench = bench_of(cohorts)
    files = efficiency.run(bench, [1, 8], draws=3)
    stamps = [path.stat().st_mtime_ns for path in files]
    assert [path.stat().st_mtime_ns for path in efficiency.run(bench, [1, 8], draws=3)] == stamps
    frame = predictions.read(files, bench.task)
    assert set(frame["seed"]) == {0, 1, 2}
    assert set(frame["protocol"]) == {"1 per class", "8 per class"}
    curves = efficiency_read.curves([frame], bench.task, resamples=50)
    one, eight = curves.query("population == 'spain' and classes == 'all classes' and duplicates == 'as published'")[
        "value"
    ]
    assert eight > one
    assert len(efficiency_read.sentences(curves)) == 3
    told = curves.dropna(subset="low")
    assert len(told) > 0
    assert (told["low"] <= told["value"]).all()


def test_test_labels_choose_nothing(cohorts):
    bench = bench_of(cohorts)
    files = efficiency.run(bench, [2], draws=2)
    frame = predictions.read(files, bench.task)
    home = bench.home.frame.copy()
    test = bench.splits.fold(0).test
    home.loc[test, "plane"] = np.random.default_rng(0).permutation(home.loc[test, "plane"])
    shuffled = replace(bench, home=replace(bench.home, frame=home), key="shuffled")
    again = predictions.read(efficiency.run(shuffled, [2], draws=2), bench.task)
    columns = ["image_id", "fold", "protocol", "seed", *bench.task.columns()]
    order = ["fold", "protocol", "seed", "population", "image_id"]
    pd.testing.assert_frame_equal(
        frame.sort_values(order)[columns].reset_index(drop=True),
        again.sort_values(order)[columns].reset_index(drop=True),
    )


def test_where_nothing_can_be_asked_the_table_is_empty_and_the_sentence_says_so():
    nothing = read.knowledge({})
    assert {"encoder", "asked", "value", "majority"} <= set(nothing)
    assert nothing.empty
    scored = pd.DataFrame(
        [("a", "home", "whole pictures", 0.8, 0.7), ("size and borders", "home", "size and borders", 0.3, 0.2)],
        columns=["encoder", "population", "condition", "value", "low"],
    )
    first, second = read.sentences(nothing, scored)
    assert first.startswith("Of no cohort more than one machine")
    assert "not above that: none." in second
