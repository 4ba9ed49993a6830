"""A few numbers that say whether an encoder still does what it did: its embedding of one fixed synthetic picture.

Stored with each result, it notices a changed adapter, library or weights file, whatever the version numbers say.
"""

import numpy as np

from fpbench.encoders import Encoder
from fpbench.files import fingerprints

SHAPE = (180, 240)  # height, width: neither square nor a multiple of a patch


def picture() -> np.ndarray:
    """Return the picture, uint8 (180, 240, 3): integer arithmetic alone, three different channels, edges and slopes."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.int64)
    waves = [(x * x // 61 + y * 3) % 256, (x * y // 37 + 5 * x) % 256, ((x - 120) ** 2 + (y - 70) ** 2) // 97 % 256]
    return np.stack(waves, -1).astype(np.uint8)


def fingerprint(encoder: Encoder) -> dict:
    """Return the fingerprint of an encoder (``files.fingerprints``), as JSON-like values."""
    import torch

    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):  # the same on every device, to 1e-4
        return fingerprints.of(encoder.embed([picture()])[0].astype(np.float64))
