"""Pretraining: losses against independent references, views and masks, what may enter a corpus, resume to the bit, collapse."""

import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import Fork, write_spain
from PIL import Image

from fpbench import cohorts, load_study, loading, predictions, results
from fpbench.encoders import facts, load_encoder
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts
from fpbench.recipe import Augmentation, CorpusSpec, Objective, Pretraining, Views
from fpbench.splits import make_splits
from fpbench.training import probing
from fpbench.training.bench import open_bench
from fpbench.training.loop import Diverged, Pictures
from fpbench.training.pretraining import corpus as corpora
from fpbench.training.pretraining import losses, masks, monitor, runs, trainer, views
from fpbench.training.pretraining.monitor import Monitor
from fpbench.training.pretraining.network import Pair, any_size, shared
from fpbench.training.pretraining.trainer import Part, Pretrainer

SOURCE = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, generator=SOURCE)


# ---- losses

DINO, IBOT, KOLEO = "DINOLoss", "IBOTPatchLoss", "KoLeoLoss"


def lightly(name, **options):
    return getattr(pytest.importorskip("lightly.loss"), name)(**options)


def test_dino_is_that_of_lightly():
    student, teacher, centre = rand(8, 5, 32), rand(2, 5, 32), rand(32)
    theirs = lightly(DINO, output_dim=32, teacher_temp=0.05, student_temp=0.1)
    theirs.center.copy_(centre.view(1, 1, -1))
    ours = losses.dino(student, losses.centred(teacher, centre, 0.05), 0.1)
    torch.testing.assert_close(ours, theirs(list(teacher), list(student)), rtol=1e-6, atol=1e-6)


def test_ibot_is_that_of_lightly():
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[0, :2], mask[2, 1, 1:] = True, True  # 8 and 3 patches; the crop between has none
    count = int(mask.sum())
    student, teacher, centre = rand(count, 32), rand(count, 32), rand(32)
    theirs = lightly(IBOT, output_dim=32, teacher_temp=0.05, student_temp=0.1)
    theirs.center.center.copy_(centre.view(1, -1))
    ours = losses.ibot(student, losses.centred(teacher, centre, 0.05), mask.flatten(1), 0.1)
    torch.testing.assert_close(ours, theirs(teacher, student, mask), rtol=1e-6, atol=1e-6)


def test_koleo_is_that_of_lightly():
    features = rand(16, 24)
    torch.testing.assert_close(losses.koleo(features), lightly(KOLEO)(features), rtol=1e-6, atol=1e-6)
    copies = torch.cat([features, features[:1]])
    assert losses.koleo(copies).isfinite()


def test_losses_by_hand():
    told = torch.tensor([[[0.0, 0.0]], [[math.log(3.0), 0.0]]])  # two views of one picture: 1/2, 1/2 and 3/4, 1/4
    targets = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    first = math.log(4 / 3)  # the teacher's first view, of the student's second
    second = math.log(2)
    assert losses.dino(told, targets, 1.0).item() == pytest.approx((first + second) / 2, abs=1e-6)
    mask = torch.tensor([[True, True], [False, False]])
    patches, wanted = told[:, 0], torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert losses.ibot(patches, wanted, mask, 1.0).item() == pytest.approx((math.log(2) + first) / 2 / 2, abs=1e-6)
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert losses.koleo(square).item() == pytest.approx(-math.log(math.sqrt(2)), abs=1e-6)
    assert losses.centred(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 2.0]), 0.1).tolist() == [[0.5, 0.5]]
    even = losses.sinkhorn(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), 1.0)
    assert even.flatten().tolist() == pytest.approx([0.5] * 4)


def test_sinkhorn_is_the_fixed_point_and_does_not_overflow():
    logits = rand(24, 8)
    ours = losses.sinkhorn(logits, 0.5, rounds=200)
    Q = np.exp(logits.double().numpy() / 0.5)
    for _ in range(5000):  # rows and columns in turn, in float64
        Q /= Q.sum(0, keepdims=True) * Q.shape[1]
        Q /= Q.sum(1, keepdims=True) * Q.shape[0]
    np.testing.assert_allclose(ours.numpy(), Q * len(Q), atol=1e-6)
    np.testing.assert_allclose(ours.mean(0).numpy(), 1 / 8, atol=1e-6)
    big = losses.sinkhorn(logits * 1000, 0.04)
    assert big.isfinite().all()
    torch.testing.assert_close(losses.sinkhorn(logits + 1000, 0.5), losses.sinkhorn(logits, 0.5), rtol=1e-3, atol=1e-4)


# ---- masks


def test_a_mask_covers_its_share_of_half_of_the_crops():
    drawn = masks.draw(40, (14, 14), 0.5, [0.1, 0.5], np.random.default_rng(0))
    counts = np.sort(drawn.sum(1))
    assert counts[:20].tolist() == [0] * 20
    assert counts[20:].tolist() == [round(196 * share) for share in np.linspace(0.1, 0.5, 20)]
    assert (drawn == masks.draw(40, (14, 14), 0.5, [0.1, 0.5], np.random.default_rng(0))).all()
    tiny = masks.draw(4, (2, 2), 1.0, [0.5, 0.5], np.random.default_rng(0))
    assert tiny.sum(1).tolist() == [2] * 4


