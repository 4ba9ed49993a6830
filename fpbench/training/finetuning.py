"""Fine-tuning: one loop, from a filled encoder and a new head to the best of its epochs.

Read ``Trainer.run`` top to bottom. Everything random in an epoch (order, augmentation, dropped paths) is drawn beforehand from
(seed, epoch), so a run that was killed and resumed ends with the same bits as one that was not. Choices (best epoch) are made on
validation rows; test rows never come here.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fpbench import metrics
from fpbench.encoders import Encoder
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.files.progress import Progress
from fpbench.recipe import Recipe
from fpbench.study import EncoderSpec
from fpbench.training import augmentation
from fpbench.training.adaptation import LORA, DropPath, add_lora, drop_paths, is_transformer, keep_less, rate_groups
from fpbench.training.loop import Diverged, Pictures, Run, interruptible, number

__all__ = [
    "Classifier",
    "Diverged",
    "Learner",
    "Part",
    "Pictures",
    "Trainer",
    "estimate",
    "finetune",
    "interruptible",
    "predict",
    "restore",
]

LAST = torch.channels_last  # the faster layout for convolutions
Kind = TypeVar("Kind", bound="Learner")


class Learner(nn.Module):
    """An encoder's module and what is trained with it: normalised pictures (B, 3, S, S) to logits (B, K)."""

    paths: list[DropPath]

    def __init__(self, encoder: Encoder, classes: int, recipe: Recipe, mode: str, spec: EncoderSpec) -> None:
        super().__init__()
        self.encoder, self.classes, self.mode, self.paths = encoder, classes, mode, []
        self.bf16 = recipe.bf16 and encoder.device.type == "cuda"
        self.micro = min(spec.micro or spec.batch_size, recipe.batch)  # images per forward pass of the encoder
        self.body = encoder.module if is_transformer(encoder.module) else encoder.module.to(memory_format=LAST)

    def changing(self) -> dict[str, Tensor]:
        """Return every tensor that training may change, by name: what a checkpoint holds."""
        raise NotImplementedError

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changing`` returned."""
        with torch.no_grad():
            for name, tensor in self.changing().items():
                tensor.copy_(tensors[name])


class Classifier(Learner):
    """An encoder's module and a linear head."""

    def __init__(
        self, encoder: Encoder, classes: int, recipe: Recipe, mode: str, spec: EncoderSpec, seed: int = 0
    ) -> None:
        super().__init__(encoder, classes, recipe, mode, spec)
        if recipe.batchnorm == "live" and self.micro < recipe.batch:
            raise InputError(f"batchnorm: live needs batches of {recipe.batch} at once, found {self.micro}: use frozen")
        self.head = nn.Linear(encoder.dim, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
            self.paths = drop_paths(self.body, recipe.drop_path) if mode == "full" else []
            if mode in LORA:
                add_lora(self.body, recipe, LORA[mode])
        if spec.checkpointing:
            keep_less(self.body)
        self.frozen = recipe.batchnorm == "frozen"
        self.to(encoder.device).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.head(self.body(x))

    def train(self, mode: bool = True) -> "Classifier":
        """Switch to training; BatchNorm keeps its pretrained statistics if the recipe says so."""
        super().train(mode)
        for module in self.modules() if self.frozen else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def changing(self) -> dict[str, Tensor]:
        """Return what is trained, and with live BatchNorm its statistics."""
        buffers = {} if self.frozen else dict(self.named_buffers())
        return {**{name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}, **buffers}


@dataclass(frozen=True)
class Part:
    """What a run learns from: pictures, the class index of every row, and who is who."""

    pictures: Pictures
    labels: np.ndarray  # (N,)
    names: np.ndarray  # (N,) image ids
    train: np.ndarray  # rows
    validation: np.ndarray  # rows
    score: str = "macro F1"  # of ``metrics.scores``, on the validation rows; it chooses
    positive: int | None = None  # the class that AUPRC is of


class Trainer(Run):
    """One training run: a model, what it learns from, and where it stands. ``run`` is the loop."""

    def __init__(
        self, model: Learner, part: Part, recipe: Recipe, rate: float, folder: Path, key: str, seed: int, title: str
    ) -> None:
        super().__init__(folder, key, title)
        self.model: Learner = model
        self.part, self.recipe, self.rate, self.seed = part, recipe, rate, seed
        self.pictures, self.names, self.device = part.pictures, part.names, model.encoder.device
        self.steps = math.ceil(len(part.train) / recipe.batch)  # of an epoch
        self.optimiser = torch.optim.AdamW(rate_groups(model, recipe, rate), fused=True)
        self.forward = torch.compile(model) if recipe.compile else model
        self.noise = augmentation.speckle(model.encoder.geometry.size).to(self.device)
        self.loss = self.criterion().to(self.device)

    def criterion(self) -> nn.Module:
        """Return the loss of a classifier: of logits (B, K) and class indices (B,), the sum over the pictures."""
        part, recipe = self.part, self.recipe
        weights = class_weights(part.labels[part.train], self.model.classes) if recipe.class_weights else None
        return nn.CrossEntropyLoss(weights, reduction="sum", label_smoothing=recipe.smoothing)

    def run(self) -> tuple[pd.DataFrame, int]:
        """Train, from the last checkpoint if there is one, until the last epoch or the end of patience; load the best epoch."""
        self.resume()
        state, recipe = self.state, self.recipe
        made = state.epoch * self.steps + state.step
        bar = Progress(total=recipe.epochs * self.steps, desc=self.title, unit="step", initial=made)
        with interruptible() as stop, bar as progress:
            while state.epoch < recipe.epochs and state.epoch - max(self.best_epoch, 0) <= recipe.patience:
                progress.stage = f"epoch {state.epoch + 1} of {recipe.epochs}"
                speed = self.train_epoch(stop, progress)
                score = validate(predict(self.model, self.part.pictures, self.part.validation), self.part)
                loss = float(np.mean(state.losses))
                self.close_epoch({"loss": loss, "rate": self.rate, **score, "images/s": speed})
                if self.best_epoch == state.epoch - 1:
                    self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.changing().items()}
                self.save()
                progress.set_postfix({f"val {self.part.score}": f"{score[self.part.score]:.3f}"})
        return self.finish()

    @property
    def best_epoch(self) -> int:
        """Return the epoch with the best validation score: the highest, then lowest NLL, then the first."""
        order = [(-row[self.part.score], row["NLL"], row["epoch"]) for row in self.state.history]
        return min(order)[2] if order else -1

    def train_epoch(self, stop: interruptible, progress: Progress) -> float:
        """Make the steps of an epoch that are left; return images per second."""
        self.model.train()
        plan = Plan.draw(self.part, self.recipe, len(self.model.paths), self.seed, self.state.epoch)
        return self.make_steps(plan.batches(self.recipe.batch), stop, progress)

    def step(self, pictures: Tensor, batch: "Plan") -> Tensor:
        """Make one step of the optimiser; return the mean loss. Out of memory: again with half as many images at once."""
        model, micro = self.model, self.model.micro
        set_rates(
            self.optimiser, self.recipe, (self.state.epoch + (self.state.step + 1) / self.steps) / self.recipe.epochs
        )
        try:
            self.optimiser.zero_grad(set_to_none=True)
            loss = self.descend(pictures, batch)
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
            model.micro = (micro + 1) // 2
            return self.step(pictures, batch)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.recipe.clip)
        self.optimiser.step()
        return loss

    def descend(self, pictures: Tensor, batch: "Plan") -> Tensor:
        """Add up the gradient of a batch, ``micro`` images at once; return its mean loss."""
        model, micro, total = self.model, self.model.micro, torch.zeros((), device=self.device)
        labels = torch.from_numpy(self.part.labels[batch.rows]).to(self.device)
        for start, piece in zip(range(0, len(labels), micro), batch.batches(micro), strict=True):
            self.sow(number(self.seed, self.state.epoch, self.state.step, start))
            for path in model.paths:
                path.coins = piece.coins.to(self.device)
            x = augmentation.apply(model.encoder.colours(pictures[start : start + micro]), piece.changes, self.noise)
            with model.encoder.autocast(model.bf16):
                logits = self.forward(model.encoder.standardise(x))
            loss = self.loss(logits.float(), labels[start : start + micro]) / len(labels)
            loss.backward()
            total += loss.detach()
        return total

    def finish(self) -> tuple[pd.DataFrame, int]:
        """Write the best epoch, mark the run as ended, and load it."""
        about = {"best": self.best_epoch, "micro": self.model.micro}
        history = self.keep_best(self.folder / "best.safetensors", about)
        restore(self.model, self.folder)
        return history, self.best_epoch


