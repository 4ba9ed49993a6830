"""Pretraining: real steps against the same step on views of noise that stay on the device.

    python benchmarks/pretraining.py [--encoders timm:vit_small_patch16_dinov3 ...] [--pictures 2048] [--batch 128] [--peak 790]
    python benchmarks/pretraining.py --encoders dinov3-mini --pictures 128 --batch 32 --side 64 --local 32      what two cores can do

The real steps (``Pretrainer.train_epoch``) fetch cached grey pictures of 320 px, make two global and six local views of each, and learn
from them by DINO, iBOT and KoLeo; the synthetic step learns from one ready set of views: same teacher, losses, optimiser, precision.
Both run alternately; medians count; CPU seconds on a CPU. ``pretraining_views``: the share of a step that making views takes. With
``--peak`` (TFLOP/s that the device can do in bf16) the model FLOP utilisation is told; the work of a step is counted by torch, teacher
and heads included. Weights are random.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import alternate, clock, device, entry, medians, parser, pinned, save, wait
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from fpbench.encoders import load_encoder
from fpbench.encoders.inspection import peak, reset_peak
from fpbench.recipe import CorpusSpec, Objective, Pretraining, Views
from fpbench.training.loop import Pictures, interruptible
from fpbench.training.pretraining.network import Pair
from fpbench.training.pretraining.trainer import Part, Pretrainer

BOTH = ("timm:vit_small_patch16_dinov3", "timm:vit_base_patch16_dinov3")


def run_of(name: str, pictures: int, plan: Pretraining, folder: Path) -> Pretrainer:
    """Return a run over noise."""
    encoder = load_encoder(name, "random", geometry={"size": plan.views.size}).to(device().type)
    model = Pair(encoder, plan.objective.prototypes_for(pictures), plan.objective, 0)
    rng, side = np.random.default_rng(0), plan.views.cache
    array = rng.integers(0, 256, (pictures, side, side), np.uint8)
    part = Part(Pictures(array, encoder.device), np.arange(pictures).astype(str), np.arange(pictures))
    return Pretrainer(model, part, plan, folder, "", name)


def measure(name: str, pictures: int, plan: Pretraining, repeats: int, top: float) -> list[dict]:
    """Return the cases of one encoder."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(name, pictures, plan, Path(folder))
        batch, where = plan.objective.batch, "_gpu" if device().type == "cuda" else ""
        shown = next(run.pictures.batches([np.arange(batch)]))
        wide, local = run.show(shown, 0)
        mask = run.hide(len(wide), 0)
        run.model.train()

        def real() -> None:
            run.state.step = 0
            with interruptible() as stop, tqdm(disable=True) as progress:
                run.train_epoch(stop, progress)
            wait()

        def synthetic() -> None:
            for _ in range(run.steps):
                run.compare(wide, local, mask, 0)
            wait()

        def views() -> None:
            for step in range(run.steps):
                run.show(shown, step)
            wait()

        with FlopCounterMode(display=False) as counter:
            run.compare(wide, local, mask, 0)
        work = counter.get_total_flops() / batch
        views()
        reset_peak(run.model.encoder)
        before = peak(run.model.encoder)
        real()
        memory = (peak(run.model.encoder) - before) / 2**30
        spent = medians(alternate({"real": real, "synthetic": synthetic, "views": views}, repeats, clock()))
    count = run.steps * batch
    rates = {side: count / value for side, value in spent.items()}
    about = f"{name}, batch {batch}, {run.settings.size} and {run.settings.local_size} px"
    more = {"TFLOP/s": work * rates["real"] / 1e12, "peak GiB": memory}
    more |= {"MFU": work * rates["real"] / 1e12 / top} if top else {}
    share = spent["views"] / spent["real"]
    return [
        entry(f"pretraining{where}", about, "images/s", rates["real"], rates["synthetic"], rate=True, **more),
        entry(f"pretraining_views{where}", about, "share of a step", share, value=share),
    ]


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "pretraining")
    made.add_argument("--encoders", nargs="+", default=list(BOTH))
    made.add_argument("--pictures", type=int, default=2048)
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--side", type=int, default=224, help="of a global view, pixels; the cache is 10/7 of it")
    made.add_argument("--local", type=int, default=96, help="of a local view, pixels")
    made.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the device in bf16")
    args = made.parse_args()
    views = Views(cache=args.side * 10 // 7, size=args.side, local_size=args.local)
    plan = Pretraining(
        "", [CorpusSpec(name="noise")], epochs=10_000, views=views, objective=Objective(batch=args.batch)
    )
    with pinned(args.threads if device().type == "cpu" else torch.get_num_threads()):
        found = []
        for name in args.encoders:
            found += measure(name, args.pictures, plan, args.repeats, args.peak)
    save("pretraining", args, found)


if __name__ == "__main__":
    main()