VITS = {
    "vit_tiny_patch16_224": {"img_size": 64},
    "vit_small_patch14_dinov2": {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "vit_small_patch16_dinov3": {"img_size": 64},
}


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("larger", [False, True])
def test_the_hook_hides_the_masked_patches_and_no_others(name, larger):
    small = {"embed_dim": 48, "depth": 1, "num_heads": 4, "num_classes": 0, **VITS[name]}
    body = any_size(timm.create_model(name, **small)).eval()
    side = VITS[name]["img_size"] * (2 if larger else 1)
    x, hook = torch.rand(2, 3, side, side, generator=SOURCE), masks.Masking(body)
    seen = []
    body.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(1, -2)))
    with torch.no_grad():
        plain = body(x)
        hook.size(hook.dim)
        hook.token.data.fill_(7.0)
        hook.mask = torch.from_numpy(masks.draw(2, hook.grid, 1.0, [0.3, 0.3], np.random.default_rng(0)))
        hidden = body(x)
        hook.mask, mask = None, hook.mask
        again = body(x)
    assert torch.equal(plain, again)
    assert not torch.equal(plain, hidden)
    assert (seen[1][mask] == 7).all()
    assert torch.equal(seen[1][~mask], seen[0][~mask])


# ---- views


def test_views_are_drawn_beforehand_and_do_not_depend_on_the_batch():
    settings = Views(cache=64, size=32, local_size=16, locals=3)
    pictures = torch.randint(0, 256, (6, 64, 64), generator=SOURCE, dtype=torch.uint8)
    numbers, maker = views.draw(settings, 6, 5), views.Maker(settings, torch.device("cpu"))
    wide, local = maker(pictures, numbers)
    assert wide.shape == (12, 1, 32, 32)
    assert local.shape == (18, 1, 16, 16)
    assert min(wide.min(), local.min()) >= 0
    assert max(wide.max(), local.max()) <= 1
    part = views.Numbers(numbers.boxes[2:4], numbers.changes[2:4], numbers.blurs[2:4])
    torch.testing.assert_close(maker(pictures[2:4], part)[0], wide.view(2, 6, 1, 32, 32)[:, 2:4].flatten(0, 1))
    other = views.draw(settings, 6, 6)
    assert not torch.equal(other.boxes, numbers.boxes)
    area = numbers.boxes[..., :2].prod(-1)
    assert area[:, 0].min() > 0.25
    assert area[:, 2:].max() < 0.36


def test_a_whole_view_is_the_picture_and_a_crop_lies_where_its_box_is():
    quiet = Augmentation(flip=0, rotate=0, shift=0, scale=0, gain=0, contrast=0, gamma=0, speckle=0)
    maker = views.Maker(Views(cache=64, size=32, local_size=16, change=quiet, blur=0), torch.device("cpu"))
    picture = torch.zeros(1, 64, 64, dtype=torch.uint8)
    picture[0, :32, 32:] = 200  # above, right
    whole = maker.whole(picture)[0, 0]
    assert whole[:15, 17:].min() > 0.78
    assert whole[17:].max() == 0
    boxes = torch.tensor([[0.25, 0.25, 0.5, -0.5], [0.25, 0.25, -0.5, -0.5]])
    found = views.cropped(picture[:, None].float().expand(2, 1, 64, 64) / 255, boxes, torch.zeros(2, 2), 16)
    assert found[0].min() > 0.78
    assert found[1].max() == 0
    mirrored = views.cropped(
        picture[:, None].float() / 255, torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[1.0, 0.0]]), 32
    )
    torch.testing.assert_close(mirrored[0, 0], whole.flip(-1))


def test_a_black_local_crop_is_drawn_again():
    settings = Views(cache=80, size=32, local_size=16, locals=4)
    pictures = torch.zeros(8, 80, 80, dtype=torch.uint8)
    pictures[:, :, 40:] = 120  # black to the left
    numbers, maker = views.draw(settings, 8, 0), views.Maker(settings, torch.device("cpu"))
    x = pictures[:, None].float() / 255
    black = maker.blackness(x, numbers.boxes)
    exact = []
    for half_w, half_h, cx, cy in numbers.boxes[0, 2].tolist():
        left, right = cx - half_w, cx + half_w
        exact.append((min(right, 0) - min(left, 0)) / (right - left))
        assert abs(cy) + half_h <= 1 + 1e-6
    assert black[0, 2].tolist() == pytest.approx(exact, abs=1e-5)
    first, chosen = black[..., 0], black.gather(2, maker.brightest(x, numbers.boxes)[..., None])[..., 0]
    assert (first[:, 2:] > 0.5).any()
    good = (black[:, 2:] <= 0.5).any(2)
    assert (chosen[:, 2:][good] <= 0.5).all()
    assert torch.equal(chosen[:, :2], first[:, :2]), "a global crop is taken as it is"


# ---- student and teacher


def objective(**changes):
    small = {"batch": 16, "hidden": 32, "bottleneck": 16, "prototypes": 32, "drop_path": 0.1}
    return Objective(**{**small, **changes})


def plan(epochs=2, seed=0, **changes):
    shown = Views(cache=64, size=64, local_size=32, locals=2)
    return Pretraining("start", [CorpusSpec(name="spain")], epochs, seed, views=shown, objective=objective(**changes))


