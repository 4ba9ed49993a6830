"""Several training runs: scores, intervals and tests over folds and seeds, against slow loops; one seed stays as it was."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from fpbench import predictions
from fpbench.analysis import calibration, claims, scoring, shift, statistics
from fpbench.errors import InputError
from fpbench.files import fingerprints
from fpbench.grid import reference
from fpbench.reporting import tables
from fpbench.tasks import TASKS

TASK = TASKS["planes"]
SEEDS = (3, 5, 8)
MODELS = (("a", "full", SEEDS), ("b", "full", SEEDS), ("a", "logistic", (0,)), ("b", "logistic", (0,)))
HEADLINE = ["macro F1"]


def rows(shape="official", models=MODELS, split="test", effect=1.5):
    """Rows of predictions files of two folds; each fold and seed of a model answers in a way of its own. ``spain``: as under crossval."""
    rng, frames = np.random.default_rng(0), []
    for population, groups, classes in (("spain", 16, 6), ("africa", 9, 4)):
        group = np.repeat([f"{population}/{g:02d}" for g in range(groups)], classes)
        images = pd.DataFrame({"group": group, "patient": group, "y_true": np.tile(np.arange(classes), groups)})
        images["image_id"] = [f"{population}/{i:03d}" for i in range(len(images))]
        images = images.assign(population=population, cohort=population, centre="x", distinct=True, split=split)
        for (encoder, protocol, seeds), fold in itertools.product(models, range(2)):
            mine = images[images.index // classes % 2 == fold] if shape == population == "spain" else images
            for seed in seeds:
                z = rng.normal(size=(len(mine), 6)) + (effect + 0.3 * fold - 0.1 * seed) * np.eye(6)[mine["y_true"]]
                run = {"fold": fold, "seed": seed, "encoder": encoder, "protocol": protocol, "n_patients": 20}
                frames.append(mine.assign(**run, **dict(zip(TASK.columns(), z.T, strict=True))))
    return pd.concat(frames, ignore_index=True)


def f1(part, times=1):
    """scikit-learn's macro F1 of one fold and seed of one model, its rows weighted."""
    answers = part[TASK.columns()].to_numpy().argmax(1)
    weights = np.broadcast_to(times, len(part))
    return f1_score(part["y_true"], answers, labels=range(6), average="macro", sample_weight=weights)


def of(predicted, encoder, protocol):
    return predicted.query("encoder == @encoder and protocol == @protocol and population == 'spain'")


def home(predicted):
    """The sample of the home cohort on all its classes, as published."""
    return next(statistics.samples(predicted, TASK))


@pytest.mark.parametrize("shape", ["official", "spain"])
def test_a_score_is_the_mean_over_folds_and_seeds_and_varies_by_both(shape):
    predicted = rows(shape)
    table = scoring.overview(scoring.evaluate(predicted, TASK), TASK).query("population == 'spain'")
    table = table[table["classes"] == "all classes"].set_index(list(scoring.MODEL))
    boot = statistics.bootstrap(home(predicted), HEADLINE, 10)
    points = statistics.intervals(boot, ["percentile"]).set_index(list(scoring.MODEL))
    for encoder, protocol, seeds in MODELS:
        by_run = of(predicted, encoder, protocol).groupby(["fold", "seed"]).apply(f1).unstack()
        row, point = table.loc[(encoder, protocol)], points.loc[(encoder, protocol)]
        assert row["mean"] == pytest.approx(by_run.to_numpy().mean(), abs=1e-12)
        assert point["value"] == pytest.approx(by_run.to_numpy().mean(), abs=1e-12)
        assert row["sd"] == pytest.approx(by_run.mean(axis=1).std(), abs=1e-12)
        assert row["sd_seeds"] == pytest.approx(by_run.mean(axis=0).std(), abs=1e-12, nan_ok=True)
        assert (row["folds"], row["seeds"], point["seeds"]) == (2, len(seeds), len(seeds))
    assert (table["sd_seeds"].notna() == (table["seeds"] == 3)).all()


@pytest.mark.parametrize("shape", ["official", "spain"])
def test_the_bootstrap_equals_a_slow_loop(shape):
    predicted = rows(shape)
    sample = home(predicted)
    boot = statistics.bootstrap(sample, HEADLINE, 15, seed=4)
    weights = statistics.draw(sample.stratum, 15, np.random.default_rng(4))
    for m, (encoder, protocol) in enumerate(sample.models):
        mine = of(predicted, encoder, protocol)
        for drawn, value in zip(weights, boot.draws["macro F1"][:, m], strict=True):
            times = dict(zip(sample.groups, drawn, strict=True))
            slow = [f1(part, part["group"].map(times)) for _, part in mine.groupby(["fold", "seed"])]
            assert value == pytest.approx(np.mean(slow), abs=1e-12)


