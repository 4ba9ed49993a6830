"""What adaptation is worth, on constructed answers: a clear gain, none, one plane alone; numbers against slow loops."""

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import f1_score

from fpbench import load_study, results
from fpbench.analysis import adaptation, samples, scoring, statistics
from fpbench.analysis.adaptation import CLAIMS, Pair
from fpbench.files import artifacts
from fpbench.grid import jobs
from fpbench.reporting import figures, page
from fpbench.tasks import TASKS

TASK = TASKS["brain_planes"]
TV = TASK.classes.index(adaptation.GAINS_MOST)
HELD = [
    Pair("scratch", "adapted from random weights", "natural", "released weights"),
    Pair("adapted", "adapted from released weights", "natural", "released weights"),
]
NATURAL = (0.6, 0.6, 0.6)


def answers(skills, protocols=("logistic", "full"), groups=40, seed=0):
    """Predictions of encoders that are right about each class with the given probability; two folds, three images of a class a patient."""
    rng, parts = np.random.default_rng(seed), []
    y, group = np.tile(np.repeat(np.arange(3), 3), groups), np.repeat(np.arange(groups), 9)
    luck = {
        (fold, protocol): (rng.random(len(y)), rng.integers(1, 3, len(y)))
        for fold in range(2)
        for protocol in protocols
    }
    for encoder, skill in skills.items():
        for (fold, protocol), (draw, wrong) in luck.items():  # the same luck for all: they differ where their skills do
            answer = np.where(draw < np.array(skill)[y], y, (y + wrong) % 3)
            parts.append(pd.DataFrame(np.eye(3)[answer] * 5, columns=TASK.columns()).assign(
                image_id=[f"i{i:04}" for i in range(len(y))], patient=group, group=group, distinct=True, population="spain",
                split="test", fold=fold, encoder=encoder, protocol=protocol, n_patients=100, y_true=y, seed=0, said=answer,
            ))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def boot_of(predicted, resamples=400):
    (sample,) = [one for one in samples.samples(predicted, TASK) if one.view[-1] == "as published"]
    return statistics.bootstrap(sample, adaptation.metrics_of(TASK), resamples)


def slow(predicted, boot, encoder, protocol, **options):
    """Scores (resamples,) by scikit-learn, row by row: patients repeated as often as they were drawn, fold models averaged."""
    weights = statistics.draw(boot.sample.stratum, len(boot.draws[TASK.headline]), np.random.default_rng(0))
    rows = predicted[(predicted["encoder"] == encoder) & (predicted["protocol"] == protocol)]
    found = []
    for weight in weights:
        often = rows["group"].map(dict(zip(boot.sample.groups, weight.astype(int), strict=True)))
        drawn = rows.loc[rows.index.repeat(often)]
        found.append(
            np.mean([f1_score(fold["y_true"], fold["said"], **options) for _, fold in drawn.groupby("fold")], axis=0)
        )
    return np.array(found)


def verdicts(skills, held=HELD, **options):
    table = adaptation.verdicts(boot_of(answers(skills)), held, TASK, **options)
    return {(row.claim, row.arm): row for row in table.itertuples()}


def test_gains_and_claims_equal_slow_loops():
    predicted = answers({"natural": (0.6, 0.5, 0.7), "adapted": (0.7, 0.62, 0.7)}, groups=12)
    boot = boot_of(predicted, 60)
    table = adaptation.gains(boot, HELD, TASK, adaptation.PAPER).set_index("protocol")
    judged = adaptation.verdicts(boot, HELD[1:], TASK).set_index("claim")
    by_class = adaptation.class_gains(boot, HELD, TASK, ["full"]).set_index("class")
    score = {}
    for protocol in adaptation.PAPER:
        for encoder in ("adapted", "natural"):
            score[encoder, protocol] = slow(predicted, boot, encoder, protocol, average="weighted")
        change = score["adapted", protocol] - score["natural", protocol]
        assert table.loc[protocol, ["low", "high"]].tolist() == pytest.approx(
            np.quantile(change, [0.025, 0.975]).tolist()
        )
        point = []
        for encoder in ("adapted", "natural"):
            rows = predicted[(predicted["encoder"] == encoder) & (predicted["protocol"] == protocol)]
            folds = [f1_score(fold["y_true"], fold["said"], average="weighted") for _, fold in rows.groupby("fold")]
            point.append(np.mean(folds))
        assert table.loc[protocol, "value"] == pytest.approx(point[0] - point[1])
        assert table.loc[protocol, "relative"] == pytest.approx(point[0] / point[1] - 1)
    gain = np.stack([score["adapted", p] - score["natural", p] for p in adaptation.PAPER])
    relative = np.stack([score["adapted", p] / score["natural", p] - 1 for p in adaptation.PAPER])
    assert judged.loc[CLAIMS["better"], "probability"] == pytest.approx((gain > 0).all(0).mean())
    assert judged.loc[CLAIMS["largest"], "probability"] == pytest.approx((relative.max(0) >= 0.2).mean())
    assert judged.loc[CLAIMS["largest"], "low"] == pytest.approx(np.quantile(relative.max(0), 0.025))
    each = {
        (encoder, protocol): slow(predicted, boot, encoder, protocol, average=None)
        for encoder in ("adapted", "natural")
        for protocol in adaptation.PAPER
    }
    changes = np.mean(
        [each["adapted", p] - each["natural", p] for p in adaptation.PAPER], axis=0
    )  # (resamples, classes)
    first = (changes[:, TV] > np.delete(changes, TV, 1).max(1)) & (changes[:, TV] > 0)
    assert judged.loc[CLAIMS["class"], "probability"] == pytest.approx(first.mean())
    own = each["adapted", "full"] - each["natural", "full"]
    for code, name in enumerate(TASK.classes):
        wins = own[:, code] == own.max(1)
        assert by_class.loc[name, "most"] == pytest.approx((wins / (own == own.max(1, keepdims=True)).sum(1)).mean())
        assert by_class.loc[name, "low"] == pytest.approx(np.quantile(own[:, code], 0.025))