def finetune(
    model: Learner,
    part: Part,
    recipe: Recipe,
    rate: float,
    folder: Path,
    key: str,
    seed: int,
    title: str,
    trainer: type[Trainer] = Trainer,
) -> tuple[pd.DataFrame, int]:
    """Train a fresh model, or take up the finished or interrupted run of the same ``key`` in ``folder``.

    Parameters
    ----------
    model
        Takes ``model.micro`` images per forward pass; the gradient is that of ``recipe.batch`` images whatever that number is.
    folder
        Keeps ``last.pt`` and ``before.pt`` while running; ``best.safetensors`` and ``history.csv``.
    key
        Digest of everything that the run depends on.
    trainer
        What the loop of this kind of model is.

    Returns
    -------
    pandas.DataFrame, int
        One row per epoch (epoch, loss, rate, ``part.score`` and NLL on the validation rows, images per second); the best epoch,
        whose weights ``model`` has now.

    Raises
    ------
    Diverged
        A loss was not finite; the message names the images. The last checkpoint stays.
    InputError
        The checkpoint in ``folder`` belongs to another configuration.
    """
    about = artifacts.whole(folder / "best.safetensors")
    if about.get("key") == key:
        restore(model, folder)
        return pd.DataFrame(about["history"]), about["best"]
    return trainer(model, part, recipe, rate, folder, key, seed, title).run()


