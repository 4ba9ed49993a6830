"""A cohort is a file: any table of images is read by what one YAML file says, and every fault says what to write."""

import re
import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fpbench import cli, cohorts, doctor, load_cohort, load_study, loading
from fpbench.cohorts import cells, pictures, vocabulary
from fpbench.cohorts.audit import audit
from fpbench.cohorts.sketch import sketch
from fpbench.cohorts.table import describe
from fpbench.errors import InputError, MissingError
from fpbench.grid import costs
from fpbench.grid.keys import key_parts

HEADER = ["file", "mrn", "view", "hospital", "set", "q", "mother"]
VIEWS = ("Bauch", "Kopf", "Nabelschnur")
KAMPALA = {
    "name": "kampala",
    "title": "Kampala, two hospitals",
    "licence": "ours",
    "citation": "ours",
    "table": "labels.csv",
    "images": "pictures",
    "suffix": ".png",
    "columns": {
        "image": "file",
        "patient": "mrn",
        "plane": "view",
        "centre": "hospital",
        "split": "set",
        "quality": "q",
    },
    "words": {
        "plane": {"Bauch": "abdomen", "Kopf": "brain", "Nabelschnur": None},
        "split": {"T": "train", "E": "test"},
    },
}


def table():
    """Six patients of two hospitals, three pictures each; the last column is nobody's business."""
    return [
        [f"w{who}/img_{view}", f"{who:05d}", VIEWS[view], "Mulago" if who < 4 else "Nsambya", "E" if who % 3 == 0 else "T", "good", f"Secret {who}"]
        for who in range(1, 7)
        for view in range(3)
    ]  # fmt: skip


def write(path, rows, separator=",", header=HEADER, encoding="utf-8", end="\n"):
    path.write_bytes((end.join(separator.join(map(str, row)) for row in [header, *rows]) + end).encode(encoding))


@pytest.fixture
def kampala(tmp_path):
    """The folder of a cohort that loads; ``change`` writes it anew with some fields, or rows, changed."""
    root, rng = tmp_path / "kampala", np.random.default_rng(0)
    for row in table():
        path = root / "pictures" / f"{row[0]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(rng, VIEWS.index(row[2]), 30, 20)).save(path)
    change(root)
    return root


def change(root, rows=None, columns=(), words=(), **fields):
    """Write table and YAML: ``columns`` and ``words`` are added to those there; None takes a field or a column out."""
    if rows is not False:
        write(root / "labels.csv", table() if rows is None else rows)
    content = {**KAMPALA, **fields}
    content["columns"] = {name: column for name, column in {**KAMPALA["columns"], **dict(columns)}.items() if column}
    content["words"] = {name: said for name, said in {**KAMPALA["words"], **dict(words)}.items() if said is not None}
    content = {name: value for name, value in content.items() if value is not None}
    (root / "kampala.yaml").write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return root / "kampala.yaml"


def refused(root, *says, kind=InputError, **options):
    with pytest.raises(kind) as error:
        load_cohort(root / "kampala.yaml", **options)
    for one in says:
        assert one in str(error.value), str(error.value)
    assert "Secret" not in str(error.value)
    return str(error.value)


# ---- what is read -----------------------------------------------------------------------------------------------------


def test_a_yaml_file_is_a_cohort(kampala):
    cohort = load_cohort(str(kampala / "kampala.yaml"))
    frame = cohort.frame
    assert tuple(frame.columns[:11]) == (*cohorts.COLUMNS, "quality")
    assert cohort.describe() == "kampala: 18 images, 6 patients, 6 groups"
    assert (cohort.name, cohort.source.population, cohort.source.title) == (
        "kampala",
        "kampala",
        "Kampala, two hospitals",
    )
    row = frame.iloc[0]
    assert (row["image_id"], row["patient"], row["group"]) == ("kampala/w1/img_0", "kampala/00001", "kampala/00001")
    assert (row["plane"], row["centre"], row["official_split"], row["quality"]) == (
        "abdomen",
        "Mulago",
        "train",
        "good",
    )
    assert row["path"] == kampala / "pictures" / "w1" / "img_0.png"
    assert frame.loc[frame["image_id"].str.endswith("img_2"), "plane"].isna().all()  # null: kept, without a label
    assert frame[["machine", "operator", "brain_plane"]].isna().all(axis=None)
    assert not frame.astype(str).apply(lambda column: column.str.contains("Secret")).any(axis=None)
    assert cohort.confounder == cohort.source.confounder == "centre"
    assert cohort.image("kampala/w1/img_0").shape == (20, 30)


def test_where_the_user_stands_and_the_order_of_rows_change_nothing(kampala, monkeypatch):
    before = load_cohort(kampala / "kampala.yaml")
    change(kampala, rows=table()[::-1])
    monkeypatch.chdir(kampala)
    after = load_cohort("kampala.yaml")
    pd.testing.assert_frame_equal(after.frame, before.frame)
    assert after.fingerprint() == before.fingerprint()


def test_a_further_column_enters_the_fingerprint_and_others_do_not(kampala):
    before = load_cohort(kampala / "kampala.yaml").fingerprint()
    rows = table()
    rows[0][6] = "Secret 99"
    change(kampala, rows)
    assert load_cohort(kampala / "kampala.yaml").fingerprint() == before
    rows[0][5] = "poor"
    change(kampala, rows)
    assert load_cohort(kampala / "kampala.yaml").fingerprint() != before


