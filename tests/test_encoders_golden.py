"""Every encoder against the original implementation: checkpoints of known numbers, embeddings of known pictures.

The pictures drawn by ourselves are in tests/golden; the real ones come from the shared folder where it is there.
"""

import importlib.util
import json
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fpbench.encoders import load_encoder
from fpbench.files import paths

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
CASES = {  # encoder -> variant -> settings
    "fetalclip": {"": {}, "cls_preproj": {"pooling": "cls"}, "patch_mean_lnpost": {"pooling": "patch_mean"}},
    "usfm": {
        "": {},
        "per_block": {"options": {"per_block_bias": True}},  # the same features
        "cls_norm": {"pooling": "cls"},
        "patch_mean_raw": {"pooling": "patch_mean_raw"},
    },
    "mofo": {"": {}, "gap_layernorm": {"pooling": "mean_norm"}},
    "dinov3": {
        "": {},
        "patch_mean": {"pooling": "patch_mean"},
        "squash224": {"geometry": {"size": 224}},
        "eval224": {"geometry": {"kind": "resize_crop", "size": 224, "interpolation": "torch-bicubic", "crop": 0.875}},
        "timm256": {"geometry": {"kind": "resize_crop", "interpolation": "bicubic"}},
        "cls_bf16_periods": {"options": {"bf16_periods": True}},
    },
    "resnet50": {"": {}},
    "efficientnetv2_s": {"": {}, "size384": {"geometry": {"size": 384}}},
}


def _fill_module():
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILL = _fill_module()


def tensors(encoder: str, select: str | None = None) -> dict:
    found = FILL.tensors(GOLDEN / encoder / "checkpoint_keys.json", select)
    return {name: torch.from_numpy(np.asarray(array)) for name, array in found.items()}


class HistoryBuffer:  # stands for a class of mmengine, which is not importable where the file is read
    def __init__(self) -> None:
        self.values = np.arange(3.0)


def authors_file(encoder: str, folder: Path) -> Path:
    """Write the checkpoint in the authors' layout: wrapper, prefix and what else the file holds."""
    if encoder in ("resnet50", "efficientnetv2_s"):
        save_file(tensors(encoder), folder / "model.safetensors")
        return folder / "model.safetensors"
    path = folder / "weights.pth"
    if encoder == "fetalclip":  # the two large parts of the text tower are left to benchmarks/load_fetalclip.py
        content = tensors(encoder, r"^(?!transformer\.|token_embedding)")
        content = {"state_dict": {f"module.{name}": tensor for name, tensor in content.items()}}
    elif encoder == "ultrasam":
        HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
        detector = {"bbox_head.cls.weight": torch.ones(3, 2), "decoder.layers.0.weight": torch.ones(2)}
        content = {"meta": {"epoch": 1}, "state_dict": {**tensors(encoder), **detector}, "message_hub": HistoryBuffer()}
    else:
        content = tensors(encoder)
    _save(content, path)
    return path


