"""One frozen pass per image: each picture goes through each encoder once, never once per fold.

The result is cached by content: pixels, geometry, weights, pooling, precision, batch size, threads, device and the version
of this step are the key. Work is cut into shards of fixed size, each kept when it is done, so a killed run goes on where it
stopped and gives the same bytes.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from fpbench import artifacts, images, paths
from fpbench.cohorts import Cohort
from fpbench.encoders import Encoder
from fpbench.encoders.fingerprint import same
from fpbench.errors import InputError

VERSION = 1  # of this step; raise it when its numbers change
SHARD = 16  # batches per shard


def embed_cohort(
    encoder: Encoder, cohort: Cohort, batch_size: int = 32, bf16: bool = False, mask: float = 0.0
) -> np.ndarray:
    """Return the embeddings of a cohort, computed once.

    Parameters
    ----------
    encoder
        On the device where it shall run.
    cohort
        N images.
    batch_size
        Images per forward pass; part of the cache key, since it moves the last bits.
    bf16
        Compute under bfloat16 autocast; part of the cache key.
    mask
        Share of width and height that is blackened in each corner of the picture as the encoder gets it.

    Returns
    -------
    numpy.ndarray
        (N, dim) float32, read-only, in the order of ``cohort.frame``.

    Raises
    ------
    InputError
        An embedding is not finite; the message names the image.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    key = embedding_key(encoder, cohort, batch_size, bf16) | ({"mask": mask} if mask else {})
    folder = paths.cache() / "embeddings"

    def build(path: Path) -> None:
        pictures = cohort.array(encoder.geometry)
        rows = batch_size * SHARD
        with tqdm(total=len(pictures), desc=f"{encoder.name} on {cohort.name}", unit="image", disable=None) as progress:
            bounds = [(start, min(start + rows, len(pictures))) for start in range(0, len(pictures), rows)]
            values = np.concatenate(
                [_shard(encoder, pictures, bound, batch_size, bf16, key, progress, mask) for bound in bounds]
            )
        if not (finite := np.isfinite(values).all(axis=1)).all():
            raise InputError(
                f"{encoder.name}: the embedding of {cohort.frame['image_id'][~finite].iloc[0]} is not finite: are the weights whole?"
            )
        with open(path, "wb") as handle:
            np.save(handle, values)

    values = artifacts.cached_array(folder, key, build)
    artifacts.discard(_shards(key))
    return values


def _shards(key: dict) -> Path:
    return paths.cache() / "embeddings" / f"{artifacts.digest(key)[:32]}.shards"


def _shard(
    encoder: Encoder, pictures, bound: tuple[int, int], batch_size: int, bf16: bool, key: dict, progress, mask: float
) -> np.ndarray:
    start, stop = bound

    def build(path: Path) -> None:
        batches = [
            encoder.embed(masked(pictures[first : min(first + batch_size, stop)], mask), bf16)
            for first in range(start, stop, batch_size)
        ]
        with open(path, "wb") as handle:
            np.save(handle, np.concatenate(batches))

    values = artifacts.cached_array(_shards(key), {"rows": bound}, build)
    progress.update(stop - start)
    return values


def masked(pictures: np.ndarray, share: float) -> np.ndarray:
    """Return pictures (B, H, W) or (B, H, W, 3) with their four corners, ``share`` of height and width each, black."""
    if not share:
        return pictures
    pictures, (down, across) = np.array(pictures), (round(share * side) for side in pictures.shape[1:3])
    for rows in (slice(down), slice(pictures.shape[1] - down, None)):
        for columns in (slice(across), slice(pictures.shape[2] - across, None)):
            pictures[:, rows, columns] = 0
    return pictures


def _generation(encoder: Encoder) -> str:
    """Return the digest of the fingerprint under which this encoder's embeddings are kept.

    The versions in the key cannot know that an adapter or a library now computes something else; its fingerprint does. All
    fingerprints ever seen of an encoder are on record: one within tolerance is taken for the same, any other is a new one.
    """
    path = paths.cache() / "fingerprints" / f"{artifacts.digest(encoder.identity())[:32]}.json"
    with artifacts.lock(path):
        try:
            seen = artifacts.read_json(path)["seen"]
        except (FileNotFoundError, InputError):  # damaged: on record anew
            seen = []
        for known in seen:
            if same(known, encoder.fingerprint):
                return known["digest"]
        if seen:
            print(
                f"{encoder.name}: the fingerprint is not the one on record: adapter or library changed; embedding anew"
            )
        artifacts.write_json(path, {"encoder": encoder.name, "seen": [*seen, encoder.fingerprint]})
    return encoder.fingerprint["digest"]


def embedding_key(encoder: Encoder, cohort: Cohort, batch_size: int, bf16: bool) -> dict:
    """Return everything that the embeddings depend on."""
    import torch

    return {
        "step": "embeddings", "generation": _generation(encoder), "version": [VERSION, images.VERSION], "torch": torch.__version__, "encoder": encoder.identity(),
        "pixels": artifacts.digest(cohort.frame["pixels"].tolist()), "batch": batch_size, "bf16": bf16,
        "device": encoder.device.type, "threads": torch.get_num_threads() if encoder.device.type == "cpu" else 0,
    }  # fmt: skip
