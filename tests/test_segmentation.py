"""The segmenter: what it reads of the encoder, what its mask says of the class, and that only the decoder learns."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from fpbench import cohorts, images, load_study, loading, make_splits, predictions, results
from fpbench.analysis import statistics
from fpbench.analysis.sweeps import masks
from fpbench.cohorts.source import COLUMNS, Source
from fpbench.encoders import load_encoder
from fpbench.errors import InputError
from fpbench.grid import jobs
from fpbench.grid.costs import bill
from fpbench.recipe import Augmentation, Recipe
from fpbench.reporting import figures
from fpbench.study import EncoderSpec
from fpbench.tasks import Task
from fpbench.training import augmentation, segmentation, tuning
from fpbench.training.bench import choices, open_bench
from fpbench.training.finetuning import Pictures, finetune
from fpbench.training.segmentation import runs
from fpbench.training.segmentation.decoder import NEEDED, Decoder, Segmenter, answers
from fpbench.training.segmentation.trainer import Loss, MaskedPart, SegmentationTrainer, foreground, target

SHORT = Recipe(epochs=2, batch=16)
CPU = torch.device("cpu")


def segmenter(name, recipe=SHORT, seed=0, micro=16, **more):
    encoder = load_encoder(name, "random", **more)
    return Segmenter(encoder, 1, recipe, EncoderSpec("e", "e", batch_size=micro), seed)


def drawn(rng, side=64, there=True):
    """A picture of noise, with a bright ellipse or none, and its mask: 2 in half of the ellipses, else 1."""
    y, x = np.mgrid[:side, :side] / side
    centre, axes = rng.uniform(0.35, 0.65, 2), rng.uniform(0.12, 0.25, 2)
    inside = there & (((y - centre[0]) / axes[0]) ** 2 + ((x - centre[1]) / axes[1]) ** 2 < 1)
    picture = np.clip(rng.normal(60, 20, (side, side)) + 70 * inside, 0, 255).astype(np.uint8)
    return picture, (inside * rng.integers(1, 3)).astype(np.uint8)


def test_dice_and_area_are_means_over_frames_and_resampled_by_subject():
    """Two models, two folds that test three subjects each; against a loop over the same draws of subjects."""
    rng, task = np.random.default_rng(0), Task("t", "usable", ("no", "yes"), train="home", positive="yes")
    rows = pd.DataFrame({"group": np.repeat([f"g{i}" for i in range(6)], 7), "fold": np.repeat([0, 1], 21)})
    rows = rows.assign(image_id=[f"i{row}" for row in range(42)], y_true=rng.integers(0, 2, 42))
    tables = []
    for encoder in "ab":
        dice = np.where(rows["y_true"] == 1, rng.random(42), np.nan)
        more = {"dice_cut": np.where(rows["y_true"] == 1, rng.random(42), np.nan), "area_error_cut": rng.random(42)}
        tables.append(rows.assign(encoder=encoder, dice=dice, area_error=rng.random(42), **more))
    frames = pd.concat(tables, ignore_index=True).assign(protocol="segmentation", seed=0, population="home")
    more = {
        "split": "test",
        "patient": frames["group"],
        "distinct": True,
        "n_patients": 3,
        "logit_no": 0.0,
        "logit_yes": 1.0,
    }
    predicted = frames.drop(columns=masks.COLUMNS.values()).assign(**more)
    (boot,) = masks.bootstraps(predicted, frames, task)
    assert boot.sample.models == (("a", "segmentation"), ("b", "segmentation"))
    for name, column in masks.COLUMNS.items():
        wanted = frames.groupby(["fold", "encoder"])[column].mean().unstack().to_numpy()
        assert np.allclose(boot.folds[name], wanted)
    rng = np.random.default_rng(0)
    for drawn, weights in zip(boot.draws[masks.DICE][:20], statistics.draw(boot.sample.stratum, 20, rng), strict=True):
        weight = frames["group"].map(dict(zip(boot.sample.groups, weights, strict=True)))
        there = frames.assign(w=weight).dropna()
        sums = there.assign(top=there["dice"] * there["w"]).groupby(["fold", "encoder"])[["top", "w"]].sum()
        ratio = (sums["top"] / sums["w"].where(sums["w"] > 0)).unstack().to_numpy().mean(0)
        assert np.allclose(drawn, ratio, equal_nan=True)
    with pytest.raises(
        InputError, match="expected each of 84 measured frames once among the test rows, found 83 pairs"
    ):
        masks.bootstraps(predicted.iloc[1:], frames, task)


def part(side=64, count=48, seed=0):
    """What a run learns from: every second picture holds an ellipse."""
    rng = np.random.default_rng(seed)
    pictures, truth = map(np.stack, zip(*(drawn(rng, side, row % 2 == 1) for row in range(count)), strict=True))
    labels, names = np.arange(count) % 2, np.array([f"image{row}" for row in range(count)])
    rows = np.arange(2 * count // 3), np.arange(2 * count // 3, count)
    own = {"masks": Pictures(truth, CPU), "foreground": (1, 2)}
    return MaskedPart(Pictures(pictures, CPU), labels, names, *rows, "AUPRC", 1, **own)


def run(tmp_path, recipe=SHORT, folder="run", name="usfm-mini", micro=16, key="k"):
    model = segmenter(name, recipe, micro=micro)
    own = part(model.encoder.geometry.size)
    history, best = finetune(model, own, recipe, 3e-3, tmp_path / folder, key, 0, "test", SegmentationTrainer)
    return model, history, best


@pytest.mark.parametrize(
    "name", ["fetalclip-mini", "usfm-mini", "dinov3-mini", "mofo-mini", "ultrasam-mini", "timm:deit_tiny_patch16_224"]
)
def test_every_pixel_has_an_answer_and_every_picture_two(name):
    model = segmenter(name)
    size, grid = model.encoder.geometry.size, -(-model.encoder.geometry.size // 16)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert [tuple(tap.shape[2:]) for tap in model.features(x)] == [(grid, grid)] * 4
    assert model.pixels(x).shape == (3, size, size)
    assert model(x).shape == (3, 2)
    micro = segmenter(name, micro=2)
    torch.testing.assert_close(micro.pixels(x), model.pixels(x), rtol=1e-4, atol=1e-5)
    model.pixels(x).sum().backward()
    assert all(tensor.grad is not None for tensor in model.decoder.parameters())  # no tap, no level is left out


@pytest.mark.parametrize(
    ("depth", "taps", "read"),
    [
        (24, [6, 8, 12, 24], [5, 7, 11, 23]),
        (24, [6, 12, 18, 24], [5, 11, 17, 23]),
        (12, [6, 8, 12, 24], [2, 3, 5, 11]),
        (2, [6, 8, 12, 24], [0, 0, 0, 1]),
    ],
)
def test_a_tap_is_what_its_block_gives_without_class_token(depth, taps, read):
    """timm's own way of reading blocks is the reference."""
    options = {"depth": depth, "embed_dim": 48, "num_heads": 4}
    model = segmenter("timm:vit_tiny_patch16_224", replace(SHORT, taps=taps), options=options)
    assert model.taps == [f"blocks.{block}" for block in read]
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.body.forward_intermediates(x, sorted(set(read)), norm=False, intermediates_only=True)
    found = dict(zip(read, model.features(x), strict=True))
    for block, tap in zip(sorted(set(read)), wanted, strict=True):
        torch.testing.assert_close(found[block], tap)