def part(count=60, seed=0, watched=True):
    """Pictures with a bar whose height says the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pictures = rng.integers(0, 80, (count, 64, 64)).astype(np.uint8)
    for row, label in enumerate(labels):
        pictures[row, 10 + 30 * label : 30 + 30 * label, 5:-5] += 120
    train, queries = np.arange(count - 8), np.arange(count - 8, count)
    seen = Monitor(train, labels[train], queries, labels[queries], ("up", "down")) if watched else None
    return Part(Pictures(pictures, torch.device("cpu")), np.arange(count).astype(str), train, seen)


def pretrainer(name, folder, seed=0, key="k", **changes):
    ibot = {} if name in ("dinov3", "usfm", "ultrasam") else {"ibot": 0.0}
    made = plan(seed=seed, **{**ibot, **changes})
    pair = Pair(load_encoder(f"{name}-mini", "random"), 32, made.objective, seed)
    return Pretrainer(pair, part(), made, folder, key, "test")


def test_the_teacher_shares_no_tensor_with_the_student_and_follows_it(tmp_path):
    run = pretrainer("dinov3", tmp_path)
    pair = run.model
    assert shared(pair.student, pair.teacher) == []
    assert shared(pair.student, pair.encoder.module) == []
    assert shared(pair.student, pair.student) != [], "the test sees what is shared"
    before = [tensor.clone() for tensor in pair.teacher.parameters()]
    for new in pair.student.parameters():
        new.data.add_(1.0)
    pair.follow(0.9)
    for old, now in zip(before, pair.teacher.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.1, rtol=1e-4, atol=1e-5)
    assert not any(tensor.requires_grad for tensor in pair.teacher.parameters())


def test_the_dino_term_starts_near_ln_k(tmp_path):
    """With the defaults of head and temperatures."""
    encoder = load_encoder("dinov3-mini", "random")
    made = replace(plan(), objective=Objective(batch=16))
    pair = Pair(encoder, made.objective.prototypes_for(7000), made.objective, 0)
    run = Pretrainer(pair, part(), made, tmp_path, "k", "test")
    rows = np.arange(16)
    pair.train()
    _, dino, ibot, _ = run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows)).tolist()
    assert dino == pytest.approx(math.log(1024), rel=0.05)
    assert ibot == pytest.approx(math.log(1024) / 2, rel=0.05), "half of the global crops have masked patches"


@pytest.mark.parametrize("name", ["dinov3", "usfm", "fetalclip", "mofo", "ultrasam", "resnet50", "efficientnetv2_s"])
def test_a_step_moves_every_encoder_of_the_catalogue(name, tmp_path):
    run = pretrainer(name, tmp_path, warmup=0.0, frozen=0.0)
    before = {key: tensor.clone() for key, tensor in run.model.student.named_parameters()}
    rows = np.arange(16)
    run.model.train()
    for run.state.step in range(2):  # a residual branch that begins at 0 moves in the second
        assert run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows)).isfinite().all()
    still = [key for key, value in run.model.student.named_parameters() if torch.equal(value, before[key])]
    assert still == []


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_a_step_with_ibot_moves_models_of_timm(name, tmp_path):
    side = 56 if "patch14" in name else 64
    options = {"depth": 2, "embed_dim": 48, "num_heads": 4, **({} if "dinov3" in name else {"img_size": side})}
    encoder = load_encoder(f"timm:{name}", "random", pooling="token", options=options, geometry={"size": side})
    made = plan(warmup=0.0, frozen=0.0)
    made = replace(made, views=replace(made.views, size=side, local_size=side // 2))
    run = Pretrainer(Pair(encoder, 32, made.objective, 0), part(), made, tmp_path, "k", "test")
    before = {key: tensor.clone() for key, tensor in run.model.student.named_parameters()}
    rows = np.arange(16)
    run.model.train()
    for run.state.step in range(2):
        terms = run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows))
        assert terms.isfinite().all()
        assert terms[2] > 0, "patches were hidden, and asked for"
    assert [key for key, value in run.model.student.named_parameters() if torch.equal(value, before[key])] == []


def test_batchnorm_of_a_head_is_live_where_that_of_the_network_is_frozen(tmp_path):
    run = pretrainer("resnet50", tmp_path, head_batchnorm=True, batchnorm="frozen", warmup=0.0)
    pair = run.model
    assert shared(pair.student, pair.teacher) == []
    before = {name: tensor.clone() for name, tensor in pair.named_buffers() if name.endswith("running_mean")}
    rows = np.arange(16)
    pair.train()
    run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows))
    moved = {name for name, tensor in pair.named_buffers() if name in before and not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".head." in name}
    assert len(moved) == 4, "two of the student, two of the teacher"
    assert not any(module.training for module in pair.eval().modules())


def test_ibot_is_refused_where_there_are_no_patches_or_they_are_of_another_length(tmp_path):
    with pytest.raises(
        InputError, match=r"ResNet: iBOT needs a network that cuts patches \(one patch_embed\): write `ibot: 0.0`"
    ):
        pretrainer("resnet50", tmp_path, ibot=1.0)
    with pytest.raises(InputError, match="16 patches of 48 numbers as the embedding, found 17 tokens of 64"):
        pretrainer("fetalclip", tmp_path, ibot=1.0)


def test_heads_come_first_from_released_weights_and_prototypes_stand_still(tmp_path):
    encoder = load_encoder("dinov3-mini", "random")
    encoder = replace(encoder, weights=replace(encoder.weights, source="file"))
    made = plan(heads=0.5, frozen=0.2, warmup=0.0)
    run = Pretrainer(Pair(encoder, 32, made.objective, 0), part(), made, tmp_path, "k", "test")
    student, rows = run.model.student, np.arange(16)
    body, kept = student.body.trunk.blocks[0].mlp.fc1.weight, student.head.prototypes
    start = [tensor.clone() for tensor in (body, kept, student.head.mlp[0].weight)]
    run.model.train()
    run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows))
    assert [torch.equal(*pair) for pair in zip(start, (body, kept, student.head.mlp[0].weight), strict=True)] == [
        True,
        True,
        False,
    ]
    run.state.epoch = 1  # half of all steps are done
    run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows))
    assert not torch.equal(body, start[0])
    assert not torch.equal(kept, start[1])
    peak = 0.1 * made.objective.rate * math.sqrt(16 / 1024)
    run.set_rates(0.0)
    assert max(group["lr"] for group in run.optimiser.param_groups) == pytest.approx(peak), "a tenth"


def test_rates_and_decay_go_by_part_and_by_layer(tmp_path):
    run = pretrainer("usfm", tmp_path, weight_decay=[0.04, 0.4])
    found = {id(t): group for group in run.optimiser.param_groups for t in group["params"]}
    named = dict(run.model.student.named_parameters())
    assert found[id(named["body.trunk.blocks.1.mlp.fc1.weight"])]["factor"] == pytest.approx(0.9)
    assert found[id(named["body.trunk.patch_embed.proj.weight"])]["factor"] == pytest.approx(0.2 * 0.9**3)
    assert not found[id(named["body.trunk.blocks.0.norm1.weight"])]["decays"]
    assert found[id(named["head.prototypes"])]["part"] == "prototypes"
    run.set_rates(1.0)
    assert {group["weight_decay"] for group in run.optimiser.param_groups} == {0.0, 0.4}
    assert run.temperature(0.0) == 0.04
    assert run.temperature(0.15) == pytest.approx(0.055)
    assert run.temperature(0.9) == 0.07


def test_sinkhorn_with_too_many_prototypes_and_a_corpus_below_a_batch_are_refused(tmp_path):
    made = plan(targets="sinkhorn")
    pair = Pair(load_encoder("dinov3-mini", "random"), 1024, made.objective, 0)
    with pytest.raises(InputError, match="1024 prototypes for 32 vectors"):
        Pretrainer(pair, part(), made, tmp_path, "k", "test")
    pair = Pair(load_encoder("dinov3-mini", "random"), 32, made.objective, 0)
    run = Pretrainer(pair, part(), made, tmp_path, "k", "test")
    rows = np.arange(16)
    assert run.step(torch.from_numpy(run.pictures.array[rows]), trainer.Batch(rows)).isfinite().all()
    with pytest.raises(InputError, match="a corpus of 5 pictures: expected 16"):
        Pretrainer(pair, replace(part(), train=np.arange(5)), made, tmp_path, "k", "test")


def test_the_number_of_prototypes_follows_the_corpus():
    assert [Objective().prototypes_for(n) for n in (7_129, 20_001, 190_000, 10**6)] == [1024, 2048, 16_384, 65_536]
    assert Objective(prototypes=77).prototypes_for(10) == 77


# ---- resume


class Killed(Exception):
    """Stands for a kill at the end of a step."""


def outcome(run):
    history = run.run()
    return (
        history.drop(columns="images/s"),
        {name: tensor.clone() for name, tensor in run.model.changing().items()},
        run.best,
    )


@pytest.mark.parametrize(
    ("name", "change"), [("dinov3", {}), ("resnet50", {}), ("dinov3", {"head_batchnorm": True})], ids=str
)
def test_a_killed_run_ends_with_the_same_bits(name, change, tmp_path, monkeypatch):
    wanted, tensors, best = outcome(pretrainer(name, tmp_path / "whole", **change))
    twice, _, _ = outcome(pretrainer(name, tmp_path / "twice", **change))
    assert wanted.equals(twice), "same seed, same numbers"
    other, _, _ = outcome(pretrainer(name, tmp_path / "other", seed=1, **change))
    assert not wanted.equals(other)
    steps, original = [], Pretrainer.step

    def step(*arguments):
        steps.append(1)
        if len(steps) in (2, 6):
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(Pretrainer, "step", step)
    for _ in range(2):
        with pytest.raises(Killed):
            pretrainer(name, tmp_path / "broken", **change).run()
    found, after, kept = outcome(pretrainer(name, tmp_path / "broken", **change))
    assert found.equals(wanted)
    assert all(torch.equal(after[key], value) for key, value in tensors.items())
    assert all(torch.equal(kept[key], value) for key, value in best.items())


# ---- monitor and collapse


def test_the_monitor_refuses_what_says_nothing():
    rows = np.arange(60)
    with pytest.raises(InputError, match="expected 20 labelled pictures of every class in the corpus, found b 10"):
        Monitor(rows[:50], np.array([0] * 40 + [1] * 10), rows[50:], np.array([0, 1] * 5), ("a", "b"))
    with pytest.raises(InputError, match="no b"):
        Monitor(rows[:50], np.array([0, 1] * 25), rows[50:], np.zeros(10, int), ("a", "b"))
    with pytest.raises(InputError, match="found 10 in both"):
        Monitor(rows[:50], np.array([0, 1] * 25), rows[40:50], np.array([0, 1] * 5), ("a", "b"))


def test_k_nn_is_the_balanced_accuracy_of_the_vote():
    rng = np.random.default_rng(0)
    seen = Monitor(np.arange(60), np.repeat([0, 1], 30), np.arange(60, 70), np.array([0] * 8 + [1] * 2), ("a", "b"))
    bank = np.repeat([[1.0, 0.0], [0.0, 1.0]], 30, axis=0) + 0.01 * rng.normal(size=(60, 2))
    assert seen.score(bank, np.repeat([[1.0, 0.0]], 10, axis=0)) == 0.5, "a constant answer is worth 1 / classes"
    assert seen.score(bank, bank[[0] * 8 + [40] * 2]) == 1.0


HEALTHY = np.random.default_rng(0).normal(size=(400, 24))
SHARP = np.eye(16)[np.arange(400) % 16] * 0.9 + 0.1 / 16
SIGNS = {
    "all embeddings are alike": (np.ones((400, 24)) + 1e-5 * HEALTHY, SHARP),
    "embeddings vary in one direction": (np.ones((400, 24)) + HEALTHY[:, :1] * np.arange(24), SHARP),
    "all pictures go to one prototype": (HEALTHY, np.repeat(np.eye(16)[:1] * 0.99 + 0.01 / 16, 400, axis=0)),
    "the teacher says the same of everything": (HEALTHY, np.full((400, 16), 1 / 16)),
    "not finite": (np.full((400, 24), np.nan), SHARP),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_of_collapse_is_recognised(sign):
    first = monitor.measures(HEALTHY, SHARP)
    assert monitor.collapse(first, first) == ""
    features, answers = SIGNS[sign]
    now = {"x": float("nan")} if sign == "not finite" else monitor.measures(features, answers)
    assert sign in monitor.collapse(now, first)


def test_measures_of_known_features():
    found = monitor.measures(HEALTHY, SHARP)
    assert found["feature SD"] == pytest.approx(1, abs=0.05)
    assert 20 < found["RankMe"] <= 24
    assert found["in use"] == 1.0
    assert found["spread"] == pytest.approx(1, abs=1e-3)
    assert found["entropy"] < 0.4


def test_a_loss_that_is_not_finite_names_the_images_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    original, calls = Pretrainer.step, []

    def poison(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(Pretrainer, "step", poison)
    with pytest.raises(Diverged, match=r"the loss is nan in epoch 1, with the images \d+"):
        pretrainer("resnet50", tmp_path).run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["state"]["epoch"] == 1


def test_a_collapsed_epoch_is_refused_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "LEAST", 0)
    run = pretrainer("resnet50", tmp_path)
    good = run.measure() | {"entropy": 0.5}
    monkeypatch.setattr(Pretrainer, "measure", lambda self: good | ({"spread": 0.0} if self.state.epoch == 1 else {}))
    with pytest.raises(monitor.Collapsed, match="collapsed in epoch 2: all pictures go to one prototype"):
        run.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["state"]["epoch"] == 1


def test_the_last_epoch_is_kept_without_a_monitor_else_the_best(tmp_path):
    run = pretrainer("resnet50", tmp_path)
    run.state.history = [{"epoch": e, "k-NN": k} for e, k in enumerate((0.9, 0.5, 0.7, 0.7, 0.6))]
    assert run.best_epoch == 2, "step 0 is no epoch, the first of equals"
    run.state.history = [{"epoch": e} for e in range(5)]
    assert run.best_epoch == 4


# ---- the corpus and its rules

STUDY = """
name: pre
title: A small study
split: official
folds: 5
threads: 1
task: {{name: two, label: plane, classes: [abdomen, brain]}}
train: spain
cohorts:
  - {{name: spain, root: "{spain}"}}