def test_words_that_are_ours_need_no_translation_and_a_class_of_ones_own_stands_for_itself(kampala):
    rows = [[*row[:2], {"Bauch": "abdomen", "Kopf": "brain"}.get(row[2], "kidney"), *row[3:]] for row in table()]
    change(kampala, rows, words={"plane": {"kidney": "kidney"}})
    assert set(load_cohort(kampala / "kampala.yaml").frame["plane"]) == {"abdomen", "brain", "kidney"}
    rows[4][2] = ""  # no label
    change(kampala, rows, words={"plane": {"kidney": "kidney"}})
    assert load_cohort(kampala / "kampala.yaml").frame["plane"].isna().sum() == 1


def test_words_of_further_columns_are_translated_too_and_then_all_of_them(kampala):
    change(kampala, words={"quality": {"good": "1"}})
    assert set(load_cohort(kampala / "kampala.yaml").frame["quality"]) == {"1"}
    rows = table()
    rows[7][5] = "=poor"
    change(kampala, rows)
    refused(kampala, "expected short printable text", "in row 9")
    rows[7][5] = "poor"
    change(kampala, rows, words={"quality": {"good": "1"}})
    refused(kampala, "quality 'poor' has no translation in row 9 (1 such rows)", "  quality:\n    poor: null  # 1")


def test_keys_of_words_are_text_as_they_stand(kampala):
    rows = [[*row[:4], {"T": "yes", "E": "012"}[row[4]], *row[5:]] for row in table()]
    change(kampala, rows, words={"split": None})
    file = kampala / "kampala.yaml"
    file.write_text(file.read_text().replace("words:", "words:\n  split: {yes: train, 012: test}"))
    assert load_cohort(file).frame["official_split"].value_counts().to_dict() == {"train": 12, "test": 6}
    file.write_text(file.read_text().replace("yes: train,", "yes: train, yes: test,"))
    refused(kampala, "the key 'yes' stands twice")


def test_a_list_is_joined_and_may_name_ours(kampala):
    rows = [[row[0].split("/")[1], *row[1:6], row[0].split("/")[0]] for row in table()]
    change(kampala, rows, columns={"image": ["mother", "file"], "patient": ["centre", "mrn"]})
    frame = load_cohort(kampala / "kampala.yaml").frame
    assert frame["image_id"].iat[0] == "kampala/w1/img_0"
    assert frame["patient"].iat[0] == "kampala/Mulago/00001"


def test_two_images_that_differ_in_the_suffix_alone_keep_it(kampala):
    for row in table():
        path = kampala / "pictures" / f"{row[0]}.png"
        Image.open(path).rotate(90).save(path.with_suffix(".bmp"))
    rows = [[row[0] + suffix, *row[1:]] for row in table() for suffix in (".png", ".bmp")]
    change(kampala, rows, suffix=None)
    frame = load_cohort(kampala / "kampala.yaml").frame
    assert frame["image_id"].head(2).tolist() == ["kampala/w1/img_0.bmp", "kampala/w1/img_0.png"]
    change(kampala, rows[::2], suffix=None)
    assert load_cohort(kampala / "kampala.yaml").frame["image_id"].iat[0] == "kampala/w1/img_0"


def test_absolute_paths_backslashes_and_frames(kampala):
    named = [[str(kampala / "pictures" / row[0]), *row[1:]] for row in table()]
    before = load_cohort(kampala / "kampala.yaml").frame
    change(kampala, named)
    pd.testing.assert_frame_equal(load_cohort(kampala / "kampala.yaml").frame, before)
    change(kampala, [["." + "\\" + row[0].replace("/", "\\"), *row[1:]] for row in table()])
    pd.testing.assert_frame_equal(load_cohort(kampala / "kampala.yaml").frame, before)
    change(kampala, named, images=".")
    assert load_cohort(kampala / "kampala.yaml").frame["image_id"].iat[0] == "kampala/pictures/w1/img_0"
    still = [Image.fromarray(np.full((20, 30), 40 * n, np.uint8)) for n in range(3)]
    still[0].save(kampala / "pictures" / "cine.tif", save_all=True, append_images=still[1:])
    rows = [*table(), ["cine#0", *table()[0][1:]], ["cine#2", *table()[0][1:]]]
    change(
        kampala,
        [[pictures.completed(row[0], ".tif" if "cine" in row[0] else ".png"), *row[1:]] for row in rows],
        suffix=None,
    )
    cohort = load_cohort(kampala / "kampala.yaml")
    assert cohort.frame["image_id"].head(2).tolist() == ["kampala/cine#0", "kampala/cine#2"]
    assert [cohort.image(f"kampala/cine#{n}").max() for n in (0, 2)] == [0, 80]


def test_pictures_of_more_than_8_bits(kampala):
    for path in (kampala / "pictures").rglob("*.png"):
        grey = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(grey * 16).save(path)
    refused(kampala, "18 unreadable pictures")
    cohort = load_cohort(change(kampala, bits=12))
    assert cohort.image("kampala/w1/img_0").dtype == np.uint8
    assert cohort.image("kampala/w1/img_0").max() > 100
    assert len(audit(kampala / "kampala.yaml").cohort) == 18


def test_the_confounder_is_the_first_that_has_two_values(kampala):
    assert load_cohort(change(kampala, columns={"machine": "hospital"})).confounder == "machine"
    assert load_cohort(change(kampala, columns={"machine": "q"})).confounder == "centre"
    alone = load_cohort(change(kampala, columns={"centre": None}))
    assert (alone.confounder, alone.source.confounder) == (None, "machine")
    assert set(alone.frame["centre"]) == {"kampala"}


