"""The image encoder of UltraSAM, SAM and MedSAM: SAM's ViT-B as transformers builds it, with a leaner global attention.

The embedding is the mean over all tokens of the last block, padding included, without SAM's neck: so the authors classify.
Their file has position tables for 1024 px; other sizes resize both, as mmpretrain does.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision.ops import Permute
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder, SamVisionSdpaAttention

from fpbench.encoders.adapters.tower import Mean, Tower
from fpbench.encoders.checkpoint import NAMES, Layout, renamed

FOLDED = 1024  # tokens of a global block from which on its bias is folded: at 1024 px it would take 805 MB per picture
MINI: dict[str, Any] = {
    "hidden_size": 48, "output_channels": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 96,
    "window_size": 3, "global_attn_indexes": [1, 3],
}  # fmt: skip


class FoldedAttention(SamVisionSdpaAttention):
    """SAM's attention without the (N, N) bias: softmax(q k + down + across) is that of [q, down, across] [k, row, column].

    Row and column of a key are one-hot, so the sums are the same; values are padded to the width of the keys, as fused
    kernels want it. ``benchmarks/attention.py`` measures it.
    """

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, None]:
        """Return (B, H, W, C), and no weights."""
        sides = height, width = hidden_states.shape[1:3]
        q, k, v = (
            self.qkv(hidden_states)
            .flatten(1, 2)
            .unflatten(-1, (3, self.num_attention_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        grid = q.unflatten(2, sides)
        down = torch.einsum("bnhwc,hkc->bnhwk", grid, self.get_rel_pos(height, height, self.rel_pos_h))
        across = torch.einsum("bnhwc,wkc->bnhwk", grid, self.get_rel_pos(width, width, self.rel_pos_w))
        rows, columns = (torch.eye(side, dtype=q.dtype, device=q.device) for side in sides)
        places = torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], -1)
        q = torch.cat([q * self.scale, down.flatten(2, 3), across.flatten(2, 3)], -1)
        k = torch.cat([k, places.expand(*k.shape[:2], -1, -1)], -1)
        padded = functional.pad(v, (0, height + width))
        found = functional.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]
        return self.proj(found.transpose(1, 2).reshape(hidden_states.shape)), None


class SamTower(Tower):
    """SAM's encoder without its neck."""

    trunk: SamVisionEncoder
    checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Have the activations of each block computed again rather than kept, in training."""
        self.checkpointing = enable

    def features(self, x: Tensor) -> Tensor:
        """Return the map (B, S/16, S/16, C) of the last block."""
        x = self.trunk.patch_embed(x) + self.trunk.pos_embed
        for layer in self.trunk.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing and self.training else layer(x)
        return x


def build(
    name: str,
    size: int,
    pooling: str,
    mini: bool,
    names: str = "ultrasam",
    root: str = "backbone.",
    neck_in_file: str = "channel_reduction",
) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return the tower and the layout of the authors' file: mmpretrain's names (mmengine), or Meta's (``names: sam``), under ``root``."""
    # transformers' own start (1e-10) would make random weights blind
    trunk = SamVisionEncoder(SamVisionConfig(image_size=size, initializer_range=0.02, **(MINI if mini else {})))
    for layer in trunk.layers if (size // 16) ** 2 >= FOLDED else ():
        if layer.window_size == 0:
            layer.attn.__class__ = FoldedAttention
    neck = trunk.neck
    del trunk.neck
    pool: nn.Module = Mean()
    unused: tuple[str, ...] = (f"{root}{neck_in_file}.*",)
    if pooling == "neck_mean":
        pool, unused = nn.Sequential(neck, Permute([0, 2, 3, 1]), Mean()), ()
    resize = partial(resize_tables, grid=4 if mini else 64)  # patches of 16 px
    return SamTower(trunk, pool), (Layout(renamed(*NAMES[names]), root, left_out=unused, adapt=resize),)


def resize_tables(name: str, tensor: Tensor, shape: tuple[int, ...], grid: int) -> Tensor:
    """Return a position table of ``grid`` x ``grid`` patches for the model's own grid; any other tensor as it is."""
    if tuple(tensor.shape) == shape:
        return tensor
    if name.endswith("pos_embed") and tensor.shape[:3] == (1, grid, grid):
        resized = nn.functional.interpolate(tensor.permute(0, 3, 1, 2).float(), shape[1:3], mode="bicubic")
        return resized.permute(0, 2, 3, 1)
    if "rel_pos" in name and tensor.shape[:1] == (2 * grid - 1,):
        return nn.functional.interpolate(tensor.T[None].float(), shape[0], mode="linear")[0].T
    return tensor
