"""Calibration against known answers; the temperature never sees a test row."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from fpbench import metrics
from fpbench.analysis import calibration, statistics
from fpbench.tasks import TASKS

TASK = TASKS["planes"]


def answers(images=4000, sharp=1.0, folds=2, seed=0):
    """Predictions of one model whose softmax(logits / sharp) are the true probabilities; validation and test rows."""
    rng, parts = np.random.default_rng(seed), []
    for fold in range(folds):
        for split in ("val", "test"):
            z = rng.normal(size=(images, 6)) * 1.5
            p = metrics.softmax(z)
            y = (p.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
            rows = pd.DataFrame(z * sharp, columns=TASK.columns())
            ids = [f"{split}{fold * (split == 'val')}-{i}" for i in range(images)]
            parts.append(
                rows.assign(
                    image_id=ids, patient=ids, group=ids, distinct=True, population="spain", split=split, fold=fold, seed=0,
                    encoder="e", protocol="logistic", n_patients=10, y_true=y, centre="x",
                )
            )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("sharp", [0.5, 1.0, 3.0])
def test_the_planted_temperature_is_found_and_repairs_the_probabilities(sharp):
    predicted = answers(sharp=sharp)
    found = calibration.temperatures(predicted, TASK)
    assert found["temperature"].to_numpy() == pytest.approx(sharp, rel=0.08)
    repaired = calibration.scaled(predicted, found, TASK)
    error = [
        calibration.debiased_error(table["confidence"].to_numpy(), table["right"].to_numpy())
        for table in (calibration.confidences(predicted, TASK), calibration.confidences(repaired, TASK))
    ]
    assert error[1] < 0.02
    assert error[0] > 0.08 or sharp == 1.0
    columns = TASK.columns()
    assert (predicted[columns].to_numpy().argmax(1) == repaired[columns].to_numpy().argmax(1)).all()


def test_the_temperature_minimises_the_validation_loss_of_its_fold():
    predicted = answers(images=300, sharp=2.0)
    for row in calibration.temperatures(predicted, TASK).itertuples():
        part = predicted[(predicted["split"] == "val") & (predicted["fold"] == row.fold)]
        z, y = part[TASK.columns()].to_numpy(), part["y_true"].to_numpy()
        loss = [-log_softmax(z / (row.temperature * f), axis=1)[np.arange(len(y)), y].mean() for f in (0.98, 1, 1.02)]
        assert loss[1] < loss[0]
        assert loss[1] < loss[2]


def test_no_test_label_enters_the_temperature():
    predicted = answers(images=300)
    shuffled = predicted.copy()
    test = shuffled["split"] == "test"
    shuffled.loc[test, "y_true"] = np.random.default_rng(1).permutation(shuffled.loc[test, "y_true"])
    pd.testing.assert_frame_equal(calibration.temperatures(predicted, TASK), calibration.temperatures(shuffled, TASK))


def test_the_debiased_error_is_near_zero_where_the_plain_one_is_not():
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(200):
        confidence = rng.uniform(0.4, 1, 150)
        right = (rng.random(150) < confidence).astype(float)
        plain.append(metrics.ece(confidence, right == 1))
        debiased.append(calibration.debiased_error(confidence, right) ** 2)
    assert np.mean(plain) > 0.08
    assert np.mean(debiased) < 0.005  # clipped at 0, so a little above it
    wrong = calibration.debiased_error(np.full(2000, 0.9), (np.arange(2000) % 2).astype(float))
    assert wrong == pytest.approx(0.4, abs=0.01)


def test_reliability_counts_every_test_image_once_per_fold():
    table = calibration.confidences(answers(images=100), TASK)
    found = calibration.reliability(table)
    assert found.groupby("view")["images"].sum().unique().tolist() == [100]
    one = found[found["bin"] == 9].iloc[0]
    inside = table[(table["confidence"] >= 9 / 15) & (table["confidence"] < 10 / 15)]
    assert one["confidence"] == pytest.approx(inside["confidence"].mean())
    assert one["right"] == pytest.approx(inside["right"].mean())


def test_risk_coverage_of_a_case_done_by_hand():
    frame = pd.DataFrame({"confidence": [0.9, 0.8, 0.8, 0.5], "right": [1.0, 1.0, 0.0, 0.0]})
    frame = frame.assign(encoder="e", protocol="logistic", fold=0, seed=0, view="v")
    curve = calibration.risk_coverage(frame, points=4)
    assert curve["error rate"].tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5])  # the two at 0.8 stand half wrong each
    mixed = calibration.risk_coverage(frame.sample(frac=1, random_state=0), points=4)
    pd.testing.assert_frame_equal(curve, mixed)


def test_the_table_holds_both_states_and_scikit_learns_nll():
    predicted = answers(images=200, sharp=3.0)
    repaired = calibration.scaled(predicted, calibration.temperatures(predicted, TASK), TASK)
    states = {"as trained": predicted, "temperature": repaired}
    intervals = {
        name: statistics.of_all(statistics.intervals, statistics.bootstraps(p, TASK, metrics.CALIBRATION))
        for name, p in states.items()
    }
    table = calibration.table(intervals, {name: calibration.confidences(p, TASK) for name, p in states.items()})
    assert table["state"].tolist() == ["as trained", "temperature"]
    for row, p in zip(table.itertuples(), states.values(), strict=True):
        folds = [
            metrics.scores(part["y_true"], part[TASK.columns()].to_numpy(), range(6))["NLL"]
            for _, part in p[p["split"] == "test"].groupby("fold")
        ]
        assert float(row.NLL.split()[0]) == pytest.approx(np.mean(folds), abs=6e-4)
    assert len(calibration.sentences(table)) == 1
