"""Student and teacher: two copies of an encoder's network with a head each, one that learns and one that follows it.

Shapes: B crops, D numbers of an embedding, N patches, K prototypes.
"""

import copy
import math
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpbench.encoders import Encoder
from fpbench.encoders.adapters.tower import Tower
from fpbench.errors import InputError
from fpbench.recipe import Objective
from fpbench.training.adaptation import POSITIONS, DropPath, drop_paths, is_transformer, layers
from fpbench.training.pretraining.masks import Masking


class Head(nn.Module):
    """Three layers, a bottleneck of length 1, and the cosine with each prototype: (B, D) to (B, K)."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int, batchnorm: bool = False) -> None:
        super().__init__()
        widths = (dim, hidden, hidden, bottleneck)
        linear = [nn.Linear(one, other) for one, other in pairwise(widths)]
        inner = [[nn.BatchNorm1d(hidden), nn.GELU()] if batchnorm else [nn.GELU()] for _ in range(2)]
        self.mlp = nn.Sequential(linear[0], *inner[0], linear[1], *inner[1], linear[2])
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for weight in (*(layer.weight for layer in linear), self.prototypes):
            nn.init.trunc_normal_(weight, std=0.02)
        for layer in linear:
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines."""
        return functional.linear(
            functional.normalize(self.mlp(x), dim=-1), functional.normalize(self.prototypes, dim=-1)
        )


