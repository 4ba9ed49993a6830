"""The study of image quality at paper size: every model builds and trains, and what a job holds follows the batch, not the cohort."""

import gc
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fpbench import load_study
from fpbench.files.progress import Progress
from fpbench.grid import costs
from fpbench.training import tuning
from fpbench.training.finetuning import Classifier, Part, Pictures, Trainer, interruptible, predict
from fpbench.training.segmentation.decoder import Decoder
from fpbench.training.segmentation.trainer import Loss

FRAMES = 77_420  # of the annotated sweeps
SIZES = {  # what is trained of every model of the study: numbers, those of the head of two classes apart
    ("densenet121", "full"): (6_953_856, 2_050),
    ("efficientnet_b0", "full"): (4_007_548, 2_562),
    ("vgg16", "full"): (134_260_544, 8_194),
    ("fetalclip", "lora"): (2_359_296, 1_538),
    ("swin", "lora"): (1_797_120, 3_074),
    ("deit3", "lora"): (2_359_296, 2_050),
    ("vit", "lora"): (2_359_296, 2_050),
    ("fetalclip", "lora_mlp"): (1_966_080, 1_538),
}


@pytest.fixture
def quality():
    return load_study("quality")


def test_the_study_calls_for_every_model_of_the_paper_and_of_the_benchmark(quality):
    assert set(quality.tunings()) == {*SIZES, ("fetalclip", "segmentation")}  # this one steps in test_segmentation
    probed = {"usfm", "mofo", "fetalclip", "resnet50", "efficientnetv2_s", "dinov3"}
    assert probed < {spec.name for spec in quality.encoders}
    assert (quality.split, quality.folds, quality.the_task.selection) == ("crossval", 5, "AUPRC")
    assert 3e-4 in quality.recipe.grid("full")
    assert quality.recipe.grid("lora_mlp") == quality.recipe.grid("lora") == quality.recipe.lora_rates


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), list(SIZES))
def test_every_model_builds_and_makes_three_steps(quality, tmp_path, name, mode):
    """With random weights, as the study trains it but for batches of two pictures; one at a time, since some hold 2 GB."""
    gc.collect()
    torch.set_num_threads(quality.threads)
    recipe, spec = replace(quality.recipe, batch=2, warmup=0.0), quality.encoder_spec(name)
    encoder = tuning.blank(replace(quality, device="cpu"), name)
    model = Classifier(encoder, 2, recipe, mode, spec)
    body, head = (sum(tensor.numel() for tensor in part.parameters() if tensor.requires_grad) for part in (model.body, model.head))  # fmt: skip
    assert (body, head) == SIZES[name, mode]
    assert model.head.in_features == {"efficientnet_b0": 1280, "vgg16": 4096, "swin": 1536, "fetalclip": 768}.get(
        name, 1024
    )
    assert encoder.geometry.describe() == "pad_square 224, bicubic"
    rng, labels = np.random.default_rng(0), np.array([0, 1, 0, 0, 1, 0, 0, 1])
    pictures = Pictures(rng.integers(0, 255, (8, 224, 224)).astype(np.uint8), encoder.device)
    part = Part(pictures, labels, np.arange(8).astype(str), np.arange(6), np.arange(6, 8), "AUPRC", 1)
    trainer = Trainer(model, part, recipe, 3e-4, tmp_path, "key", 0, name)
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters() if tensor.requires_grad}
    with interruptible() as stop, Progress(total=3, desc=name, unit="step") as progress:
        trainer.train_epoch(stop, progress)
    assert len(trainer.state.losses) == 3
    assert np.isfinite(trainer.state.losses).all()
    after = dict(model.named_parameters())
    still = [key for key, tensor in before.items() if torch.equal(tensor, after[key])]
    assert still == []
    assert predict(model, pictures, part.validation).shape == (2, 2)


class Wildcards(dict):
    """As Snakemake's: by name and by attribute."""

    __getattr__ = dict.__getitem__


def asked(study, passes, **wildcards):
    """Return what a kind of job asks a scheduler for, in MB."""
    found = costs.resources(study, passes)["mem_mb"]
    return found if isinstance(found, int) else found(Wildcards(wildcards))


JOBS = {  # what is asked of a job of the two studies, MB: passes, wildcards, on a GPU, on a CPU
    "demo": [
        (0, {}, 8_054, 8_054),
        (10, {"encoder": "usfm-mini"}, 4_018, 4_082),
        ("training", {"encoder": "usfm-mini", "mode": "lora"}, 4_037, 4_117),
    ],
    "quality": [
        (0, {}, 11_638, 11_638),
        (10, {"encoder": "usfm"}, 6_023, 6_343),
        (10, {"encoder": "fetalclip"}, 8_002, 8_642),
        (10, {"encoder": "vgg16"}, 11_938, 13_858),
        ("training", {"encoder": "fetalclip", "mode": "lora_mlp"}, 13_130, 33_098),
        ("training", {"encoder": "vgg16", "mode": "full"}, 12_864, 35_264),
        ("training", {"encoder": "fetalclip", "mode": "segmentation"}, 13_130, 20_194),
    ],
}


