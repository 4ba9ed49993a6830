from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from fpbench import metrics
from fpbench.analysis import claims, samples, scoring, statistics
from fpbench.errors import InputError
from fpbench.tasks import TASKS, Task

TASK = TASKS["planes"]
NAMES = dict(enumerate(TASK.classes))
EVERY = (*statistics.NAMES, "AUROC", *(f"{m} of {c}" for m in ("precision", "recall", "F1") for c in TASK.classes))
HEADLINE = ["macro F1"]
MODELS = (("a", "logistic"), ("b", "logistic"), ("c", "logistic"))


def world(groups=40, images=5, folds=3, models=3, classes=6, effect=1.0, signal=1.0, seed=0):
    """Rows (image x fold) and logits of models that answer all images in every fold; groups differ in difficulty."""
    rng, n = np.random.default_rng(seed), groups * images
    group, y = np.repeat(np.arange(groups), images), np.arange(n) % classes
    z = rng.normal(size=(models, folds, n, 6))
    z[:, :, np.arange(n), y] += signal + effect * rng.normal(size=(models, 1, groups))[:, :, group]
    rows = pd.DataFrame(
        {"y_true": np.tile(y, folds), "group": np.tile(group, folds), "fold": np.repeat(range(folds), n)}
    )
    return rows, z.reshape(models, -1, 6)


def crossval(rows, logits):
    """The part of a world in which fold k tests the groups k, k + F, ..."""
    mine = np.flatnonzero(rows["group"] % (rows["fold"].max() + 1) == rows["fold"])
    return rows.iloc[mine].reset_index(drop=True), logits[:, mine]


def make(rows, logits, classes=NAMES, rule="open"):
    return statistics.make_sample(rows, logits, classes, rule, models=MODELS[: len(logits)])


def by_scikit_learn(rows, logits, space, rule="open"):
    """Every metric of one model: the mean over its folds of what fpbench.metrics says."""
    found = []
    for _, part in rows.groupby("fold"):
        data = part["y_true"].to_numpy(), logits[part.index], space, rule
        table = metrics.per_class(*data)
        by_class = {
            f"{m} of {TASK.classes[k]}": table[m][i] for m in ("precision", "recall", "F1") for i, k in enumerate(space)
        }
        found.append(metrics.scores(*data) | by_class)
    return pd.DataFrame(found).mean()


@pytest.mark.parametrize("shape", ["common", "crossval"])
@pytest.mark.parametrize(("classes", "rule"), [(6, "open"), (4, "open"), (4, "shared")])
def test_every_point_value_equals_scikit_learns(shape, classes, rule):
    rows, logits = world(classes=classes)
    logits = logits.round(1)  # ties
    if shape == "crossval":
        rows, logits = crossval(rows, logits)
    sample = make(rows, logits, {k: TASK.classes[k] for k in range(classes)}, rule)
    names = [name for name in EVERY if " of " not in name or name.split(" of ")[1] in TASK.classes[:classes]]
    got = statistics.evaluate(sample, np.ones((1, 40)), names)
    for model, z in enumerate(logits):
        expected = by_scikit_learn(rows, z, range(classes), rule)
        assert {name: got[name][:, 0, model].mean() for name in names} == pytest.approx(
            expected[names].to_dict(), abs=1e-12
        )


@pytest.mark.parametrize("shape", ["common", "crossval"])
def test_a_resample_equals_scikit_learn_on_the_images_drawn(shape):
    rows, logits = world(seed=1) if shape == "common" else crossval(*world(seed=1))
    sample = make(rows, logits)
    weights = statistics.draw(sample.stratum, 5, np.random.default_rng(3))
    got = statistics.evaluate(sample, weights, EVERY)
    for b, weight in enumerate(weights.astype(int)):
        times = weight[pd.Index(sample.groups).get_indexer(rows["group"])]
        drawn = np.repeat(np.arange(len(rows)), times)
        expected = by_scikit_learn(rows.iloc[drawn].reset_index(drop=True), logits[0][drawn], range(6))
        assert {n: got[n][:, b, 0].mean() for n in EVERY} == pytest.approx(expected[list(EVERY)].to_dict(), abs=1e-12)


