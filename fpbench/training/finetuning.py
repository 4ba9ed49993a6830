"""Fine-tuning: one loop, from a filled encoder and a new head to the best of its epochs.

Read ``Trainer.run`` top to bottom. Everything random in an epoch (order, augmentation, dropped paths) is drawn beforehand from
(seed, epoch), so a run that was killed and resumed ends with the same bits as one that was not. Choices (best epoch) are made on
validation rows; test rows never come here.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fpbench import metrics
from fpbench.encoders import Encoder, checkpoint
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.files.progress import Progress
from fpbench.recipe import Recipe
from fpbench.study import EncoderSpec
from fpbench.training import augmentation
from fpbench.training.adaptation import DropPath, add_lora, drop_paths, is_transformer, keep_less, rate_groups

LAST = torch.channels_last  # the faster layout for convolutions


class Diverged(InputError):
    """A loss that is not finite."""


class Classifier(nn.Module):
    """An encoder's module and a linear head: normalised pictures (B, 3, S, S) to logits (B, K)."""

    def __init__(
        self, encoder: Encoder, classes: int, recipe: Recipe, mode: str, spec: EncoderSpec, seed: int = 0
    ) -> None:
        super().__init__()
        self.encoder, self.mode = encoder, mode
        self.bf16 = recipe.bf16 and encoder.device.type == "cuda"
        self.micro = min(spec.micro or spec.batch_size, recipe.batch)  # images per forward pass
        self.body = encoder.module if is_transformer(encoder.module) else encoder.module.to(memory_format=LAST)
        self.head = nn.Linear(encoder.dim, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
            self.paths: list[DropPath] = drop_paths(self.body, recipe.drop_path) if mode == "full" else []
            if mode == "lora":
                add_lora(self.body, recipe)
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
        """Return every tensor that training may change, by name: what a checkpoint holds."""
        buffers = {} if self.frozen else dict(self.named_buffers())
        return {**{name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}, **buffers}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changing`` returned."""
        with torch.no_grad():
            for name, tensor in self.changing().items():
                tensor.copy_(tensors[name])


class Pictures:
    """uint8 pictures (N, S, S[, 3]), on the device if they fit into half of its free memory, else fetched ahead."""

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        self.array, self.device, self.resident = array, device, None
        if device.type == "cuda" and array.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.resident = torch.from_numpy(np.array(array)).to(device)

    def batches(self, rows: list[np.ndarray]) -> Iterator[Tensor]:
        """Yield the pictures of each set of rows, on the device."""
        if self.resident is not None:
            yield from (self.resident[torch.from_numpy(part).to(self.device)] for part in rows)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for part in rows:
                ready, ahead = ahead, pool.submit(self._load, part)
                if ready is not None:
                    yield ready.result().to(self.device, non_blocking=True)
            if ahead is not None:
                yield ahead.result().to(self.device, non_blocking=True)

    def _load(self, rows: np.ndarray) -> Tensor:
        batch = torch.from_numpy(self.array[rows])
        return batch.pin_memory() if self.device.type == "cuda" else batch


@dataclass(frozen=True)
class Part:
    """What a run learns from: pictures, the class index of every row, and who is who."""

    pictures: Pictures
    labels: np.ndarray  # (N,)
    names: np.ndarray  # (N,) image ids
    train: np.ndarray  # rows
    validation: np.ndarray  # rows


@dataclass
class State:
    """Where a run stands; with the tensors and the optimiser it is the whole of a checkpoint."""

    epoch: int = 0
    step: int = 0  # of the epoch
    losses: list[float] = field(default_factory=list)  # of the epoch so far
    history: list[dict] = field(default_factory=list)  # one row per finished epoch

    @property
    def best(self) -> int:
        """Return the epoch with the best validation score: highest macro F1, then lowest NLL, then the first."""
        order = [(-row["macro F1"], row["NLL"], row["epoch"]) for row in self.history]
        return min(order)[2] if order else -1

    def close_epoch(self, found: dict) -> None:
        """Add a row to the history and begin the next epoch."""
        self.history.append({"epoch": self.epoch, "loss": float(np.mean(self.losses)), **found})
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []


class Trainer:
    """One training run: a model, what it learns from, and where it stands. ``run`` is the loop."""

    def __init__(
        self, model: Classifier, part: Part, recipe: Recipe, rate: float, folder: Path, key: str, seed: int, title: str
    ) -> None:
        if recipe.batchnorm == "live" and model.micro < recipe.batch:
            raise InputError(
                f"batchnorm: live needs batches of {recipe.batch} at once, found {model.micro}: use frozen"
            )
        self.model, self.part, self.recipe, self.rate, self.seed = model, part, recipe, rate, seed
        self.folder, self.key, self.title = folder, key, title
        self.device, self.state = model.encoder.device, State()
        self.best: dict[str, Tensor] = {}  # what ``model.changing`` was after the best epoch
        self.steps = math.ceil(len(part.train) / recipe.batch)  # of an epoch
        self.optimiser = torch.optim.AdamW(rate_groups(model, recipe, rate), fused=True)
        self.forward = torch.compile(model) if recipe.compile else model
        self.noise = augmentation.speckle(model.encoder.geometry.size).to(self.device)
        weights = class_weights(part.labels[part.train], model.head.out_features) if recipe.class_weights else None
        self.loss = nn.CrossEntropyLoss(weights, reduction="sum", label_smoothing=recipe.smoothing).to(self.device)

    def run(self) -> tuple[pd.DataFrame, int]:
        """Train, from the last checkpoint if there is one, until the last epoch or the end of patience; load the best epoch."""
        self.resume()
        state, recipe = self.state, self.recipe
        made = state.epoch * self.steps + state.step
        bar = Progress(total=recipe.epochs * self.steps, desc=self.title, unit="step", initial=made)
        with interruptible() as stop, bar as progress:
            while state.epoch < recipe.epochs and state.epoch - max(state.best, 0) <= recipe.patience:
                progress.stage = f"epoch {state.epoch + 1} of {recipe.epochs}"
                speed = self.train_epoch(stop, progress)
                score = validate(predict(self.model, self.part.pictures, self.part.validation), self.part)
                state.close_epoch({"rate": self.rate, **score, "images/s": speed})
                if state.best == state.epoch - 1:
                    self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.changing().items()}
                self.save()
                progress.set_postfix({"val F1": f"{score['macro F1']:.3f}"})
        return self.finish()

    def train_epoch(self, stop: "interruptible", progress: Progress) -> float:
        """Make the steps of an epoch that are left; return images per second."""
        self.model.train()
        state, pending, began, done = self.state, [], time.perf_counter(), 0
        plan = Plan.draw(self.part.train, self.recipe, len(self.model.paths), self.seed, state.epoch)
        batches = plan.batches(self.recipe.batch)[state.step :]
        for batch, pictures in zip(batches, self.part.pictures.batches([b.rows for b in batches]), strict=True):
            pending.append((self.step(pictures, batch), batch.rows))
            state.step += 1
            done += len(pictures)
            progress.update()
            self.settle(pending, keep=0 if stop.asked else 1)
            if stop.asked:
                self.save()
                stop.obey()
        self.settle(pending)
        return done / (time.perf_counter() - began) if done else float("nan")

    def step(self, pictures: Tensor, batch: "Plan") -> Tensor:
        """Make one step of the optimiser; return the mean loss. Out of memory: again with half as many images at once."""
        model, micro = self.model, self.model.micro
        labels = torch.from_numpy(self.part.labels[batch.rows]).to(self.device)
        set_rates(
            self.optimiser, self.recipe, (self.state.epoch + (self.state.step + 1) / self.steps) / self.recipe.epochs
        )
        try:
            total = torch.zeros((), device=self.device)
            self.optimiser.zero_grad(set_to_none=True)
            for start, piece in zip(range(0, len(labels), micro), batch.batches(micro), strict=True):
                self.sow(number(self.seed, self.state.epoch, self.state.step, start))
                for path in model.paths:
                    path.coins = piece.coins.to(self.device)
                x = augmentation.apply(
                    model.encoder.colours(pictures[start : start + micro]), piece.changes, self.noise
                )
                with model.encoder.autocast(model.bf16):
                    logits = self.forward(model.encoder.standardise(x))
                loss = self.loss(logits.float(), labels[start : start + micro]) / len(labels)
                loss.backward()
                total += loss.detach()
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
            model.micro = (micro + 1) // 2
            return self.step(pictures, batch)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.recipe.clip)
        self.optimiser.step()
        return total

    def sow(self, seed: int) -> None:
        """Seed the dropout (of LoRA) as ``torch.manual_seed`` does, without its 0.2 ms for devices that are not there."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def settle(self, pending: list[tuple[Tensor, np.ndarray]], keep: int = 0) -> None:
        """Note the losses that wait, but for the last ``keep``: asking for the newest would make the device wait for us."""
        while len(pending) > keep:
            loss, rows = pending.pop(0)
            if not math.isfinite(value := float(loss)):
                names = ", ".join(self.part.names[rows])
                raise Diverged(f"the loss is {value} in epoch {self.state.epoch}, with the images {names}")
            self.state.losses.append(value)

    def save(self) -> None:
        """Write the checkpoint from which ``resume`` goes on: one file, the best epoch in it; the one before stays beside it."""
        state = {"key": self.key, "state": asdict(self.state), "optimiser": self.optimiser.state_dict()}
        with artifacts.atomic(self.folder / "last.pt") as path:
            torch.save({**state, "model": self.model.changing(), "best": self.best}, path)
            artifacts.seal(path)
            with suppress(FileNotFoundError):
                os.replace(self.folder / "last.pt", self.folder / "before.pt")

    def resume(self) -> None:
        """Go on from the newest whole checkpoint if there is one; InputError if it belongs to another configuration."""
        there = [path for path in (self.folder / "last.pt", self.folder / "before.pt") if path.is_file()]
        whole = [path for path in there if artifacts.is_sealed(path)]
        if whole != there:
            print(f"{self.title}: a checkpoint is damaged; going on from {whole[0].name if whole else 'the start'}")
        if not whole:
            return
        content = checkpoint.load(whole[0], mapped=False)
        if not isinstance(content, dict) or content.get("key") != self.key:
            raise InputError(f"{whole[0]} is the checkpoint of another configuration: move it away, or undo the change")
        self.model.load(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.state, self.best = State(**content["state"]), content["best"]

    def finish(self) -> tuple[pd.DataFrame, int]:
        """Write the best epoch, mark the run as ended, and load it."""
        history, best = pd.DataFrame(self.state.history), self.state.best
        with artifacts.atomic(self.folder / "best.safetensors") as path:
            save_file({name: tensor.contiguous() for name, tensor in self.best.items()}, path)
        with artifacts.atomic(self.folder / "history.csv") as path:
            history.to_csv(path, index=False)
        about = {"key": self.key, "history": self.state.history, "best": best, "micro": self.model.micro}
        artifacts.commit(self.folder / "best.safetensors", about)
        for name in ("last.pt", "before.pt"):
            (self.folder / name).unlink(missing_ok=True)
        restore(self.model, self.folder)
        return history, best


def finetune(
    model: Classifier, part: Part, recipe: Recipe, rate: float, folder: Path, key: str, seed: int, title: str
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

    Returns
    -------
    pandas.DataFrame, int
        One row per epoch (epoch, loss, rate, macro F1 and NLL on the validation rows, images per second); the best epoch,
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
    return Trainer(model, part, recipe, rate, folder, key, seed, title).run()


def restore(model: Classifier, folder: Path) -> Classifier:
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
    def draw(cls, train: np.ndarray, recipe: Recipe, paths: int, seed: int, epoch: int) -> "Plan":
        """Return the plan of an epoch."""
        source = torch.Generator().manual_seed(number(seed, epoch))
        rows = train[torch.randperm(len(train), generator=source).numpy()]
        changes = augmentation.draw(recipe.augmentation, len(rows), number(seed, epoch, "pictures"))
        return cls(rows, changes, torch.rand(len(rows), paths, generator=source))

    def batches(self, size: int) -> "list[Plan]":
        """Return the plan cut into pieces."""
        cuts = [slice(start, start + size) for start in range(0, len(self.rows), size)]
        return [Plan(self.rows[cut], self.changes[cut], self.coins[cut]) for cut in cuts]


def predict(model: Classifier, pictures: Pictures, rows: np.ndarray, title: str = "") -> np.ndarray:
    """Return logits (n, K) float32 of some rows; with a ``title`` it says how far it is."""
    model.eval()
    parts = [rows[start : start + model.micro] for start in range(0, len(rows), model.micro)]
    with torch.inference_mode(), model.encoder.autocast(model.bf16):
        batches = pictures.batches(parts)
        told = Progress(batches, total=len(parts), desc=title, unit="batch") if title else batches
        found = [model(model.encoder.normalise(batch)).float().cpu() for batch in told]
    return torch.cat(found).numpy()


def validate(logits: np.ndarray, part: Part) -> dict[str, float]:
    """Return macro F1 over the classes that occur on the validation rows, and NLL (nats)."""
    labels = part.labels[part.validation]
    found = metrics.scores(labels, logits, sorted(set(labels.tolist())))
    return {name: found[name] for name in ("macro F1", "NLL")}


def set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    """Set the learning rates of the step that ends when the share ``done`` of all steps is done: linear rise, then cosine."""
    rising = done / recipe.warmup if done < recipe.warmup else 1.0
    falling = 0.5 * (1 + math.cos(math.pi * max(0.0, done - recipe.warmup) / (1 - recipe.warmup)))
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * rising * falling


def estimate(model: Classifier, recipe: Recipe, images: int, runs: int) -> dict[str, float]:
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


def number(*parts: object) -> int:
    """Return a seed from some numbers and words."""
    return int(artifacts.digest(parts)[:15], 16)


class interruptible:
    """Within it, SIGTERM and SIGINT are noted (``asked``) and carried out by ``obey``, when a checkpoint is safe."""

    def __enter__(self) -> "interruptible":
        """Take over the two signals, in the main thread."""
        self.asked, self.before = 0, {}
        if threading.current_thread() is threading.main_thread():
            self.before = {one: signal.signal(one, self._note) for one in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for one, handler in self.before.items():
            signal.signal(one, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.asked = number

    def obey(self) -> None:
        """Let the noted signal do what it would have done."""
        self.__exit__()
        signal.raise_signal(self.asked)