def test_without_a_split_nothing_is_across_it(kampala):
    copied = kampala / "pictures" / "w2" / "img_0.png"
    shutil.copy(kampala / "pictures" / "w1" / "img_0.png", copied)
    assert audit(change(kampala)).summary()["pairs across the split"] == 0
    found = audit(change(kampala, columns={"split": None}, words={"split": None}))
    assert (found.summary()["pairs"], found.summary()["pairs across the split"]) == (1, 0)


def test_counts_are_held(kampala):
    expected = {
        "total": {"images": 18, "patients": 6},
        "plane": {"brain": 6},
        "split": {"test": 6},
        "quality": {"good": 18},
    }
    assert len(load_cohort(change(kampala, expect=expected))) == 18
    change(kampala, expect={"total": {"images": 17}, "split": {"test": 6}, "plane": {"brain": 5}})
    refused(kampala, "total images: expected 17, found 18", "plane brain: expected 5, found 6", "or `expect` in")


# ---- texts, workbooks, parquet ----------------------------------------------------------------------------------------


def test_separators_marks_and_line_ends(kampala):
    before = load_cohort(kampala / "kampala.yaml").frame
    write(kampala / "labels.csv", table(), ";", encoding="utf-8-sig", end="\r\n")
    pd.testing.assert_frame_equal(load_cohort(change(kampala, rows=False, separator=";")).frame, before)
    write(kampala / "labels.tsv", table(), "\t")
    pd.testing.assert_frame_equal(load_cohort(change(kampala, rows=False, table="labels.tsv")).frame, before)
    shutil.copy(kampala / "labels.tsv", kampala / "labels.csv")
    for said in ("tab", "\t", ["tab", ";"]):
        pd.testing.assert_frame_equal(load_cohort(change(kampala, rows=False, separator=said)).frame, before)
    write(kampala / "labels.csv", table(), encoding="utf-16")
    refused(kampala, "write `encoding: utf-16`")
    pd.testing.assert_frame_equal(load_cohort(change(kampala, rows=False, encoding="utf-16")).frame, before)


def test_rows_of_several_separators_and_empty_rows(kampala):
    before = load_cohort(kampala / "kampala.yaml").frame
    lines = [";".join(HEADER), *((";", ",")[n % 2].join([*row[:5], '"2,5"', row[6]]) for n, row in enumerate(table()))]
    lines.insert(3, ";;;;;;")
    lines.insert(5, "")
    (kampala / "labels.csv").write_text("\n".join(lines) + "\n")
    refused(
        change(kampala, rows=False, separator=";").parent, 'write `separator: [";", ","]`', "in row 3 (9 such rows)"
    )
    change(kampala, rows=False, separator=[";", ","])
    frame = load_cohort(kampala / "kampala.yaml").frame
    assert set(frame.pop("quality")) == {"2,5"}
    pd.testing.assert_frame_equal(frame, before.drop(columns="quality"))


def test_rows_are_numbered_as_a_person_sees_them(kampala):
    rows = table()
    rows[5][2] = "Leber"
    lines = [",".join(row) for row in [HEADER, *rows]]
    (kampala / "labels.csv").write_text("\n".join([*lines[:3], "", ",,,,,,", *lines[3:]]) + "\n")
    refused(kampala, "plane 'Leber' has no translation in row 9")


def excel(path, rows, sheet="Liste", formats=None, first=()):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    page = book.active
    page.title = sheet
    for row in [*first, HEADER, *rows]:
        page.append(row)
    for place, form in (formats or {}).items():
        for cell in page[place][1:]:
            cell.number_format = form
    book.create_sheet("Notizen").append(["nothing"])
    book.save(path)


def test_a_workbook_says_what_a_person_sees(kampala):
    before = load_cohort(kampala / "kampala.yaml").frame
    excel(kampala / "labels.xlsx", table())
    file = change(kampala, table="labels.xlsx")
    pd.testing.assert_frame_equal(load_cohort(file).frame, before)
    rows = [[row[0], int(row[1]), *row[2:5], n + 0.0, row[6]] for n, row in enumerate(table())]
    excel(kampala / "labels.xlsx", rows, formats={"B": "00000"})
    frame = load_cohort(file).frame
    assert frame["patient"].iat[0] == "kampala/00001"
    assert sorted(frame["quality"], key=int) == [str(n) for n in range(18)]
    excel(
        kampala / "labels.xlsx",
        [[row[0], float(row[1]), *row[2:5], date(2024, 3, n + 1), row[6]] for n, row in enumerate(table())],
    )
    frame = load_cohort(file).frame
    assert (frame["patient"].iat[0], frame["quality"].iat[0]) == ("kampala/1", "2024-03-01")


