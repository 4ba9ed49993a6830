import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import write_spain

from fpbench import cohorts, load_cohort
from fpbench.cohorts import africa, spain
from fpbench.cohorts.source import check_counts, check_rows
from fpbench.errors import InputError, MissingError


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_the_frame_has_the_promised_columns_in_a_fixed_order(small):
    home, other = load_cohort("spain", small["spain"]), load_cohort("africa", small["africa"])
    for cohort in (home, other):
        assert tuple(cohort.frame.columns[:10]) == cohorts.COLUMNS
        assert cohort.frame["image_id"].is_monotonic_increasing
        assert cohort.frame["image_id"].is_unique
    row = home.frame.iloc[0]
    assert row["image_id"] == "spain/Patient00001_Plane2_1_of_3"
    assert (row["patient"], row["plane"], row["official_split"]) == ("spain/00001", "abdomen", "train")
    assert home.frame.loc[home.frame["plane"] != "brain", "brain_plane"].isna().all()
    assert set(home.frame["official_split"]) == {"train", "test"}
    assert home.image(row["image_id"]).shape == (44, 60)


def test_african_patients_are_a_country_and_a_number(small):
    frame = load_cohort("africa", small["africa"]).frame
    assert frame["patient"].nunique() == 15
    assert "africa/Algeria/001" in set(frame["patient"])
    assert frame.groupby("patient")["centre"].nunique().max() == 1
    assert not frame["coloured"].any()  # Egypt's RGB files are grey


def test_train_is_one_for_training(small):
    frame = load_cohort("africa", small["africa"]).frame
    assert (frame.loc[frame["patient"].str.endswith("/001"), "official_split"] == "train").all()
    assert (frame.loc[frame["patient"].str.endswith("/002"), "official_split"] == "test").all()


def test_patients_that_share_a_picture_are_one_group(small):
    frame = load_cohort("africa", small["africa"]).frame
    groups = frame.groupby("patient")["group"].first()
    assert groups["africa/Algeria/002"] == groups["africa/Algeria/001"] == "africa/Algeria/001"
    assert frame["group"].nunique() == 14


def test_groups_are_connected_components():
    patients, pixels = pd.Series(list("abbccd")), pd.Series(["1", "1", "2", "2", "3", "4"])
    assert cohorts.group_patients(patients, pixels).tolist() == ["a", "a", "a", "a", "a", "d"]


def test_the_order_of_rows_changes_nothing(small):
    before = load_cohort("spain", small["spain"]).frame
    path = small["spain"] / spain.CSV
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *np.random.default_rng(3).permutation(rows)]) + "\n")
    pd.testing.assert_frame_equal(load_cohort("spain", small["spain"]).frame, before)


def test_de_duplication_keeps_the_first_copy_and_drops_contradictions():
    frame = pd.DataFrame({"pixels": ["a", "a", "b", "b", "c"], "plane": ["brain", "brain", "brain", "femur", "other"]})
    assert cohorts.distinct(frame, "plane").tolist() == [True, False, False, False, True]
    assert cohorts.distinct(frame.assign(plane=None), "plane").tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Image_name;", "Image;", "expected the columns Image_name"),
        (";Fetal brain;", ";Fetal kidney;", "unknown Plane 'Fetal kidney' in data row 4"),
        (";Trans-thalamic;", ";Trans-siberian;", "unknown Brain_plane"),
        (";Aloka;1 ", ";Aloka;2 ", "unknown Train '2'"),
        (";Aloka;1 ", ";Aloka;0 ", "both sides of the published split"),
        ("_Plane2_1_of_3;1;", "_Plane2_1_of_3;7;", "does not fit patient '7'"),
        ("_Plane2_1_of_3;", "_Plane2_2_of_3;", "listed twice"),
        (";", ",", "expected the columns"),
    ],
)
def test_a_changed_spanish_table_is_refused_with_the_reason(small, old, new, says):
    edit(small["spain"] / spain.CSV, old, new, -1 if old == ";" else 1)
    with pytest.raises(InputError, match=r"FETAL_PLANES_DB_data\.csv") as error:
        load_cohort("spain", small["spain"])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Center", "Country", "expected the columns"),
        ("Fetal thorax", "Fetal heart", "unknown Plane"),
        (",Malawi,", ",Mali,", "unknown Center"),
        ("2,Fetal abdomen", "3,Fetal abdomen", "does not fit"),
        ("\n1,", "\n1,extra,", "not a table"),
    ],
)
def test_a_changed_african_table_is_refused_with_the_reason(small, old, new, says):
    edit(small["africa"] / africa.CSV, old, new)
    with pytest.raises(InputError, match=r"African_planes_database\.csv") as error:
        load_cohort("africa", small["africa"])
    assert says in str(error.value)


def test_wrong_encoding_is_an_error_of_ours(small):
    path = small["spain"] / spain.CSV
    path.write_bytes(path.read_bytes().replace(b"Aloka", b"Al\xffka", 1))
    with pytest.raises(InputError, match="not a table"):
        load_cohort("spain", small["spain"])


def test_a_table_without_a_row_does_not_hold_the_counts(small):
    path = small["spain"] / spain.CSV
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="total images: expected 144, found 143"):
        load_cohort("spain", small["spain"])