def restore(model: Kind, folder: Path) -> Kind:
    """Load the best epoch of a finished run into a fresh model; returns it. InputError if its file is damaged."""
    artifacts.checked(folder / "best.safetensors")
    model.load(load_file(folder / "best.safetensors", str(model.encoder.device)))
    return model


@dataclass(frozen=True)
class Plan:
    """Everything random of some rows of an epoch, drawn beforehand."""

    rows: np.ndarray  # in the order of training
    changes: Tensor  # augmentation, one row each
    coins: Tensor  # (rows, paths) uniform numbers for dropped paths

    @classmethod
    def draw(cls, part: Part, recipe: Recipe, paths: int, seed: int, epoch: int) -> "Plan":
        """Return the plan of an epoch: as many rows as the training part has, each once, or balanced as the recipe says."""
        source = torch.Generator().manual_seed(number(seed, epoch))
        rows = balanced(part.train, part.labels, source) if recipe.sampling == "balanced" else part.train
        rows = rows[torch.randperm(len(rows), generator=source).numpy()]
        changes = augmentation.draw(recipe.augmentation, len(rows), number(seed, epoch, "pictures"))
        return cls(rows, changes, torch.rand(len(rows), paths, generator=source))

    def batches(self, size: int) -> "list[Plan]":
        """Return the plan cut into pieces."""
        cuts = [slice(start, start + size) for start in range(0, len(self.rows), size)]
        return [Plan(self.rows[cut], self.changes[cut], self.coins[cut]) for cut in cuts]


