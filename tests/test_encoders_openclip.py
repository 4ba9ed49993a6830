"""open_clip's facts for weights in a file: what a TAG decides, what is assumed, models of a config file."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from fpbench.encoders import facts, load_encoder
from fpbench.encoders.fingerprint import picture
from fpbench.errors import InputError, MissingError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
OPENAI, HALF = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)), ((0.5,) * 3, (0.5,) * 3)
TAGS = {  # of the tiny model, as open_clip knows published weights
    "quick": {"url": "none", "quick_gelu": True, "mean": OPENAI[0], "std": OPENAI[1]},
    "plain": {"url": "none", "mean": OPENAI[0], "std": OPENAI[1]},
    "siglip": {"url": "none", "mean": HALF[0], "std": HALF[1], "interpolation": "bicubic", "resize_mode": "squash"},
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two tiny models that differ in their activation alone, and a file that fits both."""
    configs = {**open_clip.factory._MODEL_CONFIGS, "Tiny": TINY, "Tiny-quickgelu": {**TINY, "quick_gelu": True}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", configs)
    known = {
        **open_clip.pretrained._PRETRAINED,
        "Tiny": TAGS,
        "Tiny-quickgelu": {"quick": TAGS["quick"], "plain": TAGS["plain"]},
    }
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", known)
    torch.manual_seed(0)
    content = open_clip.create_model("Tiny").state_dict()
    content["visual.positional_embedding"].normal_()
    for name, tensor in content.items():
        tensor.mul_(8) if "mlp" in name and "visual" in name else None
    save_file(
        {name: tensor.contiguous() for name, tensor in content.items() if name.startswith("visual.")},
        tmp_path / "w.safetensors",
    )
    return tmp_path / "w.safetensors"


def vectors(model: str, path, **settings) -> np.ndarray:
    return load_encoder(f"open_clip:{model}", path, **settings).embed([picture()])


def test_a_tag_decides_the_activation_of_a_file(tiny):
    plain, quick = vectors("Tiny", tiny), vectors("Tiny-quickgelu", tiny)
    assert np.abs(plain - quick).max() > 1e-3
    assert np.array_equal(vectors("Tiny/quick", tiny), quick)
    assert np.array_equal(vectors("Tiny/plain", tiny), plain)
    assert np.array_equal(vectors("Tiny-quickgelu/quick", tiny), quick)
    assert load_encoder("open_clip:Tiny/quick", tiny).weights.notes == ()


def test_a_tag_that_contradicts_the_model_is_refused(tiny):
    for model, options in (("Tiny-quickgelu/plain", {}), ("Tiny/plain", {"force_quick_gelu": True}), ("Tiny/quick", {"force_quick_gelu": False})):  # fmt: skip
        with pytest.raises(InputError, match="was trained with"):
            vectors(model, tiny, options=options)


def test_a_tag_decides_mean_std_and_resize_of_a_file(tiny):
    encoder = load_encoder("open_clip:Tiny/siglip", tiny)
    assert (encoder.mean, encoder.std) == HALF
    assert encoder.geometry.kind == "squash"
    assert load_encoder("open_clip:Tiny/quick", tiny).mean == OPENAI[0]
    assert load_encoder("open_clip:ViT-B-16-SigLIP/webli", "random").mean == (0.5,) * 3


@pytest.mark.parametrize("weights", ["file", "random", "hub"])
def test_an_unknown_tag_is_an_error(tiny, weights):
    with pytest.raises(InputError, match="with a TAG of quick, plain, siglip"):
        vectors("Tiny/nonsense", tiny if weights == "file" else weights)


def test_without_a_tag_what_is_assumed_is_in_the_table(tiny):
    encoder = load_encoder("open_clip:Tiny", tiny)
    (note,) = encoder.weights.notes
    assert note.startswith("assumed, as no TAG says it: activation GELU, mean (0.48145466, ")
    assert facts([encoder])["mind"].tolist() == [note]
    (note,) = load_encoder("open_clip:Tiny", tiny, options={"force_quick_gelu": True}).weights.notes
    assert "activation QuickGELU" in note
    (note,) = load_encoder("open_clip:Tiny-quickgelu", tiny).weights.notes
    assert "GELU" not in note
    assert load_encoder("open_clip:Tiny", "random").weights.notes == ()


@pytest.mark.parametrize("quick", [False, True])
def test_a_config_file(tiny, quick, tmp_path):
    inner = {**TINY, **({"quick_gelu": True} if quick else {})}
    content = {"model_cfg": inner, "preprocess_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "resize_mode": "longest"}}
    known = list(open_clip.list_models())
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(inner))
    (tmp_path / "whole.json").write_text(json.dumps(content))
    encoder = load_encoder(f"open_clip:{tmp_path}/ViT-B-32.json", tiny)
    expected = vectors("Tiny-quickgelu" if quick else "Tiny", tiny)
    assert np.array_equal(encoder.embed([picture()]), expected)
    assert "GELU" not in encoder.weights.notes[0]
    assert open_clip.get_model_config("ViT-B-32")["embed_dim"] == 512  # open_clip's own is not replaced
    assert {*known} <= {*open_clip.list_models()}
    whole = load_encoder(f"open_clip:{tmp_path}/whole.json", tiny)
    assert (whole.mean, whole.geometry.kind, whole.weights.notes) == ((0.1,) * 3, "pad_square", ())
    other = {**inner, "quick_gelu": not quick}
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(other))
    assert load_encoder(f"open_clip:{tmp_path}/ViT-B-32.json", tiny).identity() != encoder.identity()


def test_a_config_file_that_is_none_is_refused(tiny, tmp_path):
    with pytest.raises(MissingError, match=r"none\.json"):
        vectors(f"{tmp_path}/none.json", tiny)
    (tmp_path / "c.json").write_text(json.dumps({"embed_dim": 3}))
    with pytest.raises(InputError, match="vision_cfg, text_cfg missing"):
        vectors(f"{tmp_path}/c.json", tiny)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(InputError, match="in JSON"):
        vectors(f"{tmp_path}/c.json", tiny)
    (tmp_path / "c.json").write_text(json.dumps(TINY))
    with pytest.raises(InputError, match="expected weights: FILE"):
        vectors(f"{tmp_path}/c.json", "hub")


def test_another_input_size_is_resized_as_open_clip_does(tiny):
    encoder = load_encoder("open_clip:Tiny/plain", tiny, options={"force_image_size": 32})
    assert encoder.geometry.size == 32
    assert encoder.weights.notes == ("visual.positional_embedding: position table resized 4x4 -> 2x2",)
    theirs = open_clip.create_model("Tiny", force_image_size=32)
    content = load_file(tiny)
    open_clip.model.resize_pos_embed(content, theirs)
    assert torch.allclose(
        encoder.module.positional_embedding, content["visual.positional_embedding"], rtol=0, atol=1e-6
    )
    content = load_file(tiny) | {"visual.positional_embedding": torch.zeros(16, 32)}
    save_file(content, tiny)
    with pytest.raises(InputError, match=r"positional_embedding \(16, 32\).*square grid"):
        load_encoder("open_clip:Tiny/plain", tiny, options={"force_image_size": 32})