def test_patches_of_14_are_laid_on_a_grid_of_16():
    model = segmenter("timm:vit_small_patch14_dinov2.lvd142m", options={"img_size": 224, "depth": 2})
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tokens = model.body.forward_intermediates(x, [1], norm=False, intermediates_only=True)[0]
    assert tokens.shape[2:] == (16, 16)
    wanted = functional.interpolate(tokens, (14, 14), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.features(x)[-1], wanted)


def test_widths_are_the_papers_at_full_size_and_less_for_a_miniature():
    for channels, first in ((1024, 32), (192, 32), (48, 8)):
        decoder = Decoder([channels] * 4)
        wide = [first * 2**level for level in range(5)]
        assert decoder.deepest[3].out_channels == wide[4]
        assert [up.out_channels for up in decoder.ups] == wide[:4]
        assert [[rise[0].out_channels for rise in skip] for skip in list(decoder.skips)[1:]] == [
            wide[3:0:-1],
            wide[3:1:-1],
            wide[3:2:-1],
        ]
        assert (decoder.last.in_channels, decoder.last.out_channels) == (first, 1)
        grid = [torch.zeros(1, channels, 2, 2)] * 4
        assert decoder.eval()(grid, torch.zeros(1, 3, 32, 32)).shape == (1, 32, 32)


