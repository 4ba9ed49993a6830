import numpy as np
from conftest import picture
from PIL import Image

from fpbench.cohorts.audit import audit, crosstab, exact_pairs


def test_the_african_audit_prints_the_known_numbers(shared):
    found = audit("africa", shared / "data" / "africa")
    assert found.summary() == {
        "files": 450, "distinct": 403, "pairs": 47, "pairs across patients": 47, "pairs across the split": 22,
        "pairs with two labels": 0, "patient ids": 127, "groups": 112, "kept after de-duplication": 403,
        "near-duplicate pairs": 5, "missing files": 0, "unreadable files": 0,
    }  # fmt: skip
    printed = str(found)
    for number in (
        "450  files",
        "403  distinct",
        "47  pairs",
        "22  pairs across the split",
        "127  patient ids",
        "112  groups",
    ):
        assert number in printed
    assert found.pairs["same_bytes"].all()
    assert found.pairs["same_plane"].all()
    linked = found.cohort.frame.groupby("group")["patient"].nunique()
    assert linked["africa/Algeria/004"] == 2  # Algeria 4 = 31
    assert found.near["correlation"].min() > 0.99


def test_the_spanish_sample_has_one_copy_within_a_patient(shared):
    pairs = audit("spain", shared / "data" / "spain").pairs
    assert pairs[["image", "copy"]].to_numpy().tolist() == [
        ["spain/Patient01648_Plane5_2_of_5", "spain/Patient01648_Plane5_4_of_5"]
    ]
    assert pairs["same_patient"].all()


def test_planted_findings_are_found_and_only_those(small):
    africa = small["africa"]
    (africa / "Ghana" / "patient003_GHA_plane0.png").write_bytes(b"nothing")
    (africa / "Ghana" / "patient003_GHA_plane1.png").unlink()
    rng = np.random.default_rng(5)
    smooth = np.asarray(Image.fromarray(picture(rng, 2, 24, 20)).resize((50, 40), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(africa / "Malawi" / "patient001_MWI_plane1.png")
    Image.fromarray(np.clip(smooth.astype(int) + rng.integers(0, 3, smooth.shape), 0, 255).astype(np.uint8)).save(
        africa / "Malawi" / "patient002_MWI_plane1.png"
    )
    found = audit("africa", africa)
    assert found.missing == ["africa/Ghana/patient003_GHA_plane1"]
    assert found.unreadable["image_id"].tolist() == ["africa/Ghana/patient003_GHA_plane0"]
    assert found.pairs["copy"].tolist() == [f"africa/Algeria/patient002_DZA_plane{n}" for n in range(4)]
    assert not found.pairs["same_split"].any()
    assert found.near[["image", "copy"]].to_numpy().tolist() == [
        ["africa/Malawi/patient001_MWI_plane1", "africa/Malawi/patient002_MWI_plane1"]
    ]
    assert found.cohort.frame["group"].nunique() == 14  # near duplicates link nobody
    assert "spain" not in found.sentence()
    assert set(found.tables()) >= {"centre x plane (images)", "unreadable", "near duplicates"}


def test_three_copies_are_two_pairs(small):
    found = audit("africa", small["africa"])
    frame = found.cohort.frame.copy()
    frame.loc[[10, 11, 12], "pixels"] = "same"
    assert len(exact_pairs(frame)) == len(found.pairs) + 2
    assert len(frame) - frame["pixels"].nunique() == len(exact_pairs(frame))


def test_crosstab_follows_the_order_of_the_task(small):
    table = crosstab(audit("spain", small["spain"]).cohort, "machine", "plane")
    assert table.columns.tolist() == ["abdomen", "brain", "femur", "thorax", "cervix", "other"]
    assert table.to_numpy().sum() == 144
