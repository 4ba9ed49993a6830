"""What every training loop shares: the one way to survive a kill.

A run stands at an epoch and a step. Everything random is drawn from its seed and this place, a checkpoint holds all that training
changes, and a signal is obeyed when a checkpoint is safe. So a run that was killed and resumed ends with the same bits as one that
was not. `Run` is the base of ``finetuning.Trainer`` and ``pretraining.trainer.Pretrainer``, which say what a step is.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from fpbench.encoders import checkpoint
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.files.progress import Progress

BLOCK = 1024  # pictures that are copied to the device at a time


class Diverged(InputError):
    """A loss that is not finite."""


class Trained(Protocol):
    """What a run trains."""

    def changing(self) -> dict[str, Tensor]:
        """Return every tensor that training may change, by name: what a checkpoint holds."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changing`` returned."""


class Batch(Protocol):
    """What one step is made with."""

    @property
    def rows(self) -> np.ndarray:
        """Return the rows of its pictures."""


class Pictures:
    """uint8 pictures (N, S, S[, 3]), on the device if they fit into half of its free memory, else fetched ahead."""

    def __init__(self, array: Any, device: torch.device) -> None:
        self.array, self.device, self.resident = array, device, None
        if device.type == "cuda" and array.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            shape = array[np.arange(1)].shape[1:]
            self.resident = torch.empty((len(array), *shape), dtype=torch.uint8, device=device)
            for rows in np.array_split(np.arange(len(array)), -(-len(array) // BLOCK)):
                self.resident[rows[0] : rows[-1] + 1] = torch.from_numpy(array[rows])

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


@dataclass
class State:
    """Where a run stands; with the tensors and the optimiser it is the whole of a checkpoint."""

    epoch: int = 0
    step: int = 0  # of the epoch
    losses: list = field(default_factory=list)  # of the epoch so far: a number per step, or one per term
    history: list[dict] = field(default_factory=list)  # one row per finished epoch


class Run:
    """One training run and where it stands. A subclass sets what stands below, and says what a step is."""

    model: Trained
    optimiser: torch.optim.Optimizer
    device: torch.device
    pictures: Pictures
    names: np.ndarray  # of the pictures, for messages

    def __init__(self, folder: Path, key: str, title: str) -> None:
        self.folder, self.key, self.title = folder, key, title
        self.state = State()
        self.best: dict[str, Tensor] = {}  # what is kept of the best epoch so far

    def step(self, pictures: Tensor, batch: Any) -> Tensor:
        """Make one step of the optimiser; return its loss, or its terms."""
        raise NotImplementedError

    def make_steps(self, batches: Sequence[Batch], stop: "interruptible", progress: Progress) -> float:
        """Make the steps of an epoch that are left; return images per second."""
        state, pending, began, done = self.state, [], time.perf_counter(), 0
        left = batches[state.step :]
        for batch, pictures in zip(left, self.pictures.batches([b.rows for b in left]), strict=True):
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

    def sow(self, seed: int) -> None:
        """Seed the dropout of a network as ``torch.manual_seed`` does, without its 0.2 ms for devices that are not there."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def settle(self, pending: list[tuple[Tensor, np.ndarray]], keep: int = 0) -> None:
        """Note the losses that wait, but for the last ``keep``: asking for the newest would make the device wait for us."""
        while len(pending) > keep:
            loss, rows = pending.pop(0)
            value = loss.tolist()
            if bad := [one for one in (value if isinstance(value, list) else [value]) if not math.isfinite(one)]:
                names = ", ".join(self.names[rows])
                raise Diverged(f"the loss is {bad[0]} in epoch {self.state.epoch}, with the images {names}")
            self.state.losses.append(value)

    def close_epoch(self, found: dict) -> None:
        """Add a row to the history and begin the next epoch."""
        state = self.state
        state.history.append({"epoch": state.epoch, **found})
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []

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

    def keep_best(self, file: Path, about: dict) -> pd.DataFrame:
        """Write the best epoch to ``file``, mark the run as ended, and return its history."""
        history = pd.DataFrame(self.state.history)
        with artifacts.atomic(file) as path:
            save_file({name: tensor.contiguous() for name, tensor in self.best.items()}, path)
        with artifacts.atomic(self.folder / "history.csv") as path:
            history.to_csv(path, index=False)
        artifacts.commit(file, {"key": self.key, "history": self.state.history, **about})
        for name in ("last.pt", "before.pt"):
            (self.folder / name).unlink(missing_ok=True)
        return history


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
