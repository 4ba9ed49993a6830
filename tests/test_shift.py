"""The gap taken apart: a planted cause carries the gap, and the parts add up to it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from fpbench.analysis import shift
from fpbench.errors import InputError
from fpbench.tasks import TASKS

TASK = TASKS["planes"]
EVEN = (1, 1, 1, 1)


def cohort(population, proportions, right, spill=0.0, folds=2, groups=300, seed=0, hard_copies=0):
    """Test rows of one model: class k is answered right with probability right[k], else by another shared class.

    ``spill``: how often a *right* answer of the four is drowned by a stronger logit of class 5, which ``shared`` ignores.
    ``hard_copies``: how often each wrongly answered image stands again under another name.
    """
    rng = np.random.default_rng(seed)
    y = rng.choice(len(proportions), groups * 6, p=np.array(proportions) / sum(proportions))
    wrong = (y + rng.integers(1, 4, len(y))) % 4
    parts = []
    easy = rng.random(len(y)) < np.array(right)[y]
    drowned = easy & (y < 4) & (rng.random(len(y)) < spill)
    for fold in range(folds):
        z = np.eye(6)[np.where(easy, y, wrong)] * 4 + np.eye(6)[5] * 8 * drowned[:, None]
        rows = pd.DataFrame(z, columns=TASK.columns()).assign(
            image_id=[f"{population}{i}" for i in range(len(y))], group=np.arange(len(y)) // 6, distinct=True,
            population=population, split="test", fold=fold, seed=0, encoder="e", protocol="logistic", y_true=y, centre="x",
            cohort=population, patient=np.arange(len(y)) // 6, n_patients=100,
        )  # fmt: skip
        copies = [
            rows[~easy].assign(image_id=f"copy{n}-" + rows["image_id"], distinct=False) for n in range(hard_copies)
        ]
        parts += [rows, *copies]
    return pd.concat(parts, ignore_index=True)


def steps_of(home, abroad, resamples=50):
    steps = shift.decompose(pd.concat([home, abroad], ignore_index=True), TASK, "africa", resamples)
    return steps.set_index("step")


CAUSES = {
    "label set": (cohort("spain", (2, 2, 2, 2, 2, 2), (0.9,) * 4 + (0.1, 0.1)), cohort("africa", EVEN, (0.9,) * 4)),
    "rule": (cohort("spain", (2,) * 6, (0.9,) * 6), cohort("africa", EVEN, (0.9,) * 4, spill=0.5)),
    "copies": (cohort("spain", (2,) * 6, (0.8,) * 6), cohort("africa", EVEN, (0.8,) * 4, hard_copies=3)),
    "residual": (cohort("spain", (2,) * 6, (0.95,) * 6), cohort("africa", EVEN, (0.6,) * 4)),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_planted_cause_carries_the_gap(cause):
    steps = steps_of(*CAUSES[cause])
    gap = steps.loc["gap", "value"]
    assert abs(gap) > 0.1
    assert steps.loc[cause, "value"] / gap > 0.9
    assert steps.loc[[*shift.SWITCHES, "residual"], "value"].sum() == pytest.approx(gap, abs=1e-12)


def test_a_planted_prior_carries_the_gap():
    """The four classes are answered alike in both cohorts; only how frequent they are differs."""
    task = replace(TASK, tests=dict.fromkeys(("spain", "africa"), TASK.classes[:4]))
    right = (0.95, 0.95, 0.55, 0.95)
    home = cohort("spain", (1, 1, 30, 1), right, groups=4000)
    abroad = cohort("africa", EVEN, right, groups=4000, seed=1)
    steps = shift.decompose(pd.concat([home, abroad], ignore_index=True), task, "africa", 2).set_index("step")
    gap = steps.loc["gap", "value"]
    assert abs(gap) > 0.1
    assert steps.loc["class prior", "value"] / gap > 0.9


def by_hand(rows, labels, shared, prior_of=None):
    """Mean over folds of scikit-learn's weighted macro F1."""
    found = []
    for fold, part in rows.groupby("fold"):
        part = part[part["y_true"].isin(labels)]
        z = part[TASK.columns()].to_numpy().copy()
        if shared:
            z[:, 4:] = -np.inf
        weights = np.ones(len(part))
        if prior_of is not None:
            wanted = prior_of[prior_of["fold"] == fold]["y_true"].value_counts(normalize=True)
            mine = part[part["y_true"] < 4]["y_true"].value_counts(normalize=True)
            weights = part["y_true"].map(wanted / mine).fillna(1.0).to_numpy()
        found.append(f1_score(part["y_true"], z.argmax(1), labels=labels, average="macro", sample_weight=weights))
    return np.mean(found)