encoders:
  - {{name: tiny, model: resnet50-mini, weights: random}}
  - {{name: adapted, model: resnet50-mini, weights: pretraining/one}}
pretraining:
  one:
    start: tiny
    corpus: {corpus}
    epochs: 1
    views: {{cache: 64, size: 64, local_size: 32, locals: 1}}
    objective: {{batch: 16, hidden: 16, bottleneck: 8, prototypes: 16, ibot: 0.0}}
"""


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive of 120 patients with three pictures each: 20 patients of each plane, the first half trains."""
    counts = {"total": {"images": 360, "patients": 120}}
    monkeypatch.setitem(cohorts.SOURCES, "spain", replace(cohorts.SOURCES["spain"], counts=counts))
    return write_spain(tmp_path / "spain", patients=120)


def study_of(archive, corpus="[{name: spain}]", change=("", "")):
    path = archive.parent / "pre.yaml"
    path.write_text(STUDY.format(spain=archive, corpus=corpus).replace(*change))
    return load_study(path)


def file_of(archive, patient, image=1):
    (found,) = (archive / "Images").glob(f"Patient{patient:05d}_Plane*_{image}_of_3.png")
    return found


def test_the_corpus_holds_nobody_who_is_tested_or_held(archive):
    Image.fromarray(np.zeros((44, 60), np.uint8)).save(file_of(archive, 3))  # near-black
    file_of(archive, 4, 2).write_bytes(file_of(archive, 4, 1).read_bytes())  # a copy
    file_of(archive, 100, 1).write_bytes(
        file_of(archive, 5, 1).read_bytes()
    )  # patient 5 is linked with one who is tested
    study = study_of(archive)
    found = corpora.gather(study, "one")
    learns = found.table[found.table["learns"]]
    assert set(learns["official_split"]) == {"train"}
    assert "spain/00005" not in set(learns["patient"])
    home, _ = loading.load_cohorts(study)
    splits = make_splits(home, study.the_task, "official", 5, 0)
    held = set(home.frame["patient"].iloc[splits.fold(0).validation])
    assert held
    assert not held & set(learns["patient"])
    assert not learns["pixels"].duplicated().any()
    counts = found.left_out.set_index("left out")["pictures"]
    assert counts[corpora.WHY["dark"]] == 1
    if "spain/00004" not in held:
        assert counts[corpora.WHY["copy"]] == 1
    assert counts[corpora.WHY["tested"]] == 180 + 3
    assert counts.sum() + len(learns) == 360, "all is counted"
    part = runs.part_of(found, torch.device("cpu"))
    assert set(part.names) == set(found.table.loc[found.table["learns"] | found.table["query"], "image_id"])
    assert sorted(part.names[part.train]) == sorted(learns["image_id"])
    whole = np.array(part.pictures.array)  # as a GPU would hold it
    assert (whole[part.train] == found.stack[found.learners]).all()
    assert set(part.names[part.monitor.queries]) == set(found.table.loc[found.table["query"], "image_id"])
    seen = found.monitor()
    assert {found.table["patient"].iat[row] for row in seen.queries} <= held
    assert corpora.prove(found).iloc[:, 1:].to_numpy().sum() == 0
    assert found.saw() == {"spain": "yes"}
    again = corpora.gather(study, "one")
    assert again.digest() == found.digest()


