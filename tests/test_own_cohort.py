"""Cohorts of one's own in a study: none is left out, any may train, and each is scored on what it has."""

import csv
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from fpbench import load_study, loading, make_splits, predictions, prove_disjoint
from fpbench.analysis import claims, scoring, shift, statistics
from fpbench.doctor import examine
from fpbench.errors import InputError
from fpbench.reporting import tables
from fpbench.training.bench import open_bench
from fpbench.training.probing import run_probe

GERMAN = {"Fetal abdomen": "Bauch", "Fetal brain": "Kopf", "Fetal femur": "Oberschenkel", "Fetal thorax": "Brustkorb"}
OURS = {"Bauch": "abdomen", "Kopf": "brain", "Oberschenkel": "femur", "Brustkorb": "thorax"}
BEGIN = "name: mine\ntitle: Mine\nfolds: 4\nthreads: 1\nprobes: [ridge]\nencoders: [{name: e, model: resnet50-mini, weights: random}]\n"


def hospital(africa, folder, country, planes=tuple(GERMAN), **more):
    """One country as a hospital of its own: other file, column and plane names; returns its YAML file."""
    (folder / "bilder").mkdir(parents=True)
    with open(africa / "African_planes_database.csv") as handle:
        rows = [row for row in csv.DictReader(handle) if row["Center"] == country and row["Plane"] in planes]
    with open(folder / "liste.csv", "w", newline="") as handle:
        table = csv.writer(handle, delimiter=";")
        table.writerow(["Datei", "Patientin", "Ebene", "Teil", "Name"])
        for row in rows:
            shutil.copy(africa / country / f"{row['Filename']}.png", folder / "bilder")
            part = "Training" if row["Train"] == "1" else "Test"
            table.writerow([f"{row['Filename']}.png", row["Patient_num"], GERMAN[row["Plane"]], part, "DOE, JANE"])
    words = {"plane": OURS, "split": {"Training": "train", "Test": "test"}}
    about = {"name": country.lower(), "table": "liste.csv", "separator": ";", "images": "bilder", "words": words}
    columns = {"image": "Datei", "patient": "Patientin", "plane": "Ebene", "split": "Teil"}
    (folder / "cohort.yaml").write_text(str(about | {"columns": columns} | more))  # YAML takes this notation
    return folder / "cohort.yaml"


@pytest.fixture
def study(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "results"))

    def write(*files, more="", africa=True):
        named = [f'{{name: spain, root: "{small["spain"]}"}}']
        named += [f'{{name: africa, root: "{small["africa"]}"}}'] * africa
        lines = ", ".join([*named, *(f'{{file: "{file}"}}' for file in files)])
        (tmp_path / "mine.yaml").write_text(f"{BEGIN}cohorts: [{lines}]\n{more}")
        return load_study(tmp_path / "mine.yaml")

    return write


def predicted(plan):
    home, external = loading.load_cohorts(plan)
    splits = make_splits(home, plan.the_task, plan.split, plan.folds, plan.seed)
    prove_disjoint(splits, home)
    bench = open_bench(plan, "e", home, external, splits)
    return predictions.read(run_probe(bench, "ridge"), plan.the_task)


def test_a_third_cohort_that_the_task_does_not_name_takes_part(small, tmp_path, study):
    """Once it was left out without a word; and two cohorts of four classes, but other ones, stay two."""
    three = hospital(small["africa"], tmp_path / "a", "Ghana", tuple(GERMAN)[:3])
    words = {"plane": OURS | {"Brustkorb": "cervix"}, "split": {"Training": "train", "Test": "test"}}
    other = hospital(small["africa"], tmp_path / "b", "Egypt", words=words)
    plan = study(three, other)
    task, rows = plan.the_task, predicted(plan)
    spaces = scoring.spaces(task, rows)
    assert list(spaces) == ["spain", "africa", "ghana", "egypt"]
    assert spaces["ghana"] == ("abdomen", "brain", "femur")
    assert spaces["egypt"] == ("abdomen", "brain", "femur", "cervix")
    boots = statistics.bootstraps(rows, task)
    table = tables.table1(scoring.evaluate(rows, task), task, statistics.of_all(statistics.intervals, boots, methods=["percentile"]))  # fmt: skip
    for title in ("Ghana, abdomen + brain + femur", "Egypt, abdomen + brain + femur + cervix", "Africa, abdomen + brain + femur + thorax"):  # fmt: skip
        assert {f"{title}, open", f"{title}, shared"} <= set(table)
    assert len(claims.primary(boots, task)) == 4
    assert shift.side_by_side(rows, task)["classes"].unique().tolist() == ["abdomen + brain + femur"]
    narrowed = study(three, other, more="tests: {ghana: [femur, brain]}\n")
    assert scoring.spaces(narrowed.the_task, rows)["ghana"] == ("brain", "femur")


def test_ones_own_cohort_may_train_and_spain_tests(small, tmp_path, study):
    everything = tmp_path / "all"
    file = hospital(small["africa"], everything, "Malawi")
    block = "task: {name: four, label: plane, classes: [abdomen, brain, femur, thorax], headline: weighted F1}\n"
    with pytest.raises(InputError, match="which population trains is not said: write `train: NAME`"):
        study(file, more=block, africa=False)
    plan = study(file, more=block + "train: malawi\nsplit: crossval\n", africa=False)
    with pytest.raises(InputError, match="4 folds need at least 4 patient groups of every class; found abdomen 3"):
        predicted(plan)
    plan = study(file, more=block + "train: malawi\nsplit: crossval\n", africa=False)
    object.__setattr__(plan, "folds", 3)
    home, (spain,) = loading.load_cohorts(plan)
    assert (home.name, spain.name) == ("malawi", "spain")
    rows = predicted(plan)
    assert scoring.spaces(plan.the_task, rows) == {"malawi": plan.the_task.classes, "spain": plan.the_task.classes}
    summary = scoring.overview(scoring.evaluate(rows, plan.the_task), plan.the_task)
    assert set(summary["metric"]) == {"weighted F1"}


