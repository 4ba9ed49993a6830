"""The catalogue's encoders beside the paper's seven: files in the authors' layouts, held to the authors' libraries; the same files damaged.

The smallest of a family is built at its true size, the larger ones as miniatures of the same code.
"""

import argparse
import re
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fpbench.encoders import catalogue, load_encoder
from fpbench.encoders.fingerprint import picture
from fpbench.errors import InputError

WHOLE = ("dinov2_small", "dinov3_small", "dinov3_convnext_tiny")
VIT = {"embed_dim": 48, "depth": 2, "num_heads": 4}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "ls_init_value": 0.1}
TIMM = {  # name -> timm's architecture, options of its miniature, options of the file that is published
    "dinov2_small": ("vit_small_patch14_dinov2", {}, {"img_size": 518}),
    "dinov2_base": ("vit_base_patch14_dinov2", VIT, {"img_size": 84}),
    "dinov2_large": ("vit_large_patch14_dinov2", VIT, {"img_size": 84}),
    "dinov2_small_reg": ("vit_small_patch14_reg4_dinov2", VIT, {"img_size": 518}),
    "dinov2_base_reg": ("vit_base_patch14_reg4_dinov2", VIT, {"img_size": 84}),
    "dinov2_large_reg": ("vit_large_patch14_reg4_dinov2", VIT, {"img_size": 84}),
    "dinov3_small": ("vit_small_patch16_dinov3", {}, {}),
    "dinov3_large": ("vit_large_patch16_dinov3", VIT, {}),
    "dinov3_huge_plus": ("vit_huge_plus_patch16_dinov3", VIT, {}),
    "dinov3_convnext_tiny": ("convnext_tiny", {"norm_eps": 1e-6}, {}),
    "dinov3_convnext_small": ("convnext_small", CONVNEXT, {}),
    "dinov3_convnext_base": ("convnext_base", CONVNEXT, {}),
    "dinov3_convnext_large": ("convnext_large", CONVNEXT, {}),
    "siglip2_base": ("vit_base_patch16_siglip_224", VIT, {"img_size": 224}),
    "siglip2_so400m": ("vit_so400m_patch14_siglip_378", VIT, {"img_size": 56}),
}


def called(name: str) -> str:
    return name if name in WHOLE else f"{name}-mini"


def numbered(module: torch.nn.Module) -> torch.nn.Module:
    """A module in which no tensor keeps the value that it starts with."""
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape) * 0.04)
    return module.eval()


def saved(content: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def author(name: str) -> torch.nn.Module:
    """The module that the published file was saved from."""
    architecture, options, file = TIMM[name]
    return numbered(timm.create_model(architecture, num_classes=0, **options, **file))


def expected(name: str, path: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pooling -> embedding, by timm, which fills the module from the file in its own way."""
    architecture, options, file = TIMM[name]
    size = {"img_size": x.shape[-1]} if file else {}
    how = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}, "num_classes": 0}
    theirs = timm.create_model(architecture, **how, **options, **size).eval()
    if "convnext" in name:
        return {"avg": theirs(x)}
    tokens, first = theirs.forward_features(x), theirs.num_prefix_tokens
    mean = tokens[:, first:].mean(1)
    if not first:
        return {"pooler": theirs(x), "patch_mean": mean}
    return {"cls": tokens[:, 0], "patch_mean": mean, "cls+mean": torch.cat([tokens[:, 0], mean], 1)}


def alike(encoder, want: torch.Tensor) -> bool:
    got = encoder.embed([picture()])
    return got.shape == want.shape and np.abs(got - want.numpy()).max() < 1e-4 * want.abs().max().item()


def seen(encoder) -> torch.Tensor:
    return encoder.normalise(torch.from_numpy(encoder.prepare([picture()])))


@pytest.mark.parametrize("name", TIMM)
@torch.inference_mode()
def test_a_published_file_gives_what_timm_makes_of_it(name, tmp_path):
    path = saved(author(name).state_dict(), tmp_path / "model.safetensors")
    encoder, poolings = load_encoder(called(name), path), catalogue.CATALOGUE[name].poolings
    want = expected(name, path, seen(encoder))
    assert list(want) == list(poolings)
    assert alike(encoder, want[encoder.pooling])
    if name in WHOLE:
        assert encoder.dim == poolings[encoder.pooling]
        return
    for pooling in list(poolings)[1:]:
        assert alike(load_encoder(called(name), path, pooling=pooling), want[pooling]), pooling


@pytest.mark.parametrize("name", catalogue.FURTHER)
def test_one_tensor_dropped_renamed_transposed_or_added_is_named(name, tmp_path):
    content = file_of(name)
    damage(name, content, tmp_path)


def below(root: str, tensors: dict) -> dict:
    return {f"{root}{key}": tensor.clone() for key, tensor in tensors.items()}


def sam() -> torch.nn.Module:
    """SAM's encoder as timm has it, in the sizes of the miniature."""
    sizes = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "neck_chans": 16}
    more = {"window_size": 3, "global_attn_indexes": (1, 3), "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6)}
    return timm.create_model("samvit_base_patch16", num_classes=0, **sizes, **more)


def clip(name: str) -> torch.nn.Module:
    """A CLIP model as open_clip has it, with a tower of pictures in the sizes of the miniature."""
    import open_clip
    from open_clip.model import CLIPTextCfg

    text = CLIPTextCfg(context_length=8, vocab_size=9, width=16, heads=2, layers=1)
    vision = {
        "unimedclip": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16},
        "biomedclip": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "mobilefetalclip": {"timm_model_name": "fastvit_mci0", "timm_pool": "avg", "timm_proj": None, "image_size": 64},
    }[name]
    with patch.object(timm, "create_model", partial(timm.create_model, **SMALL.get(name, {}))):
        lengths = {"unimedclip": 48, "biomedclip": 512, "mobilefetalclip": 512}
        return open_clip.CLIP(lengths[name], vision, text, quick_gelu=name == "unimedclip")


SMALL = {
    "biomedclip": {**VIT, "img_size": 64},
    "mobilefetalclip": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)},
}
DECODER = {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_embed.weight": torch.zeros(8, 48),
    "decoder_blocks.0.norm1.bias": torch.ones(8),
}
OWN = ("usf_mae", "ultrafedfm", "tinyusfm", "biomedclip", "unimedclip", "mobilefetalclip", "sam_base", "medsam")