def test_a_test_patient_put_into_the_corpus_by_hand_is_refused(archive):
    study = study_of(archive)
    found = corpora.gather(study, "one")
    row = found.table.index[found.table["role"] == "test"][0]
    found.table.loc[row, "learns"] = True
    with pytest.raises(InputError, match=r"expected disjoint parts, found overlaps:(.|\n)*tests of the study"):
        runs.pretrain(study, "one", found)
    found.table.loc[row, "learns"] = False
    held = found.table.index[found.table["role"] == "validation"][0]
    found.table.loc[held, "learns"] = True
    with pytest.raises(InputError, match="validation of fold 0"):
        corpora.prove(found)


def test_a_folder_with_a_copy_of_a_test_picture_is_refused_and_one_without_is_learnt_from(archive, tmp_path):
    extra = tmp_path / "extra"
    extra.mkdir()
    rng = np.random.default_rng(5)
    for number in range(20):
        Image.fromarray(rng.integers(30, 255, (40, 40)).astype(np.uint8)).save(extra / f"{number}.png")
    study = study_of(archive, f'[{{name: spain}}, {{folder: "{extra}"}}]')
    found = corpora.gather(study, "one")
    assert found.summary().set_index("cohort").loc["extra", ["part", "pictures"]].tolist() == ["none", 20]
    assert corpora.near_black(found.stack, found.learners).sum() == 0
    picture = found.stack[found.learners[-1:]]
    assert picture.shape == (1, 64, 64)
    (extra / "stranger.png").write_bytes(file_of(archive, 90).read_bytes())
    with pytest.raises(
        InputError, match=r"patients who are tested in this study, .* the first is extra/stranger.png: take them out"
    ):
        corpora.gather(study, "one")
    with pytest.raises(MissingError, match="expected a folder with pictures"):
        corpora.gather(study_of(archive, '[{folder: "nowhere"}]'), "one")


