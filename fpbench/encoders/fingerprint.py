"""A few numbers that say whether an encoder still does what it did: its embedding of one fixed synthetic picture.

Stored with each result, it notices a changed adapter, library or weights file, whatever the version numbers say.
"""

import numpy as np

from fpbench.artifacts import digest
from fpbench.encoders import Encoder

SHAPE = (180, 240)  # height, width: neither square nor a multiple of a patch
VALUES = 16  # spread over the embedding
DIGITS = 4  # significant; beyond them threads and batch sizes show


def picture() -> np.ndarray:
    """Return the picture, uint8 (180, 240, 3): integer arithmetic alone, three different channels, edges and slopes."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.int64)
    waves = [(x * x // 61 + y * 3) % 256, (x * y // 37 + 5 * x) % 256, ((x - 120) ** 2 + (y - 70) ** 2) // 97 % 256]
    return np.stack(waves, -1).astype(np.uint8)


def fingerprint(encoder: Encoder) -> dict:
    """Return the fingerprint of an encoder, as JSON-like values.

    Returns
    -------
    dict
        ``dim``; ``norm`` of the embedding; ``values``: VALUES of its entries, evenly spread; ``digest`` over all entries,
        each rounded to DIGITS significant digits: equal digests mean equal, different ones need ``difference``.
    """
    import torch

    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):  # the same on every device, to 1e-4
        embedding = encoder.embed([picture()])[0].astype(np.float64)
    rounded = [float(f"{value:.{DIGITS - 1}e}") for value in embedding]
    spread = np.linspace(0, len(rounded) - 1, VALUES).astype(int)
    norm = float(f"{np.linalg.norm(embedding):.{DIGITS - 1}e}")
    return {"dim": len(rounded), "norm": norm, "values": [rounded[i] for i in spread], "digest": digest(rounded)[:16]}


def difference(one: dict, other: dict) -> float:
    """Return how far two fingerprints are apart: max |a - b| / max |b| over values and norm; infinite if dims differ."""
    if one["dim"] != other["dim"]:
        return float("inf")
    if one["digest"] == other["digest"]:
        return 0.0
    a, b = (np.array([*found["values"], found["norm"]]) for found in (one, other))
    scale = np.append(np.full(VALUES, np.abs(b[:-1]).max()), b[-1])
    return float((np.abs(a - b) / np.maximum(scale, 1e-30)).max())


def same(one: dict, other: dict, tolerance: float = 2e-3) -> bool:
    """Return whether two fingerprints are of one encoder; the default allows another machine, not bfloat16."""
    return difference(one, other) <= tolerance
