"""Memory: 12,850 pictures at 224 px are embedded, then probed in 5 folds x 45 C; the peak of the process in each part.

    python benchmarks/memory.py [--images 12850] [--d 768]

``memory_extract``: a cohort of noise in a memory-mapped cache (0.65 GB), a miniature network, ``embeddings.embed_cohort``. Each part
is a process of its own, and its peak is the largest resident size, the imports and the mapped pages included. ``memory_probe``:
``fit_paths`` on embeddings of ``--d`` features. ``memory_fold`` is how much five folds need beyond one: 0 if no fold keeps a copy.
"""

import subprocess
import sys

from common import entry, parser, save

HEAD = """
import sys, numpy as np
from fpbench.files.machine import peak_memory
n, d, folds = map(int, sys.argv[1:])
"""
EXTRACT = (
    HEAD
    + """
import pandas as pd, tempfile, os
from fpbench.training.embeddings import embed_cohort
from fpbench.encoders import load_encoder
with tempfile.TemporaryDirectory() as folder:
    os.environ["FPBENCH_CACHE"] = folder
    array = np.lib.format.open_memmap(folder + "/pictures.npy", "w+", np.uint8, (n, 224, 224))
    for start in range(0, n, 256):
        array[start : start + 256] = np.random.default_rng(start).integers(0, 256, array[start : start + 256].shape, np.uint8)
    del array
    class Noise:
        name, frame = "noise", pd.DataFrame({"image_id": [str(i) for i in range(n)], "pixels": "noise"})
        def array(self, geometry):
            return np.load(folder + "/pictures.npy", mmap_mode="r")
    encoder = load_encoder("resnet50-mini", "random", geometry={"size": 224})
    assert embed_cohort(encoder, Noise()).shape == (n, encoder.dim)
    print(peak_memory() / 2**30)
"""
)
PROBE = (
    HEAD
    + """
from fpbench.recipe import GRID
from fpbench.training.probes.logistic import fit_paths
rng = np.random.default_rng(0)
X, y = rng.standard_normal((n, d), dtype=np.float32), rng.integers(0, 6, n)
X[:, :6] += 2 * np.eye(6, dtype=np.float32)[y]
part = rng.integers(0, 5, n)
fit_paths(X, y, [np.flatnonzero(part != fold) for fold in range(folds)], 6, GRID)
print(peak_memory() / 2**30)
"""
)


def gib(code: str, *numbers: int) -> float:
    """Return the peak of a process that runs some code."""
    command = [sys.executable, "-c", code, *map(str, numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "memory", repeats=1)
    made.add_argument("--images", type=int, default=12_850)
    made.add_argument("--d", type=int, default=768)
    args = made.parse_args()
    extract = gib(EXTRACT, args.images, args.d, 5)
    one, five = (gib(PROBE, args.images, args.d, folds) for folds in (1, 5))
    size = args.images * args.d * 4 / 2**30
    found = [
        entry(
            "memory_extract",
            f"extraction of {args.images:,} pictures at 224 px, 0.65 GB of them mapped",
            "GiB",
            extract,
            value=extract,
        ),
        entry(
            "memory_probe",
            f"probing of {args.images:,} x {args.d}, 5 folds, 45 C",
            "GiB",
            five,
            value=five,
            one_fold=one,
            embeddings=size,
        ),
        entry(
            "memory_fold",
            "what 5 folds need beyond 1 fold, in sizes of the embeddings",
            "copies",
            five - one,
            value=(five - one) / size,
        ),
    ]
    save("memory", args, found)


if __name__ == "__main__":
    main()
