"""Embedding extraction against the bare module on a synthetic tensor that lies on the device; and bfloat16 against float32.

    python benchmarks/extract.py [--encoders resnet50 dinov3] [--images 32] [--batch 8] [--bf16 8]

Ours: ``embeddings.embed_cohort`` of real (or phantom) pictures from the image cache: gather, normalise, network, shards, checks,
atomic write. Bare: the network alone, as often, on one ready batch. Random weights: speed does not depend on them. Per encoder
``extract``: ours over bare, images per second (CPU seconds on a CPU). ``bf16``: the least cosine between embeddings of the same
pictures in bfloat16 and float32; for a MobileNetV2 with real weights where they are there, else random ones.
"""

import os
import shutil

import numpy as np
import torch
from common import alternate, clock, device, entry, medians, parser, pinned, save, scratch, wait

from fpbench import load_cohort, load_study, loading
from fpbench.encoders import load_encoder
from fpbench.files import paths
from fpbench.training.embeddings import embed_cohort


def cohort(count: int):
    """Return some pictures of the real sample, or of the phantom, and what they are."""
    folder = paths.shared() / "data" / "spain"
    if folder.is_dir():
        home, what = load_cohort("spain", folder, missing="drop"), "real Spanish pictures at half size"
    else:
        home, what = load_study("demo").begin().load_cohorts()[0], "phantom pictures"
    return home.select(np.arange(len(home)) < count), what


def compare(name: str, home, batch: int, repeats: int, bf16: bool = False) -> dict:
    """Return the case of one encoder."""
    encoder = load_encoder(name, "random").to(device().type)
    size, (full, rest) = encoder.geometry.size, divmod(len(home), batch)
    ready = torch.randn(batch, 3, size, size, device=device())
    _ = encoder.fingerprint, home.array(encoder.geometry)  # made once per encoder and cohort: not timed

    def ours() -> None:
        shutil.rmtree(f"{os.environ['FPBENCH_CACHE']}/embeddings", ignore_errors=True)
        embed_cohort(encoder, home, batch, bf16)

    @torch.inference_mode()
    def bare() -> None:
        with encoder.autocast(bf16):
            for count in [batch] * full + [rest] * bool(rest):
                encoder.module(ready[:count])
        wait()

    bare()
    spent = medians(alternate({"ours": ours, "bare": bare}, repeats, clock()))
    where, unit = ("_gpu", "images/s") if device().type == "cuda" else ("", "images per CPU second")
    rates = [len(home) / spent[side] for side in ("ours", "bare")]
    case = f"{name}, {len(home)} pictures at {size} px, batch {batch}{', bf16' if bf16 else ''}"
    return entry(f"extract{where}", case, unit, *rates, rate=True)


def cosine(encoder, pictures: np.ndarray) -> float:
    """Return the least cosine between embeddings in the two precisions."""
    one, other = (encoder.embed(pictures, bf16).astype(float) for bf16 in (False, True))
    return float(((one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))).min())


def mobilenet():
    """Return the MobileNetV2 of the sample study, with its real weights; None where they are not there."""
    study = load_study("sample")
    spec = study.encoder_spec("mobilenetv2")
    return loading.load_encoder(study, spec.name) if paths.expand(str(spec.weights)).is_file() else None


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "extract", repeats=3)
    made.add_argument("--encoders", nargs="*", default=["resnet50", "dinov3"], help="names of the catalogue")
    made.add_argument("--checked", nargs="*", default=["resnet50", "usfm", "dinov3"], help="encoders of the bf16 check")
    made.add_argument("--images", type=int, default=32)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--bf16", type=int, default=8, help="pictures of the bf16 check; a MobileNetV2 gets 64")
    args = made.parse_args()
    with pinned(args.threads), scratch():
        home, what = cohort(max(64, args.images))
        few = home.select(np.arange(len(home)) < args.images)
        found = [compare(name, few, args.batch, args.repeats) for name in args.encoders]
        if (real := mobilenet()) is not None:
            value = cosine(real.to(device().type), np.array(home.array(real.geometry)))
            found.append(
                entry("bf16", f"mobilenetv2, real weights, {len(home)} {what}", "least cosine", value, value=value)
            )
        for name in args.checked:
            encoder = load_encoder(name, "random").to(device().type)
            value = cosine(encoder, np.array(home.array(encoder.geometry)[: args.bf16]))
            found.append(
                entry("bf16", f"{name}, random weights, {args.bf16} {what}", "least cosine", value, value=value)
            )
        save("extract", args, found)


if __name__ == "__main__":
    main()