def test_workbooks_that_cannot_be_read(kampala, monkeypatch):
    file = change(kampala, table="labels.xlsx")
    excel(kampala / "labels.xlsx", table(), first=[["Ultrasound 2024"]])
    refused(
        kampala, "no column 'file' in the first row of sheet 'Liste' (others: Notizen), which names Ultrasound 2024"
    )
    change(kampala, table="labels.xlsx", sheet="Tabelle1")
    refused(kampala, "no sheet 'Tabelle1': expected one of Liste, Notizen")
    file = change(kampala, table="labels.xlsx", sheet="Liste")
    rows = table()
    rows[3][2] = "=C2"
    excel(kampala / "labels.xlsx", rows)
    refused(kampala, "view in row 5 is a formula without a value", "save it")
    shutil.copy(kampala / "labels.csv", kampala / "labels.xlsx")
    refused(kampala, "not a workbook", "call it .csv")
    excel(kampala / "labels.xlsx", table())
    shutil.copy(kampala / "labels.xlsx", kampala / "labels.csv")
    refused(change(kampala, rows=False).parent, "is it a workbook? call it .xlsx")
    (kampala / "labels.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    refused(change(kampala, table="labels.xls").parent, "cannot read .xls: save it as .xlsx, or as CSV")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    file.write_text(file.read_text().replace("labels.xls\n", "labels.xlsx\n"))
    refused(kampala, 'pip install "fpbench[excel]", or save the sheet as CSV')


def test_a_parquet_file(kampala):
    before = load_cohort(kampala / "kampala.yaml").frame
    frame = pd.DataFrame(table(), columns=HEADER).assign(q=[1.0, None] * 9, mrn=lambda f: f["mrn"].astype(int))
    frame.to_parquet(kampala / "labels.parquet")
    found = load_cohort(change(kampala, table="labels.parquet", digits=5)).frame
    assert found["quality"].value_counts(dropna=False).to_dict() == {"1": 9, np.nan: 9}
    pd.testing.assert_frame_equal(found.drop(columns="quality"), before.drop(columns="quality"))
    (kampala / "labels.parquet").write_bytes(b"PAR1")
    refused(kampala, "not a parquet file")


# ---- faults, and what to write ----------------------------------------------------------------------------------------


def test_every_word_without_a_translation_is_counted(kampala):
    rows = table()
    for place, word in ((1, "Leber"), (4, "Fetal femur"), (7, "Leber")):
        rows[place][2] = word
    change(kampala, rows)
    said = refused(kampala, "labels.csv: plane 'Leber' has no translation in row 3 (3 such rows)", "kampala.yaml")
    assert "words:\n  plane:\n    Leber: null  # 2\n    Fetal femur: femur  # 1" in said
    change(kampala, words={"plane": {"Bauch": "abdomen", "Kopf": "brian", "Nabelschnur": None}})
    refused(kampala, "words: plane: Kopf: did you mean 'brain'?")
    change(kampala, words={"split": {"T": "train"}})
    refused(kampala, "split 'E' has no translation in row 8", "E: train or test  # 6")
    change(kampala, words={"split": {"T": "train", "E": None}})
    refused(kampala, "words: split: E: expected train or test")
    rows = table()
    rows[2][4] = ""
    change(kampala, rows)
    refused(kampala, "split '' has no translation in row 4")


def test_pictures_that_are_not_there(kampala):
    change(kampala, suffix=None)
    refused(
        kampala, "18 of 18 images", "img_0 (row 2): 18 of them would be there with `suffix: .png` in", kind=MissingError
    )
    change(kampala, images="images")
    refused(kampala, "18 of them would be there with `images: pictures`", kind=MissingError)
    change(kampala, images=None)
    refused(kampala, "18 of them would be there with `images: pictures`", kind=MissingError)
    change(kampala, [[row[0] + ".png", *row[1:]] for row in table()])
    refused(kampala, 'with `suffix: ""`', kind=MissingError)
    change(kampala)
    (kampala / "pictures" / "w2" / "img_1.png").rename(kampala / "pictures" / "w2" / "IMG_1.PNG")
    refused(
        kampala,
        "1 of 18 images",
        "(row 6)",
        "pictures/w2/IMG_1.PNG: another folder, suffix or case?",
        kind=MissingError,
    )
    cohort = load_cohort(kampala / "kampala.yaml", missing="drop")
    assert (len(cohort), cohort.absent) == (17, 1)


def test_a_patient_on_both_sides(kampala):
    rows = table()
    rows[5][4] = "E"
    change(kampala, rows)
    refused(
        kampala,
        "patient 'kampala/00002' is in 'train' (row 5) and 'test' (row 7); 1 patients",
        "write `split: crossval`",
    )


def test_an_image_named_twice(kampala):
    rows = table()
    rows[9][0] = rows[3][0]
    change(kampala, rows)
    refused(kampala, "image 'kampala/w2/img_0' is named in row 5 too, here in row 11 (1 such rows)")
    rows[9][0] = "./" + rows[3][0]
    change(kampala, rows)
    refused(kampala, "named in row 5 too")


def test_one_number_at_two_centres(kampala):
    rows = table()
    for row in rows[12:15]:
        row[1], row[4] = "00001", "T"
    change(kampala, rows)
    refused(
        kampala,
        "'kampala/00001' is in 'Mulago' (row 2) and 'Nsambya' (row 14)",
        "`patient: [hospital, mrn]`",
        "`across_centres: true`",
    )
    assert load_cohort(change(kampala, rows, across_centres=True)).frame["patient"].nunique() == 5
    assert load_cohort(change(kampala, rows, columns={"patient": ["hospital", "mrn"]})).frame["patient"].nunique() == 6


def test_numbers_that_lost_their_zeros(kampala):
    rows = table()
    rows[5][1] = "2"
    change(kampala, rows)
    refused(kampala, "patient '2' is '00002' in row 5; zeros were lost in row 7 (1 such rows): write `digits: 5`")
    assert load_cohort(change(kampala, rows, digits=5)).frame["patient"].nunique() == 6


def test_a_column_that_is_not_there(kampala):
    change(kampala, columns={"plane": "veiw"})
    refused(kampala, "no column 'veiw'", "names file, mrn, view, hospital, set, q, mother; did you mean 'view'?")
    write(kampala / "labels.csv", table(), ";")
    refused(change(kampala, rows=False).parent, 'is it separated otherwise? write `separator: ";"`')
    write(kampala / "labels.csv", table()[1:], header=table()[0])
    said = refused(kampala, "the first row looks like data")
    assert "00001" not in said
    write(kampala / "labels.csv", table(), header=[*HEADER[:5], "view", "mother"])
    refused(kampala, "2 columns are called 'view'")


def test_cells_that_must_not_be_empty(kampala):
    for place, name, what in ((0, "file", "image"), (1, "mrn", "patient")):
        rows = table()
        rows[10][place] = rows[12][place] = " "
        change(kampala, rows)
        refused(
            kampala, f"expected a name of {what}, found an empty cell of {name!r} in row 12 (2 such rows): fill it in"
        )


def test_cells_that_spreadsheets_run_are_refused_in_columns_that_are_used(kampala):
    rows = table()
    rows[3][6] = "=HYPERLINK(1)"
    rows[4][5], rows[5][5] = "-0.5", "-0,5"
    write(kampala / "labels.csv", rows, ";")
    assert len(load_cohort(change(kampala, rows=False, separator=";"))) == 18
    rows[3][1] = "=1+2"
    change(kampala, rows[:5])
    refused(kampala, "found mrn '=1+2' in row 5")
    rows[3][1] = "a\x07b"
    change(kampala, rows[:5])
    refused(kampala, "expected short printable text", r"'a\x07b' in row 5")


def test_texts_that_are_no_table_say_what_to_try(kampala):
    rows = [[*row[:2], row[2].replace("Kopf", "Schädel"), *row[3:]] for row in table()]
    write(kampala / "labels.csv", rows, encoding="cp1252")
    refused(kampala, "labels.csv, row 3: the text is not utf-8: write `encoding: cp1252`")
    words = {"plane": {"Bauch": "abdomen", "Schädel": "brain", "Nabelschnur": None}}
    assert len(load_cohort(change(kampala, rows=False, encoding="cp1252", words=words))) == 18
    refused(change(kampala, rows=False, encoding="latin-eins").parent, "unknown encoding", "write `encoding: cp1252`")
    write(kampala / "labels.csv", rows)
    refused(change(kampala, rows=False, encoding="cp1252").parent, "the text is UTF-8, not cp1252")
    (kampala / "labels.csv").write_text("\n".join(",".join(row) for row in [HEADER, *table()[:3], ["w3/img_2"]]))
    refused(change(kampala, rows=False).parent, "expected 7 cells as in the header, found 1 in row 5 (1 such rows)")
    (kampala / "labels.csv").write_text(",".join(HEADER) + '\n"w1/img_0"x,1,Kopf,a,T,g,m\n')
    refused(kampala, "mind the quotes")
    for text in ("", "\n\n", ",".join(HEADER) + "\n,,,,,,\n"):
        (kampala / "labels.csv").write_text(text)
        refused(kampala, "expected a row with the names of the columns and rows of images")
    (kampala / "labels.csv").unlink()
    refused(kampala, "expected a table at", kind=MissingError)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tabel": "x"}, "unknown key 'tabel': did you mean 'table'?"),
        ({"table": None}, "missing table"),
        ({"name": "../x"}, "name: expected letters"),
        ({"name": 5}, "name: expected str, found 5: write it in quotes"),
        ({"columns": {"image": None}}, "columns: missing image"),
        (
            {"columns": {"plan": "view", "plane": None}, "words": {"plane": None}},
            "columns: plan: did you mean 'plane'?",
        ),
        ({"columns": {"sha256": "q"}}, "'sha256' cannot be a name of ours"),
        ({"columns": {"plane": 3}}, "columns: plane: expected str, found 3: write it in quotes"),
        ({"words": {"machine": {"a": "b"}}}, "words: machine: expected one of our columns"),
        ({"words": {"plane": ["Bauch"]}}, "words: plane: expected a table"),
        ({"separator": ";;"}, "separator: expected one character"),
        ({"bits": 33}, "bits 0 to 32"),
        ({"expect": {"planes": {"brain": 1}}}, "expect: planes"),
        ({"expect": {"total": {"frames": 1}}}, "expected total: {images, patients}"),
        ({"across_centres": "no"}, "across_centres: expected bool"),
        ({"digits": 99}, "digits 0 to 20"),
    ],
)
def test_a_description_is_held_to_its_keys_and_types(kampala, fields, says):
    change(kampala, **fields)
    refused(kampala, "kampala.yaml: ", says)