class Branch(nn.Module):
    """A network and its head."""

    def __init__(self, body: nn.Module, head: Head) -> None:
        super().__init__()
        self.body: Any = body
        self.head = head

    def forward(self, x: Tensor, patches: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return embeddings (B, D) of normalised crops, and, if asked for, what the network says of their patches (B, N', C)."""
        if not patches:
            return self.body(x), None
        tower = isinstance(self.body, Tower)  # else of timm
        tokens = self.body.features(x) if tower else self.body.forward_features(x)
        pooled = self.body.pool(tokens) if tower else self.body.forward_head(tokens)
        return pooled, tokens.flatten(1, -2)


class Pair(nn.Module):
    """Student, teacher and the teacher's centres; the two share no tensor."""

    def __init__(self, encoder: Encoder, prototypes: int, objective: Objective, seed: int) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = Head(encoder.dim, objective.hidden, objective.bottleneck, prototypes, objective.head_batchnorm)
        body = any_size(copy.deepcopy(encoder.module))
        self.student, self.teacher = (Branch(copy.deepcopy(body), copy.deepcopy(head)) for _ in range(2))
        self.teacher.requires_grad_(False)
        self.masking = Masking(self.student.body) if objective.ibot else None
        self.paths: list[DropPath] = drop_paths(self.student.body, objective.drop_path)
        self.register_buffer("centres", torch.zeros(2, prototypes))  # of crops, of patches
        self.register_buffer("begun", torch.zeros(2, dtype=torch.bool))
        self.frozen = objective.batchnorm == "frozen"
        self.to(encoder.device).eval()
        if not is_transformer(self.student.body):
            self.to(memory_format=torch.channels_last)  # convolutions and pools are faster so
        if self.masking:
            self._fit_mask(self.masking)

    def _fit_mask(self, masking: Masking) -> None:
        """Learn the length of a patch from one picture; InputError where crops and patches cannot share a head."""
        size = self.encoder.geometry.size
        with torch.no_grad():
            _, tokens = self.student(torch.zeros(1, 3, size, size, device=self.encoder.device), patches=True)
        masking.size(masking.dim)
        patches = masking.grid[0] * masking.grid[1]
        if tokens is None or tokens.shape[1] < patches or tokens.shape[2] != self.encoder.dim:
            found = "none" if tokens is None else f"{tokens.shape[1]} tokens of {tokens.shape[2]}"
            wanted = f"expected {patches} patches of {self.encoder.dim} numbers as the embedding, found {found}"
            raise InputError(f"{self.encoder.name}: iBOT: {wanted}: choose pooling cls or token, or write `ibot: 0.0`")

    def grid(self, size: int) -> tuple[int, int]:
        """Return into how many patches, down and across, a crop is cut."""
        with torch.no_grad():
            self.student.body(torch.zeros(1, 3, size, size, device=self.encoder.device))
        return self.masking.grid if self.masking else (0, 0)

    def train(self, mode: bool = True) -> "Pair":
        """Switch to training: of the teacher only BatchNorm, which keeps statistics of its own; of a network's none if they are frozen."""
        super().train(mode)
        self.teacher.eval()
        for branch in (self.student, self.teacher):
            for part, live in ((branch.body, not self.frozen), (branch.head, True)):
                for module in part.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.train(mode and live)
        return self

    def follow(self, momentum: float) -> None:
        """Let the teacher's parameters follow the student's."""
        own: list[Tensor] = [*self.teacher.parameters()]
        new: list[Tensor] = [*self.student.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(own, new, 1 - momentum)

    def centre(self, place: int, logits: Tensor, momentum: float) -> Tensor:
        """Return a centre, of crops (0) or patches (1), as it was; it starts at the mean of the first batch, then moves on."""
        centres, mean = self.get_buffer("centres"), logits.float().mean(0)
        begun = self.get_buffer("begun")
        now = torch.where(begun[place], centres[place], mean)
        centres[place] = now.lerp(mean, 1 - momentum)
        begun[place] = True
        return now

    def changing(self) -> dict[str, Tensor]:
        """Return every tensor that training may change, by name: what a checkpoint holds."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``changing`` returned."""
        with torch.no_grad():
            for name, tensor in self.changing().items():
                tensor.copy_(tensors[name])

    def groups(self) -> list[dict]:
        """Return parameter groups for AdamW: ``part`` (body, head, prototypes), ``factor`` of the rate, ``decays``.

        Block i of n gets ``layer_decay ** (n + 1 - i)`` if the network is a transformer, what cuts patches ``patch_factor`` besides.
        """
        body, aim = self.student.body, self.objective
        depth, attends = layers(body), is_transformer(body)
        top = max(depth.values())
        found: dict[tuple[str, float, bool], list[Tensor]] = {}
        for name, tensor in body.named_parameters():
            factor = aim.layer_decay ** (top - depth[name]) if attends else 1.0
            factor *= aim.patch_factor if attends and "patch_embed" in name else 1.0
            decays = tensor.ndim > 1 and not any(word in name for word in POSITIONS)
            found.setdefault(("body", factor, decays), []).append(tensor)
        for name, tensor in self.student.head.named_parameters():
            part = "prototypes" if name == "prototypes" else "head"
            found.setdefault((part, 1.0, tensor.ndim > 1), []).append(tensor)
        if self.masking:
            found.setdefault(("body", 1.0, False), []).append(self.masking.token)
        return [{"params": tensors, "part": part, "factor": f, "decays": d} for (part, f, d), tensors in found.items()]


def any_size(body: nn.Module) -> nn.Module:
    """Let a vision transformer of timm take crops of any size, where it can: position tables are resized on the way; return it."""
    module: Any
    for module in body.modules():
        if getattr(module, "dynamic_img_size", None) is False and hasattr(module, "patch_embed"):
            module.dynamic_img_size = True
            patches = module.patch_embed
            patches.strict_img_size, patches.flatten = False, False
            patches.output_fmt = type(patches.output_fmt).NHWC
    return body


def takes(pair: Pair, size: int) -> bool:
    """Return whether the network answers to crops of a side."""
    with suppress(RuntimeError, AssertionError, ValueError), torch.no_grad():
        pair.teacher(torch.zeros(1, 3, size, size, device=pair.encoder.device))
        return True
    return False


def shared(one: nn.Module, other: nn.Module) -> list[str]:
    """Return the names of the tensors of one module that lie in the memory of another."""
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors(other)}
    named = (*one.named_parameters(), *one.named_buffers())
    return [name for name, tensor in named if tensor.untyped_storage().data_ptr() in places]


def tensors(module: nn.Module) -> Iterable[Tensor]:
    """Return parameters and buffers."""
    return (*module.parameters(), *module.buffers())


def cosine(pair: list[float], done: float) -> float:
    """Return the value at the share ``done`` of all steps on the way from the first to the last."""
    first, last = pair
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))
