"""Fine-tuning: the real loop against the same step on one synthetic batch that stays on the device.

    python benchmarks/finetune.py [--encoders resnet50 ...] [--images 64] [--batch 32] [--micro 32] [--peak 790]

The real loop (``Trainer.train_epoch``) fetches uint8 pictures, augments and standardises them; the synthetic step repeats one ready
float batch, with the same optimiser, precision and accumulation. Both run alternately; medians count; CPU seconds on a CPU. With
``--peak`` (TFLOP/s that the device can do in the precision used) the model FLOP utilisation is told. Hours are those of the whole
grid of ``studies/paper.yaml`` (5,703 training images, every epoch run), scaled from the measured rate; beside them those that the
dry run predicts from one picture (wall, so comparable only where nothing else runs).
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import alternate, clock, device, entry, medians, parser, pinned, save, wait
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from fpbench import load_study
from fpbench.encoders import load_encoder
from fpbench.encoders.inspection import peak, reset_peak
from fpbench.recipe import Recipe
from fpbench.study import EncoderSpec
from fpbench.training.adaptation import rate_groups
from fpbench.training.finetuning import Classifier, Part, Pictures, Trainer, estimate, interruptible

TRAINING = 5_703  # images of the official split that train one fold


def model_of(name: str, micro: int, recipe: Recipe) -> Classifier:
    """Return a classifier with random weights."""
    spec = EncoderSpec(name, name, weights="random", batch_size=micro, checkpointing=name == "ultrasam")
    return Classifier(load_encoder(name, "random").to(device().type), 6, recipe, "full", spec)


class Loop:
    """The real loop; a call trains one more epoch, without validation."""

    def __init__(self, name: str, images: int, micro: int, recipe: Recipe, folder: Path) -> None:
        model, rng = model_of(name, micro, recipe), np.random.default_rng(0)
        size = model.encoder.geometry.size
        pictures = Pictures(rng.integers(0, 256, (images, size, size), np.uint8), model.encoder.device)
        labels, names, rows = rng.integers(0, 6, images), np.arange(images).astype(str), np.arange(images)
        part = Part(pictures, labels, names, rows, rows[:2])
        self.trainer = Trainer(model, part, recipe, 1e-4, folder, "k", 0, name)

    def __call__(self) -> None:
        """Train an epoch."""
        self.trainer.state.step = 0
        with interruptible() as stop, tqdm(disable=True) as progress:
            self.trainer.train_epoch(stop, progress)
        wait()


class Step:
    """The same step on one batch of noise; a call makes one."""

    def __init__(self, name: str, batch: int, micro: int, recipe: Recipe, autocast: bool = True) -> None:
        self.model, self.recipe, self.pieces = model_of(name, micro, recipe).train(), recipe, batch // micro
        self.model.bf16 = self.model.bf16 and autocast
        self.forward = torch.compile(self.model) if recipe.compile else self.model
        size, kind = self.model.encoder.geometry.size, device()
        self.optimiser = torch.optim.AdamW(rate_groups(self.model, recipe, 1e-4), fused=True)
        self.x = torch.randn(micro, 3, size, size, device=kind)
        self.y = torch.zeros(micro, dtype=torch.long, device=kind)
        for path in self.model.paths:
            path.coins = torch.rand(micro, len(self.model.paths), device=kind)

    def __call__(self) -> None:
        """Make a step."""
        self.optimiser.zero_grad(set_to_none=True)
        for _ in range(self.pieces):
            with self.model.encoder.autocast(self.model.bf16):
                logits = self.forward(self.x)
            functional.cross_entropy(logits.float(), self.y, label_smoothing=self.recipe.smoothing).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()


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


def measure(name: str, images: int, batch: int, micro: int, repeats: int, top: float = 0.0, **recipe) -> dict:
    """Return the case of one encoder."""
    recipe = Recipe(epochs=10_000, batch=batch, rates=[1e-4], **recipe)
    with tempfile.TemporaryDirectory() as folder:
        loop, step = Loop(name, images, micro, recipe, Path(folder)), Step(name, batch, micro, recipe)
        encoder, steps = loop.trainer.model.encoder, -(-images // batch)

        def bare() -> None:
            for _ in range(steps):
                step()
            wait()

        step()
        reset_peak(encoder)
        before = peak(encoder)
        loop()
        memory = (peak(encoder) - before) / 2**30
        spent = medians(alternate({"loop": loop, "bare": bare}, repeats, clock()))
    rate, bare_rate, paper = images / spent["loop"], steps * batch / spent["bare"], load_study("paper")
    runs = len(paper.recipe.rates) + paper.folds - 1
    work = flops(name, recipe)
    more = {"TFLOP/s": work * rate / 1e12, "peak GiB": memory}
    more |= {"hours of the grid": runs * paper.recipe.epochs * TRAINING / rate / 3600}
    dry_run = estimate(loop.trainer.model, paper.recipe, TRAINING, runs)
    more |= {"hours of the grid by the dry run (wall)": dry_run["hours"]}
    more |= {"MFU": work * rate / 1e12 / top} if top else {}
    where, unit = ("_gpu", "images/s") if device().type == "cuda" else ("", "images per CPU second")
    case = f"{name}, {images} pictures, batch {batch}, {device().type}"
    return entry(f"finetune{where}", case, unit, rate, bare_rate, rate=True, **more)


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "finetune")
    made.add_argument("--encoders", nargs="+", default=["resnet50"])
    made.add_argument("--images", type=int, default=64)
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--micro", type=int, default=32)
    made.add_argument("--peak", type=float, default=0.0)
    args = made.parse_args()
    with pinned(args.threads):
        sizes = args.images, args.batch, args.micro, args.repeats, args.peak
        save("finetune", args, [measure(name, *sizes) for name in args.encoders])


if __name__ == "__main__":
    main()
