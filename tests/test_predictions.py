import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fpbench import load_cohort, predictions
from fpbench.analysis import calibration, claims, scoring, shift, statistics
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts
from fpbench.reporting import tables
from fpbench.tasks import TASKS, Task

TASK = TASKS["planes"]
PRINT = {"dim": 2, "norm": 1.0, "values": [0.5] * 16, "digest": "a"}
ABOUT = {"key": "k", "study": {}, "encoder": {"name": "e", "fingerprint": PRINT}, "chosen": {}, "provenance": {}}


@pytest.fixture
def frame(small):
    """Predictions of one model: validation rows at home, test rows at home and abroad."""
    home, africa = load_cohort("spain", small["spain"]), load_cohort("africa", small["africa"])
    rng, tables_ = np.random.default_rng(0), []
    run = {"fold": 0, "encoder": "e", "protocol": "logistic", "n_patients": 20, "seed": 0}
    patients = home.frame["patient"].to_numpy()
    for cohort, rows, split in (
        (home, np.flatnonzero(patients < "spain/00013"), "val"),
        (home, np.flatnonzero(patients > "spain/00036"), "test"),
        (africa, np.arange(len(africa)), "test"),
    ):
        y = np.array(TASK.codes(cohort.frame["plane"].iloc[rows]))
        tables_.append(
            predictions.rows(cohort, TASK, rows, rng.normal(size=(len(rows), 6)) + 2 * np.eye(6)[y], split=split, **run)
        )
    return pd.concat(tables_, ignore_index=True)


def test_write_read_round_trip_and_bytes(frame, tmp_path):
    for name in ("a", "b"):
        predictions.write(tmp_path / f"{name}.parquet", frame, TASK, ABOUT)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    again = predictions.read([tmp_path / "a.parquet"], TASK)
    assert list(again.columns) == [*predictions.COLUMNS, *TASK.columns()]
    assert len(again) == len(frame)
    assert predictions.is_current(tmp_path / "a.parquet", "k")
    assert not predictions.is_current(tmp_path / "a.parquet", "other")
    assert not predictions.is_current(tmp_path / "none.parquet", "k")


