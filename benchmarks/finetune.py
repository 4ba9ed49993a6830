"""Fine-tuning: images per second of the real loop over those of the same step on one synthetic batch that stays on the device.

    python benchmarks/finetune.py [--encoders resnet50 ...] [--images 256] [--batch 32] [--micro 32] [--peak 790] [--out FILE]

The real loop fetches uint8 pictures, augments and standardises them; the synthetic step repeats one ready float batch, with the
same optimiser, precision and accumulation. Both are run in turn, three times; medians are printed. With ``--peak`` (TFLOP/s that
the device can do in the precision used) the model FLOP utilisation is printed. Hours are those of one epoch of the paper's
official split (5,703 training images), scaled from the measured rate, and of its whole grid.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fpbench import load_study
from fpbench.adaptation import rate_groups
from fpbench.encoders import load_encoder
from fpbench.finetuning import Classifier, Part, Pictures, finetune
from fpbench.inspection import peak, reset_peak
from fpbench.recipe import Recipe
from fpbench.study import EncoderSpec

TRAINING = 5_703  # images of the official split that train one fold


def model_of(name: str, micro: int, device: str, recipe: Recipe) -> Classifier:
    """Return a classifier with random weights."""
    spec = EncoderSpec(name, name, weights="random", batch_size=micro, checkpointing=name == "ultrasam")
    return Classifier(load_encoder(name, "random").to(device), 6, recipe, "full", spec)


def real(name: str, images: int, micro: int, device: str, recipe: Recipe) -> float:
    """Return images per second of one epoch of the real loop, validation not counted."""
    model, rng = model_of(name, micro, device, recipe), np.random.default_rng(0)
    size = model.encoder.geometry.size
    pictures = Pictures(rng.integers(0, 256, (images, size, size), np.uint8), model.encoder.device)
    labels, names = rng.integers(0, 6, images), np.arange(images).astype(str)
    part = Part(pictures, labels, names, np.arange(images), np.arange(2))
    with tempfile.TemporaryDirectory() as folder:
        history, _ = finetune(model, part, recipe, 1e-4, Path(folder), "k", 0, name)
    return float(history["images/s"].iloc[-1])


def synthetic(name: str, images: int, micro: int, device: str, recipe: Recipe) -> float:
    """Return images per second of the same step on one batch."""
    model = model_of(name, micro, device, recipe).train()
    size, kind = model.encoder.geometry.size, model.encoder.device
    optimiser = torch.optim.AdamW(rate_groups(model, recipe, 1e-4), fused=True)
    x, y = torch.randn(micro, 3, size, size, device=kind), torch.zeros(micro, dtype=torch.long, device=kind)
    for path in model.paths:
        path.coins = torch.rand(micro, len(model.paths), device=kind)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        for _ in range(recipe.batch // micro):
            with model.encoder.autocast(model.bf16):
                logits = model(x)
            functional.cross_entropy(logits.float(), y, label_smoothing=recipe.smoothing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()

    steps = max(1, images // recipe.batch)
    step()
    wait(kind)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(kind)
    return steps * recipe.batch / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops(name: str, recipe: Recipe) -> float:
    """Return the FLOP of one image forward and backward, counted on a CPU without activation checkpointing."""
    spec = EncoderSpec(name, name, weights="random")
    model = Classifier(load_encoder(name, "random"), 6, recipe, "full", spec).train()
    for path in model.paths:
        path.coins = torch.ones(1, len(model.paths))
    size = model.encoder.geometry.size
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size)).sum().backward()
    return float(counter.get_total_flops())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["resnet50"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=float, default=0.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(epochs=2, patience=9, batch=given.batch, rates=[1e-4])
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {given.threads} thread"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, torch {torch.__version__}")
    paper, rows = load_study("paper"), []
    for name in given.encoders:
        setting = (name, given.images, given.micro, device, recipe)
        pairs = []
        for _ in range(3):
            encoder = load_encoder(name, "random").to(device)
            reset_peak(encoder)
            before = peak(encoder)
            pairs.append((real(*setting), synthetic(*setting)))
            memory = (peak(encoder) - before) / 2**30
        rate, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        work = flops(name, recipe)
        runs = len(paper.recipe.rates) + paper.folds - 1
        row = {"encoder": name, "images/s": rate, "synthetic images/s": bare, "ratio": rate / bare, "peak GiB": memory}
        row |= {"TFLOP/s": work * rate / 1e12, "hours of the grid": runs * paper.recipe.epochs * TRAINING / rate / 3600}
        row |= {"MFU": work * rate / 1e12 / given.peak} if given.peak else {}
        rows.append(row)
        print(", ".join(f"{key} {value:.3g}" if isinstance(value, float) else value for key, value in row.items()))
    if given.out:
        facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine, "torch": torch.__version__}
        given.out.write_text(
            json.dumps({**facts, "settings": vars(given) | {"out": ""}, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