def test_missing_images_are_an_error_or_counted(small):
    gone = small["spain"] / "Images" / "Patient00002_Plane3_2_of_3.png"
    gone.unlink()
    with pytest.raises(MissingError, match=r"1 of 144 images .*Patient00002_Plane3_2_of_3"):
        load_cohort("spain", small["spain"])
    cohort = load_cohort("spain", small["spain"], missing="drop")
    assert (len(cohort), cohort.absent) == (143, 1)
    assert "1 images of the label file are absent" in cohort.describe()


def test_an_unreadable_picture_is_named_with_its_row(small):
    (small["africa"] / "Ghana" / "patient001_GHA_plane0.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(InputError, match="africa/Ghana/patient001_GHA_plane0"):
        load_cohort("africa", small["africa"])


def test_the_folder_may_be_one_level_up_and_unknown_things_are_named(small, tmp_path):
    nested = tmp_path / "nested"
    nested.mkdir()
    shutil.move(small["spain"], nested / "FETAL_PLANES_ZENODO")
    assert len(load_cohort("spain", nested)) == 144
    with pytest.raises(MissingError, match="fpbench fetch spain"):
        load_cohort("spain", tmp_path / "nowhere")
    with pytest.raises(InputError, match="unknown cohort 'france'"):
        load_cohort("france")
    with pytest.raises(InputError, match="'error' or 'drop'"):
        load_cohort("spain", nested, missing="ignore")


def test_a_fingerprint_sees_labels_and_pixels_but_not_the_place(small, tmp_path):
    before = load_cohort("spain", small["spain"]).fingerprint()
    assert load_cohort("spain", write_spain(tmp_path / "elsewhere")).fingerprint() == before
    edit(small["spain"] / spain.CSV, ";Op. 1;", ";Op. 2;")
    assert load_cohort("spain", small["spain"]).fingerprint() != before


# ---- the real tables --------------------------------------------------------------------------------------------------


def test_the_real_spanish_table_holds_every_published_count(shared):
    path = shared / "data" / "spain" / spain.CSV
    frame = spain.read(path)
    check_rows(frame, path)
    check_counts(frame, spain.SOURCE, path)
    assert (len(frame), frame["patient"].nunique()) == (12_400, 1_792)
    counts = pd.crosstab(frame["plane"], frame["official_split"])
    expected = {
        "abdomen": (353, 358), "brain": (1620, 1472), "femur": (516, 524), "thorax": (1058, 660), "cervix": (981, 645), "other": (2601, 1612),
    }  # fmt: skip
    assert {name: (counts.loc[name, "train"], counts.loc[name, "test"]) for name in expected} == expected
    patients = frame.groupby("official_split")["patient"].nunique()
    assert patients.to_dict() == {"train": 896, "test": 896}
    per_class = frame.groupby("plane")["patient"].nunique()
    assert per_class.to_dict() == {
        "other": 734,
        "cervix": 917,
        "abdomen": 595,
        "brain": 1082,
        "femur": 754,
        "thorax": 755,
    }
    sub = frame[frame["official_split"] == "train"]["brain_plane"].value_counts()
    assert sub.to_dict() == {"trans-thalamic": 873, "trans-cerebellar": 375, "trans-ventricular": 295, "other": 77}
    machines = frame[frame["official_split"] == "test"]["machine"].value_counts()
    assert machines.to_dict() == {"Voluson E6": 2406, "Aloka": 1737, "Voluson S10": 1071, "Other": 57}


def test_a_changed_real_table_is_refused(shared, tmp_path):
    path = tmp_path / spain.CSV
    text = (shared / "data" / "spain" / spain.CSV).read_text()
    rows = text.splitlines()
    path.write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(InputError, match="expected 12,400, found 12,399"):
        check_counts(spain.read(path), spain.SOURCE, path)
    path.write_text("\n".join([*rows, rows[5]]) + "\n")
    with pytest.raises(InputError, match="listed twice"):
        check_rows(spain.read(path), path)


def test_the_real_african_cohort(shared):
    cohort = load_cohort("africa", shared / "data" / "africa")
    frame = cohort.frame
    assert (len(frame), frame["patient"].nunique(), frame["group"].nunique()) == (450, 127, 112)
    assert frame["patient"].str.rsplit("/").str[-1].nunique() == 64  # bare numbers restart in every country
    assert frame["plane"].value_counts().to_dict() == {"abdomen": 125, "brain": 125, "femur": 125, "thorax": 75}
    assert frame["official_split"].value_counts().to_dict() == {"test": 233, "train": 217}
    assert frame.groupby("official_split")["patient"].nunique().to_dict() == {"train": 61, "test": 66}
    kept = frame[cohorts.distinct(frame, "plane")]["plane"].value_counts()
    assert kept.to_dict() == {"brain": 115, "femur": 113, "abdomen": 112, "thorax": 63}
    assert frame.loc[frame["coloured"], "centre"].tolist() == ["Egypt"]


def test_the_real_sample_is_a_subset_that_says_so(shared):
    cohort = load_cohort("spain", shared / "data" / "spain", missing="drop")
    assert (len(cohort), cohort.frame["patient"].nunique(), cohort.absent) == (150, 101, 12_250)
    with pytest.raises(MissingError, match="12,250 of 12,400"):
        load_cohort("spain", shared / "data" / "spain")


def test_sources_are_registered_by_name():
    assert replace(spain.SOURCE, name="x").population == "spain"
    assert cohorts.SOURCES["africa"].counts["total"] == {"images": 450, "patients": 127}
