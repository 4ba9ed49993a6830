"""Weights as a local file: of another input size, below a foreign root, inside a training checkpoint; the real ones of the sample."""

import re
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from fpbench import load_study, loading, make_splits, metrics
from fpbench.encoders import facts, load_encoder
from fpbench.encoders.fingerprint import picture
from fpbench.errors import InputError
from fpbench.training.embeddings import embed_cohort

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = "timm:vit_tiny_patch16_224"
SMALL = {"kind": "squash", "size": 32}


def vit(name: str = "vit_tiny_patch16_224", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **{**TINY, **options})


def saved(module_or_tensors, path):
    tensors = module_or_tensors
    if isinstance(tensors, torch.nn.Module):
        tensors = tensors.state_dict()
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


def timms_own(name: str, path, **options) -> torch.nn.Module:
    """The model as timm fills it from a file that it has downloaded."""
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, **options)  # fmt: skip


TABLES = {  # architecture -> options of both, options of the file, what the provenance says
    "vit_tiny_patch16_224": ({**TINY}, {"img_size": 96}, "pos_embed: position table resized 6x6 -> 2x2"),
    "vit_small_patch14_reg4_dinov2": (
        {**TINY, "patch_size": 16},
        {"img_size": 80},
        "pos_embed: position table resized 5x5 -> 2x2",
    ),
    "vit_base_patch16_siglip_224": ({**TINY}, {"img_size": 64}, "pos_embed: position table resized 4x4 -> 2x2"),
    "eva02_tiny_patch14_224": (
        {**TINY, "patch_size": 16},
        {"img_size": 48},
        "pos_embed: position table resized 3x3 -> 2x2",
    ),
    "beit_base_patch16_224": (
        {**TINY},
        {"img_size": 64},
        "blocks.0.attn.relative_position_bias_table and 1 more: position table resized",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of how timm resizes BEiT's
@pytest.mark.parametrize("name", TABLES)
def test_a_file_of_another_size_is_resized_as_timm_does(name, tmp_path):
    both, file, says = TABLES[name]
    torch.manual_seed(0)
    content = timm.create_model(name, num_classes=0, **both, **file).state_dict()
    for key, tensor in content.items():
        tensor.copy_(torch.randn(tensor.shape) * 0.1) if "pos" in key or "token" in key else None
    path = saved({key: tensor.half() for key, tensor in content.items()}, tmp_path / "w.safetensors")
    encoder = load_encoder(f"timm:{name}", path, options={**both, "img_size": 32})
    assert encoder.geometry.size == 32
    theirs = timms_own(name, path, **both, img_size=32).eval()
    for key, tensor in theirs.state_dict().items():
        assert torch.allclose(encoder.module.state_dict()[key], tensor, rtol=0, atol=1e-6), key
    x = encoder.normalise(torch.from_numpy(encoder.prepare([picture()])))
    with torch.inference_mode():
        assert np.allclose(encoder.embed([picture()]), theirs(x).numpy(), rtol=0, atol=1e-6)
    assert any(says in note for note in encoder.weights.notes), encoder.weights.notes
    assert says in facts([encoder])["mind"][0]


def test_the_tokens_before_the_grid_are_untouched(tmp_path):
    content = vit(img_size=96).state_dict()
    path = saved(content, tmp_path / "w.safetensors")
    table = load_encoder(VIT, path, options={**TINY, "img_size": 32}).module.pos_embed
    assert torch.equal(table[:, 0], content["pos_embed"][:, 0])
    assert table.shape == (1, 5, 32)
    plain = load_encoder(VIT, path, options={**TINY, "img_size": 96})
    assert plain.weights.notes == ()
    assert "mind" not in facts([plain])
    assert torch.equal(plain.module.pos_embed, content["pos_embed"])


@pytest.mark.parametrize("rows", [36, 38, 6])
def test_a_table_that_is_no_square_grid_is_refused(rows, tmp_path):
    content = vit(img_size=96).state_dict() | {"pos_embed": torch.zeros(1, rows, 32)}
    with pytest.raises(
        InputError, match=rf"pos_embed \(1, {rows}, 32\) where the model has \(1, 5, 32\), .*square grid"
    ):
        load_encoder(VIT, saved(content, tmp_path / "w.safetensors"), options={**TINY, "img_size": 32})


def test_another_width_is_refused_whatever_its_grid(tmp_path):
    content = vit(img_size=96).state_dict() | {"pos_embed": torch.zeros(1, 37, 16)}
    with pytest.raises(InputError, match=r"pos_embed \(1, 37, 16\)"):
        load_encoder(VIT, saved(content, tmp_path / "w.safetensors"), options={**TINY, "img_size": 32})


def below(root: str, tensors: dict) -> dict:
    return {f"{root}{name}": tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def plain():
    return vit(img_size=32).state_dict()


def tiny(path, **settings):
    return load_encoder(VIT, path, options={**TINY, "img_size": 32}, **settings)


@pytest.mark.parametrize(
    "root", ["image_encoder.", "visual.trunk.", "backbone.", "module.model.", "net._orig_mod.", "a.b.c."]
)
@pytest.mark.parametrize("dot", [True, False])
def test_a_file_with_a_foreign_root(plain, root, dot, tmp_path):
    other = {"text.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    path = saved(below(root, plain) | other, tmp_path / "w.pth")
    with pytest.raises(InputError, match="write prefix=") as caught:
        tiny(path)
    assert "ignore=" not in str(caught.value)
    named = re.search(r"prefix='(.*)'", str(caught.value))[1]
    for prefix in (named, root if dot else root.rstrip(".")):
        encoder = tiny(path, prefix=prefix)
        assert torch.equal(encoder.module.state_dict()["blocks.1.mlp.fc1.weight"], plain["blocks.1.mlp.fc1.weight"])
        assert encoder.weights.ignored == (f"2 tensors outside {prefix}",)


def test_a_prefix_that_is_not_there_is_refused(plain, tmp_path):
    path = saved(below("backbone.", plain), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"below prefix='encoder\.'.* found backbone"):
        tiny(path, prefix="encoder.")
    with pytest.raises(InputError, match="expected weights: FILE"):
        tiny("random", prefix="backbone.")
    with pytest.raises(InputError, match="expected weights: FILE"):
        load_encoder("usfm-mini", "random", prefix="backbone.")


@pytest.mark.parametrize("wrapper", ["teacher", "student", "ema", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("head", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off_and_named(plain, wrapper, head, tmp_path):
    path = saved({wrapper: below(head, plain), "epoch": 3}, tmp_path / "w.pth")
    assert tiny(path).weights.notes == (f"weights of {wrapper!r} in the file",)


def test_the_prefix_says_which_of_two_sets_is_meant(plain, tmp_path):
    student = {name: tensor + 1 for name, tensor in plain.items()}
    path = saved({"student": below("backbone.", student), "teacher": below("backbone.", plain)}, tmp_path / "w.pth")
    for prefix, content in {"backbone": plain, "teacher.backbone": plain, "student.backbone.": student}.items():
        encoder = tiny(path, prefix=prefix)
        assert torch.equal(encoder.module.state_dict()["norm.bias"], content["norm.bias"])
    assert encoder.weights.notes == ("weights of 'student' in the file",)


def test_two_tensors_of_one_name_are_refused(plain, tmp_path):
    path = saved(plain | {"module.norm.bias": torch.ones(32)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"one tensor of each name.*module\.norm\.bias"):
        tiny(path)


def test_a_table_that_holds_itself_is_refused(plain, tmp_path):
    content = {"epoch": 1}
    content["model"] = content
    with pytest.raises(InputError, match="other things too: epoch, model"):
        tiny(saved(content, tmp_path / "w.pth"))


def test_another_models_file_is_not_to_be_ignored(tmp_path):
    other = timm.create_model("resnet10t", num_classes=0).state_dict()
    with pytest.raises(InputError, match="it is another model's") as caught:
        tiny(saved(other, tmp_path / "w.safetensors"))
    assert "ignore=" not in str(caught.value)
    assert "prefix=" not in str(caught.value)


def test_a_study_names_the_prefix(plain, small_study, tmp_path):
    path = saved(below("image_encoder.", plain), tmp_path / "w.pth")
    text = small_study.read_text().partition("encoders:")[0]
    line = f"{{name: tiny, model: {VIT}, weights: {path}, prefix: image_encoder., options: {{img_size: 32, embed_dim: 32, depth: 2, num_heads: 2}}}}"
    small_study.write_text(text + f"encoders: [{line}]\n")
    assert loading.load_encoder(load_study(small_study), "tiny").embed([picture()]).shape == (1, 32)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TOWERS = {"CLIP": {"patch_size": 8, "image_size": 64}, "Siglip": {"patch_size": 8, "image_size": 64}}


def processor(folder, size: int) -> None:
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)


@pytest.mark.parametrize("name", ["ViT", "Dinov2"])
def test_a_transformers_model_of_another_size_is_resized_as_it_does_itself(name, tmp_path):
    import transformers

    config = getattr(transformers, f"{name}Config")(**SIZES, image_size=64, patch_size=8)
    torch.manual_seed(0)
    own = getattr(transformers, f"{name}Model")(config).eval()
    own.embeddings.position_embeddings.data.normal_(std=0.1)
    own.save_pretrained(tmp_path)
    processor(tmp_path, 64)
    for weights in ("hub", tmp_path / "model.safetensors"):
        encoder = load_encoder(f"hf:{tmp_path}", weights, options={"image_size": 32})
        assert encoder.geometry.size == 32
        x = encoder.normalise(torch.from_numpy(encoder.prepare([picture()])))
        with torch.inference_mode():
            more = {"interpolate_pos_encoding": True} if name == "ViT" else {}
            expected = own(pixel_values=x, **more).last_hidden_state[:, 0].numpy()
        assert np.allclose(encoder.embed([picture()]), expected, rtol=0, atol=1e-6)
        assert encoder.weights.notes == ("embeddings.position_embeddings: position table resized 8x8 -> 4x4",)
    content = load_file(tmp_path / "model.safetensors") | {"embeddings.position_embeddings": torch.zeros(1, 64, 32)}
    save_file(content, tmp_path / "odd.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"position_embeddings \(1, 64, 32\)"):
        load_encoder(f"hf:{tmp_path}", tmp_path / "odd.safetensors", options={"image_size": 32})


def test_a_transformers_file_with_a_foreign_root(tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    processor(tmp_path, 32)
    content = load_file(tmp_path / "model.safetensors")
    path = saved(below("backbone.", content) | {"head.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"write prefix='backbone\.'") as caught:
        load_encoder(f"hf:{tmp_path}", path)
    assert "ignore=" not in str(caught.value)
    encoder = load_encoder(f"hf:{tmp_path}", path, prefix="backbone.")
    assert encoder.weights.sha256 == load_encoder(f"hf:{tmp_path}").weights.sha256
    assert encoder.weights.ignored == ("1 tensors outside backbone.",)
    del content["encoder.layer.0.attention.output.dense.bias"]
    path = saved(content, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"overrule with ignore=\['\S+'\]$"):
        load_encoder(f"hf:{tmp_path}", path)


@pytest.fixture(params=TOWERS)
def two_towers(request, tmp_path):
    import transformers

    sides = [getattr(transformers, f"{request.param}{part}Config") for part in ("Text", "Vision", "")]
    text = {**SIZES, "vocab_size": 99, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    parts = {
        "text_config": sides[0](**text).to_dict(),
        "vision_config": sides[1](**SIZES, **TOWERS[request.param]).to_dict(),
    }
    torch.manual_seed(0)
    model = getattr(transformers, f"{request.param}Model")(sides[2](**parts)).eval()
    model.save_pretrained(tmp_path)
    processor(tmp_path, 64)
    return tmp_path, model


def test_a_model_of_two_towers_gives_its_tower_of_pictures(two_towers):
    folder, model = two_towers
    for weights in ("hub", folder / "model.safetensors", "random"):
        with pytest.raises(InputError, match=r"options: \{part: vision\}"):
            load_encoder(f"hf:{folder}", weights)
    for weights in ("hub", folder / "model.safetensors"):
        encoder = load_encoder(f"hf:{folder}", weights, options={"part": "vision"})
        assert encoder.pooling == "pooler"
        x = encoder.normalise(torch.from_numpy(encoder.prepare([picture()])))
        with torch.inference_mode():
            expected = model.vision_model(pixel_values=x).pooler_output.numpy()
        assert np.allclose(encoder.embed([picture()]), expected, rtol=0, atol=1e-6)
        assert any(name.startswith("text_model.") for name in encoder.weights.ignored)
    small = load_encoder(f"hf:{folder}", options={"part": "vision", "image_size": 32})
    assert [note.split(": ")[1] for note in small.weights.notes] == ["position table resized 8x8 -> 4x4"]


def test_parts_that_are_not_there_are_refused(two_towers, tmp_path_factory):
    folder, model = two_towers
    with pytest.raises(InputError, match="unknown options \\['image_side'\\]"):
        load_encoder(f"hf:{folder}", "random", options={"part": "vision", "image_side": 32})
    with pytest.raises(InputError, match="part: audio"):
        load_encoder(f"hf:{folder}", "random", options={"part": "audio"})
    if "siglip" in model.config.model_type:
        with pytest.raises(InputError, match="no class token"):
            load_encoder(f"hf:{folder}", options={"part": "vision"}, pooling="cls")
    from transformers import ViTConfig, ViTModel

    other = tmp_path_factory.mktemp("vit")
    ViTModel(ViTConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(other)
    processor(other, 32)
    with pytest.raises(InputError, match="part: vision"):
        load_encoder(f"hf:{other}", options={"part": "vision"})


PEAK = """
import sys
from pathlib import Path
from fpbench.encoders import load_encoder

def of(name):
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0]) // 1024

settings = {"options": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}}
load_encoder("timm:vit_tiny_patch16_224", "random", **settings)
for path in sys.argv[1:]:
    start = of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    load_encoder("timm:vit_tiny_patch16_224", path, prefix="backbone.", **settings)
    print(of("VmHWM") - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures with /proc")
def test_the_state_of_an_optimiser_is_not_read_into_memory(plain, tmp_path):
    """128 MiB of it: in a torch file, beside an object that needs the restricted reader, in a safetensors file."""
    import argparse

    model, state = below("backbone.", plain), {f"optimizer.{index}": torch.ones(4, 2**20) for index in range(8)}
    torch.save({"model": model, "optimizer": {"state": state}, "epoch": 1}, tmp_path / "w.pth")
    torch.save({"model": model, "optimizer": state, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    save_file(model | state, tmp_path / "w.safetensors")
    files = [tmp_path / name for name in ("w.pth", "args.pth", "w.safetensors")]
    found = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True, check=True)
    peaks = [int(line) for line in found.stdout.split()[-3:]]  # MiB
    assert max(peaks) < 40, peaks


REAL = """
name: files
title: Real weights as local files
task: planes
split: crossval
cohorts: [{{name: spain, root: "{shared}/data/spain", missing: drop}}]
encoders:
  - name: lite0
    model: timm:tf_efficientnet_lite0
    weights: "{shared}/weights/tf_efficientnet_lite0.fp16.safetensors"
    geometry: {{kind: squash}}
  - name: dinov2
    model: timm:vit_small_patch14_dinov2
    weights: "{shared}/weights/vit_small_patch14_dinov2.derived.fp16.safetensors"
    geometry: {{kind: squash}}
    options: {{img_size: 224}}
"""


def test_the_real_dinov2_is_resized_as_timm_does(shared, tmp_path):
    (tmp_path / "files.yaml").write_text(REAL.format(shared=shared))
    encoder = loading.load_encoder(load_study(tmp_path / "files.yaml"), "dinov2")
    assert encoder.geometry.size == 224
    assert encoder.weights.notes == ("pos_embed: position table resized 37x37 -> 16x16",)
    theirs = timms_own("vit_small_patch14_dinov2", shared / "weights" / encoder.weights.location, img_size=224).eval()
    content = load_file(shared / "weights" / encoder.weights.location)
    assert torch.equal(encoder.module.cls_token, content["cls_token"].float())
    assert torch.equal(encoder.module.pos_embed[:, 0], content["pos_embed"][:, 0].float())
    assert torch.allclose(encoder.module.pos_embed, theirs.pos_embed, rtol=0, atol=1e-6)
    x = encoder.normalise(torch.from_numpy(encoder.prepare([picture()])))
    with torch.inference_mode():
        assert np.allclose(encoder.embed([picture()]), theirs(x).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "score"), [("lite0", 0.673), pytest.param("dinov2", 0.695, marks=pytest.mark.slow)])
def test_the_real_files_of_the_sample_through_a_study(name, score, shared, session_cache, tmp_path, monkeypatch):
    """Macro F1 of the 150 Spanish images at C = 0.1, each answered by the fold that tests it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setenv("FPBENCH_CACHE", str(session_cache))
    (tmp_path / "files.yaml").write_text(REAL.format(shared=shared))
    study = load_study(tmp_path / "files.yaml").begin()
    home, _ = loading.load_cohorts(study)
    X, y = embed_cohort(loading.load_encoder(study, name), home), np.array(study.the_task.codes(home.frame["plane"]))
    splits, logits = make_splits(home, study.the_task, "crossval"), np.zeros((len(y), 6))
    for number in range(5):
        fold = splits.fold(number)
        rows = np.concatenate([fold.train, fold.validation])
        scale = StandardScaler().fit(X[rows])
        fitted = LogisticRegression(C=0.1, max_iter=3000).fit(scale.transform(X[rows]), y[rows])
        logits[fold.test] = fitted.decision_function(scale.transform(X[fold.test]))
    assert metrics.scores(y, logits, range(6))["macro F1"] == pytest.approx(score, abs=0.02)