def balanced(rows: np.ndarray, labels: np.ndarray, source: torch.Generator) -> np.ndarray:
    """Return as many rows, every class that occurs equally often (one more of some, drawn, where it does not divide).

    Within a class no row is drawn once more than another: a rare class goes round, of a common one some rows wait for another epoch.
    """
    classes = np.unique(labels[rows])
    counts = np.full(len(classes), len(rows) // len(classes))
    counts[torch.randperm(len(classes), generator=source)[: len(rows) % len(classes)].numpy()] += 1
    drawn = []
    for code, count in zip(classes, counts, strict=True):
        own = rows[labels[rows] == code]
        rounds = [torch.randperm(len(own), generator=source).numpy() for _ in range(0, count, len(own))]
        drawn.append(own[np.concatenate(rounds)[:count]])
    return np.concatenate(drawn)


def predict(model: Learner, pictures: Pictures, rows: np.ndarray, title: str = "") -> np.ndarray:
    """Return logits (n, K) float32 of some rows; with a ``title`` it says how far it is."""
    model.eval()
    parts = [rows[start : start + model.micro] for start in range(0, len(rows), model.micro)]
    with torch.inference_mode(), model.encoder.autocast(model.bf16):
        batches = pictures.batches(parts)
        told = Progress(batches, total=len(parts), desc=title, unit="batch") if title else batches
        found = [model(model.encoder.normalise(batch)).float().cpu() for batch in told]
    return torch.cat(found).numpy()


def validate(logits: np.ndarray, part: Part) -> dict[str, float]:
    """Return the score that chooses, over the classes that occur on the validation rows, and NLL (nats)."""
    labels, ranked = part.labels[part.validation], part.score in metrics.RANKED
    found = metrics.scores(labels, logits, sorted(set(labels.tolist())), ranked=ranked, positive=part.positive)
    return {name: found[name] for name in (part.score, "NLL")}


def set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    """Set the learning rates of the step that ends when the share ``done`` of all steps is done: linear rise, then cosine."""
    rising = done / recipe.warmup if done < recipe.warmup else 1.0
    falling = 0.5 * (1 + math.cos(math.pi * max(0.0, done - recipe.warmup) / (1 - recipe.warmup)))
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * rising * falling


def estimate(model: Learner, recipe: Recipe, images: int, runs: int) -> dict[str, float]:
    """Return what ``runs`` trainings on ``images`` pictures would take here, from one forward and backward pass.

    Returns
    -------
    dict
        ``steps`` of the optimiser and ``PFLOP`` of all runs (all epochs, validation not counted), ``hours`` on this device.
    """
    from torch.utils.flop_counter import FlopCounterMode

    count = model.micro if model.encoder.device.type == "cuda" else 1
    size = model.encoder.geometry.size
    batch = torch.zeros((count, size, size), dtype=torch.uint8)
    for path in model.paths:
        path.coins = torch.ones(count, len(model.paths), device=model.encoder.device)

    def step() -> None:
        with model.encoder.autocast(model.bf16):
            loss = model(model.encoder.normalise(batch)).float().sum()
        loss.backward()
        model.zero_grad(set_to_none=True)
        if model.encoder.device.type == "cuda":
            torch.cuda.synchronize()

    model.train()
    with FlopCounterMode(display=False) as counter:
        step()
    started = time.perf_counter()
    step()
    seconds = (time.perf_counter() - started) / count
    steps = recipe.epochs * math.ceil(images / recipe.batch) * runs
    seen = recipe.epochs * images * runs
    flops = counter.get_total_flops() / count * seen
    return {"steps": steps, "PFLOP": flops / 1e15, "hours": seconds * seen / 3600}


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return inverse frequencies with mean 1 over the classes that occur; 0 for others."""
    counts = np.bincount(labels, minlength=classes)
    inverse = np.where(counts > 0, 1 / np.maximum(counts, 1), 0)
    return torch.tensor(inverse / inverse[counts > 0].mean(), dtype=torch.float32)
