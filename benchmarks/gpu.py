"""Fill every row that needs a GPU, in one run: extraction, fine-tuning, attention, augmentation of the seven encoders, random weights.

    python benchmarks/gpu.py [--peak 790] [--encoders NAME ...]        on a GPU: about 20 minutes (an estimate; not yet run on one)
    python benchmarks/gpu.py --tiny --out-folder FOLDER                miniatures, on any machine: shows that it works

Per encoder: images per second and peak memory of extraction (bf16) and fine-tuning (the recipe of studies/paper.yaml), model FLOP
utilisation if ``--peak`` says what the device can do (TFLOP/s in bf16), and the hours that the grid of studies/paper.yaml would
take. ``finetune_eager_gpu`` and ``finetune_amp_gpu``: the real loop against the synthetic step in float32 and under autocast, both
eager. On a CPU the keys are those of the CPU rows; with ``--tiny`` nothing is written into ``results``.
"""

import tempfile
from pathlib import Path

import attention
import augment
import extract
import finetune
import numpy as np
import torch
from common import RESULTS, alternate, clock, device, entry, medians, parser, pinned, save, scratch, wait

from fpbench import load_study
from fpbench.encoders.inspection import cost
from fpbench.recipe import Recipe

SEVEN = ("fetalclip", "usfm", "mofo", "ultrasam", "dinov3", "resnet50", "efficientnetv2_s")


def against_eager(name: str, images: int, batch: int, micro: int, repeats: int) -> list[dict]:
    """Return the real loop against float32 eager and AMP eager."""
    recipe = Recipe(epochs=10_000, batch=batch, rates=[1e-4])
    compiled = Recipe(epochs=10_000, batch=batch, rates=[1e-4], compile=device().type == "cuda")
    steps = -(-images // batch)
    with tempfile.TemporaryDirectory() as folder:
        loop = finetune.Loop(name, images, micro, compiled, Path(folder))
        sides = {
            "eager": finetune.Step(name, batch, micro, recipe, False),
            "amp": finetune.Step(name, batch, micro, recipe),
        }

        def several(step) -> None:
            for _ in range(steps):
                step()
            wait()

        calls = {"loop": loop, **{side: lambda s=step: several(s) for side, step in sides.items()}}
        for call in calls.values():
            call()
        spent = medians(alternate(calls, repeats, clock()))
    rates = {side: (images if side == "loop" else steps * batch) / value for side, value in spent.items()}
    where = "_gpu" if device().type == "cuda" else ""
    return [
        entry(f"finetune_{side}{where}", f"{name}, batch {batch}", "images/s", rates["loop"], rates[side], rate=True)
        for side in sides
    ]


def extraction(name: str, work: float, batch: int, top: float) -> dict:
    """Return images per second, memory and utilisation of ``embed``."""
    encoder = finetune.load_encoder(name, "random").to(device().type)
    found = cost(encoder, batch, bf16=device().type == "cuda")
    more = {"peak GiB": found["peak memory (MiB)"] / 1024} | (
        {"MFU": work * found["images/s"] / 1e12 / top} if top else {}
    )
    rate = found["images/s"]
    where = "_gpu" if device().type == "cuda" else ""
    return entry(f"embed{where}", f"{name}, batch {batch}", "images/s", rate, value=rate, **more)


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "gpu")
    made.add_argument("--encoders", nargs="+", default=list(SEVEN))
    made.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the device in bf16")
    made.add_argument("--tiny", action="store_true", help="miniatures and small sizes")
    made.add_argument("--out-folder", type=Path, default=RESULTS)
    args = made.parse_args()
    if not args.tiny and device().type != "cuda":
        raise SystemExit("no GPU here: expected one, or --tiny")
    if args.tiny and args.out_folder == RESULTS:
        raise SystemExit("--tiny proves nothing about speed: give --out-folder")
    names = [f"{name}-mini" for name in args.encoders] if args.tiny else args.encoders
    study = load_study("paper")
    specs = {spec.name: spec for spec in study.encoders}
    with pinned(args.threads if args.tiny else torch.get_num_threads()), scratch():
        home, _ = extract.cohort(8 if args.tiny else 150)
        home = home.select(np.arange(len(home)) < (8 if args.tiny else 150))
        rows = {"extract": [], "finetune": [], "attention": [], "augment": []}
        for name in names:
            spec = specs[name.removesuffix("-mini")]
            images, batch = (8, 4) if args.tiny else (8 * study.recipe.batch, study.recipe.batch)
            size, micro = (4, 4) if args.tiny else (spec.batch_size, min(spec.micro or spec.batch_size, batch))
            work = finetune.flops(name, Recipe())
            rows["extract"] += [extract.compare(name, home, size, args.repeats, bf16=not args.tiny)]
            rows["extract"] += [extraction(name, work / 3, size, args.peak)]
            rows["finetune"].append(finetune.measure(name, images, batch, micro, args.repeats, args.peak))
            rows["finetune"] += against_eager(name, images, batch, micro, args.repeats)
        rows["attention"] = [
            *attention.measure(128 if args.tiny else 1024, 1 if args.tiny else 4, args.repeats, bf16=not args.tiny)
        ]
        one = names[-2] if len(names) > 1 else names[0]
        rows["augment"] = augment.measure(one, 4 if args.tiny else 64, args.repeats)
        hours = sum(one["hours of the grid"] for one in rows["finetune"] if "hours of the grid" in one)
        if not args.tiny:
            print(f"predicted hours of fine-tuning in studies/paper.yaml on this device: {hours:.3g}")
        for row, entries in rows.items():
            args.out = args.out_folder / f"{row}.json"
            save(row, args, entries, **({"hours of studies/paper.yaml": hours} if row == "finetune" else {}))


if __name__ == "__main__":
    main()