def test_p_values_are_adjusted_over_all_pairs_and_protocols():
    boot = boot_of(answers({"natural": NATURAL, "adapted": (0.63, 0.63, 0.63), "scratch": (0.64, 0.64, 0.64)}))
    table = adaptation.gains(boot, HELD, TASK, adaptation.PAPER)
    assert len(table) == 4
    assert table["p_holm"].tolist() == pytest.approx(statistics.holm(table["p"]).tolist())
    assert (table["p_holm"] > table["p"]).any()


def test_a_clear_gain_of_every_plane_supports_what_it_should():
    found = verdicts({"natural": NATURAL, "adapted": (0.9, 0.9, 0.9)})
    arm = "adapted from released weights"
    assert found[CLAIMS["better"], arm].outcome == "supported"
    assert found[CLAIMS["better"], arm].cells == 2
    assert found[CLAIMS["largest"], arm].outcome == "supported"
    assert found[CLAIMS["largest"], arm].value > 0.3
    assert found[CLAIMS["class"], arm].outcome != "supported"
    assert found[CLAIMS["better"], HELD[0].arm].outcome == "not tested"


def test_where_nothing_is_gained_nothing_is_supported():
    lost = verdicts({"natural": NATURAL, "adapted": (0.5, 0.59, 0.5)})
    arm = "adapted from released weights"
    assert {lost[claim, arm].outcome for claim in CLAIMS.values()} == {
        "not supported"
    }  # TV loses least, and gains nothing
    even = answers({"natural": NATURAL}, seed=1)
    other = answers({"adapted": NATURAL}, seed=2)
    boot = boot_of(pd.concat([even, other]))
    judged = adaptation.verdicts(boot, HELD[1:], TASK).set_index("claim")
    assert judged.loc[CLAIMS["better"], "outcome"] != "supported"
    assert judged.loc[CLAIMS["largest"], "outcome"] == "not supported"
    table = adaptation.gains(boot, HELD, TASK, adaptation.PAPER)
    assert not any("is better" in line for line in adaptation.sentences(table, judged.reset_index()))


def test_one_plane_alone_gains_most_and_one_cell_that_loses_ends_consistency():
    arm = "adapted from released weights"
    alone = verdicts({"natural": NATURAL, "adapted": (0.6, 0.9, 0.6)})
    assert alone[CLAIMS["class"], arm].outcome == "supported"
    other = verdicts({"natural": NATURAL, "adapted": (0.9, 0.6, 0.6)})
    assert other[CLAIMS["class"], arm].outcome == "not supported"
    predicted = answers({"natural": NATURAL, "adapted": (0.9, 0.9, 0.9)}, ["logistic"])
    worse = answers({"natural": NATURAL, "adapted": (0.4, 0.4, 0.4)}, ["full"])
    judged = adaptation.verdicts(boot_of(pd.concat([predicted, worse])), HELD, TASK).set_index(["claim", "arm"])
    assert judged.loc[(CLAIMS["better"], arm), "outcome"] == "not supported"
    assert judged.loc[(CLAIMS["largest"], arm), "outcome"] == "supported"  # "up to" speaks of the best cell


def test_patients_who_carry_no_interval_leave_a_claim_undecided_with_the_reason():
    predicted = answers({"natural": NATURAL, "adapted": (0.9, 0.9, 0.9)}, groups=30)
    rare = predicted[(predicted["y_true"] != TV) | (predicted["group"] == 0)]
    judged = adaptation.verdicts(boot_of(rare), HELD[1:], TASK).set_index("claim")
    assert judged.loc[CLAIMS["class"], "outcome"] == "undecided"
    assert judged.loc[CLAIMS["class"], "reason"] == "none: trans-ventricular has 1 patient"


