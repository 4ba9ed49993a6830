"""A few numbers that say whether an encoder still does what it did: its embedding of one fixed synthetic picture.

Stored with each result, it notices a changed adapter, library or weights file, whatever the version numbers say. An encoder that
has none, because it does not answer the same picture alike (patches masked at random, a dropout that stays on, statistics of the
batch), is refused.
"""

from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from fpbench.encoders import Encoder
from fpbench.errors import InputError
from fpbench.files import fingerprints

if TYPE_CHECKING:
    import torch

SHAPE = (180, 240)  # height, width: neither square nor a multiple of a patch
TOLERANCE = 1e-3  # of the largest number of an embedding, that batches may make


def picture() -> np.ndarray:
    """Return the picture, uint8 (180, 240, 3): integer arithmetic alone, three different channels, edges and slopes."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.int64)
    waves = [(x * x // 61 + y * 3) % 256, (x * y // 37 + 5 * x) % 256, ((x - 120) ** 2 + (y - 70) ** 2) // 97 % 256]
    return np.stack(waves, -1).astype(np.uint8)


def fingerprint(encoder: Encoder) -> dict:
    """Return the fingerprint of an encoder (``files.fingerprints``), as JSON-like values; InputError as ``alike`` has it."""
    import torch

    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):  # the same on every device, to 1e-4
        return fingerprints.of(alike(encoder).astype(np.float64))


def alike(encoder: Encoder) -> np.ndarray:
    """Return the embedding (D,) of the picture, which is the same in a batch.

    The check costs one more pass, with two pictures. What differs there is computed again in float64, which tells a network
    that magnifies rounding (random weights of EfficientNetV2-S) from one that gives another answer.

    Raises
    ------
    InputError
        Another embedding for the same picture twice, or beside another picture: more than TOLERANCE of its largest number apart.
    """
    alone = encoder.embed([picture()])[0]
    if (found := _apart(encoder, alone)) > TOLERANCE and (found := _exactly(encoder, found)) > TOLERANCE:
        again = _distance(encoder.embed([picture()])[0], alone)
        what = "twice" if again > TOLERANCE else "alone and in a batch"
        size = f"apart by {max(found, again):.2g} of its largest number, expected at most {TOLERANCE:g}"
        why = "does it draw at random (masked patches, dropout), or use statistics of the batch? Switch that off in its code"
        raise InputError(f"{encoder.name}: the same picture {what} gives two embeddings, {size}: {why}")
    return alone


def _apart(encoder: Encoder, alone: np.ndarray) -> float:
    """Return how far the picture's embedding beside another one (its negative) is from the one alone."""
    return _distance(encoder.embed([255 - picture(), picture()])[1], alone)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return max |a - b| / max |b|; infinite where a number is none in one of them alone."""
    gap = np.where(np.isnan(one) & np.isnan(other), 0, np.abs(one - other))
    return float(np.nan_to_num(gap, nan=np.inf).max() / max(float(np.nanmax(np.abs(other), initial=0)), 1e-30))


def _exactly(encoder: Encoder, found: float) -> float:
    """Return the same distance in float64, where the module can; else ``found``."""

    class Exact(Encoder):
        def standardise(self, x: "torch.Tensor") -> "torch.Tensor":
            return super().standardise(x).double()

    try:
        own = {field.name: getattr(encoder, field.name) for field in fields(encoder)}
        exact = Exact(**own | {"module": deepcopy(encoder.module).double()})
        return _apart(exact, exact.embed([picture()])[0])
    except (RuntimeError, TypeError):  # a type that is written into the module
        return found