@pytest.mark.parametrize("name", ["resnet50-mini", "timm:densenet121"])
def test_a_convolutional_network_is_refused(name):
    with pytest.raises(
        InputError, match=r"segmentation: expected a transformer, whose blocks can be read, found none$"
    ):
        segmenter(name)


def test_the_rule_is_one_per_cent_of_the_pixels_above_a_half():
    """224 x 224 x .01 = 501.76 pixels: 501 are too few, 502 enough, however sure the others are."""
    for side, too_few in ((224, 501), (64, 40), (100, 99), (10, 0)):
        for positive in (0, 1):
            for others in (-20.0, -1e-3):
                pixels = torch.full((2, side * side), others)
                pixels[0, :too_few], pixels[1, : too_few + 1] = 0.01, 0.01
                logits = answers(pixels.view(2, side, side), positive).float()
                assert (logits.argmax(1) == positive).tolist() == [False, True], (side, positive, others)
                assert (logits[:, 1 - positive] == 0).all()
    share = answers(torch.full((1, 224, 224), 30.0), 1)[0, 1]
    assert float(share) == pytest.approx(math.log(NEEDED), abs=1e-3)  # the whole frame is 100 times what is needed


def test_the_score_ranks_by_area_and_the_mean_probability_decides_between_equals():
    pixels = torch.full((6, 64, 64), -6.0)
    for row, (count, others) in enumerate([(0, -30), (0, -6), (0, -0.01), (1, -30), (1, -1), (900, -30)]):
        pixels[row] = others
        pixels[row].view(-1)[:count] = 0.01
    score = answers(pixels, 1)[:, 1].float()
    assert (score.diff() > 0).all()
    assert score.isfinite().all()
    assert float(score[0]) == pytest.approx(math.log(0.5 / 41))  # the floor is half a pixel
    assert answers(torch.full((1, 8, 8), -1e4), 1).isfinite().all()


def test_the_loss_is_dice_and_cross_entropy():
    pixels = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]], [[0.0, 0.0], [0.0, 0.0]]])  # p: .5, but .75 at one place
    truth = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    entropy = (7 * math.log(2) - math.log(0.75)) / 8
    dice = 2 * (0.75 + 0.5) / (4.25 + 2)
    assert float(Loss()(pixels, truth)) == pytest.approx(entropy + 1 - dice)
    nothing = Loss()(pixels, torch.zeros_like(truth))
    assert float(nothing) == pytest.approx((7 * math.log(2) - math.log(0.25)) / 8)  # cross-entropy alone
    assert float(Loss()(torch.full((1, 4, 4), -40.0), torch.zeros(1, 4, 4))) == pytest.approx(0)


def test_picture_and_mask_are_moved_alike():
    """A picture that is its own mask stays so, but for the seam, wherever it is carried."""
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(np.stack([drawn(rng)[1] > 0 for _ in range(16)])).float()[:, None]
    numbers = augmentation.draw(Augmentation(), 16, 3)
    pictures, carried = (augmentation.moved(truth, numbers, mode) for mode in ("bilinear", "nearest"))
    assert set(carried.unique().tolist()) == {0.0, 1.0}
    assert ((pictures > 0.5) == (carried > 0.5)).float().mean() > 0.995
    assert ((truth > 0.5) != (carried > 0.5)).float().mean() > 0.03  # they were carried somewhere
    still = augmentation.toned(pictures, numbers, augmentation.speckle(64))
    assert torch.equal(augmentation.apply(truth, numbers, augmentation.speckle(64)), still)