def test_a_transductive_corpus_is_as_large_holds_test_pictures_and_says_so(archive):
    plain = corpora.gather(study_of(archive), "one")
    path = archive.parent / "pre.yaml"
    text = STUDY.format(spain=archive, corpus="[{name: spain}]").replace(
        "    epochs: 1", "    epochs: 1\n    transductive: true"
    )
    path.write_text(text)
    with pytest.raises(InputError, match="write the word transductive into its name"):
        load_study(path)
    path.write_text(text.replace("name: adapted", "name: transductive"))
    study = load_study(path)
    found = corpora.gather(study, "one")
    assert len(found.learners) == len(plain.learners)
    assert (found.table["learns"] & (found.table["role"] == "test")).sum() > 0
    assert found.table["bank"].equals(plain.table["bank"]), "the monitor is the same"
    assert not (found.table["bank"] & found.table["tested"]).any()
    proof = corpora.prove(found)
    assert proof["shared images"].tolist()[0] > 0
    assert proof["shared images"].tolist()[1:] == [0, 0]
    assert found.saw() == {"spain": "yes, test pictures too"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("split: official", "split: crossval"), "under crossval every patient is tested by some fold"),
        (("start: tiny", "start: adapted"), "start: expected an encoder of the study, tiny; found 'adapted'"),
        (
            ("pretraining/one}", "pretraining/two}"),
            r"expected a pretraining of the study \(one\), found pretraining/two",
        ),
        (
            ("name: adapted, model: resnet50-mini", "name: adapted, model: usfm-mini"),
            "expected model and options of tiny",
        ),
        (("epochs: 1", "epochs: 0"), "expected epochs >= 1"),
        (("batch: 16", "batch: 1"), "expected batch >= 2"),
        (("locals: 1", "localss: 1"), "unknown key 'localss': did you mean 'locals'"),
        (("ibot: 0.0", "dino: 0.0, ibot: 0.0"), "dino or ibot above 0"),
        (("[{name: spain}]", "[{name: spain, folder: x}]"), "expected one of name"),
        (("epochs: 1", "seeds: [1, 2]"), "seeds: expected the study's own, 0, among"),
        (("epochs: 1", "seeds: [0, 0]"), "expected different seeds"),
    ],
)
def test_a_study_that_cannot_pretrain_is_refused(archive, change, says):
    with pytest.raises(InputError, match=says):
        study_of(archive, change=change)


