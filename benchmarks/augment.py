"""Augmentation: ours, per picture on the device, against torchvision v2 per picture on CPU workers; and its share of a step.

    python benchmarks/augment.py [--encoder resnet50] [--batch 32]

Both change 224 px grey pictures by flip, rotation, shift, scale, brightness, contrast and gamma; ours adds speckle, torchvision v2
Gaussian noise. ``augment``: pictures per second (CPU seconds on a CPU). ``augment_share``: our time over that of a whole
fine-tuning step with it (float32 on a CPU, bf16 on a GPU).
"""

import torch
from common import alternate, clock, device, entry, medians, parser, pinned, save, wait
from finetune import Step
from torchvision.transforms import v2

from fpbench.recipe import Augmentation, Recipe
from fpbench.training import augmentation


def torchvision() -> v2.Compose:
    """Return the same kinds of change, one picture at a time."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(0.2, 0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Lambda(lambda x: x ** float(torch.empty(()).uniform_(0.8, 1.2))),
            v2.GaussianNoise(sigma=0.05),
        ]
    )


def measure(name: str, batch: int, repeats: int) -> list[dict]:
    """Return the cases."""
    step = Step(name, batch, batch, Recipe(batch=batch))
    size, kind = step.model.encoder.geometry.size, device()
    pictures = torch.randint(0, 256, (batch, size, size), dtype=torch.uint8)
    there, noise = pictures.to(kind), augmentation.speckle(size).to(kind)
    numbers, theirs = augmentation.draw(Augmentation(), batch, 0), torchvision()

    def ours() -> None:
        augmentation.apply(step.model.encoder.colours(there), numbers, noise)
        wait()

    def whole() -> None:
        ours()
        step()
        wait()

    whole()
    calls = {"ours": ours, "torchvision": lambda: [theirs(picture[None]) for picture in pictures], "step": whole}
    spent = medians(alternate(calls, repeats, clock()))
    where = "_gpu" if kind.type == "cuda" else ""
    rates = [batch / spent[side] for side in ("ours", "torchvision")]
    share = spent["ours"] / spent["step"]
    case = f"{batch} pictures at {size} px, {kind.type}"
    return [
        entry(f"augment{where}", case, "images/s" if where else "images per CPU second", *rates, rate=True),
        entry(f"augment_share{where}", f"share of a step of {name}, {case}", "share", share, value=share),
    ]


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "augment", repeats=5)
    made.add_argument("--encoder", default="resnet50")
    made.add_argument("--batch", type=int, default=32)
    args = made.parse_args()
    with pinned(args.threads):
        save("augment", args, measure(args.encoder, args.batch, args.repeats))


if __name__ == "__main__":
    main()