@pytest.mark.parametrize(("label", "values"), [("usable", {1, 2}), ("optimal", {1})])
def test_foreground_follows_from_the_task(label, values):
    task = Task("t", label, ("yes", "no"), positive="yes")
    positive, found = target(task)
    assert (positive, set(found)) == (0, values)
    values_of = torch.tensor([0, 1, 2], dtype=torch.uint8)
    assert foreground(values_of, found).tolist() == [float(value in values) for value in (0, 1, 2)]
    with pytest.raises(InputError, match="expected a task with a positive class in the column usable or optimal"):
        target(Task("planes", "plane", ("a", "b"), positive="a"))


@pytest.mark.parametrize("name", ["usfm-mini", "fetalclip-mini"])
def test_the_encoder_stays_as_it_was_and_all_of_the_decoder_moves(name, tmp_path):
    before, fresh = load_encoder(name, "random").module.state_dict(), segmenter(name).changing()
    model, history, _ = run(tmp_path, name=name)
    after = model.body.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert [key for key, tensor in model.changing().items() if torch.equal(tensor, fresh[key])] == []
    assert set(load_file(tmp_path / "run" / "best.safetensors")) == set(fresh)  # nothing of the encoder
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    model.train()
    assert not any(module.training for module in model.body.modules())


class Killed(Exception):
    """Stands for a kill at the end of a step."""


