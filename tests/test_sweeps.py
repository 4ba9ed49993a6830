import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from fpbench.analysis import statistics, sweeps
from fpbench.errors import InputError
from fpbench.tasks import Task

TASK = Task("quality", "usable", ("none", "usable"), train="home", headline="AUPRC", positive="usable")
CLEAR, POOR, BEST = range(3)  # ranks of sweeps.QUALITIES
EVERY = list(sweeps.units(TASK))
F1, PRECISION, RECALL = (f"{name} of usable, {sweeps.CHOSEN}" for name in ("F1", "precision", "recall"))


def table(cases, split="test", encoder="a", protocol="lora", fold=0, seed=0):
    """Rows of predictions: ``cases`` lists (case, group, sweeps), a sweep is a list of (rank, score)."""
    rows = [
        (f"{case}/{number}#{at}", case, number, at, sweeps.QUALITIES[rank], group, score)
        for case, group, own in cases
        for number, sweep in enumerate(own, 1)
        for at, (rank, score) in enumerate(sweep)
    ]
    frame = pd.DataFrame(rows, columns=["image_id", *sweeps.COLUMNS, "group", "score"])
    score = frame.pop("score").to_numpy(float)
    run = {"split": split, "encoder": encoder, "protocol": protocol, "fold": fold, "seed": seed, "population": "home"}
    y = (frame["quality"] != "none").astype(int)
    logits = {"logit_none": 0.0, "logit_usable": np.log(score / (1 - score))}
    return frame.assign(**run, patient=frame["group"], n_patients=9, distinct=True, y_true=y, **logits)


def drawn(subjects=18, folds=3, models=(("a", "lora"), ("b", "lora"), ("c", "full")), seed=0, crossval=True, frames=20):
    """Predictions of models on made-up cases: a subject has one or two, of one to three sweeps; fold k tests the subjects k, k + F, ..."""
    rng, cases = np.random.default_rng(seed), []
    for subject in range(subjects):
        for case in range(1 + (subject % 5 == 0)):
            own = []
            for _ in range(rng.integers(1, 4)):
                rank, start = np.zeros(frames, int), rng.integers(0, frames - 6)
                rank[start : start + 6] = rng.choice([POOR, BEST], 6) if rng.random() < 0.8 else POOR
                own.append(rank * (rng.random() < 0.9))
            cases.append((f"s{subject:02}c{case}", f"s{subject:02}", own))
    parts = []
    for encoder, protocol in models:
        for fold in range(folds):
            for split, turn in (("test", fold), ("val", (fold + 1) % folds)):
                mine = [
                    (case, group, [[(r, _score(r, rng)) for r in sweep] for sweep in own])
                    for case, group, own in cases
                    if (int(group[1:]) % folds == turn if crossval else int(group[1:]) % 2 == (split == "val"))
                ]
                parts.append(table(mine, split, encoder, protocol, fold))
    return pd.concat(parts, ignore_index=True)


def _score(rank, rng):
    return float(np.clip(0.35 + 0.12 * rank + 0.2 * rng.normal(), 0.05, 0.95).round(2))  # some tie


@pytest.fixture(scope="module")
def predicted():
    return drawn()


TWELVE = (  # case, its sweeps as (quality, score) of their frames, the selection score worked out by hand; None: left out
    ("optimal chosen", [[(CLEAR, 0.1), (BEST, 0.9), (POOR, 0.2)]], 1.0),
    ("sub-optimal chosen, none better", [[(CLEAR, 0.1), (POOR, 0.9)]], 1.0),
    ("sub-optimal chosen beside an optimal one", [[(POOR, 0.9), (BEST, 0.8)]], 0.6),
    ("nothing usable chosen", [[(CLEAR, 0.9), (BEST, 0.8)]], 0.0),
    ("nothing usable chosen, sub-optimal there", [[(CLEAR, 0.9), (POOR, 0.8)]], 0.0),
    ("no usable frame", [[(CLEAR, 0.9), (CLEAR, 0.8)]], None),
    ("optimal in another sweep", [[(POOR, 0.9)], [(BEST, 0.3)]], 0.6),
    ("best frame in the second sweep", [[(CLEAR, 0.4)], [(BEST, 0.6)]], 1.0),
    ("a sweep without a usable frame wins", [[(POOR, 0.5)], [(CLEAR, 0.6)]], 0.0),
    ("optimal and sub-optimal tie", [[(BEST, 0.7), (POOR, 0.7)]], (1 + 0.6) / 2),
    ("optimal and nothing tie", [[(BEST, 0.7), (CLEAR, 0.7)]], 0.5),
    ("three tie over two sweeps", [[(POOR, 0.7), (CLEAR, 0.7)], [(BEST, 0.7)]], (0.6 + 0 + 1) / 3),
)


