"""Make the weights of the miniatures again: ``python tools/miniatures.py [NAME ...]``; the same bits on the same machine.

Seven small networks learn without labels, by `fpbench.training.pretraining`: the four of ultrasound from phantom ultrasound, drawn with
a seed of its own, so that no patient of it is in a cohort of a study; the three of natural images from textures that hold no anatomy.
One recipe for all, chosen by k-NN on phantoms of a further seed (``--watch``) before any score of the demo was looked at.

``--corpus`` shows a miniature the other pictures instead, ``--out`` names another folder: what are the pictures worth?
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fpbench import load_encoder
from fpbench.cohorts.phantoms.drawing import draw_plane
from fpbench.cohorts.phantoms.layout import spain_entries
from fpbench.encoders import MINI, Encoder, miniatures
from fpbench.files import artifacts
from fpbench.images import Geometry, to_array
from fpbench.recipe import Augmentation, CorpusSpec, Objective, Pretraining, Views
from fpbench.training.loop import Pictures
from fpbench.training.pretraining.monitor import Monitor
from fpbench.training.pretraining.network import Pair
from fpbench.training.pretraining.trainer import Part, Pretrainer, exported

SIDE, PICTURES = 96, 1300  # pixels of a side, and how many pictures are learnt from
DRAWN, WATCHED = (101, 180), (102, 120)  # seed and patients in each half of phantom Spain; the demo's seed is 0
CHANGE = Augmentation(rotate=5.0, shift=0.0, scale=0.0, gain=0.1, contrast=0.15, gamma=0.15, speckle=0.05)
VIEWS = Views(SIDE, 64, 32, 2, [0.4, 1.0], [0.1, 0.4], blur=0.2, change=CHANGE)
OBJECTIVE = Objective(
    batch=32, ibot=0.0, prototypes=256, hidden=256, bottleneck=64, head_batchnorm=True, temperature=[0.04, 0.04], momentum=[0.99, 1.0],
    rate=0.01, layer_decay=1.0, patch_factor=1.0, drop_path=0.0,
)  # fmt: skip
RECIPE = Pretraining("", [CorpusSpec(name="drawn")], epochs=20, views=VIEWS, objective=OBJECTIVE)


def ultrasound(kind: str, seed: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return phantom pictures (N, SIDE, SIDE), cut as an encoder wants them; their planes; which are of the training half."""
    square = Geometry(kind, SIDE, "bicubic")
    pictures, facts = _phantoms(seed, patients)
    halves = np.array([one["official_split"] == "train" for one in facts])
    return np.stack([square(one) for one in pictures]), np.array([one["plane"] for one in facts]), halves


@cache
def _phantoms(seed: int, patients: int) -> tuple[list[np.ndarray], list[dict]]:
    """Return the pictures of phantom Spain, copies left out, and what is known of each."""
    entries = [entry for entry in spain_entries(seed, patients) if not entry.copy]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda entry: to_array(draw_plane(*entry.recipe)), entries)), [e.facts for e in entries]


def textures(count: int) -> np.ndarray:
    """Return pictures (N, SIDE, SIDE) of things that are nowhere: dead leaves, gratings, noise of a power law."""
    return np.stack([_texture(np.random.default_rng([103, number])) for number in range(count)])


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Return one: a ground, sometimes with another in a part of it."""
    kinds = (_leaves, _gratings, _noise)
    picture = kinds[rng.integers(3)](rng)
    if rng.random() < 0.5:  # a second surface, behind a straight or a wavy edge
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
        turn, wave = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.15)
        across, along = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        there = across + wave * np.sin(rng.uniform(4, 16) * along) > rng.uniform(-0.2, 0.2)
        picture = np.where(there, kinds[rng.integers(3)](rng), picture)
    low, high = np.quantile(picture, [0.01, 0.99])
    return (255 * np.clip((picture - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _leaves(rng: np.random.Generator) -> np.ndarray:
    """Return ovals and boxes, one over the other, many small and few large, each with its own grey and shading."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = np.full((SIDE, SIDE), rng.random())
    for _ in range(rng.integers(20, 120)):
        radius, turn, flat = 0.02 * (1 - rng.random()) ** -0.6, rng.uniform(0, np.pi), rng.uniform(0.3, 1)
        right, down = x - rng.random(), y - rng.random()
        u, v = right * np.cos(turn) + down * np.sin(turn), (down * np.cos(turn) - right * np.sin(turn)) / flat
        inside = (u**2 + v**2 if rng.random() < 0.5 else np.maximum(abs(u), abs(v)) ** 2) < min(radius, 0.4) ** 2
        picture = np.where(inside, rng.random() + rng.normal(0, 0.3) * u / radius, picture)
    return picture