def test_the_copies_are_marked_so_that_analysis_needs_no_images(frame):
    africa = frame[frame["population"] == "africa"]
    assert (~africa["distinct"]).sum() == 4
    assert africa.loc[~africa["distinct"], "patient"].unique().tolist() == ["africa/Algeria/002"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="group"), "expected the columns"),
        (lambda f: f.assign(logit_brain=np.nan), "finite"),
        (lambda f: f.assign(split="train"), "split"),
        (lambda f: f.assign(y_true=9), "y_true from 0 to 5"),
        (lambda f: pd.concat([f, f.iloc[:1]]), "stand twice"),
        (lambda f: f.assign(group="same"), "validation and test"),
        (lambda f: f.iloc[:0], "expected rows"),
    ],
)
def test_what_is_no_predictions_table_is_refused(frame, tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        predictions.write(tmp_path / "a.parquet", change(frame), TASK, ABOUT)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_flipped_byte_a_missing_sidecar_and_no_files_are_errors(frame, tmp_path):
    path = tmp_path / "a.parquet"
    predictions.write(path, frame, TASK, ABOUT)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        predictions.read([path], TASK)
    assert not predictions.is_current(path, "k")
    path.with_suffix(".json").unlink()
    with pytest.raises(MissingError, match="sidecar"):
        predictions.read([path], TASK)
    with pytest.raises(MissingError, match="found none"):
        predictions.read([], TASK)
    with pytest.raises(InputError, match="must say key"):
        predictions.write(path, frame, TASK, {})


def test_a_bad_file_is_named_and_so_are_files_that_contradict_each_other(frame, tmp_path):
    files = [tmp_path / f"{name}.parquet" for name in "abc"]
    tests = frame[frame["split"] == "test"]
    predictions.write(files[0], frame, TASK, ABOUT)
    predictions.write(files[1], tests, TASK, ABOUT)
    predictions.write(files[2], tests.assign(split="val"), TASK, ABOUT)
    with pytest.raises(InputError, match=r"these files together: group .* is in validation and test of one fold"):
        predictions.read([files[0], files[2]], TASK)
    with pytest.raises(InputError, match=r"these files together: .* rows stand twice"):
        predictions.read(files[:2], TASK)
    with pytest.raises(InputError, match=r"these files together: .* rows stand twice"):
        predictions.read([files[0], files[0]], TASK)
    good = tests.assign(fold=1)
    for change, says in (
        (good.assign(split="train"), "expected rows with split"),
        (good.drop(columns="centre"), "expected the columns"),  # pandas would fill it up
        (good[good.columns[::-1]], "expected the columns"),
        (good.assign(logit_brain=1), "expected floating values in the column logit_brain"),  # pandas would convert it
        (good.iloc[:0], "expected rows"),
    ):
        change.to_parquet(files[1])  # as a foreign program would
        artifacts.commit(files[1], ABOUT)
        with pytest.raises(InputError, match=rf"b\.parquet: {says}"):
            predictions.read(files[:2], TASK)


def test_folds_made_by_two_versions_of_an_encoder_are_refused(frame, tmp_path):
    files = [tmp_path / f"{fold}.parquet" for fold in range(2)]
    for fold, (path, off) in enumerate(zip(files, (0, 1e-4), strict=True)):
        print_ = {**PRINT, "values": [0.5 + off] * 16, "digest": str(fold)}
        predictions.write(
            path, frame.assign(fold=fold), TASK, {**ABOUT, "encoder": {"name": "e", "fingerprint": print_}}
        )
    assert len(predictions.read(files, TASK)) == 2 * len(frame)  # another machine
    changed = {**PRINT, "values": [0.6] * 16, "digest": "1"}
    predictions.write(files[1], frame.assign(fold=1), TASK, {**ABOUT, "encoder": {"name": "e", "fingerprint": changed}})
    with pytest.raises(InputError, match="expected e with the fingerprint"):
        predictions.read(files, TASK)


def test_views_and_scores(frame):
    scores = scoring.evaluate(frame, TASK)
    headline = scores[scores["metric"] == "macro F1"].set_index(["population", "classes", "rule", "duplicates"])
    assert headline.index.tolist() == [
        (*view, duplicates)
        for view in [
            ("spain", "all classes", "open"),
            ("spain", "abdomen + brain + femur + thorax", "open"),
            ("spain", "abdomen + brain + femur + thorax", "shared"),
            ("africa", "abdomen + brain + femur + thorax", "open"),
            ("africa", "abdomen + brain + femur + thorax", "shared"),
        ]
        for duplicates in ("as published", "de-duplicated")
    ]
    images = headline["images"]
    assert images["africa", "abdomen + brain + femur + thorax", "open", "as published"] == 54
    assert images["africa", "abdomen + brain + femur + thorax", "open", "de-duplicated"] == 50
    assert images["spain", "all classes", "open", "as published"] == 36
    assert (
        headline["value"].xs("shared", level="rule")
        >= headline["value"].xs("open", level="rule").reindex(headline["value"].xs("shared", level="rule").index)
    ).all()


def test_what_the_rule_changes_is_a_span_only_where_there_are_several_encoders(frame):
    (one,) = scoring.findings(scoring.evaluate(frame, TASK), TASK)
    assert re.search(r"changes macro F1 there by [+-]0\.\d{3}: the rule", one)
    logits = TASK.columns()
    other = frame.assign(encoder="other", **dict(zip(logits, -frame[logits].to_numpy().T, strict=True)))
    (both,) = scoring.findings(scoring.evaluate(pd.concat([frame, other]), TASK), TASK)
    assert re.search(r"there by [+-]0\.\d{3} to [+-]0\.\d{3}: the rule", both)


def test_a_country_without_a_class_is_scored_on_those_it_has(frame):
    scores = scoring.evaluate(frame, TASK, ("centre",))
    classes = (
        scores[(scores["population"] == "africa") & (scores["rule"] == "open")].groupby("centre")["classes"].first()
    )
    three, four = "abdomen + brain + femur", "abdomen + brain + femur + thorax"
    assert classes.to_dict() == {"Algeria": four, "Egypt": four, "Ghana": three, "Malawi": four, "Uganda": three}


def test_two_label_spaces_of_as_many_classes_are_two_views(frame):
    """Africa over four classes, and a home cohort narrowed to four others: once both were "4 classes", averaged into one."""
    other = ("abdomen", "brain", "femur", "cervix")
    task = replace(TASK, tests={"spain": TASK.classes, "africa": TASK.tests["africa"], "clinic": other})
    clinic = frame[(frame["population"] == "spain") & (frame["split"] == "test")].assign(
        population="clinic",
        cohort="clinic",
        image_id=lambda f: "clinic/" + f["image_id"],
        group=lambda f: "clinic/" + f["group"],
    )
    scores = scoring.evaluate(pd.concat([frame, clinic], ignore_index=True), task)
    home = scores[(scores["population"] == "spain") & (scores["duplicates"] == "as published")]
    assert set(home["classes"]) == {
        "all classes",
        "abdomen + brain + femur + thorax",
        "abdomen + brain + femur + cervix",
    }
    summary = scoring.overview(scores, task)
    assert (summary["folds"] == frame["fold"].nunique()).all()  # nothing of another label space came in
    assert not summary.duplicated(["encoder", "protocol", "view"]).any()
    views = {boot.view for boot in statistics.samples(pd.concat([frame, clinic], ignore_index=True), task)}
    assert {view[1] for view in views if view[0] == "spain"} == set(home["classes"])


def test_a_label_space_that_could_be_taken_for_another_is_refused():
    task = Task("odd", "plane", ("a", "b", "a + b", "c"))
    with pytest.raises(InputError, match=r"class names without ' \+ '"):
        task.space(("a + b", "c"))
    assert task.space(task.classes) == "all classes"


def test_table1_names_what_is_not_public(frame):
    table = tables.table1(scoring.evaluate(frame.assign(encoder="fetalclip"), TASK), TASK)
    (spain,), (africa,) = table["Spain, paper"], table["Africa, paper"]
    assert spain.startswith("0.9261, ")
    assert africa.startswith("0.9731, ")
    other = tables.table1(scoring.evaluate(frame, TASK), TASK)
    assert other["Spain, paper"].tolist() == ["not public"]


def test_table1_has_a_row_for_each_hole_with_the_reason(frame):
    missing = {"usfm/full": "InputError: too little memory", "usfm/probing": "no weights"}
    table = tables.table1(scoring.evaluate(frame, TASK), TASK, missing=missing)
    assert list(table.columns) == list(tables.table1(scoring.evaluate(frame, TASK), TASK).columns)
    rows = table.set_index(["encoder", "protocol"]).loc["usfm"]
    assert rows.index.tolist() == ["linear probing", "full fine-tuning"]
    assert rows.iloc[:, 0].tolist() == ["missing: no weights", "missing: InputError: too little memory"]
    assert rows.loc["full fine-tuning", "Spain, paper"] == "0.9476, not run here"


def test_table1_puts_the_interval_between_score_and_sd(frame):
    scores = scoring.evaluate(frame, TASK)
    view = scoring.overview(scores, TASK)[[*scoring.MODEL, *scoring.VIEW, "metric"]]
    ends = view.assign(low=0.25, high=0.75, reason="").assign(low=lambda f: f["low"].where(f.index > 1))
    reasons = ["all resamples give the same value", "none: thorax has 3 patients"]
    table = tables.table1(scores, TASK, ends.assign(reason=[*reasons, *[""] * (len(ends) - 2)]))
    first, second, third = table.loc[0].iloc[2:5]
    assert " [none] ± " in first  # no interval: never a zero-width one
    assert " [none: thorax has 3 patients] ± " in second
    assert " [0.250, 0.750] ± " in third


def test_scores_of_validation_rows_never_enter(frame):
    flipped = frame.copy()
    rows = flipped["split"] == "val"
    flipped.loc[rows, TASK.columns()] = -flipped.loc[rows, TASK.columns()]
    pd.testing.assert_frame_equal(scoring.evaluate(frame, TASK), scoring.evaluate(flipped, TASK))


def moved(frame, population, classes):
    """The African rows again, as another cohort with some classes only."""
    rows = frame[(frame["population"] == "africa") & frame["y_true"].isin(TASK.codes(classes))]
    changed = {name: population + "/" + rows[name] for name in ("image_id", "patient", "group")}
    return rows.assign(population=population, cohort=population, **changed)


def test_a_population_that_the_task_does_not_name_is_scored_on_the_classes_that_it_has(frame):
    """Where two test cohorts were printed and the third was left out without a word, three stand."""
    kampala, other = ("abdomen", "brain", "femur"), ("abdomen", "brain", "femur", "cervix")
    odd = moved(frame, "clinic", TASK.classes[:4])
    odd["y_true"] = odd["y_true"].replace(3, 4)  # four classes too, but others
    three = pd.concat([frame, moved(frame, "kampala", kampala), odd], ignore_index=True)
    assert scoring.spaces(TASK, three) == {
        "spain": TASK.classes, "africa": TASK.classes[:4], "kampala": kampala, "clinic": other,
    }  # fmt: skip
    assert scoring.common(TASK, three) == kampala
    table = tables.table1(scoring.evaluate(three, TASK), TASK)
    for title in ("Kampala, abdomen + brain + femur", "Clinic, abdomen + brain + femur + cervix"):
        assert {f"{title}, open", f"{title}, shared"} <= set(table)
    assert "Spain, abdomen + brain + femur, shared" in table
    assert not any("Kampala, paper" in name for name in table)
    boots = statistics.bootstraps(three, TASK)
    assert [boot.sample.view[0] for boot in claims.primary(boots, TASK)] == ["spain", "africa", "kampala", "clinic"]
    narrowed = TASK.adapted("", {"kampala": ["femur", "brain"]})
    assert scoring.spaces(narrowed, three)["kampala"] == ("brain", "femur")


def test_cohorts_stand_side_by_side_on_the_classes_that_all_have(frame):
    three = pd.concat([frame, moved(frame, "kampala", ("abdomen", "femur"))], ignore_index=True)
    table = shift.side_by_side(three, TASK)
    assert set(table["classes"]) == {"abdomen + femur"}
    assert set(table["population"]) == {"spain", "africa", "kampala"}
    alike = table.set_index(["population", "rule"])["value"].unstack()
    assert alike.loc["africa"].tolist() == pytest.approx(alike.loc["kampala"].tolist())  # the same rows on them
    steps = shift.gaps(three, TASK)
    spaces = steps[["population", "classes"]].drop_duplicates().to_numpy().tolist()
    assert spaces == [
        ["africa", "abdomen + brain + femur + thorax"], ["kampala", "abdomen + femur"], ["africa", "abdomen + femur"],
    ]  # fmt: skip
    two = shift.gaps(frame, TASK)
    assert two[["population", "classes"]].drop_duplicates().to_numpy().tolist() == spaces[:1]


def test_answers_without_logits_are_a_file_too(frame, tmp_path):
    words = np.array([*TASK.classes, "kidney"])
    said = frame[TASK.columns()].to_numpy().argmax(1)
    said[::7] = 6
    alone = frame.drop(columns=TASK.columns()).assign(encoder="other", protocol="submitted", answer=words[said])
    alone = alone[alone["split"] == "test"]
    predictions.write(tmp_path / "a.parquet", frame, TASK, ABOUT)
    submission = ABOUT | {"encoder": {"name": "other", "submission": {}}}
    predictions.write(tmp_path / "b.parquet", alone, TASK, submission)
    together = predictions.read([tmp_path / "a.parquet", tmp_path / "b.parquet"], TASK)
    assert list(together) == [*predictions.COLUMNS, "answer", *TASK.columns()]
    only = predictions.read([tmp_path / "b.parquet"], TASK)
    mine = predictions.outputs(only, TASK)
    test = frame["split"] == "test"
    assert mine.tolist() == np.where(said == 6, -1, said)[test].tolist()
    with pytest.raises(InputError, match="rows of one model"):
        predictions.outputs(together, TASK)
    scores = scoring.evaluate(together, TASK).set_index("encoder").query("rule == 'open'")
    assert scores.loc["other"].query("metric in ['macro F1', 'accuracy']")["value"].notna().all()
    assert scores.loc["other"].query("metric in ['ECE', 'NLL', 'AUROC']")["value"].isna().all()
    table = tables.table1(scoring.evaluate(together, TASK), TASK, statistics.of_all(statistics.intervals, statistics.bootstraps(together, TASK), methods=["percentile"]))  # fmt: skip
    row = table[table["protocol"] == "submitted answers"].iloc[0]
    assert row["Spain, all classes, open"].endswith(", one model")
    assert row["Africa, abdomen + brain + femur + thorax, shared"] == "not told"
    assert len(calibration.confidences(together, TASK)) == len(calibration.confidences(frame, TASK))
    damaged = alone.assign(answer=alone["answer"].where(alone.index > 60))
    with pytest.raises(InputError, match="expected an answer in every row"):
        predictions.write(tmp_path / "c.parquet", damaged, TASK, submission)
