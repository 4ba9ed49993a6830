"""Pack the pictures and label files of a study into one small file: ``python tools/pack.py STUDY OUT.zip [--bytes 8000000]``.

For a machine that takes only small uploads. The folders lie in the file as they lie below FPBENCH_SHARED, so there: unzip it, set
FPBENCH_SHARED to where it was unzipped, run the study. Pictures keep their names and are JPEG inside, grey, made smaller until all fit:
scores of a packed sample are those of other pixels, and no number of it belongs beside one of the archive. Weights travel apart.
"""

import argparse
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fpbench import images, load_study, loading
from fpbench.cohorts import list_images
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.study import Study
from fpbench.training.pretraining.corpus import place

SIDES, QUALITY = (640, 480, 400, 320, 256, 224, 192, 160, 128, 96), 80  # the longer side, pixels; of JPEG


def contents(study: Study) -> tuple[list[Path], list[Path]]:
    """Return the label files, and the pictures that are there, of the study's cohorts and of what its pretrainings learn from."""
    wanted = {loading.where(study, spec): spec.missing for spec in study.cohorts}
    for spec in (spec for plan in study.pretraining.values() for spec in plan.corpus if not spec.folder):
        wanted.setdefault(place(study, spec), spec.missing)
    labels: dict[Path, None] = {}
    pictures: dict[Path, None] = {}
    for (name, root), missing in wanted.items():
        source, folder, rows, there = list_images(name, root, missing)
        labels[source.table.path if source.table else folder / source.csv] = None
        pictures |= dict.fromkeys(images.decoding.file_of(path) for path in rows["path"][there])
    return list(labels), list(pictures)


def small(path: Path, side: int) -> bytes:
    """Return a picture as a grey JPEG whose longer side is at most ``side`` pixels."""
    array = images.decode(path)
    picture = Image.fromarray(array if array.ndim == 2 else array.mean(-1).astype(np.uint8))
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=QUALITY, optimize=True)
    return held.getvalue()


def pack(study: Study, limit: int) -> tuple[bytes, int, int]:
    """Return the file, the side that its pictures have, and how many there are; InputError where the smallest side is too large."""
    labels, pictures = contents(study)
    base = paths.shared().resolve()
    if outside := [path for path in (*labels, *pictures) if not path.resolve().is_relative_to(base)]:
        raise InputError(f"expected all of it below FPBENCH_SHARED ({base}), found {outside[0]}")
    for side in SIDES:
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda path, side=side: small(path, side), pictures))
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in labels:
                archive.writestr(path.resolve().relative_to(base).as_posix(), path.read_bytes())
            for path, content in zip(pictures, made, strict=True):
                archive.writestr(path.resolve().relative_to(base).as_posix(), content, zipfile.ZIP_STORED)
        if len(held.getvalue()) <= limit:
            return held.getvalue(), side, len(pictures)
    raise InputError(
        f"expected at most {limit:,} bytes, found {len(held.getvalue()):,} with sides of {SIDES[-1]} pixels"
    )


def main() -> None:
    """Pack, write, say what was done."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("study")
    made.add_argument("out", type=Path)
    made.add_argument("--bytes", type=int, default=8_000_000)
    args = made.parse_args()
    content, side, count = pack(load_study(args.study), args.bytes)
    with artifacts.atomic(args.out) as path:
        path.write_bytes(content)
    print(f"{args.out}: {count:,} pictures, sides up to {side} pixels, {len(content):,} bytes")


if __name__ == "__main__":
    main()
