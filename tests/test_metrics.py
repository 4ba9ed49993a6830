import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

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
    assert metrics.confusion(y, logits, range(6), 6).sum() == 300


def test_ece_by_hand():
    confidence, correct = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert metrics.ece(confidence, correct, bins=10) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45, abs=1e-12)
    assert metrics.ece(np.ones(3), np.ones(3, bool)) == 0


def test_an_absent_class_gives_nan_and_not_a_number_made_up():
    y, logits = np.array([0, 0, 1, 1]), np.eye(4, 6)[[0, 0, 1, 0]] * 9
    found = metrics.scores(y, logits, [0, 1, 2])  # no image of class 2: before, a silent 0 in the macro average
    assert all(np.isnan(found[name]) for name in ("macro F1", "balanced accuracy", "AUROC"))
    assert found["weighted F1"] == pytest.approx(f1_score(y, logits.argmax(1), average="weighted"), abs=1e-12)
    assert found["accuracy"] == 0.75
    by_class = metrics.per_class(y, logits, [0, 1, 2])
    assert all(np.isnan(by_class[name][2]) for name in ("precision", "recall", "F1"))
    assert np.isfinite(by_class["F1"][:2]).all()
    assert by_class["images"].tolist() == [2, 2, 0]
    assert metrics.confusion(y, logits, [0, 1], 6).shape == (2, 6)


def test_answers_alone_are_scored_like_the_logits_that_give_them():
    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 4, 200), rng.normal(size=(200, 6))
    whole, alone = (
        metrics.scores(y, logits, SHARED, positive=1),
        metrics.scores(y, logits.argmax(1), SHARED, positive=1),
    )
    for name in ("macro F1", "weighted F1", "accuracy", "balanced accuracy"):
        assert alone[name] == whole[name]
    assert all(np.isnan(alone[name]) for name in (*metrics.RANKED, *metrics.CALIBRATION))
    assert (metrics.confusion(y, logits.argmax(1), SHARED, 6) == metrics.confusion(y, logits, SHARED, 6)).all()


def test_an_answer_that_is_no_class_is_a_miss_and_adds_none():
    y, said = np.array([0, 0, 1, 1]), np.array([0, metrics.NONE, 1, 1])
    found = metrics.scores(y, said, [0, 1])
    assert found["macro F1"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-12)
    assert metrics.confusion(y, said, [0, 1], 3).tolist() == [[1, 0, 0], [0, 2, 0]]
    assert np.isnan(metrics.scores(y, said, [0, 1], "shared")["macro F1"])  # what it would have said is not known
    assert metrics.scores(y, np.array([0, 0, 1, 0]), [0, 1], "shared")["accuracy"] == 0.75  # here it is
    assert np.isnan(metrics.per_class(y, said, [0, 1], "shared")["F1"]).all()


def test_average_precision_is_that_of_the_positive_class():
    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 2, 100), rng.normal(size=(100, 2))
    found = metrics.scores(y, logits, [0, 1], positive=1)["AUPRC"]
    assert found == pytest.approx(average_precision_score(y, metrics.softmax(logits)[:, 1]), abs=1e-12)
    assert "AUPRC" not in metrics.scores(y, logits, [0, 1])
    assert np.isnan(metrics.scores(y[y == 1], logits[y == 1], [1], positive=1)["AUPRC"])


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