def test_a_cohort_that_tests_is_refused(small, tmp_path, monkeypatch):
    counts = {"total": {"images": 360, "patients": 120}}
    monkeypatch.setitem(cohorts.SOURCES, "spain", replace(cohorts.SOURCES["spain"], counts=counts))
    archive = write_spain(tmp_path / "larger", patients=120)
    both = f'  - {{name: africa, root: "{small["africa"]}"}}\nencoders:'
    with pytest.raises(InputError, match="africa tests in this study, so nobody of it may be learnt from"):
        corpora.gather(study_of(archive, "[{name: spain}, {name: africa}]", ("encoders:", both)), "one")


# ---- what comes of it


def test_the_result_is_an_encoder_like_any_other(archive):
    study = study_of(archive)
    with pytest.raises(MissingError, match="run the study, or notebook 10 with pretraining=one"):
        loading.load_encoder(study, "adapted")
    result = runs.pretrain(study, "one")
    assert result.history["epoch"].tolist() == [0, 1]
    before = result.file.read_bytes()
    runs.pretrain(study, "one")
    assert result.file.read_bytes() == before
    adapted, start = (loading.load_encoder(study, name) for name in ("adapted", "tiny"))
    assert adapted.weights.sha256 != start.weights.sha256
    assert adapted.weights.file_sha256 == artifacts.checked(result.file)["sha256"]
    assert adapted.weights.saw == {"spain": "yes"}
    assert "no released weights" in adapted.weights.licence
    assert "pretrained here from tiny" in adapted.weights.notes[-1]
    assert adapted.weights.label == "one.safetensors"
    assert facts([start, adapted])["saw spain"].tolist() == ["see above", "yes"]
    pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64)).astype(np.uint8)
    assert not np.allclose(adapted.embed(pictures), start.embed(pictures))
    card = result.file.with_suffix(".md").read_text()
    for word in ("## Corpus", "validation patients of fold 0", "Licence:", "spain: yes", "## Monitor"):
        assert word in card
    sentence = runs.told({"monitor": {"k-NN": 0.4, "best epoch": 3, "step 0": 0.5, "beaten": False}})
    assert sentence.startswith("Step 0 was never beaten")
    runs.conclude(study, result)
    listed = artifacts.read_json(study.folder / "pretraining" / "one.json")["files"]
    assert listed["pretraining/one/one.safetensors"] == adapted.weights.file_sha256


def test_a_pretraining_with_several_seeds_is_probed_with_each(archive):
    from fpbench.analysis import scoring

    study = study_of(archive, change=("epochs: 1", "epochs: 1\n    seeds: [3, 0]"))
    assert study.seeds_of("logistic", "adapted") == [3, 0]
    assert study.seeds_of("logistic", "tiny") == [0]
    found = corpora.gather(study, "one")
    first, others = runs.pretrain(study, "one", found), runs.repeats(study, "one", found)
    assert [one.file.name for one in (first, *others)] == ["one.safetensors", "one.seed3.safetensors"]
    assert others[0].card["recipe"]["seed"] == 3
    assert first.file.read_bytes() != others[0].file.read_bytes()
    runs.conclude(study, first, others)
    assert len(artifacts.read_json(study.folder / "pretraining" / "one.json")["files"]) == 6
    home, external = loading.load_cohorts(study)
    splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
    files = {}
    for name in ("adapted", "tiny"):
        files[name] = probing.run_probe(open_bench(study, name, home, external, splits), "logistic")
    assert [path.name for path in files["adapted"]][:6] == [
        *(f"fold{k}.seed3.parquet" for k in range(5)),
        "fold0.parquet",
    ]
    assert len(files["tiny"]) == 5
    assert set(results.files(study)) == {*files["adapted"], *files["tiny"]}
    told = [artifacts.checked(path)["encoder"] for path in files["adapted"][::5]]
    assert [one["weights"]["location"] for one in told] == ["one.seed3.safetensors", "one.safetensors"]
    scores = scoring.evaluate(predictions.read(results.files(study), study.the_task), study.the_task)
    table = scoring.overview(scores, study.the_task).set_index("encoder")
    rows = scores[
        (scores["encoder"] == "adapted") & (scores["metric"] == "macro F1") & (scores["duplicates"] == "as published")
    ]
    assert len(rows) == 10
    assert table.loc["adapted", "mean"] == pytest.approx(rows["value"].mean())
    assert table.loc["adapted", "sd_seeds"] == pytest.approx(rows.groupby("seed")["value"].mean().std())
    assert np.isnan(table.loc["tiny", "sd_seeds"])
    before = {path: path.read_bytes() for path in files["adapted"]}
    probing.run_probe(open_bench(study, "adapted", home, external, splits), "logistic")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_seeds_that_cannot_be_paired_are_refused(archive):
    with pytest.raises(InputError, match="expected the same seeds everywhere"):
        study_of(archive, change=("pretraining:\n  one:", "seeds: [0, 1]\npretraining:\n  one:\n    seeds: [0, 2]"))


