"""What an encoder sees, what moves it, and what it costs: measurements on a few pictures, for notebook 03.

Works on encoders and pictures, knows no cohorts. Embeddings are (N, D) float32; pictures are uint8 arrays of any size.
"""

import ctypes
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench.encoders import Encoder

VARIANTS = ("squash", "resize_crop", "pad_square")  # the three ways to make a square of a picture


def feature_maps(encoder: Encoder, pictures: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the last features of every picture as colours: their first three principal components.

    Returns
    -------
    numpy.ndarray or None
        (B, h, w, 3) in [0, 1], one set of components for all pictures; None if the module does not show a grid.
    """
    import torch

    from fpbench.encoders.adapters.tower import grid

    with torch.inference_mode():
        maps = grid(encoder.module, encoder.normalise(torch.from_numpy(np.array(encoder.prepare(pictures)))))
    if maps is None:
        return None
    features = maps.float().cpu().numpy()
    flat = features.reshape(-1, features.shape[-1]) - features.mean(axis=(0, 1, 2))
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    directions *= np.sign(directions.sum(axis=1, keepdims=True))  # an SVD leaves the signs open
    colours = flat @ directions[:3].T
    low, high = np.percentile(colours, (1, 99), axis=0)
    return np.clip((colours - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*features.shape[:3], -1)


@dataclass(frozen=True)
class Sight:
    """What an encoder makes of some pictures."""

    encoder: str
    geometry: str  # kind and size
    pictures: list[np.ndarray]  # as the encoder gets them, uint8
    features: np.ndarray | None  # of ``feature_maps``


def sights(encoders: Sequence[Encoder], pictures: Sequence[np.ndarray]) -> list[Sight]:
    """Return what each encoder makes of some pictures."""
    return [
        Sight(
            one.name,
            f"{one.geometry.kind} {one.geometry.size}",
            [one.geometry(picture) for picture in pictures],
            feature_maps(one, pictures),
        )
        for one in encoders
    ]


def alignment(one: np.ndarray, other: np.ndarray) -> float:
    """Return the debiased linear CKA of two embeddings of the same N pictures, (N, D1) and (N, D2).

    1: the same up to rotation and scale; about 0: unrelated. Unlike the plain estimate it does not grow with D / N
    (Song et al. 2012, doi:10.5555/2503308.2343691; Kornblith et al. 2019, arXiv:1905.00414). NaN below 4 pictures.
    """
    if len(one) < 4:
        return float("nan")
    grams = [(x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T for x in (one.astype(np.float64), other.astype(np.float64))]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    cross, first, second = (_hsic(grams[i], grams[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return float(cross / np.sqrt(first * second)) if first > 0 and second > 0 else float("nan")


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Return the unbiased estimate of the Hilbert-Schmidt independence criterion, up to n (n - 3); diagonals are zero."""
    n = len(k)
    rows = k.sum(axis=0) @ m.sum(axis=0)
    return float((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * rows / (n - 2))


def alignments(embedded: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the alignment of every pair of encoders, a symmetric table."""
    return pd.DataFrame({one: {other: alignment(x, y) for other, y in embedded.items()} for one, x in embedded.items()})


def sensitivity(encoder: Encoder, pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """Return how far each geometry moves an embedding, in units of the distance between two pictures.

    For every geometry of VARIANTS, at the encoder's own size: the mean cosine distance between a picture's embedding and the
    one in the encoder's own geometry, divided by the mean cosine distance between different pictures in its own geometry. 0:
    nothing changes; 1: a picture moves as far as to another picture.
    """
    own = _directions(encoder, pictures)
    spread = 1 - (own @ own.T)[~np.eye(len(own), dtype=bool)].mean()
    found = {}
    for kind in VARIANTS:
        other = replace(encoder, geometry=replace(encoder.geometry, kind=kind, crop=1.0))
        moved = own if kind == encoder.geometry.kind else _directions(other, pictures)
        found[kind] = max(0.0, float((1 - (own * moved).sum(axis=1)).mean() / max(spread, 1e-12)))
    return found


def _directions(encoder: Encoder, pictures: Sequence[np.ndarray], batch: int = 8) -> np.ndarray:
    parts = [encoder.embed(pictures[start : start + batch]) for start in range(0, len(pictures), batch)]
    vectors = np.concatenate(parts).astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cost(
    encoder: Encoder, batch_size: int, bf16: bool = False, seconds: float = 1.0, least: int = 3
) -> dict[str, float]:
    """Measure ``embed`` on this device with batches of noise: median images per second, peak memory in MiB.

    As many batches as fit into ``seconds``, and no fewer than ``least``.
    Memory is what batches add to the size of the process (CPU, Linux) or to what torch holds (GPU); NaN elsewhere.
    """
    size = encoder.geometry.size
    batch = np.random.default_rng(0).integers(0, 256, (batch_size, size, size), np.uint8)
    encoder.embed(batch[:1], bf16)  # kernels are chosen and memory is laid out at the first call
    reset_peak(encoder)
    rates: list[float] = []
    before, stop = peak(encoder), time.perf_counter() + seconds
    while len(rates) < least or time.perf_counter() < stop:
        start = time.perf_counter()
        encoder.embed(batch, bf16)
        rates.append(batch_size / (time.perf_counter() - start))
    return {"images/s": float(np.median(rates)), "peak memory (MiB)": (peak(encoder) - before) / 2**20}


def reset_peak(encoder: Encoder) -> None:
    """Begin a new measurement of ``peak``, freed pages given back: what is computed next would hide in them."""
    if encoder.device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(encoder.device)
    with suppress(OSError, AttributeError):  # Linux with the GNU C library
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak(encoder: Encoder) -> float:
    """Return bytes: the most that torch held on the GPU, or the largest size of this process, since the reset."""
    if encoder.device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(encoder.device))
    with suppress(OSError):
        return float(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return float("nan")
