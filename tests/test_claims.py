"""A sentence that one encoder is better than another exists only where the test says so."""

import numpy as np
import pandas as pd
import pytest

from fpbench.analysis import claims, scoring, statistics
from fpbench.encoders import MINI
from fpbench.tasks import TASKS

TASK = TASKS["planes"]
SEVEN = ("usfm", "mofo", "ultrasam", "fetalclip", "resnet50", "efficientnetv2_s", "dinov3")


def answers(skills, protocol="logistic", groups=60, seed=0):
    """Predictions of encoders that are right with the given probability: name -> (in Spain, in Africa); two folds."""
    rng, parts = np.random.default_rng(seed), []
    for column, (population, classes) in enumerate((("spain", 6), ("africa", 4))):
        y = np.tile(np.arange(classes), groups)
        group = np.repeat(np.arange(groups), classes)
        for encoder, skill in skills.items():
            for fold in range(2):
                right = rng.random(len(y)) < skill[column]
                answer = np.where(right, y, rng.integers(0, 6, len(y)))
                logits = np.eye(6)[answer] * 5
                rows = pd.DataFrame(logits, columns=TASK.columns()).assign(
                    image_id=[f"{population}{i}" for i in range(len(y))], patient=group, group=group, distinct=True,
                    population=population, split="test", fold=fold, encoder=encoder, protocol=protocol,
                    n_patients=100, y_true=y, seed=0,
                )  # fmt: skip
                parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def outcomes(predicted):
    """claims.verdicts by kind of claim: (first words, cohort, protocol) -> row."""
    table = claims.verdicts(statistics.bootstraps(predicted, TASK), TASK)
    return {(row.claim, row.cohort): row for row in table.itertuples()}


BEST, GAP, BELOW = (
    "FetalCLIP scores highest under linear probing",
    "MOFO and UltraSAM lose most from Spain to Africa under linear probing",
    "An ultrasound encoder falls below a natural-image one under linear probing",
)


@pytest.mark.parametrize("suffix", ["", MINI])
def test_claims_are_supported_where_they_hold(suffix):
    skills = dict.fromkeys(SEVEN, (0.7, 0.7)) | {"fetalclip": (0.95, 0.95)}
    skills |= {"mofo": (0.7, 0.2), "ultrasam": (0.7, 0.2)}
    found = outcomes(answers({name + suffix: skill for name, skill in skills.items()}))
    assert [found[key].outcome for key in ((BEST, "Spain"), (BEST, "Africa"), (GAP, "Africa"), (BELOW, "Africa"))] == [
        "supported"
    ] * 4
    assert found[BEST, "Spain"].probability > 0.99


def test_claims_are_refused_where_the_opposite_holds_and_left_open_where_nothing_speaks():
    skills = dict.fromkeys(SEVEN, (0.8, 0.8)) | {"resnet50": (0.5, 0.3), "dinov3": (0.5, 0.5)}
    skills |= {"efficientnetv2_s": (0.5, 0.5), "fetalclip": (0.6, 0.8)}
    found = outcomes(answers(skills))
    assert found[BEST, "Spain"].outcome == "not supported"
    assert found[GAP, "Africa"].outcome == "not supported"
    assert found[BELOW, "Spain"].outcome == "not supported"
    even = outcomes(answers(dict.fromkeys(SEVEN[:5], (0.7, 0.7)), seed=4))
    assert even[BELOW, "Spain"].outcome == "undecided"  # some pair always differs a little: Bonferroni holds it back
    assert even[BELOW, "Spain"].probability > 0.5


def test_claims_about_absent_encoders_are_not_tested():
    found = outcomes(answers({"fetalclip": (0.9, 0.9), "resnet50": (0.5, 0.5)}))
    assert found[BEST, "Spain"].outcome == "supported"
    assert (found[GAP, "Africa"].outcome, found[GAP, "Africa"].reason) == (
        "not tested",
        "needs mofo, ultrasam and others to compare with",
    )
    assert found[BEST.replace("linear probing", "linear probing"), "Africa"].encoders == "fetalclip, resnet50"
    assert found["USFM scores highest under full fine-tuning", "Spain"].outcome == "not tested"


def pairs_of(predicted, seed=0):
    boots = claims.primary(statistics.bootstraps(predicted, TASK, seed=seed), TASK)
    return boots, statistics.of_all(statistics.differences, boots)


def test_primary_views_have_all_classes_of_their_cohort():
    boots, _ = pairs_of(answers({"a": (0.9, 0.5), "b": (0.9, 0.5)}))
    assert [boot.sample.view for boot in boots] == [
        ("spain", "all classes", "open", "as published"),
        ("africa", "abdomen + brain + femur + thorax", "open", "as published"),
    ]