@pytest.mark.parametrize("name", ["dinov3", "usfm", "fetalclip", "mofo", "ultrasam", "resnet50", "efficientnetv2_s"])
def test_exported_tensors_fill_the_same_encoder(name, tmp_path):
    from safetensors.torch import save_file

    encoder = load_encoder(f"{name}-mini", "random", seed=3)
    save_file(trainer.exported(encoder.module), tmp_path / "made.safetensors")
    again = load_encoder(f"{name}-mini", tmp_path / "made.safetensors")
    assert again.weights.sha256 == encoder.weights.sha256
    assert again.weights.ignored == ()


def test_a_probe_waits_for_its_pretraining_and_its_key_holds_what_that_depends_on(archive):
    from fpbench.grid.jobs import jobs

    plan_of = jobs(study_of(archive))
    assert plan_of["04_linear_probing.adapted"].needs == ["02_splits", "10_pretraining.one"]
    assert plan_of["04_linear_probing.tiny"].needs == ["02_splits"]
    assert "10_pretraining.one" in plan_of["03_encoders"].needs
    other = jobs(study_of(archive, change=("epochs: 1", "epochs: 2")))
    changed = {name for name in plan_of if plan_of[name].parts != other[name].parts}
    assert {"10_pretraining.one", "04_linear_probing.adapted", "03_encoders"} <= changed
    assert not changed & {"01_cohorts", "02_splits", "04_linear_probing.tiny"}
    lost = jobs(study_of(archive), {"adapted/probing": "it collapsed"})
    assert "10_pretraining.one" not in lost["03_encoders"].needs


# ---- slow: real kills, real collapse, a study

RUN = """
import sys
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_pretraining import pretrainer
run = pretrainer(sys.argv[1], Path(sys.argv[2]))
run.run()
torch.save([run.model.changing(), run.best], Path(sys.argv[2]) / "end.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov3", "resnet50"])
def test_kill_9_at_three_random_points_changes_no_bit(name, tmp_path):
    here = str(Path(__file__).parent)

    def start(folder):
        return Fork(RUN, name, str(tmp_path / folder), here)

    began = time.monotonic()
    assert start("whole").wait(600) == 0
    lasted, rng = time.monotonic() - began, np.random.default_rng()
    for share in rng.uniform(0.1, 0.9, 3):
        process = start("broken")
        if process.wait(share * lasted) is None:
            process.kill()
            assert process.wait(60) == -9
    assert start("broken").wait(600) == 0
    whole, broken = (torch.load(tmp_path / folder / "end.pt", weights_only=True) for folder in ("whole", "broken"))
    for one, other in zip(whole, broken, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def demo_brain(tmp_path_factory):
    """The study of the second system, run once as a user would: the folder of its results."""
    folder = tmp_path_factory.mktemp("demo-brain")
    environment = {**os.environ, "FPBENCH_RESULTS": str(folder / "results"), "FPBENCH_DATA": str(folder / "data")}
    command = [sys.executable, "-m", "fpbench.cli", "run", "demo-brain", "--jobs", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results" / "demo-brain"


@pytest.mark.slow
def test_the_study_of_the_second_system_shows_what_adaptation_gains(demo_brain):
    """From random weights, k-NN of held-out patients rises, and so do both probes on test patients; no healthy run is stopped."""
    assert not (demo_brain / "missing.json").is_file() or not artifacts.read_json(demo_brain / "missing.json")
    seen = artifacts.read_json(demo_brain / "pretraining" / "adapted" / "adapted.json")["card"]["monitor"]
    assert seen["k-NN"] > seen["step 0"]
    gained = pd.read_csv(demo_brain / "tables" / "adapted.csv").set_index(["encoder", "other", "protocol"])
    for protocol in ("knn", "logistic"):
        row = gained.loc[("resnet-adapted", "resnet-random", protocol)]
        assert row["low"] > 0, row.to_dict()
    said = " ".join(artifacts.read_json(next((demo_brain / "findings").glob("11*.json")))["lines"])
    pattern = r"linear probing: resnet-adapted [^:]* minus resnet-random \(random weights\) ([+-][\d.]+) "
    assert float(re.search(pattern, said)[1]) == pytest.approx(row["value"], abs=6e-4)


@pytest.mark.slow
def test_a_transductive_arm_is_labelled_wherever_it_is_shown(demo_brain):
    assert "resnet-transductive" in (demo_brain / "tables" / "table1.md").read_text()
    card = (demo_brain / "pretraining" / "transductive" / "transductive.md").read_text()
    assert "test pictures in the corpus (transductive)" in card
    told = artifacts.read_json(demo_brain / "findings" / "10_transductive.json")["lines"]
    assert "transductive" in told[0]
    both = [
        pd.DataFrame(artifacts.read_json(demo_brain / "pretraining" / name / f"{name}.json")["card"]["corpus"])
        for name in ("adapted", "transductive")
    ]
    assert both[0]["pictures"].sum() == both[1]["pictures"].sum()


@pytest.mark.slow
def test_without_momentum_a_run_collapses_and_is_stopped(tmp_path):
    made = plan(
        epochs=60, momentum=[0.0, 0.0], koleo=0.0, centre_momentum=0.0, temperature=[0.07, 0.07], rate=0.02, ibot=0.0
    )
    pair = Pair(load_encoder("resnet50-mini", "random"), 32, made.objective, 0)
    with pytest.raises(monitor.Collapsed, match="collapsed in epoch"):
        Pretrainer(pair, part(watched=False), made, tmp_path, "k", "test").run()
    assert (tmp_path / "last.pt").is_file()