def test_what_a_study_asks_of_its_cohorts_is_held(small, tmp_path, study):
    ghana = hospital(small["africa"], tmp_path / "a", "Ghana")
    again = hospital(small["africa"], tmp_path / "b", "Egypt", population="africa")
    for more, files, says in (
        ("", (again,), "several of africa: describe them as one"),
        ("tests: {uganda: [brain]}\n", (ghana,), "tests of uganda: expected populations of its cohorts"),
        ("train: uganda\n", (ghana,), "one cohort of the population 'uganda' to train on, found spain, africa, ghana; or write `train"),
        ("task: {name: q, label: quality, classes: [good, bad]}\ntrain: spain\n", (ghana,), "spain has no column 'quality'"),
        ("task: brain_planes\n", (ghana,), "africa: expected images of trans-thalamic.*found none: leave it out"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            loading.load_cohorts(study(*files, more=more))
        if "label" not in more and "brain" not in more:  # what is known before a picture is opened, the doctor says too
            found = [one for one in examine(study(*files, more=more)) if one.room == "cohorts"]
            assert any(one.state == "fail" and re.search(says, one.detail) for one in found)
    for more, says in (
        ("task: {name: planes, label: plane, classes: [a, b]}\n", "there is a task 'planes' already"),
        ("task: {name: q, label: plane, classes: [a]}\n", "two different classes or more"),
        ("task: {name: q, label: plane, classes: [a, b], headline: F2}\n", "unknown headline 'F2'"),
        ("task: {name: q, label: plane, classes: [a, b], headline: AUPRC}\n", "AUPRC needs it"),
        ("task: {name: q, label: plane, classes: [a, b], klasses: 3}\n", "task: unknown key 'klasses': did you mean 'classes'"),
        ("tests: {ghana: [kidney]}\n", r"tests of ghana: expected some of abdomen.*found \['kidney'\]"),
        ("tests: {ghana: []}\n", "found none"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            study(ghana, more=more)


def test_a_changed_population_or_label_makes_predictions_anew(small, tmp_path, study):
    file = hospital(small["africa"], tmp_path / "a", "Ghana")
    first = predicted(study(file))
    file.write_text(file.read_text().replace("'name': 'ghana'", "'name': 'ghana', 'population': 'accra'"))
    assert set(predicted(study(file))["population"]) == {"spain", "africa", "accra"}
    assert set(first["population"]) == {"spain", "africa", "ghana"}


# ---- the real African images ------------------------------------------------------------------------------------------


def test_five_hospitals_are_five_external_cohorts_and_together_the_african_one(shared, tmp_path, monkeypatch):
    """Other column names, other words, one hospital per country, each described by one YAML file."""
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "results"))
    africa = shared / "data" / "africa"
    countries = ("Algeria", "Egypt", "Ghana", "Malawi", "Uganda")
    files = [hospital(africa, tmp_path / name, name) for name in countries]
    spain = f'{{name: spain, root: "{shared / "data" / "spain"}", missing: drop}}'
    found = {}
    for name, external in (
        ("five", [f'{{file: "{file}"}}' for file in files]),
        ("one", [f'{{name: africa, root: "{africa}"}}']),
    ):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"{BEGIN.replace('mine', name)}split: crossval\ncohorts: [{', '.join([spain, *external])}]\n")
        plan = load_study(path)
        found[name] = predicted(plan)
    task = plan.the_task
    table = tables.table1(scoring.evaluate(found["five"], task), task)
    four, three = "abdomen + brain + femur + thorax", "abdomen + brain + femur"
    for country in countries:
        space = three if country in ("Ghana", "Uganda") else four
        assert {f"{country}, {space}, open", f"{country}, {space}, shared"} <= set(table)
    assert shift.side_by_side(found["five"], task)["population"].nunique() == 6
    gaps = shift.gaps(found["five"], task)[["population", "classes"]].drop_duplicates()
    assert len(gaps) == 5 + 3  # three countries once more, on the classes that all have
    # image by image, the five together are the African cohort
    names = {"five": "image_id", "one": "image_id"}
    parts = []
    for name in names:
        rows = found[name][found[name]["population"] != "spain"]
        key = rows["image_id"].str.rpartition("/")[2]
        parts.append(rows.assign(key=key).set_index(["fold", "key"]).sort_index())
    five, one = parts
    assert five.index.equals(one.index)
    assert len(five) == 4 * 450
    assert (five["y_true"] == one["y_true"]).all()
    assert (five["distinct"] == one["distinct"]).all()
    assert np.allclose(five[task.columns()], one[task.columns()], atol=1e-4)
    links = [pd.Series(rows["group"].to_numpy()).groupby(rows.index.get_level_values("key")).first() for rows in parts]
    assert (
        links[0].groupby(links[0]).transform("size").tolist() == links[1].groupby(links[1]).transform("size").tolist()
    )