@pytest.mark.parametrize("name", list(JOBS))
def test_memory_that_a_scheduler_is_asked_for(name):
    for device, place in (("auto", 2), ("cpu", 3)):
        study = replace(load_study(name), device=device)
        assert [asked(study, job[0], **job[1]) for job in JOBS[name]] == [job[place] for job in JOBS[name]]


def test_memory_follows_the_batch_and_not_the_pictures(quality, monkeypatch):
    """Ten times as many frames cost their rows of tables and predictions and, where they are embedded, their embeddings."""
    study, lora = replace(quality, device="cpu"), {"encoder": "fetalclip", "mode": "lora"}
    found = {}
    for images in (FRAMES, 10 * FRAMES):
        monkeypatch.setattr(costs, "_images", lambda _, images=images: images)
        found[images] = asked(study, "training", **lora), asked(study, 10, encoder="fetalclip")
    (few, few_probed), (many, many_probed) = found.values()
    frames = 9 * FRAMES / 1e6
    assert many - few == pytest.approx(frames * (2_000 + 500 * 2 * 6), abs=2)  # three probes, LoRA twice, a segmenter
    assert many_probed - few_probed == pytest.approx(many - few + frames * 16 * 768, abs=2)
    twice = replace(study, recipe=replace(study.recipe, batch=64))
    assert asked(twice, "training", **lora) - many == pytest.approx(32 * 624, abs=2)
    on_gpu = replace(study, device="cuda"), replace(twice, device="cuda")
    assert asked(on_gpu[0], "training", **lora) == asked(on_gpu[1], "training", **lora) == many - 32 * 624


def test_what_a_decoder_keeps_of_a_picture_is_as_declared():
    """FetalCLIP's widths at 224 pixels: storages that its backward pass needs, the parameters apart."""
    decoder = Decoder([1024] * 4).to(memory_format=torch.channels_last)
    known, kept = {tensor.untyped_storage().data_ptr() for tensor in decoder.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = decoder([torch.randn(1, 1024, 14, 14) for _ in range(4)], torch.randn(1, 3, 224, 224))
        Loss()(found, torch.zeros(1, 224, 224))
    held = sum(storage.nbytes() for place, storage in kept.items() if place not in known)
    assert held == pytest.approx(costs.DECODED * 224**2, rel=0.02)


PAPER_SIZE = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
import torch
from fpbench.encoders import load_encoder, register_encoder
from fpbench.files.progress import Progress
from fpbench.images import Geometry
from fpbench.recipe import Recipe
from fpbench.study import EncoderSpec
from fpbench.training import embeddings, finetuning
import pandas as pd

file, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
peak, done = {}, []

def anonymous():
    told = Path("/proc/self/status").read_text().split("RssAnon:")[1]
    return int(told.split()[0]) / 2**20

def watch():
    while not done:
        peak[stage] = max(peak.get(stage, 0), anonymous())
        time.sleep(0.005)

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.line = torch.nn.AvgPool2d(28), torch.nn.Linear(192, 1024)
    def forward(self, x):
        return self.line(self.pool(x).flatten(1))

stage = "start"
threading.Thread(target=watch).start()
try:
    pictures = np.load(file, mmap_mode="r")
    register_encoder("small", Small, Geometry("squash", 224), 1024)
    encoder = load_encoder("small", "random")
    recipe = Recipe(epochs=1, batch=32)
    labels = (np.arange(count) % 12 == 0).astype(int)
    part = finetuning.Part(finetuning.Pictures(pictures, encoder.device), labels, np.arange(count).astype(str),
                           np.arange(0, count, 50), np.arange(1, count, 10), "AUPRC", 1)
    stage = "training"
    model = finetuning.Classifier(encoder, 2, recipe, "full", EncoderSpec("small", "small", batch_size=32))
    finetuning.finetune(model, part, recipe, 1e-3, folder, "key", 0, "small")
    stage = "answers"
    rows = np.arange(0, count, 10)
    assert finetuning.predict(model, part.pictures, rows).shape == (len(rows), 2)
    stage = "embedding"
    names = pd.Series(np.arange(count).astype(str))
    found = embeddings._embedded(encoder, "stand-in", lambda: pictures, names, names, 64, False, 0.0)
    assert found.shape == (count, 1024)
finally:
    done.append(1)
print(json.dumps(peak))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory that is not mapped is told by Linux")
def test_at_paper_size_what_is_held_beside_the_mapped_cache_is_small(tmp_path, monkeypatch):
    """All frames at 224 pixels, 3.9 GB in a file with holes; a network of few numbers, since its own memory is the batch's."""
    shape = (FRAMES, 224, 224)
    with open(tmp_path / "pictures.npy", "wb") as handle:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        handle.truncate(handle.tell() + math.prod(shape))
    command = [sys.executable, "-c", PAPER_SIZE, str(tmp_path / "pictures.npy"), str(tmp_path / "run"), str(FRAMES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])  # GiB
    assert peak["training"] - peak["start"] < 0.5
    assert peak["answers"] - peak["start"] < 0.5
    assert peak["embedding"] - peak["start"] < 1.2  # 0.3 of embeddings, once as they come and once together