def test_sentences_say_better_only_with_the_test_and_in_the_right_direction():
    _, pairs = pairs_of(answers({"a": (0.4, 0.7), "b": (0.9, 0.7)}))
    spain, africa = claims.sentences(pairs)
    assert "b is better than a (1 of 1 pairs" in spain
    assert "no encoder is shown to be better" in africa
    spain, africa = claims.contrasts(pairs)
    assert spain.endswith("b is better.")
    assert "a minus b -0." in spain
    assert africa.endswith("undecided.")


def test_shuffled_labels_leave_no_claim():
    predicted = answers(dict.fromkeys(SEVEN, (0.9, 0.9)))
    shuffled = predicted.copy()
    for population in ("spain", "africa"):
        rows = shuffled["population"] == population
        images = shuffled[rows].drop_duplicates("image_id").set_index("image_id")["y_true"]
        mixed = pd.Series(np.random.default_rng(0).permutation(images.to_numpy()), images.index)
        shuffled.loc[rows, "y_true"] = shuffled.loc[rows, "image_id"].map(mixed)
    scores = scoring.overview(scoring.evaluate(shuffled, TASK), TASK)
    assert scores["mean"].max() < 0.3
    boots, pairs = pairs_of(shuffled)
    assert not any("is better" in line for line in (*claims.sentences(pairs), *claims.contrasts(pairs)))
    assert not (claims.verdicts(boots, TASK)["outcome"] == "supported").any()
    for line in claims.winners(statistics.of_all(statistics.ranking, boots)):
        assert float(line.rsplit(" ", 1)[1].rstrip(".")) > claims.ALPHA


def test_protocols_of_one_encoder_are_compared_on_the_same_patients():
    probed = answers({"a": (0.6, 0.6)})
    tuned = answers({"a": (0.9, 0.6)}, protocol="full", seed=1)
    _, pairs = pairs_of(claims.exchanged(pd.concat([probed, tuned]), ["logistic", "full"]))
    spain, africa = claims.contrasts(pairs)
    assert spain.startswith("a, Spain, all classes, open: full fine-tuning minus linear probing +0.")
    assert spain.endswith("full fine-tuning is better.")
    assert africa.endswith("undecided.")


def test_one_patient_group_gives_a_reason_and_no_verdict():
    boots, pairs = pairs_of(answers({"fetalclip": (0.9, 0.9), "resnet50": (0.2, 0.2)}, groups=1))
    assert "one patient group" in claims.contrasts(pairs)[0]
    assert set(claims.verdicts(boots, TASK)["outcome"]) <= {"undecided", "not tested"}


def test_public_cells_are_inside_or_outside_the_range_of_our_variants():
    good, bad = (0.92, 0.92), (0.3, 0.3)
    scores = scoring.evaluate(answers({"fetalclip": good, "usfm": bad}), TASK)
    found = scoring.verdicts(scores).set_index(["encoder", "population"])
    assert found.loc[("fetalclip", "spain"), "verdict"] == "inside the range"
    assert set(found.loc["usfm", "verdict"]) == {"not run here"}  # its public cells are of fine-tuning
    scores = scoring.evaluate(answers({"fetalclip": bad}), TASK)
    assert set(scoring.verdicts(scores).query("encoder == 'fetalclip'")["verdict"]) == {"outside the range"}


def test_every_published_number_says_whether_it_may_be_compared():
    numbers = scoring.published()
    assert numbers["value"].between(0, 1).all()
    assert numbers["comparable"].str.match("(yes|no)[,:]").all()
    cells = numbers[numbers["encoder"] != ""]
    assert cells["value"].tolist() == [0.9261, 0.9731, 0.9476, 0.9515]
    assert cells["comparable"].str.startswith("yes").all()
    assert not numbers.drop(cells.index)["comparable"].str.startswith("yes").any()
    assert (numbers[["method", "data", "metric", "source"]] != "").all().all()


def test_differences_against_one_count_whichever_side_it_stood_on():
    pairs = pd.DataFrame(
        [("a", "b", 0.1, 0.0, 0.3, 0.2), ("b", "c", 0.2, -0.1, 0.4, 0.3), ("a", "c", 0.3, 0.2, 0.5, 0.01)],
        columns=["encoder", "other", "value", "low", "high", "p_holm"],
    )
    found = claims.against(pairs, "b").set_index("encoder")
    assert found.loc["a"].tolist() == ["b", 0.1, 0.0, 0.3, 0.2]
    assert found.loc["c"].tolist() == ["b", -0.2, -0.4, 0.1, 0.3]
    assert len(found) == 2
