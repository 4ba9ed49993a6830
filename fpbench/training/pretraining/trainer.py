"""Self-supervised pretraining: a student learns to say of one view of a picture what its teacher says of another.

Read ``Pretrainer.run`` and ``Pretrainer.step`` top to bottom. The teacher is a moving average of the student, sees the two global
views whole, and is what is measured and kept (DINO, arXiv:2104.14294; iBOT, arXiv:2111.07832; DINOv2, arXiv:2304.07193). Schedules go
by steps. Everything random of a step is drawn beforehand from (seed, epoch, step); `loop.Run` is how a run survives a kill. Labels
serve the monitor alone.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fpbench.errors import InputError
from fpbench.files.progress import Progress
from fpbench.recipe import Pretraining
from fpbench.training.loop import Pictures, Run, interruptible, number
from fpbench.training.pretraining import losses, masks, monitor, views
from fpbench.training.pretraining.monitor import Collapsed, Monitor
from fpbench.training.pretraining.network import Pair, cosine, takes

VERSION = 1  # raise it when the numbers of a run change
TERMS = ("loss", "DINO", "iBOT", "KoLeo")
GRACE = 0.2  # share of all steps before signs of collapse count: heads begin with uniform answers
LATE = 0.5  # the same of uniform answers themselves
LEAST = 100  # steps before any of them counts
MOST = 16  # prototypes per teacher's vector: beyond, Sinkhorn's targets are nearly uniform


@dataclass(frozen=True)
class Part:
    """What a run learns from, and what watches it."""

    pictures: Pictures  # grey, (N, S, S)
    names: np.ndarray  # (N,) image ids
    train: np.ndarray  # rows of different pictures
    monitor: Monitor | None = None  # without one the last epoch is kept


@dataclass(frozen=True)
class Batch:
    """The pictures of one step."""

    rows: np.ndarray


class Pretrainer(Run):
    """One pretraining: student and teacher, the corpus, and where it stands. ``run`` is the loop, ``step`` what is learnt."""

    model: Pair

    def __init__(self, model: Pair, part: Part, plan: Pretraining, folder: Path, key: str, title: str) -> None:
        super().__init__(folder, key, title)
        self.model, self.part, self.plan, self.aim = model, part, plan, plan.objective
        self.pictures, self.names, self.device = part.pictures, part.names, model.encoder.device
        self.released = model.encoder.weights.source != "random"
        self.steps = len(part.train) // self.aim.batch  # of an epoch; what is left over comes in another one
        self.check()
        self.settings = fitting(model, plan.views)
        self.grid = model.grid(self.settings.size)
        self.maker = views.Maker(self.settings, self.device)
        self.optimiser = torch.optim.AdamW(model.groups(), lr=0.0, fused=True)
        self.bf16 = self.aim.bf16 and self.device.type == "cuda"

    def check(self) -> None:
        """Refuse what cannot learn."""
        if not self.steps:
            raise InputError(
                f"{self.title}: a corpus of {len(self.part.train)} pictures: expected {self.aim.batch}, a batch"
            )
        prototypes, vectors = len(self.model.student.head.prototypes), views.GLOBAL * self.aim.batch
        if self.aim.targets == "sinkhorn" and prototypes > MOST * vectors:
            why = f"{prototypes} prototypes for {vectors} vectors of the teacher in a step give nearly uniform targets"
            raise InputError(f"{self.title}: sinkhorn: {why}: at most {MOST} times as many, or `targets: centring`")

    def run(self) -> pd.DataFrame:
        """Train, from the last checkpoint if there is one; return a row per epoch, the first of step 0.

        Raises
        ------
        Collapsed, Diverged
            The last good checkpoint stays.
        """
        self.resume()
        state, total = self.state, self.plan.epochs * self.steps
        bar = Progress(total=total, desc=self.title, unit="step", initial=state.epoch * self.steps + state.step)
        with interruptible() as stop, bar as progress:
            if not state.history:
                state.history.append({"epoch": 0, **self.measure()})
            while state.epoch < self.plan.epochs:
                progress.stage = f"epoch {state.epoch + 1} of {self.plan.epochs}"
                speed = self.train_epoch(stop, progress)
                terms = dict(zip(TERMS, np.mean(state.losses, axis=0).tolist(), strict=True))
                found = self.measure()
                self.refuse_collapse(found)
                self.close_epoch({"epoch": state.epoch + 1, **terms, **found, "images/s": speed})
                if self.best_epoch == state.epoch:
                    self.best = exported(self.model.teacher.body)
                self.save()
                progress.set_postfix({"k-NN": f"{found.get('k-NN', float('nan')):.3f}"})
        return pd.DataFrame(state.history)

    @property
    def best_epoch(self) -> int:
        """Return the epoch with the best k-NN, the first of equals; step 0 is no epoch. Without a monitor: the last."""
        trained = self.state.history[1:]
        order = [(-row["k-NN"], row["epoch"]) if "k-NN" in row else (0, -row["epoch"]) for row in trained]
        return abs(min(order)[1]) if order else 0

    def train_epoch(self, stop: interruptible, progress: Progress) -> float:
        """Make the steps of an epoch that are left, the corpus in a new order; return pictures per second."""
        self.model.train()
        source = np.random.default_rng(number(self.plan.seed, self.state.epoch))
        order = source.permutation(self.part.train)[: self.steps * self.aim.batch]
        return self.make_steps([Batch(rows) for rows in order.reshape(self.steps, -1)], stop, progress)

    def step(self, pictures: Tensor, batch: Batch) -> Tensor:
        """Make one step, everything random of it drawn from its seed; return TERMS."""
        seed = number(self.plan.seed, self.state.epoch, self.state.step)
        self.sow(seed)
        wide, local = self.show(pictures, seed)
        return self.compare(wide, local, self.hide(len(wide), seed), seed)

    def show(self, pictures: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return global views (2 B, 3, S, S) and local ones of pictures, as the network takes them."""
        wide, local = self.maker(pictures, views.draw(self.settings, len(pictures), seed))
        return self.model.encoder.standardise(wide), self.model.encoder.standardise(local)

    def compare(self, wide: Tensor, local: Tensor, mask: Tensor | None, seed: int) -> Tensor:
        """Learn from views: what the teacher says, what the student says, the three losses; return TERMS."""
        done = (self.state.epoch * self.steps + self.state.step) / (self.plan.epochs * self.steps)
        self.set_rates(done)
        targets, patch_targets = self.teach(wide, mask, done)
        with self.model.encoder.autocast(self.bf16):
            features, said, patches = self.answer(wide, local, mask, seed)
        count, tau = len(wide) // views.GLOBAL, self.aim.student_temperature
        dino = losses.dino(said.view(-1, count, said.shape[-1]), targets.view(views.GLOBAL, count, -1), tau)
        ibot = losses.ibot(patches, patch_targets, mask, tau) if mask is not None else dino.new_zeros(())
        spread = [losses.koleo(view) for view in features.chunk(views.GLOBAL)] if self.aim.koleo else [dino * 0]
        koleo = torch.stack(spread).sum()
        total = self.aim.dino * dino + self.aim.ibot * ibot + self.aim.koleo * koleo
        self.learn(total, done)
        return torch.stack([total, dino, ibot, koleo]).detach()

    def hide(self, crops: int, seed: int) -> Tensor | None:
        """Return which patches of the global crops the student does not see, (2 B, N); None without iBOT."""
        if self.model.masking is None:
            return None
        drawn = masks.draw(crops, self.grid, self.aim.masked, self.aim.mask, np.random.default_rng(seed))
        return torch.from_numpy(drawn).to(self.device)

    @torch.no_grad()
    def teach(self, wide: Tensor, mask: Tensor | None, done: float) -> tuple[Tensor, Tensor]:
        """Return the teacher's probabilities for the global views (2 B, K), and for the patches that are hidden (M, K)."""
        teacher, tau = self.model.teacher, self.temperature(done)
        with self.model.encoder.autocast(self.bf16):
            features, tokens = teacher(wide, patches=mask is not None)
            logits = teacher.head(features)
            hidden = teacher.head(behind(tokens, mask)) if mask is not None else logits[:0]
        if self.aim.targets == "sinkhorn":
            return losses.sinkhorn(logits, tau), losses.sinkhorn(hidden, tau) if len(hidden) else hidden
        found = []
        for place, one in enumerate((logits, hidden)):
            found.append(
                losses.centred(one, self.model.centre(place, one, self.aim.centre_momentum), tau) if len(one) else one
            )
        return found[0], found[1]

    def answer(self, wide: Tensor, local: Tensor, mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the student's embeddings of the global views, its answers to all views, and to the hidden patches."""
        student, coins = self.model.student, torch.Generator().manual_seed(seed)
        if self.model.masking:
            self.model.masking.mask = mask
        self.toss(len(wide), coins)
        features, tokens = student(wide, patches=mask is not None)
        if self.model.masking:
            self.model.masking.mask = None
        both = [features]
        if len(local):
            self.toss(len(local), coins)
            both.append(student(local)[0])
        said = student.head(torch.cat(both))
        return features, said, student.head(behind(tokens, mask)) if mask is not None else said[:0]

    def toss(self, crops: int, source: torch.Generator) -> None:
        """Draw which paths the student leaves out in its next pass."""
        coins = torch.rand(crops, len(self.model.paths), generator=source).to(self.device)
        for path in self.model.paths:
            path.coins = coins

    def learn(self, loss: Tensor, done: float) -> None:
        """Follow the gradient, network and head clipped apart; then the teacher follows the student."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        student = self.model.student
        if done < self.aim.frozen:
            student.head.prototypes.grad = None
        for module in (student.body, student.head) if self.aim.clip else ():
            nn.utils.clip_grad_norm_([p for p in module.parameters() if p.grad is not None], self.aim.clip)
        self.optimiser.step()
        self.model.follow(cosine(self.aim.momentum, done))

    def set_rates(self, done: float) -> None:
        """Set learning rates and weight decay of a step; from released weights the heads come first, and all is a tenth."""
        aim, alone = self.aim, self.released and done < self.aim.heads
        peak = aim.rate * math.sqrt(aim.batch / 1024) * (0.1 if self.released else 1.0)
        later = max(0.0, done - aim.warmup) / (1 - aim.warmup)
        rate = peak * done / aim.warmup if done < aim.warmup else cosine([peak, aim.rate_end], later)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
            group["weight_decay"] = cosine(aim.weight_decay, done) if group["decays"] else 0.0
            for tensor in group["params"] if group["part"] == "body" else ():
                tensor.requires_grad_(not alone)

    def temperature(self, done: float) -> float:
        """Return the teacher's temperature: it rises at first, then stays."""
        first, last = self.aim.temperature
        return first + (last - first) * min(1.0, done / self.aim.warm if self.aim.warm else 1.0)

    def measure(self) -> dict[str, float]:
        """Return k-NN and the signs of collapse of the teacher as it is."""
        source, part = np.random.default_rng(number(self.plan.seed, "sample")), self.part
        sample = np.sort(source.permutation(part.train)[: monitor.SAMPLE])
        features, probabilities = self.look(sample, answers=True)
        found = monitor.measures(features, probabilities)
        if part.monitor:
            found["k-NN"] = part.monitor.score(self.look(part.monitor.bank)[0], self.look(part.monitor.queries)[0])
        return found

    @torch.no_grad()
    def look(self, rows: np.ndarray, answers: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the teacher's embeddings of whole pictures (n, D), and its answers (n, K) if asked for."""
        self.model.eval()
        teacher, found, said, size = self.model.teacher, [], [], 2 * self.aim.batch
        tau = self.aim.temperature[1]
        for pictures in self.pictures.batches([rows[start : start + size] for start in range(0, len(rows), size)]):
            x = self.model.encoder.standardise(self.maker.whole(pictures))
            with self.model.encoder.autocast(self.bf16):
                features = teacher(x)[0]
                logits = teacher.head(features) if answers else features[:, :0]
            found.append(features.float().cpu())
            said.append(logits.float().cpu())
        every = torch.cat(said)
        usual = self.model.get_buffer("centres")[0].cpu() if self.model.get_buffer("begun")[0] else every.mean(0)
        return torch.cat(found).numpy(), losses.centred(every, usual, tau).numpy() if answers else every.numpy()

    def refuse_collapse(self, now: dict[str, float]) -> None:
        """Raise Collapsed if the teacher gives the same answer to everything."""
        made, done = (self.state.epoch + 1) * self.steps, (self.state.epoch + 1) / self.plan.epochs
        judged = made > LEAST and done > GRACE
        sign = monitor.collapse(now, self.state.history[0], late=done > LATE) if judged else ""
        if sign:
            how = "lower `rate` or the teacher's `temperature`, or raise `momentum` or `batch`"
            raise Collapsed(f"{self.title} collapsed in epoch {self.state.epoch + 1}: {sign}: {how}")


def behind(tokens: Tensor | None, mask: Tensor) -> Tensor:
    """Return the tokens (M, C) of masked patches; class token and registers stand before the patches."""
    assert tokens is not None
    return tokens[:, tokens.shape[1] - mask.shape[1] :][mask]


def fitting(model: Pair, settings: views.Views) -> views.Views:
    """Return the views with sides that the network takes; one that takes its own size alone sees every crop at that size."""
    own = model.encoder.geometry.size
    if takes(model, settings.size) and (not settings.locals or takes(model, settings.local_size)):
        return settings
    if takes(model, settings.size):
        return replace(settings, local_size=settings.size)
    print(f"{model.encoder.name} takes pictures of {own} pixels alone: every view is as large")
    return replace(settings, size=own, local_size=own)


def exported(body: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network as a plain file names them: without the ``trunk.`` of our adapters, so that timm reads them."""
    found = {
        n.removeprefix("trunk."): one.detach().cpu().clone(memory_format=torch.contiguous_format)
        for n, one in body.state_dict().items()
    }
    assert len(found) == len(body.state_dict()), "two tensors of one name"
    return found