def slow_difference(one, two, swapped):
    """The score of one minus two after the groups changed sides, run by run; of one seed: beside every seed of the other."""
    seeds = sorted({*one["seed"]} if one["seed"].nunique() > 1 else {*two["seed"]})
    found = []
    for fold, seed in itertools.product(sorted(set(one["fold"])), seeds):
        a, b = (
            side[
                (side["fold"] == fold)
                & (side["seed"] == (seed if side["seed"].nunique() > 1 else side["seed"].iloc[0]))
            ]
            for side in (one, two)
        )
        a, b = a.sort_values("image_id"), b.sort_values("image_id")
        moved = a["group"].isin(swapped).to_numpy()[:, None]
        z, w = a[TASK.columns()].to_numpy(), b[TASK.columns()].to_numpy()
        sides = [
            a.assign(**dict(zip(TASK.columns(), x.T, strict=True)))
            for x in (np.where(moved, w, z), np.where(moved, z, w))
        ]
        found.append(f1(sides[0]) - f1(sides[1]))
    return np.mean(found)


@pytest.mark.parametrize("pair", [(("a", "full"), ("b", "full")), (("a", "full"), ("a", "logistic"))])
def test_the_permutation_test_equals_a_slow_loop(pair):
    predicted = rows()
    sample = home(predicted)
    places = [sample.models.index(model) for model in pair]
    p = statistics.permutation(sample, [places], HEADLINE, 60, seed=2)["macro F1"][0]
    one, two = (of(predicted, *model) for model in pair)
    observed = slow_difference(one, two, [])
    marked = np.random.default_rng(2).random((60, len(sample.groups))) < 0.5
    hits = sum(abs(slow_difference(one, two, sample.groups[row])) >= abs(observed) - 1e-12 for row in marked)
    assert p == pytest.approx((1 + hits) / 61, abs=1e-12)
    assert p > 1 / 61  # the case is not a foregone one


def test_differences_pair_by_seed_and_nadeau_bengio_sees_folds():
    sample = home(rows("spain"))
    boot = statistics.bootstrap(sample, HEADLINE, 50)
    table = statistics.differences(boot).set_index("protocol")
    a, b = (sample.models.index((name, "full")) for name in "ab")
    by_fold = (boot.folds["macro F1"][:, a] - boot.folds["macro F1"][:, b]).reshape(2, 3).mean(1)
    assert table.loc["full", "p_nadeau_bengio"] == statistics.nadeau_bengio(by_fold, sample.test_share)
    assert table["seeds"].to_dict() == {"full": 3, "logistic": 1}


def test_a_model_of_one_seed_is_not_changed_by_the_seeds_of_others():
    predicted = rows()
    sample, alone = home(predicted), home(predicted.query("protocol == 'logistic'"))
    assert (sample.runs, alone.runs, len(sample.parts), len(alone.parts)) == (3, 1, 6, 2)
    for name in "ab":
        both = [
            statistics.bootstrap(one, HEADLINE, 40).draws["macro F1"][:, one.models.index((name, "logistic"))]
            for one in (sample, alone)
        ]
        assert both[0] == pytest.approx(both[1], abs=1e-12)


def test_the_number_of_one_seed_does_not_matter():
    """As for side questions, which keep the number of a draw in this column."""
    predicted = rows(models=(("a", "full", (0,)), ("b", "full", (7,))))
    same = predicted.assign(seed=0)
    tables = [statistics.differences(statistics.bootstrap(home(one), HEADLINE, 40)) for one in (predicted, same)]
    pd.testing.assert_frame_equal(*tables)
    assert "seeds" not in tables[0]


def test_models_of_other_seeds_are_refused_by_name():
    predicted = rows(models=(("a", "full", SEEDS), ("b", "full", (3, 5))))
    with pytest.raises(InputError, match=r"same seeds; found a / full: \[3, 5, 8\]; b / full: \[3, 5\]"):
        home(predicted)
    with pytest.raises(InputError, match="same seeds"):
        shift.decompose(predicted, TASK, "africa", 5)
    with pytest.raises(InputError, match="once each"):
        home(rows().query("not (seed == 5 and encoder == 'b' and fold == 1)"))


def test_table_1_says_both_kinds_of_training_variation():
    predicted = rows()
    scores = scoring.evaluate(predicted, TASK, ranked=False)
    boots = [statistics.bootstrap(one, HEADLINE, 200) for one in statistics.samples(predicted, TASK)]
    intervals = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
    table = tables.table1(scores, TASK, intervals).set_index(list(scoring.MODEL))
    for cell in table["Spain, all classes, open"]:
        assert (cell.endswith(" by fold, - by seed")) != (cell.count(" ± ") == 2)
    cell = table.loc[("a", "full fine-tuning"), "Spain, all classes, open"]
    row = scoring.overview(scores, TASK, intervals).query("encoder == 'a' and protocol == 'full'").iloc[0]
    said = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ± {row['sd']:.3f} by fold, ± {row['sd_seeds']:.3f} by seed"
    assert cell == said
    assert "these runs, mean over folds and seeds" in tables.caption1(scores, TASK)
    (line, *_) = scoring.variation(scoring.overview(scores, TASK, intervals))
    assert line.startswith("full fine-tuning, Spain, all classes, open, these runs with 3 seeds: median")
    main = claims.primary(boots, TASK)
    told = claims.sentences(statistics.of_all(statistics.differences, main, protocols=["full"]))
    assert all("open, these runs with 3 seeds: " in line for line in told)
    won = claims.winners(statistics.ranking(main[0]))
    assert ["these runs with 3 seeds" in line for line in won] == [line.startswith("full") for line in won]
    assert len(won) == 2
    between = statistics.bootstrap(home(claims.exchanged(predicted, ["full", "logistic"])), HEADLINE, 200)
    assert all("these runs with 3 seeds: " in line for line in claims.contrasts(statistics.differences(between)))