def theirs(name: str) -> torch.nn.Module:
    """The miniature by the library that the authors' code is made of."""
    if "sam" in name:
        return sam()
    if "clip" in name:
        return clip(name)
    return timm.create_model("vit_base_patch16_224", num_classes=0, img_size=64, **VIT)


def metas(name: str) -> str:
    return re.sub(r"mlp\.fc([12])", r"mlp.lin\1", name)


def written(name: str, module: torch.nn.Module) -> dict:
    """What the published file holds: names, other parts of the model, wrapper and the state of the optimiser."""
    own, optimiser = (
        module.state_dict(),
        {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "args": argparse.Namespace(lr=1)},
    )
    if "sam" in name:
        return below("image_encoder.", {metas(key): tensor for key, tensor in own.items()}) | {
            "mask_decoder.iou_token.weight": torch.ones(1, 3)
        }
    return {
        "usf_mae": lambda: own | DECODER,
        "ultrafedfm": lambda: {"model": own | DECODER, **optimiser, "epoch": 1},
        "tinyusfm": lambda: below("module.model.", own),
        "biomedclip": lambda: own,
        "unimedclip": lambda: {"state_dict": below("module.", own), "epoch": 1},
        "mobilefetalclip": lambda: {"state_dict": below("module.", own), "epoch": 1, **optimiser},
    }[name]()


