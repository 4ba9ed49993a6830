import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from fpbench import metrics
from fpbench.errors import InputError

SHARED = [0, 1, 2, 3]


@pytest.fixture
def stored():
    """Stored predictions on an African-like cohort: four true classes, answers over six. Rows are (true class, answer, times)."""
    table = [
        (0, 0, 30),
        (0, 5, 10),
        (1, 1, 38),
        (1, 5, 2),
        (2, 2, 20),
        (2, 4, 12),
        (2, 5, 8),
        (3, 3, 9),
        (3, 0, 6),
        (3, 5, 15),
    ]
    y = np.repeat([row[0] for row in table], [row[2] for row in table])
    answer = np.repeat([row[1] for row in table], [row[2] for row in table])
    logits = np.where(np.arange(6) == answer[:, None], 3.0, 0.0) + 0.5 * (np.arange(6) == y[:, None])
    return y, logits


def test_macro_f1_averages_over_the_cohorts_classes_where_the_naive_one_does_not(stored):
    y, logits = stored
    got = metrics.scores(y, logits, SHARED)["macro F1"]
    # by hand: F1 = 2 tp / (answers + true): 60/76, 76/78, 40/60, 18/39
    assert got == pytest.approx((60 / 76 + 76 / 78 + 40 / 60 + 18 / 39) / 4, abs=1e-12)
    assert got == pytest.approx(0.7230094466936572, abs=1e-12)
    naive = f1_score(y, logits.argmax(1), average="macro")
    assert naive == pytest.approx(got * 4 / 6, abs=1e-12)


def test_shared_restricts_the_answers(stored):
    y, logits = stored
    shared = metrics.scores(y, logits, SHARED, "shared")
    assert shared["macro F1"] == f1_score(y, logits[:, :4].argmax(1), average="macro")
    assert shared["NLL"] == pytest.approx(log_loss(y, metrics.softmax(logits[:, :4]), labels=SHARED), abs=1e-12)
    assert shared["macro F1"] > metrics.scores(y, logits, SHARED)["macro F1"]


def test_every_score_equals_its_definition_in_scikit_learn():
    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 6, 300), rng.normal(size=(300, 6))
    logits[np.arange(300), y] += 1
    p, got = metrics.softmax(logits), metrics.scores(y, logits, range(6))
    assert got["AUROC"] == pytest.approx(roc_auc_score(y, p, multi_class="ovr"), abs=1e-12)
    assert got["NLL"] == pytest.approx(log_loss(y, p), abs=1e-12)
    assert got["Brier"] == pytest.approx(((p - np.eye(6)[y]) ** 2).sum(1).mean(), abs=1e-12)
    assert got["accuracy"] == (logits.argmax(1) == y).mean()
    by_class = metrics.per_class(y, logits, range(6))
    assert by_class["F1"].mean() == pytest.approx(got["macro F1"], abs=1e-12)
    assert by_class["recall"].mean() == pytest.approx(got["balanced accuracy"], abs=1e-12)
    assert metrics.confusion(y, logits, range(6)).sum() == 300


def test_ece_by_hand():
    confidence, correct = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert metrics.ece(confidence, correct, bins=10) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45, abs=1e-12)
    assert metrics.ece(np.ones(3), np.ones(3, bool)) == 0


def test_an_absent_class_gives_nan_auroc_and_not_a_number_made_up():
    y, logits = np.zeros(4, int), np.eye(4, 6)
    assert np.isnan(metrics.scores(y, logits, [0, 1])["AUROC"])
    assert metrics.confusion(y, logits, [0, 1]).shape == (2, 6)


@pytest.mark.parametrize(
    ("y", "logits", "says"),
    [
        ([0, 5], np.zeros((2, 6)), "outside the label space"),
        ([0, 1], np.full((2, 6), np.nan), "finite"),
        ([], np.zeros((0, 6)), "N > 0"),
        ([0], np.zeros((2, 6)), "found"),
    ],
)
def test_bad_input(y, logits, says):
    with pytest.raises(InputError, match=says):
        metrics.scores(np.array(y), logits, SHARED)
    with pytest.raises(InputError, match="unknown rule"):
        metrics.restrict(np.zeros((1, 6)), SHARED, "closed")


def test_stored_labels_and_scores_give_the_macro_f1_that_was_worked_out_by_hand():
    """As one would check a published file of predictions: true class and scores of 12 images, five candidate classes."""
    true = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
    said = np.array([0, 0, 0, 4, 1, 1, 0, 2, 2, 3, 3, 2])  # one abdomen goes to a class that the cohort does not have
    logits = np.eye(5)[said] * 3.0 + np.linspace(0, 1, 60).reshape(12, 5)
    by_hand = (2 * 3 / (4 + 4) + 2 * 2 / (3 + 2) + 2 * 2 / (2 + 3) + 2 * 2 / (3 + 2)) / 4
    assert metrics.scores(true, logits, range(4))["macro F1"] == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(0.7875, abs=1e-12)