def test_with_one_seed_table_1_and_its_sentences_are_as_they_were():
    predicted = rows(models=[(encoder, protocol, (0,)) for encoder, protocol, _ in MODELS])
    scores = scoring.evaluate(predicted, TASK, ranked=False)
    boots = [statistics.bootstrap(one, HEADLINE, 50) for one in statistics.samples(predicted, TASK)]
    intervals = statistics.of_all(statistics.intervals, boots, methods=["percentile"])
    cells = tables.table1(scores, TASK, intervals)["Spain, all classes, open"]
    assert cells.str.fullmatch(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] ± 0\.\d{3}").all()
    said = "macro F1, mean over the fold models [95 % interval by patient group] ± SD over the fold models; images as published"
    assert tables.caption1(scores, TASK) == said
    assert scoring.variation(scoring.overview(scores, TASK, intervals)) == []
    assert not any("runs" in line for line in claims.sentences(statistics.differences(boots[0])))
    columns = [
        *scoring.MODEL,
        *scoring.VIEW,
        "metric",
        "resamples",
        "groups",
        "value",
        "method",
        "low",
        "high",
        "reason",
    ]
    assert list(intervals.columns) == columns


def test_the_gap_between_cohorts_is_the_mean_over_seeds():
    """Every part of it is a mean over runs, so it equals the mean of the gaps of each seed alone."""
    predicted = rows()
    steps = shift.decompose(predicted, TASK, "africa", 5).set_index([*scoring.MODEL, "step"])["value"]
    alone = [
        shift.decompose(predicted[predicted["seed"].isin([seed, 0])], TASK, "africa", 5).set_index(
            [*scoring.MODEL, "step"]
        )["value"]
        for seed in SEEDS
    ]
    assert steps.to_numpy() == pytest.approx(np.mean(alone, axis=0), abs=1e-12)


def test_every_seed_has_a_temperature_and_a_curve_of_its_own():
    predicted = pd.concat([rows(split="val"), rows()], ignore_index=True)
    found = calibration.temperatures(predicted, TASK)
    assert found.groupby(list(scoring.MODEL)).size().to_dict() == {model[:2]: 2 * len(model[2]) for model in MODELS}
    one = calibration.temperatures(predicted.query("seed == 5"), TASK)
    pd.testing.assert_frame_equal(found.query("seed == 5").reset_index(drop=True), one)
    repaired = calibration.scaled(predicted, found, TASK)
    assert len(repaired) == len(predicted)
    answers = calibration.confidences(repaired, TASK)
    by_seed = [calibration.risk_coverage(part) for _, part in answers.query("protocol == 'full'").groupby("seed")]
    together = calibration.risk_coverage(answers.query("protocol == 'full'"))["error rate"].to_numpy()
    assert together == pytest.approx(np.mean([one["error rate"] for one in by_seed], axis=0), abs=1e-12)
    bins = calibration.reliability(answers).query("view == 'Spain, all classes, open'")
    assert bins.groupby(list(scoring.MODEL))["images"].sum().tolist() == pytest.approx([96] * 4)


def test_the_reference_tells_seeds_apart_where_there_are_several():
    names = set(reference.summarise(rows(), TASK))
    assert {"a/logistic/0", "a/full/seed3/0", "b/full/seed8/1"} <= names
    assert len(names) == 2 * (3 + 3 + 1 + 1)


def written(folder, seed, pretrained):
    """A predictions file of an encoder that has other weights for every seed; its sidecar says so, or does not."""
    frame = rows(models=[("a", "logistic", (seed,))]).assign(target=TASK.name)
    frame = frame[[*predictions.COLUMNS, *TASK.columns()]].astype(dict.fromkeys(TASK.columns(), "float32"))
    about = {"key": "k", "study": {}, "chosen": {}, "provenance": {}}
    numbers = np.random.default_rng(seed).normal(size=32)
    encoder = {"name": "a", "fingerprint": fingerprints.of(numbers)} | ({"seed": seed} if pretrained else {})
    predictions.write(folder / f"fold0.seed{seed}.parquet", frame, TASK, {**about, "encoder": encoder})
    return folder / f"fold0.seed{seed}.parquet"


def test_an_encoder_pretrained_with_several_seeds_has_a_fingerprint_for_each(tmp_path):
    files = [written(tmp_path, seed, pretrained=True) for seed in (1, 2)]
    assert set(predictions.read(files, TASK)["seed"]) == {1, 2}
    with pytest.raises(InputError, match="another one"):
        predictions.read([written(tmp_path, seed, pretrained=False) for seed in (1, 2)], TASK)
