"""One epoch of training data at 224 px: our uint8 cache against PIL -> RGB -> resize -> tensor -> normalise in a DataLoader.

    python benchmarks/epoch.py [--images 5703] [--loader 300]

Ours: ``finetuning.Pictures.batches`` over a memory-mapped cache, in random order, 64 at once: what an epoch reads (normalising and
augmenting happen on the device). ``epoch_float``: the same with normalising on this CPU, as float RGB. Theirs: a DataLoader on
``--loader`` pictures, no workers (so that its CPU time is seen whole), scaled. The real sample is at half the published size: for
``epoch`` its pictures are enlarged to that size, smoother and so decoded no slower than the originals; ``epoch_half`` reads them as
they are.
"""

from pathlib import Path

import numpy as np
import torch
from common import alternate, entry, medians, parser, pinned, sample_files, save, scratch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fpbench.encoders import load_encoder
from fpbench.training.finetuning import Pictures

SIZE, BATCH = 224, 64


class Files(Dataset):
    """Pictures from their files, prepared as published fetal-ultrasound code does it."""

    def __init__(self, files: list, length: int) -> None:
        self.files, self.length = files, length
        steps = [transforms.Resize((SIZE, SIZE)), transforms.ToTensor()]
        self.prepare = transforms.Compose([*steps, transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

    def __len__(self) -> int:
        """Return how many pictures an epoch has."""
        return self.length

    def __getitem__(self, row: int) -> torch.Tensor:
        """Return a picture."""
        return self.prepare(Image.open(self.files[row % len(self.files)]).convert("RGB"))


def enlarged(files: list[Path], folder: Path) -> list[Path]:
    """Return copies of pictures at twice their width and height."""
    found = []
    for number, path in enumerate(files):
        with Image.open(path) as picture:
            large = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)
        found.append(folder / f"{number}.png")
        large.save(found[-1])
    return found


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "epoch", repeats=5)
    made.add_argument("--images", type=int, default=5703, help="of an epoch: the official split's training images")
    made.add_argument("--loader", type=int, default=300, help="of them that the DataLoader reads")
    args = made.parse_args()
    files, what = sample_files()
    rng, encoder = np.random.default_rng(0), load_encoder("resnet50-mini", "random")
    with pinned(args.threads), scratch() as folder:
        array = np.lib.format.open_memmap(folder / "cache.npy", "w+", np.uint8, (args.images, SIZE, SIZE))
        array[:] = rng.integers(0, 256, array.shape, np.uint8)
        pictures = Pictures(np.load(folder / "cache.npy", mmap_mode="r"), torch.device("cpu"))

        def read(use=lambda batch: None, count: int = args.images) -> None:
            order = rng.permutation(args.images)[:count]
            for batch in pictures.batches([order[start : start + BATCH] for start in range(0, count, BATCH)]):
                use(batch)

        loaders = [DataLoader(Files(f, args.loader), BATCH, shuffle=True) for f in (enlarged(files, folder), files)]
        calls = {"ours": read, "float": lambda: read(encoder.normalise, args.loader)}
        calls |= {"full": lambda: [None for _ in loaders[0]], "half": lambda: [None for _ in loaders[1]]}
        read()
        cpu = medians(alternate(calls, args.repeats))
    ours, raw = args.images / cpu["ours"], args.loader / cpu["float"]
    full, half = (args.loader / cpu[name] for name in ("full", "half"))
    more = {"rate": True, "scaled": f"{args.loader} of {args.images:,}"}
    unit = "images per core-second"
    found = [
        entry("epoch", f"uint8, against {what}, enlarged to the published size", unit, ours, full, **more),
        entry("epoch_half", f"uint8, against {what}", unit, ours, half, **more),
        entry("epoch_float", "normalised to float RGB on this CPU, against the enlarged", unit, raw, full, **more),
    ]
    save("epoch", args, found)


if __name__ == "__main__":
    main()