def test_names_of_cohorts_and_files(kampala):
    with pytest.raises(MissingError, match="fpbench init-cohort"):
        load_cohort(kampala / "kampla.yaml")
    with pytest.raises(
        InputError,
        match=r"unknown cohort 'labels\.csv': a table needs a description: `fpbench init-cohort labels\.csv`",
    ):
        load_cohort("labels.csv")
    with pytest.raises(InputError, match="expected no root"):
        load_cohort(kampala / "kampala.yaml", kampala)
    (kampala / "kampala.yaml").write_text("- a\n")
    refused(kampala, "expected a table of keys and values")


# ---- wherever a cohort is ---------------------------------------------------------------------------------------------

STUDY = """
name: ours
title: Ours
split: crossval
folds: 3
threads: 1
device: cpu
train: kampala
task: {{name: two, label: plane, classes: [abdomen, brain]}}
cohorts: [{cohorts}]
encoders: [{{name: tiny, model: "timm:mobilenetv3_small_050", weights: random, geometry: {{kind: squash, size: 32}}}}]
"""


def study(tmp_path, *specs):
    path = tmp_path / "ours.yaml"
    path.write_text(STUDY.format(cohorts=", ".join(specs)))
    return load_study(path)


def test_a_study_names_a_file(kampala, tmp_path, small, monkeypatch):
    monkeypatch.setenv("FPBENCH_HOME_OF_OURS", str(kampala))
    plan = study(
        tmp_path, '{file: "${FPBENCH_HOME_OF_OURS}/kampala.yaml"}', f'{{name: africa, root: "{small["africa"]}"}}'
    )
    assert [source.name for source in loading.sources(plan)] == ["kampala", "africa"]
    home, external = loading.load_cohorts(plan)
    assert (home.name, [one.name for one in external]) == ("kampala", ["africa"])
    found = {one.what: one for one in doctor.examine(plan) if one.room == "cohorts"}
    full = next(one for one in doctor.examine(plan, full=True) if one.room == "cohorts")
    assert full.detail == "6 patients, 18 of 18 images, all opened"
    assert found["${FPBENCH_HOME_OF_OURS}/kampala.yaml"].detail == "6 patients, 18 of 18 images, none opened"
    assert costs._images(plan) == 18 + 54
    plan.describe()
    rows = table()
    rows[0][2] = "Leber"
    change(kampala, rows)
    red = next(one for one in doctor.examine(plan) if one.state == "fail")
    assert "plane 'Leber' has no translation" in red.detail
    assert red.remedy.startswith("correct ${FPBENCH_HOME_OF_OURS}/kampala.yaml, or the table")


