"""The image cache: every picture decoded once and squashed to 224 px, against a loop of Pillow's convert("L") on one thread.

    python benchmarks/cache.py [--repeats 5]

``cache_core``: CPU seconds of ``images.cached_images`` with one worker (decode, resize, write, flush, hash, rename) against the
bare loop, which does not resize, write or hash. ``cache_decode``: the decoding alone. ``cache_scan``: ``scan``, which precedes the
cache, as well. ``cache_scaling``: wall seconds with one worker over those with all cores, divided by the cores.
"""

import os
import shutil
import time

import numpy as np
from common import alternate, entry, medians, parser, pinned, sample_files, save, scratch
from PIL import Image

from fpbench import images
from fpbench.files import machine

GEOMETRY = images.Geometry("squash", 224)


def main() -> None:
    """Measure and write."""
    args = parser(__doc__, "cache", repeats=5).parse_args()
    files, what = sample_files()
    looked, cores, workers = images.scan(files), machine.workers(), machine.workers

    def ours(count: int) -> None:
        shutil.rmtree(f"{os.environ['FPBENCH_CACHE']}/images", ignore_errors=True)
        machine.workers = lambda: count
        images.cached_images(files, looked, GEOMETRY)
        machine.workers = workers

    def scanned() -> None:
        shutil.rmtree(f"{os.environ['FPBENCH_CACHE']}/scans", ignore_errors=True)
        machine.workers = lambda: 1
        images.scan(files)
        ours(1)

    def pillow() -> None:
        for path in files:
            np.asarray(Image.open(path).convert("L"))

    with pinned(1), scratch():
        calls = {"cache": lambda: ours(1), "decode": lambda: [images.decode(p) for p in files], "scan": scanned}
        cpu = medians(alternate({**calls, "pillow": pillow}, args.repeats))
        sides = {"one": lambda: ours(1), "all": lambda: ours(cores)}
        wall = medians(alternate(sides, args.repeats, time.perf_counter))
    each = {name: value / len(files) * 1e3 for name, value in cpu.items()}
    unit = "CPU ms a picture"
    found = [
        entry("cache_core", f"{what}, one worker", unit, each["cache"], each["pillow"]),
        entry("cache_decode", "the decoding alone", unit, each["decode"], each["pillow"]),
        entry("cache_scan", "with the scan before it", unit, each["scan"], each["pillow"]),
    ]
    scaling = wall["one"] / wall["all"] / cores
    case = f"one worker over {cores}, by core"
    found += [entry("cache_scaling", case, "wall s", wall["all"], wall["one"], value=scaling)]
    save("cache", args, found)


if __name__ == "__main__":
    main()
