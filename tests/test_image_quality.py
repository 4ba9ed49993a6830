"""Image quality on blind sweeps beside its paper: precision against recall, claims, public numbers, sentences, figures; the study on phantoms."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from sklearn import metrics as sk
from test_sweeps import TASK, drawn

from fpbench.analysis import claims, statistics, sweeps
from fpbench.analysis.sweeps import masks, quality
from fpbench.reporting import sweeps as drawing

MODELS = (("fetalclip", "lora"), ("fetalclip", "segmentation"), ("densenet121", "full"), ("swin", "lora"))


@pytest.fixture(scope="module")
def rows():
    return drawn(models=MODELS)


@pytest.fixture(scope="module")
def boot(rows):
    (found,) = sweeps.bootstraps(rows, TASK, resamples=200)
    return found


def test_precision_against_recall_is_that_of_scikit_learn_fold_by_fold(rows):
    (sample,) = (one for one in sweeps.measured(rows, TASK))
    table = sweeps.precision_recall(sample, points=21, resamples=40)
    assert len(table) == 21 * len(MODELS)
    assert (table["low"] <= table["high"]).all()
    for i, model in enumerate(sample.models):
        expected = []
        for part in sample.parts:
            precision, recall, _ = sk.precision_recall_curve(part.y == 1, part.probability[i][:, 1])
            precision, recall = precision[-2::-1], recall[-2::-1]  # from the highest threshold down
            there = recall > 0
            at = np.searchsorted(recall[there], np.linspace(0, 1, 21) - 1e-9)
            expected.append(precision[there][at])
        mine = table[(table["encoder"] == model[0]) & (table["protocol"] == model[1])]
        assert np.allclose(mine["value"], np.mean(expected, axis=0), atol=1e-12)


def test_a_claim_is_supported_where_the_model_wins_in_every_resample_and_not_tested_where_it_is_absent(boot):
    judged = quality.verdicts(boot, TASK).set_index(["claim", "metric"])
    assert len(judged) == 4
    assert set(judged["unit"]) == {"frame"}
    assert judged["probability"].between(0, 1).all()
    first, second = dict.fromkeys(name for name, _ in judged.index)
    own = boot.draws["AUPRC"][:, [boot.sample.models.index(("fetalclip", kind)) for kind in ("lora", "segmentation")]]
    assert judged.loc[(second, "AUPRC"), "probability"] == (own[:, 1] > own[:, 0] + statistics.SAME).mean()
    assert judged.loc[(first, "AUPRC"), "models"] == "fetalclip, LoRA; densenet121, full fine-tuning; swin, LoRA"
    place = boot.sample.models.index(("fetalclip", "lora"))
    for name in boot.draws:
        boot.draws[name][:, place] += 2
    try:
        won = quality.verdicts(boot, TASK).set_index(["claim", "metric"])
        assert (won.loc[first, "outcome"] == "supported").all()
        assert (won.loc[second, "outcome"] == "not supported").all()
    finally:
        for name in boot.draws:
            boot.draws[name][:, place] -= 2
    (alone,) = sweeps.bootstraps(drawn(models=(("usfm", "lora"), ("swin", "lora"))), TASK, resamples=20)
    assert (quality.verdicts(alone, TASK)["outcome"] == "not tested").all()


def test_public_numbers_stand_beside_the_range_of_both_thresholds_and_of_both_ways_of_lora(boot):
    table = sweeps.intervals([boot], TASK, methods=["percentile"])
    public = quality.public(table, TASK)
    assert len(public) == 29
    assert set(public["verdict"]) == {"not run here", "inside the range", "outside the range"}
    cell = public.set_index(["model", "metric"]).loc[("FetalCLIP-CLS", "F1")]
    both = table[
        (table["encoder"] == "fetalclip")
        & (table["protocol"] == "lora")
        & table["metric"].str.startswith("F1 of usable, ")
    ]
    assert (cell["low"], cell["high"]) == (both["value"].min(), both["value"].max())
    assert cell["paper"] == 0.757
    assert public.set_index("model").loc["VGG", "verdict"].eq("not run here").all()
    wider = table.assign(protocol=table["protocol"].replace({"segmentation": "lora_mlp"}))
    wide = quality.public(wider, TASK).set_index(["model", "metric"]).loc[("FetalCLIP-CLS", "F1")]
    assert wide["low"] <= cell["low"]
    assert wide["high"] >= cell["high"]
    assert wide["high"] - wide["low"] > cell["high"] - cell["low"]


def test_the_coverage_of_the_interval_is_told_where_it_is_outside_the_band():
    known = pd.read_csv(quality.COVERAGE).set_index(["metric", "method"])["coverage"]
    assert not quality.WELL[0] <= known["AUPRC", "percentile"] <= quality.WELL[1]
    assert f"{known['AUPRC', 'percentile']:.1%}" in quality.coverage()


def test_sentences_say_of_the_best_model_what_was_measured(rows, boot):
    table = sweeps.intervals([boot], TASK, methods=["percentile"])
    pairs = sweeps.differences([boot], TASK, across=True)
    conditions = pd.DataFrame(
        [("a", "frames", 0.6, 0.5), ("b", "frames", 0.4, 0.3), ("position", "position", 0.35, 0.3)],
        columns=["encoder", "condition", "value", "low"],
    )
    lines = quality.sentences(table, pairs, quality.verdicts(boot, TASK), conditions, sweeps.counts(rows, TASK))
    best = table[table["metric"] == "AUPRC"].sort_values("value").iloc[-1]
    assert lines[0].startswith(f"Frames: {best['encoder']}, ")
    assert f"AUPRC {best['value']:.3f} [{best['low']:.3f}" in lines[0]
    assert "position alone scores AUPRC 0.350; encoders whose linear probe is not shown above that: b." in lines[3]
    mine = (best["encoder"], best["protocol"])
    won = 0
    for row in pairs[(pairs["metric"] == "AUPRC") & (pairs["p_holm"] <= claims.ALPHA)].itertuples():
        one, two = (row.encoder, row.protocol), (row.other, row.other_protocol)
        won += (one if row.value > 0 else two) == mine
    assert f"better than {won} of 3 others" in lines[0]
    assert len(lines) == 8


def test_the_table_names_the_unit_of_every_number(boot):
    table = quality.table(sweeps.intervals([boot], TASK, methods=["percentile"]), TASK)
    assert all(name.endswith(("(frame)", "(sweep)", "(case)")) for name in table.columns[2:])
    values = table["AUPRC (frame)"].str.split().str[0].astype(float)
    assert (values.diff().dropna() <= 0).all()
    assert len(table) == len(MODELS)


def test_figures_show_a_sweep_with_its_truth_the_mistakes_and_the_curves(rows, boot):
    frames = sweeps.scored(rows, TASK)
    shown = sweeps.examples(frames, "fetalclip", "lora")
    assert shown
    assert len(shown) <= 2
    for case, number in shown:
        mine = frames[(frames["case"] == case) & (frames["sweep"] == number) & (frames["split"] == "test")]
        assert (mine["quality"] == "optimal").any()
        count = len(drawing.stops(mine["position"].nunique()))
        figure = drawing.strip(mine, [np.zeros((9, 12), np.uint8)] * count, "a sweep")
        assert len(figure.axes[2].lines) == 2 * len(MODELS)
    worst = sweeps.worst(frames, "fetalclip", "lora", 4)
    assert worst.groupby("mistake").size().to_dict() == {"false": 4, "missed": 4}
    high, low = (worst[worst["mistake"] == kind]["score"] for kind in ("false", "missed"))
    assert (high.diff().dropna() <= 0).all()
    assert (low.diff().dropna() >= 0).all()
    assert high.iloc[0] > low.iloc[0]
    drawing.mistakes(worst, [np.zeros((9, 12), np.uint8)] * 8, "mistakes")
    curves = sweeps.precision_recall(boot.sample, points=11, resamples=10)
    assert [ax.get_title() for ax in drawing.precision_recall(curves, 0.1).axes] == [
        "full fine-tuning",
        "LoRA",
        "segmentation, mask area",
    ]
    plt.close("all")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The study of the third system on a phantom of 60 stacks, run once as a user would, but for what other tests run: the folder of its results."""
    folder = tmp_path_factory.mktemp("demo-quality")
    environment = {**os.environ, "FPBENCH_RESULTS": str(folder / "results"), "FPBENCH_DATA": str(folder / "data")}
    for words in (["run", "demo-quality", "--jobs", "2", "--", "12_image_quality"], ["report", "demo-quality"]):
        command = [sys.executable, "-m", "fpbench.cli", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results" / "demo-quality"


@pytest.mark.slow
def test_lora_beats_the_probe_of_the_same_network_on_phantom_sweeps(demo):
    pairs = pd.read_csv(demo / "tables" / "sweep_pairs.csv").query("metric == 'AUPRC' and encoder == other")
    gains = {
        row.encoder: (1 if row.protocol == "lora" else -1) * row.value
        for row in pairs.itertuples()
        if {row.protocol, row.other_protocol} == {"lora", "logistic"}
    }
    assert gains.keys() == {"fetalclip-mini", "dinov3-mini"}
    assert min(gains.values()) > 0, gains


@pytest.mark.slow
def test_the_segmenter_finds_the_abdomen_of_phantom_sweeps(demo):
    (row,) = pd.read_csv(demo / "tables" / "13_masks_fetalclip-mini.csv").to_dict("records")
    found = {name: float(row[name].split()[0]) for name in masks.NAMES if name.startswith(masks.DICE)}
    assert found[masks.DICE] > 0.65  # 0.74 in six epochs, of which validation chooses by AUPRC
    assert found[masks.DICE + masks.CUT] > max(0.75, found[masks.DICE])  # 0.80


@pytest.mark.slow
def test_models_that_do_not_see_the_frame_stand_beside_those_that_do(demo):
    blind = pd.read_csv(demo / "tables" / "without_frame.csv")
    assert set(blind["condition"]) == {"frames", "position", "brightness", "other frames of the sweep"}
    assert blind.groupby("condition")["encoder"].nunique()["other frames of the sweep"] == 4
    lines = json.loads((demo / "findings" / "12_image_quality.json").read_text())["lines"]
    assert sum(line.startswith("Without the frame: ") for line in lines) == 1
    page = (demo / "report.html").read_text()
    assert "Which frames of a blind sweep are usable?" in page
    assert quality.coverage() in page  # beside the interval
    assert "Dice of frames with something to find" in page
    assert "was not made in this run" not in page.partition('id="quality"')[2].partition("</section>")[0]
