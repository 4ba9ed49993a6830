"""The squares of a whole study: one pass over the picture files against a pass for every geometry.

    python benchmarks/geometries.py [--images 1500] [--large 200] [--repeats 2]

Grey pictures of 959 x 661 pixels (twice the median sides of the real Spanish sample, which is at half size), a fan of speckle on black, made with NumPy
and saved as PNG. ``geometries``: CPU seconds of ``images.cached_images`` for the five squares that `studies/paper.yaml` asks for besides
UltraSAM's, made in one pass, against the same function geometry by geometry, which decodes every picture five times.
``geometries_large``: fewer pictures, UltraSAM's 1024 px as well. Both sides write, flush, hash, seal and open every array.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from common import alternate, entry, medians, parser, pinned, save, scratch
from PIL import Image

from fpbench import encoders, images, load_study

SIZE = (661, 959)  # pixels, height and width


def draw(folder: Path, count: int) -> list[Path]:
    """Save made-up pictures."""
    folder.mkdir()
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    fan = (np.hypot(y + 60, x - SIZE[1] / 2) < 700) & (np.abs(x - SIZE[1] / 2) < 0.8 * (y + 60))
    rng, files = np.random.default_rng(0), [folder / f"{number:05d}.png" for number in range(count)]
    for file in files:
        tissue = rng.gamma(2.0, 20.0, (SIZE[0] // 3 + 1, SIZE[1] // 3 + 1)).repeat(3, 0).repeat(3, 1)
        speckle = tissue[: SIZE[0], : SIZE[1]] * rng.gamma(8.0, 1 / 8, SIZE)
        Image.fromarray(np.where(fan, np.clip(speckle, 0, 255), 0).astype(np.uint8)).save(file)
    return files


def wanted() -> list[images.Geometry]:
    """Return the squares of the paper's study, the largest last."""
    declared = [encoders.declared(spec.model, spec.pooling, spec.geometry) for spec in load_study("paper").encoders]
    return sorted({*declared, images.BORDERS}, key=lambda one: (one.size, one.kind))


def compare(key: str, files: list[Path], squares: list[images.Geometry], repeats: int) -> dict:
    """Return one case."""
    looked = images.scan(files)

    def made(*also: images.Geometry) -> None:
        shutil.rmtree(f"{os.environ['FPBENCH_CACHE']}/images", ignore_errors=True)
        for square in squares:
            images.cached_images(files, looked, square, also=also)

    spent = medians(alternate({"one pass": lambda: made(*squares), "each alone": made}, repeats))
    bytes_each = os.path.getsize(files[0]) / 1e3
    case = f"{len(files):,} made-up PNGs of {SIZE[1]} x {SIZE[0]} ({bytes_each:.0f} kB), {len(squares)} geometries"
    each = [1e3 * spent[side] / len(files) for side in ("one pass", "each alone")]
    return entry(key, case, "CPU ms a picture", *each)


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "geometries", repeats=2)
    made.add_argument("--images", type=int, default=1500)
    made.add_argument("--large", type=int, default=200, help="pictures of the case with UltraSAM's 1024 px")
    args, squares = made.parse_args(), wanted()
    with pinned(args.threads), scratch() as folder:
        files = draw(folder / "pictures", args.images)
        found = [compare("geometries", files, squares[:-1], args.repeats)]
        found.append(compare("geometries_large", files[: args.large], squares, args.repeats))
        save("geometries", args, found)


if __name__ == "__main__":
    main()