def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    recipe, original, calls = replace(SHORT, epochs=3), SegmentationTrainer.step, []
    whole, wanted, best = run(tmp_path, recipe, "whole")

    def step(*arguments):
        calls.append(1)
        if len(calls) in (4, 7):
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(SegmentationTrainer, "step", step)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path, recipe, "broken")
    assert (tmp_path / "broken" / "last.pt").is_file()
    model, history, found = run(tmp_path, recipe, "broken")
    assert found == best
    assert history["loss"].equals(wanted["loss"])
    one, two = (model.state_dict() for model in (whole, model))
    assert all(torch.equal(one[key], two[key]) for key in one)
    files = [tmp_path / name / "best.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_loss_curve_does_not_depend_on_how_many_pictures_the_encoder_sees_at_once(tmp_path):
    curves = [run(tmp_path, folder=str(micro), micro=micro)[1]["loss"] for micro in (3, 16)]
    assert np.allclose(*curves, rtol=1e-4)


def read(path, name):
    """Label file of the made-up archive, as a cohort's reader."""
    frame = pd.read_csv(path, dtype=str)
    rows = dict.fromkeys(COLUMNS, "") | {
        "image_id": name + "/" + frame["frame"],
        "path": "images/" + frame["frame"] + ".png",
        "patient": name + "/" + frame["subject"],
        "usable": frame["usable"],
    }
    return pd.DataFrame(rows, index=frame.index)


STUDY = """
name: sweeps
title: Ellipses
split: crossval
folds: 3
threads: 1
probes: [ridge]
segmentation: [vit]
task: {{name: found, label: usable, classes: [no plane, plane], train: ellipses, headline: AUPRC, positive: plane}}
recipe: {{epochs: {epochs}, patience: {epochs}, batch: 16, segmentation_rates: [0.005]{more}}}
cohorts: [{{name: ellipses, root: "{root}"}}]
encoders: [{{name: vit, model: usfm-mini}}]
"""


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A function that opens the bench of a study on ellipses: 12 subjects, 10 frames each, every second with an ellipse."""
    root, rng = tmp_path / "ellipses", np.random.default_rng(0)
    lines = ["frame,subject,usable"]
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for row in range(120):
        name, there = f"{row // 10:02d}_{row % 10}", row % 2 == 1
        for kind, array in zip(("images", "masks"), drawn(rng, 64, there), strict=True):
            Image.fromarray(array).save(root / kind / f"{name}.png")
        lines.append(f"{name},s{row // 10},{'plane' if there else 'no plane'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    source = Source("ellipses", "Ellipses", "ellipses", "labels.csv", read, {}, "machine", "none", "none")
    source = replace(source, further=("usable",), mask_of=lambda path: path.parents[1] / "masks" / path.name)

    def bench(epochs=2, masked=True, more=""):
        one = source if masked else replace(source, mask_of=None)
        monkeypatch.setitem(cohorts.SOURCES, "ellipses", one)
        file = tmp_path / "sweeps.yaml"
        file.write_text(STUDY.format(root=root, epochs=epochs, more=more))
        study = load_study(file).begin()
        home, external = loading.load_cohorts(study)
        splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
        return open_bench(study, "vit", home, external, splits, embed=False)

    return bench


def test_a_cohort_without_masks_is_refused(opened):
    with pytest.raises(InputError, match="ellipses has no masks: expected a cohort that has"):
        tuning.run_finetuning(opened(masked=False), "segmentation")


def test_a_study_asks_for_it_and_finds_predictions_masks_and_examples(opened):
    bench = opened(epochs=10)
    files = tuning.run_finetuning(bench, "segmentation", folds=[1])
    assert files == [results.path(bench.study, "vit", "segmentation", 1)]
    found = predictions.read(files, bench.study.the_task)
    assert set(found["protocol"]) == {"segmentation"}
    assert choices(files)["strength"].tolist() == [0.005]
    tables = runs.measure(bench, files)
    frames = pd.read_parquet(tables[0])
    assert tuple(frames.columns) == runs.COLUMNS
    test = found[found["split"] == "test"]
    assert frames["image_id"].tolist() == test["image_id"].tolist()
    truth = bench.home.masks(replace(bench.model.geometry, interpolation="nearest")) > 0
    rows = pd.Index(bench.home.frame["image_id"]).get_indexer(frames["image_id"])
    assert np.allclose(frames["true"], truth[rows].mean((1, 2)))
    assert (frames["dice"].isna() == ~truth[rows].any((1, 2))).all()
    needed = -(-(64 * 64) // NEEDED)
    answer = test[bench.study.the_task.columns()].to_numpy().argmax(1)
    assert np.array_equal(answer == 1, (frames["predicted"] * 64 * 64).round() >= needed)  # one mask, two files
    assert frames["dice"].mean() > 0.7
    one = frames.dropna().iloc[0]
    assert one["dice"] == pytest.approx(2 * one["common"] / (one["true"] + one["predicted"]))
    assert frames["cut"].isin(runs.CUTS).all()
    assert frames["cut"].nunique() == 1
    model = tuning.tuned(bench, "segmentation", files[0]).eval()
    of_validation = pd.Index(bench.home.frame["image_id"]).get_indexer(found.query("split == 'val'")["image_id"])
    means = {}
    for name, part in (("validation", of_validation), ("test", rows)):
        with torch.inference_mode():
            pictures = torch.from_numpy(bench.home.array(bench.model.geometry)[part])
            p, t = model.pixels(model.encoder.normalise(pictures)).sigmoid().numpy(), truth[part]
        each = [
            2 * (t & (p > cut)).sum((1, 2)) / np.maximum(t.sum((1, 2)) + (p > cut).sum((1, 2)), 1) for cut in runs.CUTS
        ]
        means[name] = [float(one[t.any((1, 2))].mean()) for one in each]
    best = int(np.argmax(means["validation"]))
    assert runs.CUTS[best] == frames["cut"].iloc[0]
    assert frames["dice_cut"].mean() == pytest.approx(means["test"][best], abs=1e-4)
    assert frames["dice"].mean() == pytest.approx(means["test"][0], abs=1e-4)
    boots = masks.bootstraps(found, masks.read(files), bench.task)
    row = masks.table(boots, frames).iloc[0]
    assert row[masks.DICE].startswith(f"{frames['dice'].mean():.3f} [")
    assert row[masks.AREA].startswith(f"{frames['area_error'].mean():.3f} [")
    assert row[masks.DICE + masks.CUT].startswith(f"{frames['dice_cut'].mean():.3f} [")
    assert row[["frames", "with something to find", "groups"]].tolist() == [40, 20, 4]
    shown = runs.examples(bench, files[0], 4)
    figure = figures.outlines(shown)
    assert [ax.get_title() for ax in figure.axes] == [f"Dice {example.dice:.2f}" for example in shown]
    assert [example.dice for example in shown] == sorted(example.dice for example in shown)
    assert shown[-1].dice == frames["dice"].max()
    overlap = 2 * (shown[-1].truth & shown[-1].found).sum() / (shown[-1].truth.sum() + shown[-1].found.sum())
    assert overlap == pytest.approx(shown[-1].dice)
    written = [path.stat().st_mtime_ns for path in (*files, *tables)]
    again = tuning.run_finetuning(bench, "segmentation", folds=[1])
    assert [path.stat().st_mtime_ns for path in (*again, *runs.measure(bench, again))] == written


def test_other_taps_are_another_run_and_costs_are_told(opened):
    one, other = opened(), opened(more=", taps: [6, 12, 18, 24]")
    assert tuning.tuning_key(one, "segmentation") != tuning.tuning_key(other, "segmentation")
    costs = tuning.costs(one.study, one.home, one.splits, [("vit", "segmentation")], disk=True)
    assert costs["runs"].tolist() == [3]
    assert (costs[["PFLOP", "hours", "weights GB"]] > 0).all(axis=None)
    assert replace(one.study, seeds=[0, 4]).seeds_of("segmentation") == [0, 4]
    plan, job = jobs.jobs(one.study), "13_segmentation.vit.segmentation"
    assert job in plan["06_benchmark"].needs
    assert plan[job].parts["step segmentation"] == segmentation.VERSION
    with pytest.raises(InputError, match="taps: expected four blocks of 24, the first ones first"):
        Recipe(taps=[24, 6, 8, 12])


def test_the_bill_builds_each_network_once_and_opens_no_picture(opened, monkeypatch):
    study, built = opened().study, []
    due = [job for job in jobs.jobs(study, {}).values() if job.encoder]
    blank = tuning.blank
    monkeypatch.setattr(tuning, "blank", lambda study, name: built.append(name) or blank(study, name))
    monkeypatch.setattr(images, "scan", None)
    monkeypatch.setattr(images, "cached_images", None)
    told = bill(study, due)
    assert built == ["vit"]
    assert "timed here with one picture at a time:" in told
    rows = {words[0]: words[1:] for line in told.splitlines() if (words := line.split()) and words[0] in ("vit", "together")}  # fmt: skip
    assert rows["vit"] == rows["together"]
    assert rows["vit"][0] == "2"
    assert all(float(number) > 0 for number in rows["vit"])
    counted, _ = loading.load_cohorts(study, look=False)
    assert counted.frame["image_id"].nunique() == len(counted) == 120
    assert (counted.frame["group"] == counted.frame["patient"]).all()


FULL = """
import sys
from pathlib import Path
import numpy as np
from fpbench.recipe import Recipe
from fpbench.training.finetuning import finetune
from test_segmentation import SegmentationTrainer, part, segmenter
recipe = Recipe(epochs=1, batch=2)
model = segmenter("fetalclip", recipe, micro=2)
assert [name.rpartition(".")[2] for name in model.taps] == ["5", "7", "11", "23"]
history, _ = finetune(model, part(224, 9), recipe, 3e-4, Path(sys.argv[1]), "k", 0, "test", SegmentationTrainer)
assert np.isfinite(history["loss"]).all()
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_the_full_fetalclip_makes_three_steps_on_a_cpu(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 6 * 2**20  # KiB