def _save(content, path: Path) -> None:
    homes = ["mmengine", "mmengine.logging", HistoryBuffer.__module__]
    sys.modules.update((home, types.ModuleType(home)) for home in homes)
    sys.modules[homes[-1]].HistoryBuffer = HistoryBuffer
    try:
        torch.save(content, path)
    finally:
        for home in homes:
            del sys.modules[home]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The authors' file of an encoder, written once, and deleted when the next encoder's turn comes."""
    written: dict[str, Path] = {}

    def get(encoder: str) -> Path:
        if encoder not in written:
            _clear(written)
            written[encoder] = authors_file(encoder, tmp_path_factory.mktemp(encoder))
        return written[encoder]

    yield get
    _clear(written)


def _clear(written: dict[str, Path]) -> None:
    for path in written.values():
        path.unlink()
    written.clear()


def collections() -> list[Path]:
    """Folders with pictures and vectors: our own, and the real ones where they are."""
    real = paths.shared() / "golden"
    if os.environ.get("FPBENCH_REQUIRE_SHARED") and not (real / "images").is_dir():
        pytest.fail(f"expected the real golden images at {real}, found none")
    return [GOLDEN / "synthetic", *([real] if (real / "images").is_dir() else [])]


def pictures(folder: Path) -> dict[str, Image.Image]:
    place = folder / "images" if (folder / "images").is_dir() else folder
    return {path.name: _open(path) for path in sorted(place.glob("*.png"))}


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def wanted(folder: Path, encoder: str, variant: str, names) -> np.ndarray:
    with np.load(folder / encoder / "embeddings.npz") as stored:
        return np.stack([stored[Path(name).stem + (f":{variant}" if variant else "")] for name in names])


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float((np.abs(got - want).max(-1) / np.abs(want).max(-1)).max())


def check_inputs(encoder, folder: Path, name: str, variant: str, images: dict) -> None:
    """The prepared picture and the normalised tensor, as tests/golden says: to 1e-5, one grey level for single pixels."""
    stored = json.loads((folder / name / "preprocessing.json").read_text())["images"].get(variant or "default", {})
    for file, facts in stored.items():
        prepared = encoder.prepare(images[file])
        x = encoder.normalise(torch.from_numpy(prepared.copy()))[0].numpy()
        off = np.abs(
            [x[tuple(position)] - value for position, value in zip(facts["positions"], facts["values"], strict=True)]
        )
        level = 1 / 255 / min(encoder.std)
        assert (off < 1e-5).mean() >= 0.9, (file, off)
        assert off.max() < level + 1e-5, (file, off)
        assert abs(x.mean() - facts["mean"]) < 1e-3
        assert list(x.shape) == facts["shape"][-3:]
        if variant == "":
            just_before = np.asarray(
                _open(folder / name / "inputs" / file).convert("RGB" if prepared.ndim == 4 else "L")
            )
            assert np.abs(prepared[0].astype(int) - just_before).max() <= 1
            assert (prepared[0] != just_before).mean() < 1e-3


PARAMETERS = [(encoder, variant) for encoder, variants in CASES.items() for variant in variants]


def test_the_stand_in_weights_are_the_ones_of_the_vectors():
    import hashlib

    for name, shape, _, sha256, _ in json.loads((GOLDEN / "fill_check.json").read_text()):
        array = FILL.fill(name, shape)
        assert hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest() == sha256, name


@pytest.mark.parametrize(("name", "variant"), PARAMETERS)
def test_embeddings_equal_the_original_implementation(checkpoints, name, variant):
    encoder = load_encoder(name, weights=checkpoints(name), **CASES[name][variant])
    stored = "" if variant == "per_block" else variant
    for folder in collections():
        images = pictures(folder)
        want = wanted(folder, name, stored, images)
        got = encoder.embed(list(images.values()))
        assert got.shape == want.shape == (len(images), encoder.dim)
        assert error(got, want) < TOLERANCE
        check_inputs(encoder, folder, name, stored, images)
        if folder == GOLDEN / "synthetic" and variant == "":
            for picture, vector in list(zip(images.values(), want, strict=True))[:2]:  # alone, not in a batch
                assert error(encoder.embed(picture), vector) < TOLERANCE


@pytest.mark.parametrize("size", [512, pytest.param(1024, marks=pytest.mark.slow)])
def test_both_poolings_of_ultrasam_equal_the_original_implementation(checkpoints, size):
    """From one pass; at 1024 pixels of one picture a folder, since it takes 10 to 20 s on a CPU core."""
    settings, called = {"weights": checkpoints("ultrasam")}, {"patch_mean": "", "neck_mean": "neck_mean"}
    if size == 512:
        settings |= {"geometry": {"size": size}}
        called = {"patch_mean": "size512", "neck_mean": "size512_neck_mean"}
    both = {variant: load_encoder("ultrasam", pooling=pooling, **settings) for pooling, variant in called.items()}
    mean, neck = both.values()
    trunks = [encoder.module.trunk.state_dict() for encoder in (mean, neck)]
    assert all(torch.equal(tensor, trunks[1][name]) for name, tensor in trunks[0].items())
    for folder in collections():
        images = pictures(folder)
        check_inputs(mean, folder, "ultrasam", called["patch_mean"], images)
        for file, image in list(images.items())[: len(images) if size == 512 else 1]:
            with torch.inference_mode():
                features = mean.module.features(mean.normalise(torch.from_numpy(mean.prepare(image).copy())))
                for variant, encoder in both.items():
                    got = encoder.module.pool(features).numpy()
                    assert error(got, wanted(folder, "ultrasam", variant, [file])) < TOLERANCE
    if size == 512:
        answer = mean.embed(list(images.values())[:2])
        assert error(answer, wanted(folder, "ultrasam", "size512", list(images)[:2])) < TOLERANCE


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_dinov3_is_read_in_every_published_layout(layout, tmp_path):
    own = tensors("dinov3")
    entries = json.loads((GOLDEN / "dinov3" / "checkpoint_keys.json").read_text())["other_layouts"][layout]
    content = {}
    for key, shape, _, source in entries:
        name, first, last = re.fullmatch(r"([^\[]+)(?:\[(\d+):(\d+)\])?", source).groups()
        content[key] = own[name][slice(int(first), int(last)) if first else slice(None)].reshape(shape).clone()
    save_file(content, tmp_path / "model.safetensors")
    encoder = load_encoder("dinov3", weights=tmp_path / "model.safetensors")
    images = pictures(GOLDEN / "synthetic")
    want = wanted(GOLDEN / "synthetic", "dinov3", "", images)
    assert error(encoder.embed(list(images.values())), want) < TOLERANCE