def test_a_study_names_one_cohort_once(kampala, tmp_path):
    file = kampala / "kampala.yaml"
    for spec, says in (
        ("{missing: drop}", "expected `name` or `file`, found none"),
        (f'{{name: africa, file: "{file}"}}', "found both"),
        (f'{{root: "/x", file: "{file}"}}', "take `root` out"),
    ):
        with pytest.raises(InputError, match=re.escape(says)):
            study(tmp_path, spec)
    shutil.copy(file, kampala / "again.yaml")
    plan = study(tmp_path, f'{{file: "{file}"}}', f'{{file: "{kampala / "again.yaml"}"}}')
    with pytest.raises(InputError, match="two cohorts are called 'kampala'"):
        loading.load_cohorts(plan)
    assert {one.state for one in doctor.examine(plan) if one.room == "cohorts"} == {"fail"}


def test_a_key_sees_description_table_and_pictures(kampala, tmp_path):
    plan = study(tmp_path, f'{{file: "{kampala / "kampala.yaml"}"}}')
    seen = set()

    def changed():
        part = key_parts(plan)["cohorts"]["cohort kampala"][1]
        new = part not in seen
        seen.add(part)
        return new

    assert changed()
    assert not changed()
    file = kampala / "kampala.yaml"
    file.write_text(file.read_text() + "# a remark\n")
    assert not changed()
    change(kampala, words={"plane": {"Bauch": "abdomen", "Kopf": "brain", "Nabelschnur": "other"}})
    assert changed()
    (kampala / "labels.csv").write_bytes((kampala / "labels.csv").read_bytes() + b"\n")
    assert changed()
    moved = kampala / "pictures" / "w1" / "img_0.png"
    moved.write_bytes(moved.read_bytes() + b"\0")
    assert changed()
    moved.unlink()
    assert changed()
    (kampala / "pictures" / "else.png").write_bytes(b"")  # of nobody
    assert not changed()


def test_a_key_sees_pictures_that_are_no_png(small, tmp_path, monkeypatch):
    africa = cohorts.SOURCES["africa"]
    before = cohorts.pictures_in(africa, small["africa"])
    assert before == sorted(
        [str(p.relative_to(small["africa"])), p.stat().st_size] for p in small["africa"].rglob("*.png")
    )
    read = lambda path, name: africa.read(path, name).assign(path=lambda f: f["path"].str.replace(".png", ".bmp"))  # noqa: E731
    lost = cohorts.pictures_in(replace(africa, read=read), small["africa"])
    assert len(lost) == 2 * len(before)
    first = next(small["africa"].rglob("*.png"))
    Image.open(first).save(first.with_suffix(".bmp"))
    assert cohorts.pictures_in(replace(africa, read=read), small["africa"]) != lost


def test_the_command_line_audits_a_file(kampala):
    done = CliRunner().invoke(cli.app, ["audit", str(kampala / "kampala.yaml")])
    assert done.exit_code == 0
    assert "Kampala, two hospitals\n      18  files" in done.stdout
    assert "centre x plane (images)" in done.stdout
    assert "Secret" not in done.stdout


# ---- Africa, described ------------------------------------------------------------------------------------------------

AFRICA = """
name: africa
title: Africa (five countries)
table: African_planes_database.csv
suffix: .png
digits: 3
columns: {image: [Center, Filename], patient: [Center, Patient_num], plane: Plane, centre: Center, split: Train}
words:
  plane: {Fetal abdomen: abdomen, Fetal brain: brain, Fetal femur: femur, Fetal thorax: thorax}
  split: {1: train, 0: test}
"""


def same_as_africa(folder, file):
    file.write_text(AFRICA + f"images: {folder}\n".replace("images", "images") if file.parent != folder else AFRICA)
    mine, theirs = load_cohort(file), load_cohort("africa", folder)
    pd.testing.assert_frame_equal(mine.frame.drop(columns="path"), theirs.frame.drop(columns="path"))
    assert [path.resolve() for path in mine.frame["path"]] == [path.resolve() for path in theirs.frame["path"]]
    assert mine.fingerprint() == theirs.fingerprint()
    assert mine.confounder == theirs.confounder == "centre"


def test_africa_described_is_africa(small):
    same_as_africa(small["africa"], small["africa"] / "mine.yaml")


def test_the_real_africa_described_is_africa(shared, tmp_path):
    folder = tmp_path / "africa"
    shutil.copytree(shared / "data" / "africa", folder)
    same_as_africa(folder, folder / "mine.yaml")
    assert load_cohort(folder / "mine.yaml").frame["group"].nunique() == 112


