"""Answers of somebody else's model: what joins, what is refused, and what they score."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fpbench import cohorts, load_study, loading, make_splits, metrics, predictions, results
from fpbench.analysis import scoring, statistics
from fpbench.cli import app
from fpbench.errors import InputError, MissingError
from fpbench.reporting import tables
from fpbench.submissions import Form, read, submit

STUDY = """
name: mine
title: Mine
split: {split}
folds: 4
cohorts: [{{name: spain, root: "{spain}"}}, {{name: africa, root: "{africa}"}}]
encoders: [{{name: resnet50-mini, model: resnet50-mini, weights: random}}]
"""


@pytest.fixture
def study(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "results"))

    def write(split="official", more=""):
        path = tmp_path / "mine.yaml"
        path.write_text(STUDY.format(split=split, **small) + more)
        return load_study(path)

    return write


def answers(study, seed=0):
    """A model that is right in three of four images of both cohorts: one row per image, in a shuffled order."""
    home, (africa,) = loading.load_cohorts(study)
    frame = pd.concat([home.frame, africa.frame], ignore_index=True)
    rng, task = np.random.default_rng(seed), study.the_task
    z = rng.normal(size=(len(frame), 6)) + 3 * np.eye(6)[task.codes(frame["plane"])]
    table = frame[["image_id", "path", "plane"]].assign(**dict(zip(task.classes, z.T, strict=True)))
    table["said"] = np.array(task.classes)[z.argmax(1)]
    return table.sample(frac=1, random_state=seed)


def read_back(study, name="theirs"):
    return predictions.read(sorted((study.folder / "predictions" / name).rglob("*.parquet")), study.the_task)


@pytest.mark.parametrize("split", ["official", "crossval"])
@pytest.mark.parametrize("how", ["id", "path", "name"])
def test_answers_are_joined_by_image_and_score_what_they_score(study, tmp_path, split, how):
    plan = study(split)
    table = answers(plan)
    cells = {
        "id": table["image_id"],
        "path": table["path"].map(str),
        "name": table["path"].map(lambda path: f"D:\\x\\{path.name}"),
    }
    table.assign(file=cells[how])[["file", "said"]].to_csv(tmp_path / "theirs.csv", index=False, sep=";")
    lines = submit(plan, "theirs", tmp_path / "theirs.csv", Form(image="file", answer="said"))
    assert lines[0] == f"joined by image: {len(table):,} of {len(table):,} rows"
    predicted = read_back(plan)
    home, (africa,) = loading.load_cohorts(plan)
    splits = make_splits(home, plan.the_task, split, 4, 0)
    for fold in range(4):
        rows = predicted[predicted["fold"] == fold]
        mine = home.frame["image_id"].iloc[splits.fold(fold).test]
        assert set(rows["image_id"]) == set(mine) | set(africa.frame["image_id"])
        assert (
            rows.set_index("image_id")["answer"].to_dict()
            == table.set_index("image_id")["said"].loc[rows["image_id"]].to_dict()
        )
    scores = scoring.evaluate(predicted, plan.the_task)
    found = scores.query(
        "metric == 'accuracy' and rule == 'open' and population == 'africa' and duplicates == 'as published'"
    )
    here = table[table["image_id"].str.startswith("africa/")]
    assert found["value"].to_numpy() == pytest.approx((here["plane"] == here["said"]).mean())


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_numbers_per_class_are_logits_or_probabilities(study, tmp_path, kind, suffix):
    plan = study()
    table, classes = answers(plan), list(plan.the_task.classes)
    if kind == "probabilities":
        table[classes] = metrics.softmax(table[classes].to_numpy())
    theirs = table.rename(columns={name: f"p_{name}" if suffix == "csv" else name.upper() for name in classes})
    theirs = theirs.drop(columns=["path", "said", "plane"])
    path = tmp_path / f"theirs.{suffix}"
    {"csv": lambda: theirs.to_csv(path, index=False), "json": lambda: path.write_text(json.dumps(theirs.to_dict("list"))), "parquet": lambda: theirs.to_parquet(path)}[suffix]()  # fmt: skip
    words = {} if suffix == "csv" else {name.upper(): name for name in classes}
    submit(plan, "theirs", path, Form(image="image_id", words=words))
    predicted = read_back(plan)
    said = table.set_index("image_id").loc[predicted["image_id"], classes].to_numpy(float)
    said = said if kind == "logits" else np.log(said)
    assert predicted[plan.the_task.columns()].to_numpy() == pytest.approx(said, rel=1e-5)


def test_a_submission_is_a_row_of_table_1_beside_the_others(study, tmp_path):
    plan = study()
    table = answers(plan)
    table.drop(columns="path").to_parquet(tmp_path / "theirs.parquet")
    submit(plan, "theirs", tmp_path / "theirs.parquet", Form(image="image_id", answer="said"))
    submit(plan, "numbers", tmp_path / "theirs.parquet", Form(image="image_id"))
    assert list(results.submitted(plan)) == ["numbers", "theirs"]
    listed = [path for path in results.files(plan) if path.parent.name == "submitted"]
    assert len(listed) == 8
    predicted, task = predictions.read(listed, plan.the_task), plan.the_task
    boots = statistics.bootstraps(predicted, task)
    found = tables.table1(scoring.evaluate(predicted, task), task, statistics.of_all(statistics.intervals, boots, methods=["percentile"]))  # fmt: skip
    assert found["encoder"].tolist() == ["numbers", "theirs"]
    assert set(found["protocol"]) == {"submitted answers"}
    column = "Spain, all classes, open"
    assert found[column].iat[0] == found[column].iat[1]  # the answers are the arg-max of the numbers
    assert found[column].str.endswith("one model").all()
    differ = statistics.of_all(statistics.differences, boots)
    assert (differ["p"].dropna() == 1).all()
    before = [path.read_bytes() for path in listed]
    submit(plan, "theirs", tmp_path / "theirs.parquet", Form(image="image_id", answer="said"))
    assert [path.read_bytes() for path in listed] == before


def test_folds_of_theirs_are_folds_of_ours(study, tmp_path):
    plan = study()
    table = pd.concat([answers(plan, seed).assign(k=seed) for seed in range(4)])
    table.to_csv(tmp_path / "theirs.csv", index=False)
    with pytest.raises(InputError, match=r"answered twice, the first is .*name the column of folds"):
        submit(plan, "theirs", tmp_path / "theirs.csv", Form(image="image_id", answer="said"))
    submit(plan, "theirs", tmp_path / "theirs.csv", Form(image="image_id", answer="said", fold="k"))
    predicted = read_back(plan)
    by_fold = predicted[predicted["population"] == "africa"].groupby("fold")["answer"].agg(list)
    assert len({tuple(said) for said in by_fold}) == 4
    (tmp_path / "three.csv").write_text(table[table["k"] < 3].to_csv(index=False))
    with pytest.raises(InputError, match=r"expected an answer to each of the \d+ test images of spain \(fold 3\)"):
        submit(plan, "theirs", tmp_path / "three.csv", Form(image="image_id", answer="said", fold="k"))


def test_what_does_not_join_is_told_and_what_is_not_answered_is_refused(study, tmp_path):
    plan = study()
    table = answers(plan)
    stranger = table.head(3).assign(image_id="spain/Patient99999_Plane1_1_of_1")
    more = pd.concat([table, stranger])
    more["said"] = more["said"].replace("other", "kidney")
    more.to_csv(tmp_path / "theirs.csv", index=False)
    lines = submit(plan, "theirs", tmp_path / "theirs.csv", Form(image="image_id", answer="said"))
    assert "not joined: 3 rows, the first is 'spain/Patient99999_Plane1_1_of_1'" in lines
    assert any(line.startswith("answers that are no class of the task, so misses: kidney ") for line in lines)
    home, _ = loading.load_cohorts(plan)
    test = home.frame["image_id"][home.frame["official_split"] == "test"]
    table[table["image_id"] != test.iloc[0]].to_csv(tmp_path / "fewer.csv", index=False)
    with pytest.raises(InputError, match=rf"none for 1 \(.* 1\), the first is {test.iloc[0]}"):
        submit(plan, "fewer", tmp_path / "fewer.csv", Form(image="image_id", answer="said"))
    assert "fewer" not in results.submitted(plan)
    table[table["image_id"].isin(test)].to_csv(tmp_path / "home.csv", index=False)
    lines = submit(plan, "home", tmp_path / "home.csv", Form(image="image_id", answer="said"))
    assert "not answered: no row of africa is in the file" in lines


@pytest.mark.parametrize(
    ("change", "form", "says"),
    [
        (lambda t: t, Form(image="file", answer="said"), "no column 'file': expected one of image_id"),
        (lambda t: t, Form(answer="said"), "which picture is a row of"),
        (lambda t: t.drop(columns="brain"), Form(image="image_id"), "found for brain: none"),
        (lambda t: t.assign(brain="x"), Form(image="image_id"), "expected numbers for every class"),
        (lambda t: t, Form(image="image_id", kind="probabilities"), "add up to 1"),
        (lambda t: t, Form(image="image_id", kind="odds"), "expected one of logits, probabilities"),
        (lambda t: t.assign(image_id="x"), Form(image="image_id", answer="said"), "no row is of a picture of the study"),
        (lambda t: t.assign(said="Kopf"), Form(image="image_id", answer="said"), "no answer is a class of the task"),
        (lambda t: t.assign(plane=np.roll(t["plane"], 1)), Form(image="image_id", answer="said", label="plane"), "labels are not ours"),
        (lambda t: t.head(0), Form(image="image_id", answer="said"), "found no such rows"),
        (lambda t: t, Form(answer="said", in_order=True), "name one of spain, africa"),
        (lambda t: t, Form(answer="said", in_order=True, cohort="spain"), "expected 144 rows, those of FETAL"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_with_the_reason_and_leaves_nothing(study, tmp_path, change, form, says):
    plan = study()
    change(answers(plan)).to_csv(tmp_path / "theirs.csv", index=False)
    with pytest.raises(InputError, match=says):
        submit(plan, "theirs", tmp_path / "theirs.csv", form)
    assert not results.submitted(plan)
    with pytest.raises(MissingError, match="found nothing"):
        submit(plan, "theirs", tmp_path / "nothing.csv", form)
    with pytest.raises(InputError, match="a name becomes a file name"):
        submit(plan, "a/b", tmp_path / "theirs.csv", form)


def test_the_order_of_the_label_file_is_taken_only_when_asked_for(study, small, tmp_path):
    header, *lines = (small["spain"] / "FETAL_PLANES_DB_data.csv").read_text().splitlines()
    mixed = np.random.default_rng(0).permutation(lines)
    (small["spain"] / "FETAL_PLANES_DB_data.csv").write_text("\n".join([header, *mixed]) + "\n")
    plan = study()
    table = answers(plan).set_index("image_id")
    order = cohorts.load_labels(*loading.where(plan, plan.cohorts[0])).frame.sort_values("order")
    rows = table.loc[order["image_id"], ["said", "plane"]]
    assert not rows.index.is_monotonic_increasing  # the label file is in another order than the frame
    rows.to_csv(tmp_path / "theirs.csv", index=False)
    form = Form(answer="said", in_order=True, cohort="spain", label="plane")
    lines = submit(plan, "theirs", tmp_path / "theirs.csv", form)
    assert lines[0].startswith("joined by order: 144 rows, those of FETAL_PLANES_DB_data.csv whose plane is ")
    predicted = read_back(plan)
    assert (predicted["answer"].to_numpy() == table.loc[predicted["image_id"], "said"].to_numpy()).all()
    rows.iloc[::-1].to_csv(tmp_path / "theirs.csv", index=False)
    with pytest.raises(InputError, match=r"labels are not ours.*another order"):
        submit(plan, "theirs", tmp_path / "theirs.csv", form)


def test_the_label_file_is_enough(study, small, tmp_path):
    plan = study()
    table = answers(plan)
    table.to_csv(tmp_path / "theirs.csv", index=False)
    for picture in (small["spain"] / "Images").iterdir():
        picture.unlink()
    lines = submit(plan, "theirs", tmp_path / "theirs.csv", Form(image="image_id", answer="said"))
    assert lines[0].startswith(
        "spain: its pictures are not all there, so its label file alone is read: the group is the patient"
    )
    spain = read_back(plan).query("population == 'spain'")
    assert (spain["group"] == spain["patient"]).all()
    assert spain["distinct"].all()


# ---- FetalCLIP's own stored answers ------------------------------------------------------------------------------------

FIVE = """
name: five
title: Five planes
task: {name: five_planes, label: plane, classes: [abdomen, brain, femur, thorax, cervix]}
train: spain
"""
BRAIN = "name: brain\ntitle: Brain\ntask: brain_planes\n"
STORED = {
    "test_five_planes_prediction.json": (FIVE, {"heart": "thorax"}, 0.9727494756, "0.97175", ("0.968", "0.977")),
    "test_brain_subplanes_prediction.json": (
        BRAIN,
        {"trans-cerebellum": "trans-cerebellar"},
        0.6929313411,
        "0.7005",
        None,
    ),
}


@pytest.mark.parametrize("file", STORED)
def test_the_stored_answers_of_fetalclip_score_what_its_authors_print(shared, tmp_path, monkeypatch, file):
    path = shared / "data" / "fetalclip" / file
    if not path.is_file():
        pytest.skip("FetalCLIP's stored answers are not in the sample")
    text, words, all_rows, test_part, ends = STORED[file]
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "results"))
    (tmp_path / "spain").mkdir()
    labels = shared / "data" / "spain" / "FETAL_PLANES_DB_data.csv"
    (tmp_path / "spain" / labels.name).write_bytes(labels.read_bytes())  # no pictures
    more = f'cohorts: [{{name: spain, root: "{tmp_path / "spain"}"}}]\nencoders: [{{name: e, model: resnet50-mini, weights: random}}]\n'
    (tmp_path / "s.yaml").write_text(text + more)
    options = ["--in-order", "--answer", "prediction", "--label", "label"]
    options += [word for theirs, ours in words.items() for word in ("-w", f"{theirs}={ours}")]
    done = CliRunner().invoke(app, ["import-answers", str(tmp_path / "s.yaml"), "fetalclip", str(path), *options])
    assert done.exit_code == 0, done.output
    assert f"spain, all that joined: macro F1 {all_rows:.4f}" in done.output
    study = load_study(tmp_path / "s.yaml")
    predicted, task = read_back(study, "fetalclip"), study.the_task
    scores = scoring.evaluate(predicted, task).query("metric == 'macro F1' and duplicates == 'as published'")
    assert f"{scores['value'].iat[0]:.{len(test_part) - 2}f}" == test_part
    # all rows of the file, training part included, as the authors score them
    stored, frame = json.loads(path.read_text()), cohorts.load_labels("spain", tmp_path / "spain").frame
    frame = frame[frame[task.label].isin(task.classes)].sort_values("order")
    said = np.array(task.codes([words.get(word, word) for word in stored["prediction"]]))
    y = np.array(task.codes(frame[task.label]))
    assert metrics.scores(y, said, range(len(task.classes)))["macro F1"] == pytest.approx(all_rows, abs=1e-6)
    if ends:
        rows = pd.DataFrame({"y_true": y, "group": frame["patient"].to_numpy(), "fold": 0})
        sample = statistics.make_sample(
            rows, [said], dict(enumerate(task.classes)), models=(("fetalclip", "submitted"),)
        )
        table = statistics.intervals(statistics.bootstrap(sample, ["macro F1"]), ["percentile"])
        assert tuple(f"{end:.3f}" for end in table[["low", "high"]].iloc[0]) == ends


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_text_is_read_whatever_separates_it_and_a_single_column_too(study, small, tmp_path, separator):
    plan = study()
    table = answers(plan)[["image_id", "said"]]
    table.to_csv(tmp_path / "theirs.txt", index=False, sep=separator, encoding="utf-8-sig")
    assert read(tmp_path / "theirs.txt")["said"].tolist() == table["said"].tolist()
    table[["said"]].to_csv(
        tmp_path / "one.csv", index=False
    )  # no separator to be guessed: once refused, or cut at a letter
    assert read(tmp_path / "one.csv")["said"].tolist() == table["said"].tolist()


@pytest.mark.parametrize("odd", [0.5, -1, "x"])
def test_a_fold_is_a_whole_number_from_0(study, tmp_path, odd):
    plan = study()
    table = answers(plan).assign(k=0)
    table["k"] = table["k"].astype(object).where(np.arange(len(table)) != 3, odd)
    table.to_csv(tmp_path / "theirs.csv", index=False)
    with pytest.raises(InputError, match=f"expected fold numbers from 0 in 'k', found '{odd}'"):
        submit(plan, "theirs", tmp_path / "theirs.csv", Form(image="image_id", answer="said", fold="k"))
