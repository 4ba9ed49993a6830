"""The probe against scikit-learn on real embeddings: the 600 images of the sample through MobileNetV2 with real weights."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fpbench import load_study, loading, make_splits
from fpbench.training.embeddings import embed_cohort
from fpbench.training.probes import logistic

STRENGTHS = 10.0 ** np.linspace(-4, 0, 9)


@pytest.fixture
def sample(shared, session_cache, monkeypatch):
    monkeypatch.setenv("FPBENCH_CACHE", str(session_cache))
    study = load_study("sample").begin()
    home, (africa,) = loading.load_cohorts(study)
    splits = make_splits(home, study.the_task, "crossval")
    encoder = loading.load_encoder(study, "mobilenetv2")
    X = np.concatenate([embed_cohort(encoder, cohort) for cohort in (home, africa)])  # Africa is only predicted
    return X, np.pad(study.the_task.codes(home.frame["plane"]), (0, len(africa))), splits


def objective(logits, weights, y, C):
    return -log_softmax(logits, axis=1)[np.arange(len(y)), y].sum() + (weights**2).sum() / (2 * C)


def test_the_probe_equals_scikit_learn_on_real_embeddings(sample):
    X, y, splits = sample
    for number in (0, 3):
        fold = splits.fold(number)
        (path,) = logistic.fit_paths(X, y, [fold.train], 6, C=STRENGTHS)
        assert path.converged.all()
        scaler = StandardScaler().fit(X[fold.train].astype(np.float64))
        train = scaler.transform(X[fold.train].astype(np.float64))
        everyone = scaler.transform(X.astype(np.float64))
        for i, C in enumerate(STRENGTHS):
            reference = LogisticRegression(C=C, tol=1e-6, max_iter=10_000).fit(train, y[fold.train])
            theirs = objective(reference.decision_function(train), reference.coef_, y[fold.train], C)
            ours = objective(path.logits(X[fold.train], i), path.weights[i], y[fold.train], C)
            assert ours <= theirs * (1 + 1e-6)
            same = path.logits(X, i).argmax(1) == reference.decision_function(everyone).argmax(1)
            assert same.mean() >= 0.995
