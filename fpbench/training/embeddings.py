"""One frozen pass per image: each picture goes through each encoder once, never once per fold.

The result is cached by content: pixels, geometry, weights, pooling, precision, batch size, threads, device and the version
of this step are the key. Work is cut into shards of fixed size, each kept when it is done, so a killed run goes on where it
stopped and gives the same bytes.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench import images, loading
from fpbench.cohorts import Cohort
from fpbench.encoders import Encoder
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.files.fingerprints import same
from fpbench.files.progress import Progress
from fpbench.study import Study

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
    frame = cohort.frame
    pictures = partial(cohort.array, encoder.geometry)
    return _embedded(encoder, cohort.name, pictures, frame["image_id"], frame["pixels"], batch_size, bf16, mask)


def embed_images(
    encoder: Encoder,
    files: Sequence[str | Path],
    batch_size: int = 32,
    bf16: bool = False,
    bits: int = 0,
    name: str = "pictures",
) -> np.ndarray:
    """Return the embeddings of picture files, computed once: as ``embed_cohort`` of a cohort that lists them in this order.

    Parameters
    ----------
    files
        N paths; ``FILE#k`` is frame k of a stack.
    bits
        Of pictures that hold more than 8, as of ``images.decode``.
    name
        What they are called while one waits.

    Returns
    -------
    numpy.ndarray
        (N, dim) float32, read-only, in the order of ``files``.

    Raises
    ------
    InputError
        No files, one that is no picture, or an embedding that is not finite; the message names the file.
    """
    listed = [Path(file) for file in files]
    if not listed:
        raise InputError("expected picture files to embed, found none")
    looked = images.scan(listed, bits)
    pictures = partial(images.cached_images, listed, looked, encoder.geometry, bits)
    return _embedded(encoder, name, pictures, pd.Series(map(str, listed)), looked["pixels"], batch_size, bf16, 0.0)


def _embedded(
    encoder: Encoder,
    name: str,
    pictures_of: Callable[[], np.ndarray],
    names: pd.Series,
    pixels: pd.Series,
    batch_size: int,
    bf16: bool,
    mask: float,
) -> np.ndarray:
    """Return embeddings from the cache, or compute and keep them; ``pictures_of`` is asked for the pictures only then."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    key = _key(encoder, pixels, batch_size, bf16) | ({"mask": mask} if mask else {})
    folder = paths.cache() / "embeddings"
    shards = folder / f"{artifacts.digest(key)[:32]}.shards"

    def build(path: Path) -> None:
        pictures, rows, parts = pictures_of(), batch_size * SHARD, []
        with Progress(total=len(pictures), desc=f"{encoder.name} on {name}", unit="image") as progress:
            for start in range(0, len(pictures), rows):
                bounds = (start, min(start + rows, len(pictures)))
                shard = partial(_shard, encoder, pictures[slice(*bounds)], batch_size, bf16, mask)
                parts.append(artifacts.cached_array(shards, {"rows": bounds}, shard))
                progress.update(len(parts[-1]))
        values = np.concatenate(parts)
        if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=1))):
            first = names.iat[bad[0]]
            raise InputError(f"{encoder.name}: the embedding of {first} is not finite: are the weights whole?")
        _save(path, values)

    values = artifacts.cached_array(folder, key, build)
    artifacts.discard(shards)
    return values


def _shard(encoder: Encoder, pictures: np.ndarray, batch_size: int, bf16: bool, mask: float, path: Path) -> None:
    batches = (pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size))
    _save(path, np.concatenate([encoder.embed(masked(batch, mask), bf16) for batch in batches]))


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as handle:  # given a name, NumPy would add its suffix
        np.save(handle, values)


def masked(pictures: np.ndarray, share: float) -> np.ndarray:
    """Return pictures (B, H, W) or (B, H, W, 3) with their four corners, ``share`` of height and width each, black."""
    if not share:
        return pictures
    pictures, sides = np.array(pictures), [(side, round(share * side)) for side in pictures.shape[1:3]]
    pictures[:, *np.ix_(*(np.r_[:edge, side - edge : side] for side, edge in sides))] = 0
    return pictures


def embedding_map(study: Study, encoder: str, cohorts: Sequence[Cohort], most: int = 2000) -> pd.DataFrame:
    """Return a t-SNE map (on 50 principal components) of an encoder's embeddings of the images of the task.

    Returns
    -------
    pandas.DataFrame
        Columns x, y, class, cohort; at most ``most`` rows, drawn with the study's seed.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    spec, model, task = study.encoder_spec(encoder), loading.load_encoder(study, encoder), study.the_task
    X = np.concatenate([embed_cohort(model, cohort, spec.batch_size, spec.bf16) for cohort in cohorts])
    frame = pd.concat([cohort.frame.assign(cohort=cohort.name) for cohort in cohorts], ignore_index=True)
    rows = frame.index[frame[task.label].isin(task.classes)]
    rows = rows if len(rows) <= most else rows[np.random.default_rng(study.seed).permutation(len(rows))[:most]]
    reduced = PCA(min(50, len(rows) - 1, X.shape[1]), random_state=study.seed).fit_transform(X[rows])
    points = TSNE(random_state=study.seed, perplexity=min(30, len(rows) / 4)).fit_transform(reduced)
    shown = frame.loc[rows].assign(x=points[:, 0], y=points[:, 1]).rename(columns={task.label: "class"})
    return shown[["x", "y", "class", "cohort"]]


def _generation(encoder: Encoder) -> str:
    """Return the digest of the fingerprint under which this encoder's embeddings are kept.

    The versions in the key cannot know that an adapter or a library now computes something else; its fingerprint does. All
    fingerprints ever seen of an encoder are on record: one within tolerance is taken for the same, any other is a new one.
    """
    path = paths.cache() / "fingerprints" / f"{artifacts.digest(encoder.identity())[:32]}.json"
    with artifacts.lock(path):
        try:
            seen = artifacts.read_json(path)["seen"]
        except (OSError, InputError):  # damaged, or closed to us: on record anew
            seen = []
        for known in seen:
            if same(known, encoder.fingerprint):
                return known["digest"]
        if seen:
            changed = "the fingerprint is not the one on record: adapter or library changed"
            print(f"{encoder.name}: {changed}; embedding anew")
        with suppress(PermissionError):  # the cache is another user's
            artifacts.write_json(path, {"encoder": encoder.name, "seen": [*seen, encoder.fingerprint]})
    return encoder.fingerprint["digest"]


def embedding_key(encoder: Encoder, cohort: Cohort, batch_size: int, bf16: bool) -> dict:
    """Return everything that the embeddings of a cohort depend on."""
    return _key(encoder, cohort.frame["pixels"], batch_size, bf16)


def _key(encoder: Encoder, pixels: pd.Series, batch_size: int, bf16: bool) -> dict:
    import torch

    return {
        "step": "embeddings", "generation": _generation(encoder), "version": [VERSION, images.VERSION], "torch": torch.__version__, "encoder": encoder.identity(),
        "pixels": artifacts.digest(pixels.tolist()), "batch": batch_size, "bf16": bf16,
        "device": encoder.device.type, "threads": torch.get_num_threads() if encoder.device.type == "cpu" else 0,
    }  # fmt: skip