def test_the_selection_score_of_twelve_cases_worked_out_by_hand():
    cases = [(name, name, own) for name, own, _ in TWELVE]
    other = [("other", "other", [[(BEST, 0.9), (CLEAR, 0.1)]])]
    for name, own, expected in TWELVE:
        one = [(name, name, own)]
        (boot,) = sweeps.bootstraps(pd.concat([table(one), table(other, "val")]), TASK, [sweeps.SELECTION], resamples=2)
        value = boot.folds[sweeps.SELECTION].item()
        assert value == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True), name
    (boot,) = sweeps.bootstraps(together := pd.concat([table(cases), table(other, "val")]), TASK, resamples=2)
    scored = [expected for _, _, expected in TWELVE if expected is not None]
    assert boot.folds[sweeps.SELECTION].item() == pytest.approx(sum(scored) / 11, abs=1e-12)
    assert sum(scored) / 11 == pytest.approx((1 + 1 + 0.6 + 0.6 + 1 + 0.8 + 0.5 + 1.6 / 3) / 11, abs=1e-12)
    (row,) = sweeps.counts(together, TASK).to_dict("records")
    assert (row["cases"], row["cases usable"], row["cases left out"], row["cases optimal"]) == (12, 11, 1, 8)
    assert (row["sweeps"], row["sweeps usable"], row["sweeps optimal"], row["groups"]) == (16, 13, 8, 12)
    assert (row["frames"], row["frames usable"], row["frames optimal"], row["frames positive"]) == (26, 16, 8, 16)


def test_the_best_frame_of_a_sweep_is_looked_for_where_there_is_one():
    cases = [
        ("one", "s1", [[(BEST, 0.9), (CLEAR, 0.1)], [(CLEAR, 0.9), (POOR, 0.8)], [(CLEAR, 0.9)]]),
        ("two", "s2", [[(POOR, 0.9), (BEST, 0.9)]]),
    ]
    (boot,) = sweeps.bootstraps(
        pd.concat([table(cases), table([("v", "s3", [[(POOR, 0.5), (CLEAR, 0.4)]])], "val")]), TASK
    )
    assert boot.folds[sweeps.BEST_USABLE].item() == pytest.approx(2 / 3)  # the third sweep holds none
    assert boot.folds[sweeps.BEST_OPTIMAL].item() == pytest.approx(1.5 / 2)  # of the two that hold one; the last ties


@pytest.mark.parametrize("crossval", [True, False])
def test_every_number_equals_its_definition_in_scikit_learn_and_pandas_fold_by_fold(crossval):
    rows = drawn(crossval=crossval)
    (boot,) = sweeps.bootstraps(rows, TASK, resamples=2)
    chosen = sweeps.thresholds(rows, TASK).set_index(["encoder", "protocol", "fold"])
    assert boot.sample.stratum.any() == crossval
    for i, model in enumerate(boot.sample.models):
        for fold in range(3):
            part = rows[(rows["encoder"] == model[0]) & (rows["fold"] == fold) & (rows["split"] == "test")]
            expected = by_definition(part, *chosen.loc[(*model, fold), ["threshold", "threshold_false"]])
            assert {name: boot.folds[name][fold, i] for name in expected} == pytest.approx(expected, abs=1e-12)