STUDY = {
    "name": "arms", "title": "t", "task": "brain_planes", "probes": ["logistic"], "cohorts": [{"name": "phantom-brain"}],
    "encoders": [
        {"name": "natural", "model": "timm:a", "weights": "hub"}, {"name": "random", "model": "timm:a", "weights": "random"},
        {"name": "other", "model": "timm:b", "weights": "hub"},
        *({"name": name, "model": "timm:a", "weights": f"pretraining/{name}"} for name in ("adapted", "scratch", "twice", "transductive")),
    ],
    "pretraining": {
        "adapted": {"start": "natural", "corpus": [{"name": "phantom-brain"}]},
        "twice": {"start": "natural", "corpus": [{"name": "phantom-brain"}], "seed": 1},
        "scratch": {"start": "random", "corpus": [{"name": "phantom-brain"}]},
        "transductive": {"start": "natural", "corpus": [{"name": "phantom-brain"}], "transductive": True},
    },
}  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path))
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return load_study(path)


def test_every_adapted_encoder_is_held_against_natural_images_its_start_and_its_run_without_the_leak(study):
    found = [(one.encoder, one.other, one.against) for one in adaptation.pairs(study)]
    assert found == [
        ("adapted", "natural", "released weights"),
        ("scratch", "natural", "released weights"),
        ("scratch", "random", "random weights"),
        ("twice", "natural", "released weights"),
        ("transductive", "natural", "released weights"),
        ("transductive", "adapted", "the same without the leak"),
    ]
    named = adaptation.arms(study)
    assert named["transductive"] == "adapted from released weights, transductive"
    assert (named["scratch"], named["other"]) == ("adapted from random weights", "released weights")
    artifacts.write_json(results.missing_file(study), {"natural/probing": "lost"})
    assert [one.other for one in adaptation.pairs(study)] == ["random", "adapted"]
    assert [one.encoder for one in adaptation.firsts(adaptation.pairs(study))] == [
        "scratch"
    ]  # a leak alone claims nothing


def test_a_transductive_arm_says_so_in_every_row_and_sentence(study):
    skills = {
        "natural": NATURAL,
        "adapted": (0.8, 0.8, 0.8),
        "transductive": (0.95, 0.95, 0.95),
        "twice": (0.8, 0.8, 0.8),
    }
    boot, held = boot_of(answers(skills)), adaptation.pairs(study)
    table, judged = adaptation.gains(boot, held, TASK, adaptation.PAPER), adaptation.verdicts(boot, held, TASK)
    rows = judged.set_index(["claim", "arm"])["cells"]
    assert rows[CLAIMS["better"], "adapted from released weights"] == 4  # two runs, two protocols; none of the leak
    assert rows[CLAIMS["better"], "adapted from released weights, transductive"] == 2
    lines = adaptation.sentences(table, judged)
    leaked = [line for line in lines if "transductive" in line]
    assert len(leaked) == 4 + 3
    assert all("No evidence: the corpus held test pictures." in line for line in leaked[4:])
    assert any("transductive is better" in line for line in leaked)
    assert set(table.query("encoder == 'transductive'")["arm"]) == {"adapted from released weights, transductive"}


def test_without_a_pair_the_tables_are_empty_and_the_sentence_says_so():
    boot = boot_of(answers({"natural": NATURAL}, groups=5), 20)
    table = adaptation.gains(boot, HELD, TASK, adaptation.PAPER)
    assert adaptation.class_gains(boot, HELD, TASK, adaptation.PAPER).empty
    assert table.empty
    assert "p_holm" in table
    lines = adaptation.sentences(table, adaptation.verdicts(boot, [], TASK))
    assert lines == ["No adapted encoder was run beside what it is held against."]


def test_the_job_and_the_section_of_the_report_are_there_where_a_study_has_adapted_encoders(study, tmp_path):
    rules = {row["rule"]: row for row in jobs.rows()}
    assert rules["adaptation"]["output"] == "tables/adapted.csv"
    assert [jobs._called_for(one, "adaptation") for one in (study, load_study("demo"))] == [True, False]
    (study.folder / "tables").mkdir(parents=True)
    assert "What adaptation is worth" in page.build(study).read_text()


def test_figures_of_one_view_have_room_and_differences_a_line_at_zero():
    predicted = answers({"resnet50-random-of-a-long-name": NATURAL, "adapted": (0.9, 0.9, 0.9)}, groups=10)
    scores = scoring.evaluate(predicted, TASK, ranked=False)
    boot = boot_of(predicted, 50)
    summary = scoring.overview(scores, TASK, statistics.intervals(boot, ["percentile"]))
    figure = figures.scores(summary, TASK.headline)
    figure.draw_without_rendering()  # a warning, were the panel squeezed to nothing by its legend
    held = [Pair("adapted", "a", "resnet50-random-of-a-long-name", "b")]
    gained = adaptation.gains(boot, held, TASK, adaptation.PAPER)
    low, high = figures.dot_figure(gained, "protocol", "difference", None).axes[0].get_ylim()
    assert low <= 0 < gained["low"].min() < high
    figures.plt.close("all")