def test_images_that_are_groups_of_their_own_give_the_intervals_of_scipy():
    rows, logits = world(groups=150, images=1, folds=1, models=1, effect=0)
    boot = statistics.bootstrap(make(rows, logits), ["macro F1", "accuracy"], 10_000)
    table = statistics.intervals(boot).set_index(["metric", "method"])
    y, answer = rows["y_true"].to_numpy(), logits[0].argmax(1)

    def macro(rows, axis=-1):
        a, b = y[rows][..., None] == range(6), answer[rows][..., None] == range(6)
        return (2 * (a & b).sum(-2) / (a.sum(-2) + b.sum(-2))).mean(-1)

    for metric, score in (("macro F1", macro), ("accuracy", lambda rows, axis=-1: (y == answer)[rows].mean(axis))):
        for method in statistics.METHODS:
            reference = stats.bootstrap((np.arange(150),), score, n_resamples=10_000, method=method, rng=1, batch=1_000)
            low, high = reference.confidence_interval
            got = table.loc[(metric, method)]
            assert [got["low"], got["high"]] == pytest.approx([low, high], abs=0.08 * (high - low))
    assert table.loc[("macro F1", "BCa"), "low"] > table.loc[("macro F1", "percentile"), "low"]  # it corrects the bias


@pytest.mark.parametrize("sizes", [(25,), (12, 30)])
@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_intervals_equal_scipys_on_the_same_draws(sizes, method):
    """Skewed data, so that both corrections of BCa count; two samples are two strata."""
    rng = np.random.default_rng(0)
    data = [rng.exponential(size=n) ** 2 for n in sizes]
    reference = stats.bootstrap(
        data, lambda *x, axis: sum(v.mean(axis) for v in x), n_resamples=2_000, method=method, rng=1
    )
    means, left_out = [v.mean() for v in data], []
    for i, v in enumerate(data):
        left_out += [sum(means) - means[i] + np.delete(v, j).mean() for j in range(len(v))]
    stratum = np.repeat(np.arange(len(sizes)), sizes)
    got = statistics.interval(reference.bootstrap_distribution, sum(means), np.array(left_out), stratum, method)
    assert got[:2] == pytest.approx(list(reference.confidence_interval), abs=1e-9)


def test_crossval_groups_are_drawn_within_their_fold_and_folds_are_averaged_not_pooled():
    rows, logits = crossval(*world(groups=30, images=6, folds=3, signal=3.0))
    rows["group"] = np.where(rows["fold"] == 0, rows["group"] % 2 * 3, rows["group"])  # fold 0 tests two patients
    logits[0, rows["fold"] == 0] = 0.0  # it always answers class 0
    sample = make(rows, logits[:1])
    assert sample.stratum.tolist() == [0] * 2 + [1] * 10 + [2] * 10
    weights = statistics.draw(sample.stratum, 300, np.random.default_rng(0))
    assert {tuple(row) for row in np.stack([weights[:, sample.stratum == f].sum(1) for f in range(3)], 1)} == {
        (2, 10, 10)
    }
    value = statistics.bootstrap(sample, HEADLINE, 300).folds["macro F1"].mean()
    pooled = metrics.scores(rows["y_true"].to_numpy(), logits[0], range(6))["macro F1"]
    assert value == pytest.approx(by_scikit_learn(rows, logits[0], range(6))["macro F1"], abs=1e-12)
    assert abs(value - pooled) > 0.02
    together = statistics.draw(np.zeros(22, int), 300, np.random.default_rng(0))
    assert len({tuple(row) for row in np.stack([together[:, sample.stratum == f].sum(1) for f in range(3)], 1)}) > 1


def test_on_a_common_test_set_all_folds_and_models_share_one_draw():
    rows, logits = world(models=1)
    logits = np.tile(logits.reshape(1, 3, -1, 6)[:, :1], (1, 3, 1, 1)).reshape(1, -1, 6)  # three equal fold models
    one = rows["fold"] == 0
    three = statistics.bootstrap(make(rows, logits), HEADLINE, 500)
    single = statistics.bootstrap(make(rows[one], logits[:, one]), HEADLINE, 500)
    assert np.allclose(
        three.draws["macro F1"], single.draws["macro F1"], atol=1e-12, rtol=0
    )  # or it would shrink by sqrt(3)