def by_definition(part, tight, loose):
    """What one fold model scores, without any code of the library."""
    y = part["y_true"].to_numpy()
    p = 1 / (1 + np.exp(-part["logit_usable"].to_numpy()))
    called, at_half = p >= tight - 1e-9, p > 0.5 + 1e-9
    found = {"AUPRC": sk.average_precision_score(y, p.round(9)), "AUROC": sk.roc_auc_score(y, p.round(9))}
    found |= {sweeps.PREVALENCE: y.mean(), sweeps.NEVER: sk.accuracy_score(y, 0 * y), "accuracy": (at_half == y).mean()}
    for at, said in ((sweeps.HALF, at_half), (sweeps.CHOSEN, called)):
        for name, score in (("F1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            found[f"{name} of usable, {at}"] = score(y, said, zero_division=0)
    found[sweeps.SENSITIVITY] = sk.recall_score(y, p >= loose - 1e-9)
    usable, optimal, false, selected = [], [], [], []
    for keys, out in ((["case", "sweep"], None), (["case"], selected)):
        for _, own in part.assign(p=p.round(9)).groupby(keys):
            best = own.loc[own["p"] == own["p"].max(), "quality"]
            if out is None:
                false.append(((own["p"] >= loose - 1e-9) & (own["y_true"] == 0)).sum())
                if (own["quality"] != "none").any():
                    usable.append((best != "none").mean())
                if (own["quality"] == "optimal").any():
                    optimal.append((best == "optimal").mean())
            elif (own["quality"] != "none").any():
                poor = 0.6 if (own["quality"] == "optimal").any() else 1
                out.append(best.map({"none": 0, "sub-optimal": poor, "optimal": 1}).mean())
    means = {sweeps.BEST_USABLE: usable, sweeps.BEST_OPTIMAL: optimal, sweeps.FALSE: false, sweeps.SELECTION: selected}
    return found | {name: np.mean(values) for name, values in means.items()}


def test_a_resample_equals_the_definitions_on_the_subjects_drawn(predicted):
    """In a loop: subjects that are drawn twice stand twice, as cases of their own."""
    (sample,) = sweeps.measured(predicted, TASK)
    weights = statistics.draw(sample.stratum, 2, np.random.default_rng(1))
    got = statistics.evaluate(sample, weights, EVERY)
    chosen = sweeps.thresholds(predicted, TASK).set_index(["encoder", "protocol", "fold"])
    for b, weight in enumerate(weights.astype(int)):
        times = dict(zip(sample.groups, weight, strict=True))
        for i, model in enumerate(sample.models):
            for fold in range(3):
                part = predicted[(predicted["encoder"] == model[0]) & (predicted["fold"] == fold)]
                part = part[part["split"] == "test"]
                copies = [
                    own.assign(case=own["case"] + f"/{copy}")
                    for group, own in part.groupby("group")
                    for copy in range(times[group])
                ]
                ends = chosen.loc[(*model, fold), ["threshold", "threshold_false"]]
                expected = by_definition(pd.concat(copies), *ends)
                assert {name: got[name][fold, b, i] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_thresholds_are_the_best_of_validation_and_no_test_row_moves_them(predicted):
    found = sweeps.thresholds(predicted, TASK)
    assert len(found) == 9
    for row in found[found["encoder"] == "b"].itertuples():
        part = predicted.query("encoder == @row.encoder and fold == @row.fold and split == 'val'")
        y, p = part["y_true"].to_numpy(), 1 / (1 + np.exp(-part["logit_usable"].to_numpy()))
        number = part.groupby(["case", "sweep"]).ngroups
        tried = np.unique(p.round(9))
        f1 = np.array([sk.f1_score(y, p >= t - 1e-9) for t in tried])
        assert abs(row.F1 - f1.max()) < 1e-12
        assert row.threshold == pytest.approx(tried[np.flatnonzero(f1 == f1.max())[-1]], abs=1e-8)
        false = np.array([((p >= t - 1e-9) & (y == 0)).sum() / number for t in tried])
        few = np.flatnonzero(false <= 1)[0]
        assert (row.threshold_false, row.false_frames) == pytest.approx((tried[few], false[few]), abs=1e-8)
        assert (row.frames, row.sweeps) == (len(part), number)
    test = predicted["split"] == "test"
    other = predicted.assign(logit_usable=predicted["logit_usable"].where(~test, 3.0))
    pd.testing.assert_frame_equal(found, sweeps.thresholds(other, TASK))


def test_where_the_best_scored_frames_are_too_many_nothing_is_answered():
    same = [("one", "s1", [[(CLEAR, 0.5), (CLEAR, 0.5), (BEST, 0.5)]])]
    rows = pd.concat([table(same), table([("two", "s2", same[0][2])], "val")])
    (row,) = sweeps.thresholds(rows, TASK).to_dict("records")
    assert (row["threshold_false"], row["false_frames"]) == (np.inf, 0)
    (boot,) = sweeps.bootstraps(rows, TASK, [sweeps.SENSITIVITY, sweeps.FALSE, RECALL], resamples=2)
    assert [boot.folds[name].item() for name in boot.folds] == [0, 0, 1]


def test_intervals_and_differences_say_their_unit_and_pairs_run_across_protocols_with_holm(predicted):
    boots = sweeps.bootstraps(predicted, TASK, resamples=200)
    table = sweeps.intervals(boots, TASK, methods=["percentile"])
    assert set(table["metric"]) == set(EVERY)
    assert table.groupby("unit")["metric"].nunique().to_dict() == {"frame": 14, "sweep": 4, "case": 1}
    assert (table["groups"] == 18).all()
    assert (table["low"] < table["high"]).all()
    assert (table["low"] <= table["value"]).mean() > 0.95
    within, across = (sweeps.differences(boots, TASK, across=across) for across in (False, True))
    assert len(within) == len(EVERY) - len(sweeps.FACTS)
    assert len(across) == 3 * len(within)
    assert not set(sweeps.FACTS) & set(across["metric"])
    assert set(across["other_protocol"]) == {"lora", "full"}
    for _, part in across.groupby("metric"):
        assert part["p_holm"].to_numpy() == pytest.approx(statistics.holm(part["p"]), abs=0)
        assert len(part) == 3
    one = across[(across["encoder"] == "a") & (across["other"] == "b")]
    pd.testing.assert_frame_equal(  # Holm is over more pairs, and no more differs
        within.drop(columns="p_holm").reset_index(drop=True),
        one.drop(columns=["p_holm", "other_protocol"]).reset_index(drop=True),
    )


def test_a_permutation_of_sweep_outcomes_equals_swapping_the_answers_by_hand():
    """Thresholds stay with their model: so they are set alike here, and rows may change sides."""
    rows = drawn(subjects=6, models=(("a", "lora"), ("b", "lora")), folds=1, crossval=False)
    names = [sweeps.BEST_USABLE, sweeps.SELECTION, sweeps.SENSITIVITY, RECALL]
    val = rows["split"] == "val"
    rows = pd.concat([rows[~val], *(rows[val & (rows["encoder"] == "a")].assign(encoder=one) for one in "ab")])
    (sample,) = sweeps.measured(rows, TASK)
    mask = np.array([[0.0, 1.0, 1.0]])
    got = statistics._swapped(sample, mask, [(0, 1)], names)
    change = (rows["split"] == "test") & rows["group"].isin(sample.groups[1:])
    swapped = rows.assign(encoder=rows["encoder"].mask(change, rows["encoder"].map({"a": "b", "b": "a"})))
    (boot,) = sweeps.bootstraps(swapped, TASK, names, resamples=2)
    for name in names:
        assert got[name].item() == pytest.approx(np.subtract(*boot.folds[name][0]), abs=1e-12)


def test_a_monotone_change_of_one_models_scores_changes_no_ranked_result(predicted):
    names = ["AUPRC", "AUROC", sweeps.BEST_USABLE, sweeps.SELECTION, F1]
    moved = predicted.assign(
        logit_usable=np.where(
            predicted["encoder"] == "b", 0.2 * predicted["logit_usable"].to_numpy() ** 3 - 2, predicted["logit_usable"]
        )
    )
    one, two = (
        sweeps.differences(sweeps.bootstraps(rows, TASK, names, resamples=150), TASK, across=True)
        for rows in (predicted, moved)
    )
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=0, atol=1e-12)
    assert one["p"].nunique() > 5


@pytest.mark.parametrize("crossval", [True, False])
def test_the_order_of_rows_changes_no_byte(crossval):
    rows = drawn(crossval=crossval)
    told = []
    for frame in (rows, rows.sample(frac=1, random_state=3)):
        boots = sweeps.bootstraps(frame, TASK, resamples=60)
        parts = sweeps.intervals(boots, TASK), sweeps.differences(boots, TASK), statistics.ranking(boots[0])
        told.append([part.to_csv() for part in (*parts, sweeps.thresholds(frame, TASK), sweeps.counts(frame, TASK))])
    assert told[0] == told[1]


def test_two_seeds_are_measured_each_and_averaged(predicted):
    again = drawn(seed=0).assign(seed=1)
    again["logit_usable"] = predicted["logit_usable"].to_numpy()[::-1]  # any other answers
    twice = pd.concat([predicted, again[again["encoder"] == "a"]])
    (boot,) = sweeps.bootstraps(twice, TASK, [sweeps.SELECTION, F1], resamples=2)
    assert boot.folds[F1].shape == (6, 3)
    alone = [
        sweeps.bootstraps(rows, TASK, [sweeps.SELECTION, F1], resamples=2)[0]
        for rows in (predicted, again[again["encoder"] == "a"])
    ]
    for name in boot.folds:
        assert boot.folds[name][0::2] == pytest.approx(alone[0].folds[name], abs=1e-15)
        assert boot.folds[name][1::2, 0] == pytest.approx(alone[1].folds[name][:, 0], abs=1e-15)
        assert boot.folds[name][1::2, 1:] == pytest.approx(alone[0].folds[name][:, 1:], abs=1e-15)


def test_what_the_data_cannot_carry_is_nan_with_its_reason():
    """One subject has an optimal frame; abroad there is no usable frame at all."""
    home = [(f"c{i}", f"s{i}", [[(BEST if i == 0 else POOR, 0.6), (CLEAR, 0.3 + i / 50)]]) for i in range(6)]
    abroad = [(f"d{i}", f"t{i}", [[(CLEAR, 0.2 + i / 50)]]) for i in range(4)]
    val = table([("v", "v", home[0][2])], "val")
    rows = pd.concat([table(home), table(abroad).assign(population="abroad"), val])
    told = sweeps.intervals(sweeps.bootstraps(rows, TASK, resamples=100), TASK, methods=["percentile"])
    told = told.set_index(["population", "metric"])
    reason = told["reason"]
    assert reason["home", sweeps.BEST_OPTIMAL] == f"none: what {sweeps.BEST_OPTIMAL} speaks of has 1 patient"
    assert reason["abroad", sweeps.SELECTION] == f"none: what {sweeps.SELECTION} speaks of has 0 patients"
    assert reason["abroad", "AUPRC"] == reason["abroad", "AUROC"] == "none: no image of a class beside none"
    assert told.loc[[("abroad", "AUPRC"), ("abroad", sweeps.SELECTION)], ["value", "low", "high"]].isna().all(axis=None)
    assert told.loc[("abroad", sweeps.FALSE), "value"] == 0
    assert reason["abroad", F1] == f"none: what {F1} speaks of has 0 patients"
    assert reason["home", "AUPRC"] == "all resamples give the same value"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="case"), "expected the columns case, sweep, position, quality .* found no case"),
        (lambda f: f.assign(quality=f["quality"].where(f["position"] > 0)), r"found \['nothing'\]: leave out sweeps"),
        (lambda f: f.assign(quality="good"), r"found \['good'\]"),
        (lambda f: f.assign(sweep=f["sweep"].where(f["position"] > 0)), "found empty cells: merge by image_id"),
        (lambda f: pd.concat([f, f.head(1)]), "expected one frame at position 0 of each model and fold"),
        (lambda f: f.assign(group=f["group"].where(f["position"] > 0, "s99")), "expected frames of one group, found 2"),
        (lambda f: f.assign(y_true=f["y_true"].where(f["position"] % 2 == 0, 1)), "labels of another target"),
        (lambda f: f.assign(y_true=1 - f["y_true"]), "labels of another target"),
        (lambda f: f[(f["split"] == "test") | (f["encoder"] != "b")], "found none of .*'b'.*: read whole"),
        (lambda f: f[(f["split"] == "test") | (f["y_true"] == 0)], "frame of the positive class in validation"),
        (
            lambda f: f.assign(answer=np.where(f["encoder"] == "b", "usable", None)),
            "answers alone of b: leave them out",
        ),
        (lambda f: f[(f["encoder"] != "b") | (f["position"] > 0)], "rows of a / lora once each"),
    ],
)
def test_what_is_refused_says_what_to_do(predicted, change, says):
    with pytest.raises(InputError, match=says):
        list(sweeps.measured(change(predicted), TASK))


