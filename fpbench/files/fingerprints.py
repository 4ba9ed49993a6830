"""A few numbers that stand for many: whether two long vectors are the same, up to rounding, as JSON-like values."""

import numpy as np

from fpbench.files.artifacts import digest

VALUES = 16  # spread over the embedding
DIGITS = 4  # significant; beyond them threads and batch sizes show


def of(vector: np.ndarray) -> dict:
    """Return the fingerprint of a vector (D,).

    Returns
    -------
    dict
        ``dim``; ``norm``; ``values``: VALUES of its entries, evenly spread; ``digest`` over all entries, each rounded to DIGITS
        significant digits: equal digests mean equal, different ones need ``difference``.
    """
    rounded = [float(f"{value:.{DIGITS - 1}e}") for value in vector]
    spread = np.linspace(0, len(rounded) - 1, VALUES).astype(int)
    norm = float(f"{np.linalg.norm(vector):.{DIGITS - 1}e}")
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
