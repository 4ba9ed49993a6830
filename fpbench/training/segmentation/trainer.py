"""What a segmenter learns from, its loss, and its steps in the loop of fine-tuning."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpbench.cohorts import Cohort
from fpbench.encoders import Encoder
from fpbench.errors import InputError
from fpbench.tasks import Task
from fpbench.training import augmentation
from fpbench.training.finetuning import Part, Pictures, Plan, Trainer
from fpbench.training.segmentation.decoder import Segmenter

FOREGROUND = {"usable": (1, 2), "optimal": (1,)}  # label column of a task -> values of a mask: 1 optimal, 2 sub-optimal


@dataclass(frozen=True, kw_only=True)
class MaskedPart(Part):
    """What a segmenter learns from: masks beside the pictures."""

    masks: Pictures  # uint8 (N, S, S), of the same rows
    foreground: tuple[int, ...]  # values of a mask that are to be found


class Loss(nn.Module):
    """Soft Dice loss over all pixels of a batch, plus their mean cross-entropy (nats).

    Where a batch has no foreground there is no Dice to speak of: that part is 0, as FetalCLIP-IQA counts it, and cross-entropy alone
    teaches to find nothing.
    """

    def forward(self, pixels: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of logits (B, S, S) and foreground (B, S, S), 0 or 1."""
        p = pixels.sigmoid()
        dice = 2 * (p * truth).sum() / (p.sum() + truth.sum()).clamp(min=1)
        return functional.binary_cross_entropy_with_logits(pixels, truth) + (1 - dice) * truth.any()


class SegmentationTrainer(Trainer):
    """One training run of a decoder. Picture and mask are moved alike; the whole batch passes the decoder at once."""

    model: Segmenter
    part: MaskedPart

    def criterion(self) -> nn.Module:
        """Return the loss of a segmenter."""
        return Loss()

    def descend(self, pictures: Tensor, batch: Plan) -> Tensor:
        """Set the gradient of a batch; return its loss."""
        model, part = self.model, self.part
        (masks,) = part.masks.batches([batch.rows])
        x = augmentation.apply(model.encoder.colours(pictures), batch.changes, self.noise)
        truth = augmentation.moved(foreground(masks, part.foreground)[:, None], batch.changes, "nearest")[:, 0]
        with model.encoder.autocast(model.bf16):
            found = model.pixels(model.encoder.standardise(x))
        loss = self.loss(found.float(), truth)
        loss.backward()
        return loss.detach()


def target(task: Task) -> tuple[int, tuple[int, ...]]:
    """Return the index of a task's positive class, and the values of a mask that speak for it; InputError where masks say nothing of it."""
    if task.label not in FOREGROUND or len(task.classes) != 2 or not task.positive:
        wanted = f"expected a task with a positive class in the column {' or '.join(FOREGROUND)}"
        raise InputError(
            f"segmentation: {wanted}, found {task.name} ({task.label}): take segmentation out of the study"
        )
    return task.codes([task.positive])[0], FOREGROUND[task.label]


def masks(cohort: Cohort, encoder: Encoder) -> Pictures:
    """Return the masks of a cohort as an encoder sees its pictures; InputError where there are none."""
    return Pictures(cohort.masks(replace(encoder.geometry, interpolation="nearest")), encoder.device)


def foreground(masks: Tensor, values: tuple[int, ...]) -> Tensor:
    """Return which pixels are to be found, 0 or 1, float32."""
    return torch.isin(masks, torch.tensor(values, dtype=masks.dtype, device=masks.device)).float()