def test_a_task_without_a_positive_class_or_with_three_is_refused(predicted):
    for task in (
        Task("plain", "usable", ("none", "usable"), train="home"),
        Task("three", "quality", sweeps.QUALITIES, train="home", positive="optimal"),
    ):
        with pytest.raises(InputError, match="expected two classes, one of them `positive`"):
            list(sweeps.measured(predicted, task))


def test_the_target_optimal_looks_for_optimal_frames_and_sweeps_are_judged_as_before(predicted):
    task = Task("optimal", "optimal", ("other", "usable"), train="home", positive="usable")
    rows = predicted.assign(y_true=(predicted["quality"] == "optimal").astype(int)).rename(
        columns={"logit_none": "logit_other"}
    )
    one, two = (sweeps.bootstraps(*of, resamples=2)[0] for of in ((predicted, TASK), (rows, task)))
    for name in (sweeps.BEST_USABLE, sweeps.BEST_OPTIMAL, sweeps.SELECTION):
        assert np.array_equal(one.folds[name], two.folds[name])
    assert (two.folds[sweeps.PREVALENCE] < one.folds[sweeps.PREVALENCE]).all()
    assert (
        sweeps.counts(rows, task)["frames positive"].item() < sweeps.counts(predicted, TASK)["frames positive"].item()
    )