def _gratings(rng: np.random.Generator) -> np.ndarray:
    """Return one to three waves, added or multiplied."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    picture = np.zeros((SIDE, SIDE))
    for _ in range(rng.integers(1, 4)):
        turn, pitch = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(2), np.log(24)))
        wave = np.sin(2 * np.pi * pitch * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 2 * np.pi))
        picture = picture + wave if rng.random() < 0.5 else (1 + picture) * wave
    return picture


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Return noise whose amplitude falls with a power of the frequency, in one direction more than in the other."""
    across, down, turn = np.fft.fftfreq(SIDE)[None], np.fft.fftfreq(SIDE)[:, None], rng.uniform(0, np.pi)
    u, v = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
    radius = np.sqrt(u**2 + (v * rng.uniform(1, 4)) ** 2) + 1 / SIDE
    return np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) * radius ** -rng.uniform(0.5, 2)).real


def learn(
    encoder: Encoder, pictures: np.ndarray, seed: int, watch: tuple | None = None, epochs: int = RECIPE.epochs
) -> dict[str, torch.Tensor]:
    """Return the tensors of an encoder that has learnt from pictures; ``watch``: others, their planes and halves, for k-NN."""
    count, monitor = len(pictures), None
    plan = replace(RECIPE, epochs=epochs, seed=seed, views=replace(VIEWS, size=encoder.geometry.size))
    if watch:
        held, planes, halves = watch
        classes, codes = np.unique(planes, return_inverse=True)
        bank, queries = np.flatnonzero(halves), np.flatnonzero(~halves)
        monitor = Monitor(bank + count, codes[bank], queries + count, codes[queries], tuple(classes))
        pictures = np.concatenate([pictures, held])
    names = np.arange(len(pictures)).astype(str)
    with tempfile.TemporaryDirectory() as folder:
        model = Pair(encoder, OBJECTIVE.prototypes, OBJECTIVE, seed)
        part = Part(Pictures(pictures, encoder.device), names, np.arange(count), monitor)
        run = Pretrainer(model, part, plan, Path(folder), "", encoder.name)
        print(run.run().round(3).to_string(index=False), flush=True)
        return exported(model.teacher.body)  # the last epoch: nobody chose it


def main() -> None:
    """Draw, learn, write, pin."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("names", nargs="*", default=list(miniatures.CORPUS), help="of miniatures, without -mini")
    made.add_argument("--corpus", choices=["ultrasound", "textures"], help="other pictures than a miniature's own")
    made.add_argument("--out", type=Path, default=miniatures.FOLDER)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--epochs", type=int, default=RECIPE.epochs)
    made.add_argument("--watch", action="store_true", help="print k-NN on phantoms that are not learnt from")
    args = made.parse_args()
    torch.set_num_threads(1)  # part of the bits
    args.out.mkdir(parents=True, exist_ok=True)
    pins = {}
    for name in args.names:
        encoder, corpus = load_encoder(name + MINI, "random", seed=args.seed), args.corpus or miniatures.CORPUS[name]
        kind = encoder.geometry.kind
        pictures = textures(PICTURES) if corpus == "textures" else ultrasound(kind, *DRAWN)[0][:PICTURES]
        watched = ultrasound(kind, *WATCHED) if args.watch else None
        tensors = learn(encoder, pictures, args.seed, watched, args.epochs)
        halved = {key: one.half() if one.is_floating_point() else one for key, one in tensors.items()}
        with artifacts.atomic(args.out / f"{name}.safetensors") as path:
            save_file(halved, path)
        pins[name] = artifacts.file_sha256(args.out / f"{name}.safetensors")
        print(
            f"{name}: {corpus}, {(args.out / f'{name}.safetensors').stat().st_size:,} bytes, {pins[name]}", flush=True
        )
    if args.out == miniatures.FOLDER:
        known = artifacts.read_json(args.out / "pins.json") if (args.out / "pins.json").exists() else {}
        artifacts.write_json(args.out / "pins.json", dict(sorted((known | pins).items())))


if __name__ == "__main__":
    main()
