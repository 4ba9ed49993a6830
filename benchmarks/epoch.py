"""One epoch of training data at 224 px: our uint8 cache against PIL -> RGB -> resize -> tensor -> normalise in a DataLoader.

    python benchmarks/epoch.py [--images 5703] [--loader 300]

Ours: ``finetuning.Pictures.batches`` over a memory-mapped cache, in random order, 64 at once: what an epoch reads (normalising and
augmenting happen on the device). ``epoch_float``: the same with normalising on this CPU, as float RGB. Theirs: a DataLoader on
``--loader`` pictures, no workers (so that its CPU time is seen whole), scaled.
"""

import numpy as np
import torch
from common import alternate, entry, medians, parser, pinned, sample_files, save, scratch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fpbench.encoders import load_encoder
from fpbench.finetuning import Pictures

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

        def read(use=lambda batch: None) -> None:
            order = rng.permutation(args.images)
            for batch in pictures.batches([order[start : start + BATCH] for start in range(0, args.images, BATCH)]):
                use(batch)

        loader = DataLoader(Files(files, args.loader), BATCH, shuffle=True)
        calls = {"ours": read, "float": lambda: read(encoder.normalise), "theirs": lambda: [None for _ in loader]}
        cpu = medians(alternate(calls, args.repeats))
    rate = {name: args.images / cpu[name] for name in ("ours", "float")}
    theirs, scaled, unit = args.loader / cpu["theirs"], f"{args.loader} of {args.images:,}", "images per core-second"
    found = [
        entry("epoch", f"uint8, against {what}", unit, rate["ours"], theirs, rate=True, scaled=scaled),
        entry(
            "epoch_float", "normalised to float RGB on this CPU", unit, rate["float"], theirs, rate=True, scaled=scaled
        ),
    ]
    save("epoch", args, found)


if __name__ == "__main__":
    main()
