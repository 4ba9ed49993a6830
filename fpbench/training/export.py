"""Embeddings for other programs: pictures named in any way in, one table out, with its provenance inside.

What is named together is embedded together: a cohort in the order of its frame, a folder or a pattern in the order of paths. So the
vectors are, bit for bit, those of a study with the same encoder, batch size and threads.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fpbench import cohorts, images
from fpbench.cohorts.pictures import short, tidy
from fpbench.encoders import Encoder
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, provenance
from fpbench.images.folders import below, check_names
from fpbench.training.embeddings import embed_cohort, embed_images

FORMATS = (".parquet", ".npz")
METADATA = b"fpbench"  # key of the provenance in a parquet file; in .npz, an array "provenance"
Embed = Callable[[Encoder, int, bool], np.ndarray]  # encoder, batch size, bf16 -> (n, D)


@dataclass(frozen=True)
class Pictures:
    """Pictures that are embedded together."""

    name: str
    image_ids: list[str]
    paths: list[Path]
    embed: Embed
    notes: list[str]  # what was done to some of them


def find(asked: str, known: dict[str, tuple] | None = None, bits: int = 0) -> Pictures:
    """Return the pictures that a word of the command line names.

    Parameters
    ----------
    asked
        A folder (all pictures below it, hidden ones left out), a file or frame ``FILE#k``, a pattern, a YAML file that describes a
        cohort, or the name of a cohort.
    known
        Cohorts of a study by name: arguments of ``load_cohort``.
    bits
        Of pictures that hold more than 8; a cohort says it itself.

    Raises
    ------
    MissingError
        Nothing of that name.
    """
    path, known = Path(asked), known or {}
    if asked in known or (asked in cohorts.SOURCES and not path.exists()) or path.suffix.lower() in (".yaml", ".yml"):
        cohort = cohorts.load_cohort(*known.get(asked, (asked,)))
        frame = cohort.frame
        embed = partial(_of_cohort, cohort)
        return Pictures(cohort.name, frame["image_id"].tolist(), frame["path"].tolist(), embed, images.notes(frame))
    if os.path.isdir(path):
        files = below(path)
        names = [str(file.relative_to(path)) for file in files]
    elif os.path.isfile(images.file_of(path)):
        files, names = [path], [path.name]
    else:
        files = [Path(found) for found in sorted(glob(asked, recursive=True)) if os.path.isfile(found)]
        names = [str(file) for file in files]
    if not files:
        kind = "pattern" if has_magic(asked) else "folder, file, pattern or cohort"
        raise MissingError(f"{asked}: expected a {kind} with pictures, found none")
    check_names(files)
    looked = images.scan(files, bits)
    if (bad := looked["error"] != "").any():
        first = looked.loc[bad, "error"].iat[0]
        raise InputError(f"{asked}: {bad.sum():,} of {len(files):,} pictures cannot be read, the first: {first}")
    embed = partial(_of_files, files, bits, asked)
    return Pictures(asked, [short(tidy(name)) for name in names], files, embed, images.notes(looked))


def _of_cohort(cohort: cohorts.Cohort, encoder: Encoder, batch_size: int, bf16: bool) -> np.ndarray:
    return embed_cohort(encoder, cohort, batch_size, bf16)


def _of_files(files: Sequence[Path], bits: int, name: str, encoder: Encoder, batch_size: int, bf16: bool) -> np.ndarray:
    return embed_images(encoder, files, batch_size, bf16, bits, name)


def export(encoder: Encoder, found: Sequence[Pictures], out: Path, batch_size: int = 32, bf16: bool = False) -> Path:
    """Embed pictures and write one table: image_id, path, e0, e1, ...; or arrays of these names and ``embeddings``.

    Work that was interrupted goes on where it stopped; the file is there when it is whole.

    Raises
    ------
    InputError
        Another suffix than FORMATS, or an image_id that stands twice.
    """
    if out.suffix not in FORMATS:
        raise InputError(f"{out}: expected a file {' or '.join(FORMATS)}, found {out.suffix or 'no suffix'}")
    ids = pd.Series([name for one in found for name in one.image_ids])
    if (twice := ids.duplicated()).any():
        first = ids[twice].iat[0]
        raise InputError(f"{int(twice.sum())} pictures are named twice, the first is {first}: embed them apart")
    files = [str(path) for one in found for path in one.paths]
    vectors = np.concatenate([one.embed(encoder, batch_size, bf16) for one in found])
    about = json.dumps(_about(encoder, found, batch_size, bf16))
    out.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.atomic(out) as temporary:
        if out.suffix == ".npz":
            with open(temporary, "wb") as handle:
                np.savez(
                    handle,
                    image_id=ids.to_numpy(str),
                    path=np.array(files),
                    embeddings=vectors,
                    provenance=np.array(about),
                )
        else:
            columns = {f"e{i}": pa.array(column) for i, column in enumerate(vectors.T)}
            table = pa.table({"image_id": pa.array(ids), "path": pa.array(files), **columns})
            pq.write_table(table.replace_schema_metadata({METADATA: about.encode()}), temporary)
    return out


def _about(encoder: Encoder, found: Sequence[Pictures], batch_size: int, bf16: bool) -> dict:
    import torch

    return {
        "encoder": {"name": encoder.name, **encoder.identity(), "weights": asdict(encoder.weights)},
        "fingerprint": encoder.fingerprint,
        "pictures": {one.name: len(one.image_ids) for one in found},
        "batch_size": batch_size,
        "bf16": bf16,
        "device": str(encoder.device),
        "threads": torch.get_num_threads(),
        "provenance": provenance.provenance(),
    }