# ---- the first version ------------------------------------------------------------------------------------------------


def decide(file, most):
    """Do what a person does: take the mark from every line that waits."""
    text = file.read_text(encoding="utf-8")
    head, rest = text.split("\n", 2)[:2], text.split("\n", 2)[2]
    assert rest.count("# ? ") <= most
    file.write_text("\n".join([*head, rest.replace("# ? ", "")]), encoding="utf-8")
    return load_cohort(file, missing="drop")


def test_a_sketch_of_a_bad_table_loads_after_one_edit(tmp_path):
    """A mark of UTF-8 before Latin-1, Windows line ends, rows of two separators, empty ones, commas in numbers, names of people."""
    root, rng = tmp_path / "Köln Süd", np.random.default_rng(1)
    header = ["Datei", "Patient-Nr.", "Patientenname", "Geburtsdatum", "Ansicht", "Klinik", "Gerät", "Gruppe", "SSW"]
    lines = [";".join(header)]
    (root / "Bilder").mkdir(parents=True)
    for who, name in enumerate(["Müller, Eva", "Groß", "Özdemir", "Schmidt", "Weiß", "Jäger"]):
        for number, view in enumerate(["Bauch", "Schädel", "Oberschenkel", "Nabelschnur"]):
            Image.fromarray(picture(rng, number, 30, 20)).save(root / "Bilder" / f"Bild_{who}_{number}.png")
            cell = [
                f"Bild_{who}_{number}",
                f"{who:05d}",
                name,
                f"0{who + 1}.03.1990",
                view,
                ("Köln", "Zürich")[who % 2],
            ]
            cell += ["Voluson", "Training" if who < 4 else "Test", "23,5"]
            comma = (who + number) % 3 == 0
            lines.append(",".join(f'"{c}"' if "," in c else c for c in cell) if comma else ";".join(cell))
        lines.append(("", ";;;;;;;;", ",,,,,,,,")[who % 3])
    (root / "Liste.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode("latin-1"))
    done = CliRunner().invoke(cli.app, ["init-cohort", str(root / "Liste.csv")])
    assert done.exit_code == 0, done.output
    file = root / "koln-sud.yaml"
    text = file.read_text(encoding="utf-8")
    for secret in ("Müller", "Groß", "1990", "00001"):
        assert secret not in text + done.output
    for line in (
        'separator: [";", ","]',
        "encoding: cp1252",
        "images: Bilder",
        "patient: Patient-Nr.",
        "Schädel: brain",
        "Test: test",
    ):
        assert line in text
    assert "lines that wait for you: 1\nline " in done.output
    assert "it does not load yet" in done.output
    with pytest.raises(InputError, match="plane 'Nabelschnur' has no translation in row 5"):
        load_cohort(file)
    frame = decide(file, 1).frame
    assert (len(frame), frame["patient"].nunique(), frame["plane"].isna().sum()) == (24, 6, 6)
    assert frame["official_split"].value_counts().to_dict() == {"train": 16, "test": 8}
    with pytest.raises(InputError, match="nothing is written over"):
        sketch(root / "Liste.csv")


def test_a_sketch_of_the_real_tables_loads_as_it_is(shared, tmp_path):
    found = sketch(shared / "data" / "africa" / "African_planes_database.csv", out=tmp_path / "africa.yaml")
    assert found.waiting == []
    assert found.verdict == "it loads: 450 images of 127 patients"
    mine, theirs = load_cohort(found.file), load_cohort("africa", shared / "data" / "africa")
    columns = ["plane", "centre", "official_split", "pixels"]
    pd.testing.assert_frame_equal(mine.frame[columns], theirs.frame[columns])
    found = sketch(shared / "data" / "spain" / "FETAL_PLANES_DB_data.csv", out=tmp_path / "spain.yaml")
    assert found.waiting == []
    mine, theirs = (
        load_cohort(*which, missing="drop") for which in ([found.file], ["spain", shared / "data" / "spain"])
    )
    columns = ["plane", "brain_plane", "machine", "operator", "official_split", "pixels"]
    pd.testing.assert_frame_equal(mine.frame[columns], theirs.frame[columns])
    assert (len(mine), mine.absent) == (150, 12_250)


def test_a_sketch_leaves_out_what_it_does_not_understand(kampala):
    (kampala / "kampala.yaml").unlink()
    rows = [[row[0].split("/")[0] + row[0][-1], *row[1:]] for row in table()]
    rows[5][4] = "E"
    write(kampala / "labels.csv", rows)
    found = sketch(kampala / "labels.csv", out=kampala / "first.yaml")
    assert "# ? no cell names a file below this folder" in found.text
    assert "# ? split: set  # left out; patients on both sides of it: 1" in found.text
    assert "it does not load yet" in found.verdict
    write(kampala / "labels.csv", [[row[0], row[5]] for row in table()], header=["a", "b"])
    found = sketch(kampala / "labels.csv", out=kampala / "second.yaml")
    assert "  image: a  # the cells name files that are there" in found.text
    assert "# ? patient: name" in found.text
    assert "columns: missing patient" in found.verdict
    (kampala / "labels.csv").write_text("one column\n1\n2\n")
    with pytest.raises(InputError, match="no separator"):
        sketch(kampala / "labels.csv", out=kampala / "third.yaml")
    with pytest.raises(InputError, match="expected a folder with pictures"):
        sketch(kampala / "labels.csv", kampala / "nowhere", kampala / "third.yaml")
    assert not (kampala / "third.yaml").exists()


def drawn(root, names):
    rng = np.random.default_rng(3)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(rng, 1, 30, 20)).save(root / name)


