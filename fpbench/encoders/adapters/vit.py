"""FetalCLIP, UniMed-CLIP, USFM and DINOv3: vision transformers that timm builds, filled from their authors' files.

FetalCLIP runs in timm because open_clip's tower needs seconds per layer under bfloat16 on a CPU; outputs are the same.
"""

from typing import Any

import timm
from torch import Size, Tensor, nn

from fpbench.encoders.adapters.tower import ClassToken, Mean, Tower, pooled
from fpbench.encoders.checkpoint import NAMES, Layout, renamed

TRUNK = (r"^trunk\.", "")


def build(name: str, size: int, pooling: str, mini: bool, **options: Any) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return the tower and the layouts of the files that exist."""
    family = name.partition("_")[0]  # the sizes of DINOv3 are entries of their own
    builders = {"fetalclip": fetalclip, "unimedclip": unimedclip, "usfm": usfm, "dinov3": dinov3}
    return builders[family](size, pooling, mini, **options)


def _trunk(architecture: str, size: int, mini: dict | None, **options: Any) -> Any:  # a module with timm's attributes
    return timm.create_model(architecture, num_classes=0, img_size=size, **{**options, **(mini or {})})


def fetalclip(size: int, pooling: str, mini: bool) -> tuple[nn.Module, tuple[Layout, ...]]:
    """CLIP ViT-L/14: ``projected`` class token (the authors' choice), ``cls`` before the projection, ``patch_mean``."""
    tower, unused = _open_clip("vit_large_patch14_clip_224", 768, size, pooling, mini)
    context = {"positional_embedding": (117, 768)}  # any other CLIP ViT-L/14 has (77, 768) and else the same names
    left_out = (*NAMES["fetalclip_text"], *unused)
    return tower, (Layout(renamed(*NAMES["fetalclip"]), left_out=left_out, shapes=context, adapt=_clip),)


def unimedclip(size: int, pooling: str, mini: bool) -> tuple[nn.Module, tuple[Layout, ...]]:
    """CLIP ViT-B/16 with QuickGELU; whatever reads texts stands outside ``visual.``."""
    tower, unused = _open_clip("vit_base_patch16_clip_quickgelu_224", 512, size, pooling, mini)
    return tower, (Layout(renamed(*NAMES["fetalclip"]), prefix="visual.", left_out=unused, adapt=_clip),)


def _open_clip(model: str, length: int, size: int, pooling: str, mini: bool) -> tuple[Tower, tuple[str, ...]]:
    """Return open_clip's image tower as timm builds it, and what of its file stays unused."""
    small = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    trunk = _trunk(model, size, small if mini else None, global_pool="token")
    if pooling != "projected":
        return Tower(trunk, pooled(pooling, 1)), ("visual.proj",)
    return Tower(trunk, nn.Sequential(ClassToken(), nn.Linear(trunk.embed_dim, 48 if mini else length, bias=False))), ()


def _clip(name: str, tensor: Tensor, shape: Size) -> Tensor:
    """Return a tensor of open_clip in timm's form: leading ones, the projection as a linear layer."""
    if name == "pool.1.weight":
        return tensor.T
    same = tensor.shape == shape[-tensor.ndim :] and tensor.numel() == shape.numel()
    return tensor.view(shape) if same else tensor


def usfm(size: int, pooling: str, mini: bool, per_block_bias: bool = False) -> tuple[nn.Module, tuple[Layout, ...]]:
    """BEiT ViT-B/16 with one relative position table; ``per_block_bias`` gives each block its copy, as the authors fine-tune.

    ``patch_mean`` ends with a LayerNorm that no file holds: it starts as a plain one, and fine-tuning may train it.
    ``cls`` goes through the pretrained norm, ``patch_mean_raw`` through none.
    """
    small = {"embed_dim": 48, "depth": 2, "num_heads": 4}
    bias = {"use_shared_rel_pos_bias": not per_block_bias, "use_rel_pos_bias": per_block_bias}
    pool = "token" if pooling == "cls" else "avg"
    trunk = _trunk("beit_base_patch16_224", size, small if mini else None, global_pool=pool, **bias)
    norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    pools = {"patch_mean": (Mean(1), norm), "patch_mean_raw": (Mean(1),), "cls": (ClassToken(),)}
    names = renamed(TRUNK, (r"^blocks\.\d+\.attn\.(?=relative_position_bias_table)", "rel_pos_bias."))
    unused = ("mask_token", "rel_pos_bias.relative_position_index", *(() if pooling == "cls" else ("norm.*",)))
    return Tower(trunk, nn.Sequential(*pools[pooling])), (Layout(names, left_out=unused, fresh=("pool.1.*",)),)


def dinov3(
    size: int, pooling: str, mini: bool, model: str = "vit_base_patch16_dinov3", bf16_periods: bool = False
) -> tuple[nn.Module, tuple[Layout, ...]]:
    """DINOv3: ``cls``, ``patch_mean`` or both, after the final norm; files of timm, Meta and transformers.

    ``bf16_periods`` rounds the RoPE periods to bfloat16, as the original was trained.
    """
    small = {"embed_dim": 48, "depth": 2, "num_heads": 4, "init_values": 0.1}
    trunk = _trunk(model, size, small if mini else None, global_pool="token")
    if bf16_periods:
        trunk.rope.periods = trunk.rope.periods.bfloat16().float()
    pool = pooled(pooling, trunk.num_prefix_tokens)
    gates = (
        ((r"fc1_g\.", "w1."), (r"fc1_x\.", "w2."), (r"fc2\.", "w3.")) if hasattr(trunk.blocks[0].mlp, "fc1_g") else ()
    )
    meta = renamed(TRUNK, ("reg_token", "storage_tokens"), (r"gamma_([12])", r"ls\1.gamma"), *gates)
    zero = ("*.attn.qkv.bias", "*.attn.q_bias", "*.attn.v_bias", "*.attention.[qv]_proj.bias")
    return Tower(trunk, pool), (
        Layout(renamed(TRUNK), zero=zero),
        Layout(meta, left_out=("mask_token", "*.bias_mask", "rope_embed.periods"), zero=zero),
        Layout(renamed(*NAMES["dinov3"]), left_out=("embeddings.mask_token",), zero=zero),
    )