def test_gap_and_residual_equal_scikit_learns():
    home = cohort("spain", (3, 1, 2, 4, 2, 2), (0.9, 0.7, 0.6, 0.8, 0.5, 0.4), spill=0.1, hard_copies=1)
    abroad = cohort("africa", (1, 2, 2, 1), (0.6, 0.8, 0.7, 0.5), spill=0.3, hard_copies=1, seed=1)
    steps = steps_of(home, abroad)
    assert steps.loc["gap", "value"] == pytest.approx(
        by_hand(home, range(6), False) - by_hand(abroad, range(4), False), abs=1e-12
    )
    home, abroad = home[home["distinct"]], abroad[abroad["distinct"]]
    assert steps.loc["residual", "value"] == pytest.approx(
        by_hand(home, range(4), True, prior_of=abroad) - by_hand(abroad, range(4), True), abs=1e-12
    )
    assert (steps["least"] <= steps["value"] + 1e-12).all()
    assert (steps["most"] >= steps["value"] - 1e-12).all()
    assert (steps["low"] < steps["value"]).all()
    assert (steps["high"] > steps["value"]).all()


def test_folds_that_test_their_own_groups_are_resampled_within_them():
    home = cohort("spain", (2,) * 6, (0.8,) * 6)
    home = home[home["group"] % 2 == home["fold"]]
    steps = steps_of(home, cohort("africa", EVEN, (0.6,) * 4))
    assert "same value" in steps.loc["copies", "reason"]  # there are none: exactly 0 in every resample
    steps = steps.drop(index="copies")
    assert np.isfinite(steps[["value", "low", "high"]].to_numpy()).all()


def test_one_group_gives_a_reason_and_a_missing_cohort_an_error():
    home, abroad = cohort("spain", (2,) * 6, (0.8,) * 6), cohort("africa", EVEN, (0.6,) * 4)
    single = steps_of(home, abroad.assign(group=0))
    assert single["low"].isna().all()
    assert single["reason"].str.contains("one patient group").all()
    with pytest.raises(InputError, match="expected test rows of 'spain' and of another cohort 'africa'"):
        shift.decompose(home, TASK, "africa")


def test_countries_are_scored_over_the_planes_they_have():
    abroad = cohort("africa", EVEN, (0.8, 0.7, 0.6, 0.5), groups=60)
    abroad["centre"] = np.where(abroad["group"] % 2, "Ghana", "Malawi")
    abroad = abroad[~((abroad["centre"] == "Ghana") & (abroad["y_true"] == 3))]
    table = (
        shift.by_part(abroad, TASK, "africa").query("rule == 'open' and duplicates == 'as published'").set_index("part")
    )
    assert table["classes"].to_dict() == {
        "Ghana": "abdomen + brain + femur",
        "Malawi": "abdomen + brain + femur + thorax",
    }
    assert table.loc["Ghana", "present"] == "abdomen, brain, femur"
    for centre, labels in (("Ghana", range(3)), ("Malawi", range(4))):
        part = abroad[abroad["centre"] == centre]
        assert table.loc[centre, "value"] == pytest.approx(by_hand(part, labels, False), abs=1e-12)
        assert table.loc[centre, "images"] == part["image_id"].nunique()


def test_the_worst_are_wrong_and_sorted_by_confidence():
    abroad = cohort("africa", EVEN, (0.8, 0.7, 0.6, 0.5), groups=20)
    worst = shift.worst(abroad, TASK, "e", "logistic", most=4)
    assert len(worst) == 4
    assert (worst["true"] != worst["answer"]).all()
    assert worst["confidence"].is_monotonic_decreasing


def test_sentences_name_a_difference_only_where_the_interval_excludes_zero():
    apart, alike = (shift.gaps(pd.concat(CAUSES[one], ignore_index=True), TASK) for one in ("residual", "rule"))
    assert shift.sentences(apart)[0].startswith(
        "Africa, abdomen + brain + femur + thorax: e, linear probing: printed gap "
    )
    assert shift.sentences(apart)[0].endswith("the populations differ.")
    assert shift.sentences(alike)[0].endswith("no difference is shown once both are measured alike.")
    assert "the largest part of it is the rule" in shift.sentences(alike)[0]