def vectors(name: str, module: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pooling -> embedding by the authors' library."""
    if "sam" in name:
        tokens = module.blocks(module.patch_embed(x) + module.pos_embed)
        return {"patch_mean": tokens.mean((1, 2)), "neck_mean": module.neck(tokens.permute(0, 3, 1, 2)).mean((2, 3))}
    if name == "unimedclip":
        return {"projected": module.encode_image(x)}
    if name == "mobilefetalclip":
        return {
            "projected": module.encode_image(x),
            "avg": module.visual.trunk.forward_head(module.visual.trunk.forward_features(x), pre_logits=True),
        }
    trunk = module.visual.trunk if name == "biomedclip" else module
    tokens = trunk.forward_features(x)
    mean = tokens[:, 1:].mean(1)
    found = {"cls": tokens[:, 0], "patch_mean": mean, "cls+mean": torch.cat([tokens[:, 0], mean], 1)}
    if name == "biomedclip":
        found["projected"] = module.encode_image(x)
    if name in ("ultrafedfm", "tinyusfm"):
        norm, trunk.norm = trunk.norm, torch.nn.Identity()
        raw = trunk.forward_features(x)[:, 1:].mean(1)
        trunk.norm = norm
        found["patch_mean"] = torch.nn.functional.layer_norm(raw, raw.shape[1:], eps=1e-6)
    return found


@pytest.mark.parametrize("name", OWN)
@torch.inference_mode()
def test_the_authors_file_gives_what_their_library_makes_of_it(name, tmp_path):
    module = numbered(theirs(name))
    path = saved(written(name, module), tmp_path / "w.pth")
    for pooling in catalogue.CATALOGUE[name].poolings:
        encoder = load_encoder(f"{name}-mini", path, pooling=pooling)
        want = vectors(name, module, seen(encoder))
        assert name == "unimedclip" or set(want) == set(catalogue.CATALOGUE[name].poolings)
        assert pooling not in want or alike(encoder, want[pooling]), pooling


@torch.inference_mode()
def test_a_norm_of_the_mean_is_taken_from_the_file_that_holds_it(tmp_path):
    module = numbered(timm.create_model("vit_base_patch16_224", num_classes=0, img_size=64, global_pool="avg", **VIT))
    encoder = load_encoder("tinyusfm-mini", saved(below("model.", module.state_dict()), tmp_path / "w.pth"))
    assert alike(encoder, module(seen(encoder)))


def file_of(name: str) -> dict:
    """The tensors of a miniature under the names of the authors' file."""
    if name in OWN:
        return {key.removeprefix("module."): tensor for key, tensor in opened(written(name, theirs(name))).items()}
    options = CONVNEXT if "convnext" in name else {**VIT, "img_size": catalogue.CATALOGUE[name].mini}
    return timm.create_model(TIMM[name][0], num_classes=0, **options).state_dict()


def opened(content: dict) -> dict:
    return next((content[key] for key in ("state_dict", "model") if key in content), content)


def damage(name: str, content: dict, folder: Path) -> None:
    inside = [key for key in content if not key.startswith(("decoder", "mask_", "transformer.", "ln_final.", "text"))]
    wide = next(key for key in inside if re.search(r"mlp\.(fc1|fc1_g|lin1|c_fc)\.weight", key))
    last = next(key for key in reversed(inside) if re.search(r"(blocks|stages)\..*\.bias$", key))
    root = last.rpartition(".")[0]
    rest = {key: tensor for key, tensor in content.items() if key != last}
    damaged = {
        "missing from the file (1)": (rest, last),
        "missing": ({**rest, f"{root}.renamed": content[last]}, last),
        "not in the model": ({**rest, f"{root}.renamed": content[last]}, f"{root}.renamed"),
        "another shape": ({**content, wide: content[wide].transpose(0, 1).contiguous()}, wide),
        "not in the model (1)": ({**content, f"{root}.added": torch.zeros(3)}, f"{root}.added"),
    }
    load_encoder(f"{name}-mini", saved(content, folder / "w.pth"))
    for words, (tensors, culprit) in damaged.items():
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            load_encoder(f"{name}-mini", saved(tensors, folder / "w.pth"))
        assert culprit in str(caught.value)


@torch.inference_mode()
def test_metas_file_of_dinov2_is_read(tmp_path):
    content = author("dinov2_base").state_dict()
    ours = load_encoder("dinov2_base-mini", saved(content, tmp_path / "timm.pth"))
    metas = load_encoder("dinov2_base-mini", saved(content | {"mask_token": torch.zeros(1, 48)}, tmp_path / "meta.pth"))
    assert metas.weights.sha256 == ours.weights.sha256
    assert metas.weights.ignored == ("mask_token",)


@torch.inference_mode()
def test_gates_of_dinov3_are_read_as_transformers_and_meta_name_them(tmp_path):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    hidden = timm.create_model("vit_huge_plus_patch16_dinov3", **VIT).blocks[0].mlp.fc1_g.out_features
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": hidden}
    more = {
        "use_gated_mlp": True,
        "hidden_act": "silu",
        "num_register_tokens": 4,
        "query_bias": False,
        "value_bias": False,
    }
    theirs = numbered(DINOv3ViTModel(DINOv3ViTConfig(**sizes, **more)))
    theirs.save_pretrained(tmp_path)
    encoder = load_encoder("dinov3_huge_plus-mini", tmp_path / "model.safetensors")
    assert alike(encoder, theirs(seen(encoder)).last_hidden_state[:, 0])
    meta = {}
    for key, tensor in encoder.module.trunk.state_dict().items():
        key = re.sub(r"gamma_([12])", r"ls\1.gamma", key.replace("reg_token", "storage_tokens"))
        for ours, name in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
            key = key.replace(f"mlp.{ours}", f"mlp.{name}")
        meta[key] = tensor.clone()
    again = load_encoder("dinov3_huge_plus-mini", saved(meta, tmp_path / "meta.pth"))
    assert again.weights.sha256 == encoder.weights.sha256


@pytest.mark.parametrize("name", catalogue.FURTHER)
def test_the_facts_are_whole(name):
    entry = catalogue.CATALOGUE[name]
    assert entry.parameters > 1
    assert float(re.match(r"[\d.]+", entry.gmacs)[0]) > 0.5
    assert min(entry.held) > 0
    assert {entry.saw_spain, entry.saw_africa, entry.saw_acouslic} <= {"yes", "no", "unknown"}
    assert entry.evidence
    assert entry.source.url.startswith("https://")
    with pytest.raises(InputError, match="has no weights of its own"):
        load_encoder(f"{name}-mini")


def test_what_makes_an_encoder_is_no_option():
    with pytest.raises(
        InputError, match="dinov2_small: expected options that leave it the encoder that it is, found model"
    ):
        load_encoder("dinov2_small-mini", weights="random", options={"model": "vit_tiny_patch16_224"})