def test_differences_use_the_same_resamples_for_both():
    rows, logits = world(models=1)
    near = logits.copy()
    near[0, 7] = np.eye(6)[(rows["y_true"].iloc[7] + 1) % 6] * 9  # another answer on one image of one fold
    boot = statistics.bootstrap(make(rows, np.concatenate([logits, near])), ["accuracy"], 2_000)
    row = statistics.differences(boot).iloc[0]
    draws = boot.draws["accuracy"]
    assert row["value"] == pytest.approx(1 / 600, abs=1e-12)
    assert (draws[:, 0] - draws[:, 1]).std() < 0.1 * draws[:, 0].std()
    assert row["high"] - row["low"] < 0.1 * np.ptp(np.quantile(draws[:, 0], [0.025, 0.975]))


def test_permutation_equals_swapping_the_answers_by_hand():
    rows, logits = world(groups=6, models=2, images=12)
    names, masks = ["macro F1", "NLL", "AUROC"], np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], float)
    got = statistics._swapped(make(rows, logits), masks, [(0, 1)], names)
    for b, mask in enumerate(masks.astype(bool)):
        swapped = np.where(mask[rows["group"]][:, None], logits[::-1], logits)
        one, two = (by_scikit_learn(rows, z, range(6)) for z in swapped)
        assert {n: got[n][b, 0] for n in names} == pytest.approx((one - two)[names].to_dict(), abs=1e-12)


def test_ranked_metrics_change_sides_as_ranks_within_fold_and_model():
    """By hand with scikit-learn; one model answers on another scale, which raw scores would be judged by."""
    rows, logits = world(groups=8, images=6, folds=2, models=2, classes=2, seed=3)
    logits = logits[..., :2].round(1)
    logits[1, :, 1] = 0.05 * (logits[1, :, 1] - logits[1, :, 0]) - 3
    logits[1, :, 0] = 0
    names = ["AUROC", "AUPRC"]
    sample = statistics.make_sample(rows, logits, dict(enumerate("nu")), models=MODELS[:2], positive=1)
    got = statistics.permutation(sample, [(0, 1)], names, 60, seed=5, block=25)
    y, fold, group = (rows[name].to_numpy() for name in ("y_true", "fold", "group"))
    p = np.stack([metrics.softmax(z)[:, 1] for z in logits])

    def differences(score, swap):
        """AUROC and AUPRC of the first model less those of the second, means over the folds, of scores (2, N)."""
        score = np.where(swap[group], score[::-1], score)
        found = [
            [(roc_auc_score(y[i], one[i]), average_precision_score(y[i], one[i])) for one in score]
            for i in (fold == k for k in range(2))
        ]
        return np.subtract(*np.mean(found, axis=0))

    ranks = np.stack([pd.Series(one).groupby(fold).rank().to_numpy() for one in p])
    draws = np.random.default_rng(5)
    swaps = np.concatenate([draws.random((n, 8)) < 0.5 for n in (25, 25, 10)])
    by_rank, by_score = (
        (1 + (np.abs([differences(of, s) for s in swaps]) >= np.abs(differences(of, np.zeros(8, bool))) - 1e-12).sum(0))
        / 61
        for of in (ranks, p)
    )
    assert [got[name][0] for name in names] == pytest.approx(by_rank, abs=1e-12)
    assert (by_rank != by_score).any()  # the scale mattered


def test_permutation_p_of_all_swaps():
    """Six groups have 64 swaps: p is near the exact one, and never 0."""
    rows, logits = world(groups=6, images=12, models=2, seed=4)
    sample = make(rows, logits)
    every = np.array(np.meshgrid(*[[0.0, 1.0]] * 6)).reshape(6, -1).T
    found = statistics._swapped(sample, every, [(0, 1)], HEADLINE)["macro F1"][:, 0]
    exact = (np.abs(found) >= abs(found[0]) - 1e-12).mean()
    p = statistics.permutation(sample, [(0, 1)], HEADLINE, 4_000)["macro F1"][0]
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4_000) + 1e-3)
    logits[1, np.arange(len(rows)), rows["y_true"]] += 50
    assert statistics.permutation(make(rows, logits), [(0, 1)], HEADLINE, 10)["macro F1"][0] >= 1 / 11