def test_a_sketch_finds_pictures_that_are_called_alike_in_every_folder(tmp_path):
    drawn(tmp_path, [f"all/P{n // 3}/im{n % 3}.png" for n in range(12)])
    rows = [[f"P{n // 3}", f"im{n % 3}.png", ("HC", "AC", "FL")[n % 3], "GE"] for n in range(12)]
    write(tmp_path / "t.csv", rows, "|", ["subject", "filename", "label", "device"])
    found = sketch(tmp_path / "t.csv", out=tmp_path / "t.yaml")
    assert "images: all  # 12 of 12 files are there" in found.text
    assert "image: [subject, filename]" in found.text
    assert found.verdict == "it loads: 12 images of 4 patients"
    assert 'separator: "|"' in found.text


def test_a_sketch_does_not_take_any_number_for_a_person(tmp_path):
    drawn(tmp_path, [f"{n}.JPG" for n in range(12)])
    rows = [[tmp_path / f"{n}.JPG", n // 2, "Herz", f"Frau {'ABCDEF'[n // 2]}", int(n > 7)] for n in range(12)]
    write(tmp_path / "t.tsv", rows, "\t", ["Pfad", "Fallnummer", "Ebene", "wer", "test"])
    found = sketch(tmp_path / "t.tsv", out=tmp_path / "t.yaml")
    assert "# ? patient: Fallnummer  # 6 values; is each of them one person, and only one?" in found.text
    assert "# the cells of the image column are whole paths, 12 of 12" in found.text
    assert ('"1": test  # 4' in found.text, '"0": train  # 8' in found.text) == (True, True)
    assert "# not read: wer (6 values)" in found.text
    assert "Frau" not in found.text + str(found)
    cohort = decide(found.file, 2)
    assert (len(cohort), cohort.frame["plane"].notna().sum()) == (12, 0)


def test_a_sketch_shows_nothing_of_a_table_without_names_of_columns(tmp_path):
    drawn(tmp_path, ["1.png", "2.png"])
    write(tmp_path / "t.csv", [["2.png", "Anna Meier", "brain"]], header=["1.png", "Eva Groß", "brain"])
    with pytest.raises(InputError, match="the first row looks like data") as error:
        sketch(tmp_path / "t.csv", out=tmp_path / "t.yaml")
    assert "Eva" not in str(error.value)


def test_a_sketch_of_cells_that_name_files_elsewhere(tmp_path):
    drawn(tmp_path, [f"{n}.JPG" for n in range(4)])
    write(
        tmp_path / "t.csv", [[f"C:\\Export\\{n}.jpg", n // 2, "Kopf"] for n in range(4)], ";", ["Pfad", "patient", "x"]
    )
    found = sketch(tmp_path / "t.csv", out=tmp_path / "t.yaml")
    assert "there is" in found.waiting[0]
    assert "0.JPG" in found.waiting[0]
    assert "  image: Pfad  # by its cells or its name" in found.text
    assert "4 of 4 images" in found.verdict


def test_a_sketch_of_a_workbook_and_of_numbers_at_two_centres(kampala):
    rows = table()
    for row in rows[12:15]:
        row[1], row[4] = "00001", "T"
    excel(kampala / "list.xlsx", rows)
    found = sketch(kampala / "list.xlsx", kampala / "pictures", kampala / "first.yaml")
    assert "sheet: Liste" in found.text
    assert "  patient: [hospital, mrn]  # numbers at several centres: 1" in found.text
    assert "# ? T: train or test  # 12\n" in found.text
    assert "Secret" not in found.text + str(found)
    text = found.file.read_text()
    found.file.write_text(
        text.replace("# ? T: train or test", "T: train")
        .replace("# ? E: train or test", "E: test")
        .replace("# ? Nabel", "Nabel")
    )
    assert load_cohort(found.file).frame["patient"].nunique() == 6


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("Fetal abdomen", "abdomen"), ("Bauch quer", "abdomen"), ("Kopf", "brain"), ("Fémur", "femur"), ("cuello uterino", "cervix"),
        ("BRAIN", "brain"), ("head/abdomen", "?"), ("Nabelschnur", "?"), ("cervical spine", "?"), ("not a brain", "?"), ("", "?"),
    ],
)  # fmt: skip
def test_words_are_translated_only_where_they_say_one_thing(word, means):
    assert vocabulary.guess("plane", word) == means


@given(st.text(max_size=12))
def test_a_word_is_written_so_that_yaml_reads_it_back(text):
    line = f"{vocabulary.quoted(text)}: {vocabulary.quoted(text)}  # 3"
    if text.isprintable() and text != "?":
        assert yaml.safe_load(line) == {text: text}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text(alphabet="ab1;,\t\"'\r\n=é\0", max_size=4), min_size=1, max_size=8), max_size=5),
    st.sampled_from(["utf-8", "cp1252", "utf-16"]),
)
def test_no_table_gives_more_than_an_error_of_ours(tmp_path_factory, rows, encoding):
    path = tmp_path_factory.mktemp("any") / "labels.csv"
    write(path, rows, ";", encoding=encoding)
    for separators in ([], [";"], [";", ","]):
        with suppress(InputError):
            raw = cells.open_table(path, separators)
            assert all(len(row) == len(raw.header) for row in raw.rows)
    with suppress(InputError):
        assert sketch(path, out=path.with_suffix(".yaml")).file.is_file()


def test_a_description_is_read_without_its_table(kampala):
    (kampala / "labels.csv").unlink()
    assert describe(kampala / "kampala.yaml").further == ("quality",)