def test_permutation_p_is_uniform_where_nothing_differs():
    p = []
    for seed in range(200):
        sample = make(
            *world(groups=25, images=4, folds=2, models=2, classes=4, effect=1.5, seed=seed),
            {k: NAMES[k] for k in range(4)},
        )
        p.append(statistics.permutation(sample, [(0, 1)], HEADLINE, 199, seed)["macro F1"][0])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.09


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (
            [0.01, 0.04, 0.03, 0.005],
            [0.03, 0.06, 0.06, 0.02],
        ),  # by hand: 0.005 x 4, 0.01 x 3, 0.03 x 2, then no smaller
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([np.nan, 0.02, 0.03], [np.nan, 0.04, 0.04]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p, expected):
    assert statistics.holm(p) == pytest.approx(expected, nan_ok=True, abs=1e-15)


def test_holm_equals_the_closure_of_bonferroni():
    """Without steps: a hypothesis is as doubtful as the worst Bonferroni test of a set that holds it."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 8):
        p = rng.random(n) ** 2
        sets = [np.flatnonzero([code >> i & 1 for i in range(n)]) for code in range(1, 2**n)]
        closed = [min(1, max(len(s) * p[s].min() for s in sets if i in s)) for i in range(n)]
        assert statistics.holm(p) == pytest.approx(closed, abs=1e-12)
        assert (statistics.holm(p) >= p).all()


def test_nadeau_bengio_by_hand():
    difference = np.array([0.02, 0.03, 0.01, 0.04, 0.00])
    t = 0.02 / np.sqrt(0.00025 * (1 / 5 + 1 / 3))
    assert statistics.nadeau_bengio(difference, 1 / 3) == pytest.approx(2 * stats.t.sf(t, 4), abs=1e-12)
    assert statistics.nadeau_bengio(difference, 0) == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=1e-12)
    assert np.isnan(statistics.nadeau_bengio(np.full(5, 0.1), 1 / 3))
    assert np.isnan(statistics.nadeau_bengio(np.array([0.1]), 1 / 3))


def test_nadeau_bengio_is_given_in_domain_under_crossval_alone():
    shared, own = make(*world()), make(*crossval(*world()))
    common = statistics.differences(statistics.bootstrap(replace(shared, test_share=1 / 3), HEADLINE, 100))
    folds = statistics.differences(statistics.bootstrap(replace(own, test_share=1 / 3), HEADLINE, 100))
    assert common["p_nadeau_bengio"].isna().all()
    assert folds["p_nadeau_bengio"].between(0, 1).all()


def degenerate(case):
    """Rows and logits of a case in which the data cannot carry an interval, and what the reason says."""
    rows, logits = world(groups=12, models=2, signal=2.0)
    if case == "one group":
        return rows.assign(group=0), logits, "one patient group"
    if case == "one group in a fold":
        rows, logits = crossval(*world(groups=30, images=6, models=2))
        rows.loc[rows["fold"] == 0, "group"] = 0
        return rows, logits, "one patient group in a fold"
    if case == "rare class":
        return (
            rows.assign(y_true=np.where(rows["group"] == 0, 0, np.maximum(rows["y_true"], 1))),
            logits,
            "none: abdomen has 1 patient",
        )
    if case == "absent class":
        return rows.assign(y_true=np.maximum(rows["y_true"], 1)), logits, "none: abdomen has 0 patients"
    return rows, np.tile(50 * np.eye(6)[rows["y_true"]], (2, 1, 1)), "same value"  # all right


@pytest.mark.parametrize("case", ["one group", "one group in a fold", "rare class", "absent class", "all right"])
@pytest.mark.parametrize("metric", ["macro F1", "balanced accuracy", "AUROC"])
def test_degenerate_data_give_nan_and_a_reason_and_never_an_interval_of_width_zero(case, metric):
    rows, logits, says = degenerate(case)
    boot = statistics.bootstrap(make(rows, logits), [metric], 400)
    differ, rank = statistics.differences(boot), statistics.ranking(boot)
    for table in (statistics.intervals(boot), differ):
        assert table[["low", "high"]].isna().all(axis=None)
        assert table["reason"].str.contains(says).all()
    assert rank[["rank1", "winner_not_best"]].isna().all(axis=None)
    assert rank["reason"].str.contains(says).all()
    if case in ("one group", "absent class"):
        assert differ[["p", "p_holm"]].isna().all(axis=None)
    if case == "all right":
        assert (differ["p"] == 1).all()


def test_what_is_defined_without_a_class_has_its_interval():
    rows, logits, _ = degenerate("rare class")
    table = statistics.intervals(statistics.bootstrap(make(rows, logits), ["accuracy", "weighted F1", "NLL"], 400))
    assert (table["low"] < table["high"]).all()
    assert (table["reason"] == "").all()


def test_no_bca_where_it_has_no_foundation():
    stratum, draws = np.zeros(4, int), np.arange(100.0)
    for value, jackknife, says in (
        (200.0, np.arange(4.0), "one side"),
        (50.0, np.ones(4), "no group"),
        (50.0, np.full(4, np.nan), "no image"),
    ):
        low, high, reason = statistics.interval(draws, value, jackknife, stratum, "BCa")
        assert np.isnan([low, high]).all()
        assert says in reason
        assert statistics.interval(draws, value, jackknife, stratum, "percentile")[2] == ""


def test_group_intervals_are_wider_than_those_of_images_on_clustered_data():
    rows, logits = world(groups=60, images=8, models=1, effect=2.5)
    width = {}
    for name, group in (("group", rows["group"]), ("image", np.tile(np.arange(480), 3))):
        table = statistics.intervals(statistics.bootstrap(make(rows.assign(group=group), logits), HEADLINE, 2_000))
        width[name] = (table["high"] - table["low"]).iloc[0]
    assert width["group"] > 1.4 * width["image"]


@pytest.mark.parametrize("shape", ["common", "crossval"])
def test_same_seed_same_result_whatever_the_block(shape, monkeypatch):
    monkeypatch.setattr(statistics, "RANK_RESAMPLES", 60)
    sample = make(*(world() if shape == "common" else crossval(*world())))
    names = ("macro F1", "F1 of femur", "ECE", "AUROC")
    first = statistics.bootstrap(sample, names, 110)
    again, other = (statistics.bootstrap(sample, names, 110, **how) for how in ({"block": 7}, {"seed": 1}))
    for name in names:
        assert len(first.draws[name]) == (60 if name == "AUROC" else 110)
        assert np.allclose(first.draws[name], again.draws[name], atol=1e-12, rtol=0, equal_nan=True)
        assert np.allclose(first.jackknife[name], again.jackknife[name], atol=1e-12, rtol=0)
        assert not np.allclose(first.draws[name], other.draws[name], equal_nan=True)
    assert np.array_equal(first.draws["macro F1"], again.draws["macro F1"], equal_nan=True)  # counts are exact
    p = [statistics.permutation(sample, [(0, 1), (1, 2)], names, 150, 5, block)["macro F1"] for block in (7, 500)]
    assert np.array_equal(*p)
    pd.testing.assert_frame_equal(
        *(statistics.differences(boot) for boot in (first, statistics.bootstrap(sample, names, 110)))
    )


def test_an_encoder_does_not_change_the_resamples_of_the_others():
    rows, logits = world()
    three, two = (statistics.bootstrap(make(rows, z), HEADLINE, 200) for z in (logits, logits[:2]))
    assert np.array_equal(three.draws["macro F1"][:, :2], two.draws["macro F1"])


def test_shuffled_labels_show_no_differences():
    """Eight times three encoders that know nothing: Holm lets through no more than chance."""
    found = []
    for seed in range(8):
        rows, logits = world(signal=0, effect=0, seed=seed)
        found.append(statistics.differences(statistics.bootstrap(make(rows, logits), HEADLINE, 500)))
    table = pd.concat(found)
    assert (table["p_holm"] >= table["p"]).all()
    assert (table.groupby(np.repeat(range(8), 3))["p_holm"].min() <= 0.05).sum() <= 2


def test_ranking():
    rows, logits = world(models=2)
    tied = make(rows, np.concatenate([logits[:1], logits[:1], logits[1:]]))
    table = statistics.ranking(statistics.bootstrap(tied, ["macro F1", "NLL"], 1_000))
    for metric, part in table.groupby("metric"):
        assert part["rank1"].sum() == pytest.approx(1, abs=1e-12)
        assert part["rank1"].iloc[0] == part["rank1"].iloc[1]  # equal encoders share the first place
        best = part["value"].min() if metric == "NLL" else part["value"].max()
        assert (part.loc[part["rank"] == 1, "value"] == best).all()
        winner = part.set_index("encoder").loc[part["winner"].iloc[0]]
        assert part["winner_not_best"].iloc[0] == pytest.approx(1 - winner["rank1"], abs=1e-12)
    logits[0, np.arange(len(rows)), rows["y_true"]] += 3
    clear = statistics.ranking(statistics.bootstrap(make(rows, logits), HEADLINE, 500))
    assert clear["rank1"].tolist() == [1, 0]
    assert clear["winner_not_best"].tolist() == [0, 0]
    alone = statistics.ranking(statistics.bootstrap(make(rows, logits[:1]), HEADLINE, 100))
    assert "one encoder" in alone["reason"].iloc[0]
    assert statistics.differences(statistics.bootstrap(make(rows, logits[:1]), HEADLINE, 100)).empty


def predictions(shape, encoders=("a", "b"), seed=0):
    """Rows of predictions files: two encoders, two folds, both populations; the last images of Africa are copies."""
    rng, frames = np.random.default_rng(seed), []
    for population, groups, classes in (("spain", 24, 6), ("africa", 9, 4)):
        images = pd.DataFrame({"group": [f"{population}/{g:03d}" for g in range(groups) for _ in range(classes)]})
        images = images.assign(
            y_true=np.tile(np.arange(classes), groups), patient=images["group"], population=population
        )
        images["image_id"] = [f"{population}/{i:04d}" for i in rng.permutation(len(images))]
        images["distinct"] = (population == "spain") | (np.arange(len(images)) < len(images) - 4)
        for encoder in encoders:
            for protocol in ("logistic", "knn"):
                for fold in range(2):
                    rows = images[images.index // classes % 2 == fold] if shape == population == "spain" else images
                    run = {
                        "fold": fold,
                        "encoder": encoder,
                        "protocol": protocol,
                        "split": "test",
                        "n_patients": 36,
                        "seed": 0,
                    }
                    z = rng.normal(size=(len(rows), 6)) + np.eye(6)[rows["y_true"]]
                    frames.append(rows.assign(**run, **dict(zip(TASK.columns(), z.T, strict=True))))
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("shape", ["official", "spain"])
def test_samples_of_predictions_have_the_views_and_values_of_the_tables(shape):
    predicted = predictions(shape)
    summary = scoring.summarise(scoring.evaluate(predicted, TASK)).set_index([*scoring.MODEL, *scoring.VIEW, "metric"])[
        "mean"
    ]
    found = [statistics.bootstrap(s, (*statistics.NAMES, "AUROC"), 20) for s in statistics.samples(predicted, TASK)]
    table = pd.concat([statistics.intervals(boot, ["percentile"]) for boot in found])
    got = table.set_index([*scoring.MODEL, *scoring.VIEW, "metric"])["value"]
    assert set(got.index) == set(summary.index)
    assert got.to_numpy() == pytest.approx(summary[got.index].to_numpy(), abs=1e-12)
    in_fold = {boot.sample.view[0]: boot.sample.stratum.any() for boot in found}
    assert in_fold == {"spain": shape == "spain", "africa": False}
    assert {boot.sample.test_share for boot in found if boot.sample.view[0] == "spain"} == {
        12 / 36 if shape == "spain" else 24 / 36
    }
    pairs = pd.concat([statistics.differences(boot) for boot in found])
    assert pairs.groupby([*scoring.VIEW, "metric"])["protocol"].agg(list).map(sorted).map(tuple).unique().tolist() == [
        ("knn", "logistic")
    ]


def test_a_view_has_the_same_resamples_whatever_others_are_asked_for():
    predicted, task = predictions("official"), TASK
    every = {boot.sample.view: boot for boot in statistics.bootstraps(predicted, task, seed=3)}
    some = statistics.bootstraps(predicted, task, seed=3, wanted=partial(claims.primary_view, task))
    assert 0 < len(some) < len(every)
    assert [boot.sample.view for boot in some] == [boot.sample.view for boot in claims.primary(every.values(), task)]
    assert [boot.sample.number for boot in every.values()] == list(range(len(every)))
    for boot in some:
        for name, draws in boot.draws.items():
            assert np.array_equal(draws, every[boot.sample.view].draws[name], equal_nan=True)


def test_the_order_of_rows_does_not_matter():
    predicted = predictions("official")
    one, two = (next(statistics.samples(p, TASK)) for p in (predicted, predicted.sample(frac=1, random_state=0)))
    assert np.array_equal(one.groups, two.groups)
    draws = [statistics.bootstrap(sample, ["macro F1"], 50).draws["macro F1"] for sample in (one, two)]
    assert np.array_equal(*draws)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(f.index[-1]), "answer the 72 image x fold rows"),  # an image that one model lacks
        (lambda f: f[(f["encoder"] == "a") | (f["fold"] == 0)], "all its folds"),
        (lambda f: pd.concat([f, f]), "once each"),
        (lambda f: f[(f["fold"] == 0) | (f["image_id"] != "africa/0000")], "mixture"),
    ],
)
def test_models_must_have_answered_the_same_images(change, says):
    africa = predictions("official").query("population == 'africa'")
    with pytest.raises(InputError, match=says):
        list(statistics.samples(change(africa), TASK))


def test_unknown_names_are_refused():
    sample = make(*world())
    with pytest.raises(InputError, match=r"unknown metrics F1 of foot: expected some of AUROC, AUPRC, macro F1"):
        statistics.bootstrap(sample, ["F1 of foot"], 10)
    with pytest.raises(InputError, match="expected one of percentile, BCa"):
        statistics.intervals(statistics.bootstrap(sample, HEADLINE, 10), ["basic"])


def test_intervals_cover_where_those_of_images_do_not():
    """Short form of benchmarks/coverage.py: 120 cohorts of 50 groups, some of them hard."""
    rng, inside = np.random.default_rng(0), {"group": [], "image": []}
    for seed in range(120):
        group = np.repeat(np.arange(50), 5)
        y, hard = np.tile(np.arange(5), 50) % 4, rng.random(50) < 0.3
        right = rng.random(250) < np.where(hard[group], 0.3, 0.95)  # 0.3 x 0.3 + 0.7 x 0.95 = 0.755 of the images
        logits = np.eye(6)[np.where(right, y, (y + 1) % 4)][None]
        for name, unit in (("group", group), ("image", np.arange(250))):
            rows = pd.DataFrame({"y_true": y, "group": unit, "fold": 0})
            boot = statistics.bootstrap(make(rows, logits, {k: NAMES[k] for k in range(4)}), ["accuracy"], 500, seed)
            low, high = statistics.intervals(boot, ["percentile"]).iloc[0][["low", "high"]]
            inside[name].append(low <= 0.755 <= high)
    assert np.mean(inside["group"]) > 0.89  # 0.95 less three standard errors
    assert np.mean(inside["image"]) < 0.89


def test_holm_equals_statsmodels_exactly_and_is_never_below_the_raw_p():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for count in (1, 2, 21, 100):
        p = rng.random(count) ** 3
        p[: count // 3] = p[0]  # ties
        assert (statistics.holm(p) == multipletests(p, method="holm")[1]).all()
        assert (statistics.holm(p) >= p).all()


def test_metrics_and_statistics_agree_on_a_missing_class():
    """Perfect logits, one class of the space without an image: once a silent 0.8 in the table and NaN in the interval."""
    rows, _ = world()
    rows = rows.assign(y_true=np.maximum(rows["y_true"], 1))
    perfect = 9 * np.eye(6)[rows["y_true"]]
    boot = statistics.bootstrap(make(rows, perfect[None]), ["macro F1", "balanced accuracy", "weighted F1"], 20)
    for name, values in boot.folds.items():
        by_fold = [
            metrics.scores(part["y_true"].to_numpy(), perfect[part.index], range(6))[name]
            for _, part in rows.reset_index(drop=True).groupby("fold")
        ]
        assert values[:, 0] == pytest.approx(by_fold, nan_ok=True)
        assert np.isnan(values).all() == (name != "weighted F1")


def test_answers_alone_have_the_scores_and_differences_of_the_logits_that_give_them():
    rows, logits = world()
    alone = [logits[0].argmax(1), logits[1].argmax(1)]
    models = {"models": MODELS[:2]}
    names = ["macro F1", "accuracy", "F1 of femur"]
    one, two = (statistics.make_sample(rows, said, NAMES, **models) for said in (logits[:2], alone))
    found = [statistics.bootstrap(sample, names, 200) for sample in (one, two)]
    tables = [(statistics.intervals(boot), statistics.differences(boot), statistics.ranking(boot)) for boot in found]
    for whole, answers in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(whole, answers)
    other = statistics.intervals(statistics.bootstrap(two, ["ECE", "Brier", "NLL", "AUROC"], 50))
    assert other[["value", "low", "high"]].isna().all(axis=None)
    assert set(other["reason"]) == {"none: the model gave answers alone"}


def test_an_answer_that_is_no_class_is_a_miss_in_every_resample():
    rows, logits = world()
    said = logits[0].argmax(1)
    said = np.where(np.arange(len(said)) % 7 == 0, metrics.NONE, said)
    boot = statistics.bootstrap(statistics.make_sample(rows, [said], NAMES, models=MODELS[:1]), HEADLINE, 50)
    by_fold = [
        metrics.scores(part["y_true"].to_numpy(), said[part.index], range(6))["macro F1"]
        for _, part in rows.reset_index(drop=True).groupby("fold")
    ]
    assert boot.folds["macro F1"][:, 0] == pytest.approx(by_fold, abs=1e-12)
    shared = {k: NAMES[k] for k in range(4)}
    some = rows["y_true"] < 4
    sample = statistics.make_sample(rows[some], [said[some]], shared, "shared", models=MODELS[:1])
    assert np.isnan(statistics.bootstrap(sample, HEADLINE, 5).folds["macro F1"]).all()


def test_average_precision_under_weights_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    unit, score = rng.integers(0, 10, 80), rng.normal(size=80).round(1)  # with ties
    positive, weights = rng.random(80) < 0.3, rng.integers(0, 4, (10, 6)).astype(float)
    got = samples.average_precision(positive, score, unit, weights)
    for column, value in zip(weights.T, got, strict=True):
        times = column[unit].astype(int)
        expected = average_precision_score(np.repeat(positive, times), np.repeat(score, times))
        assert value == pytest.approx(expected, abs=1e-12)
    for one_side in (np.ones(80, bool), np.zeros(80, bool)):
        assert np.isnan(samples.average_precision(one_side, score, unit, weights)).all()
        assert np.isnan(samples.auroc(one_side, score, unit, weights)).all()
    for side in (unit != 0, unit == 0):  # by the weights alone one side is empty
        for ranked in (samples.average_precision, samples.auroc):
            assert np.isnan(ranked(side, score, unit, np.eye(10)[:, :1])).all()


def test_auprc_of_a_bootstrap_is_scikit_learns_in_a_loop_over_resamples_and_groups_left_out():
    rows, logits = crossval(*world(groups=24, images=10, folds=3, models=2, classes=2, effect=2))
    logits = logits[..., :2].round(1)  # ties
    sample = statistics.make_sample(rows, logits, dict(enumerate("nu")), models=MODELS[:2], positive=1)
    boot = statistics.bootstrap(sample, ["AUPRC"], 30, seed=7)
    left_out = 1 - np.eye(24)
    for weights, got in (
        (statistics.draw(sample.stratum, 30, np.random.default_rng(7)), boot.draws["AUPRC"]),
        (left_out, boot.jackknife["AUPRC"]),
    ):
        for weight, values in zip(weights.astype(int), got, strict=True):
            times = weight[pd.Index(sample.groups).get_indexer(rows["group"])]
            for z, value in zip(logits, values, strict=True):
                p, by_fold = metrics.softmax(z)[:, 1], []
                for fold in range(3):
                    drawn = np.repeat(np.arange(len(rows)), times * (rows["fold"] == fold))
                    by_fold.append(average_precision_score(rows["y_true"].to_numpy()[drawn], p[drawn]))
                assert value == pytest.approx(np.mean(by_fold), abs=1e-12)


def test_a_task_with_a_positive_class_is_headed_by_its_average_precision():
    task = Task("search", "plane", TASK.classes, train="spain", tests=TASK.tests, headline="AUPRC", positive="femur")
    predicted = predictions("official")
    boots = statistics.bootstraps(predicted, task)
    table = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
    summary = scoring.overview(scoring.evaluate(predicted, task, ranked=False), task, table)
    assert set(summary["metric"]) == {"AUPRC"}
    both = summary.merge(table, on=[*scoring.MODEL, *scoring.VIEW, "metric"])
    assert both["mean"].to_numpy() == pytest.approx(both["value"].to_numpy(), abs=1e-12)
    assert statistics.differences(boots[0])["p"].notna().all()
