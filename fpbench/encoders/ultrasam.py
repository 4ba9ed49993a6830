"""UltraSAM's image encoder: SAM's ViT-B as transformers builds it (at 1024 px faster and leaner than timm's).

The embedding is the mean over all tokens of the last block, padding included, without SAM's neck: so the authors classify.
Their file has position tables for 1024 px; other sizes resize both, as mmpretrain does.
"""

from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import Permute
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from fpbench.encoders.checkpoint import NAMES, Layout, renamed
from fpbench.encoders.tower import Mean, Tower

MINI = {
    "hidden_size": 48, "output_channels": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 96,
    "window_size": 3, "global_attn_indexes": [1, 3],
}  # fmt: skip


class SamTower(Tower):
    """SAM's encoder without its neck."""

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


def build(name: str, size: int, pooling: str, mini: bool) -> tuple[nn.Module, tuple[Layout, ...]]:
    """Return the tower and the layout of the authors' file (mmengine, mmpretrain's names under ``backbone.``)."""
    # transformers' own start (1e-10) would make random weights blind
    trunk = SamVisionEncoder(SamVisionConfig(image_size=size, initializer_range=0.02, **(MINI if mini else {})))
    neck = trunk.neck
    del trunk.neck
    pool, unused = Mean(), ("backbone.channel_reduction.*",)
    if pooling == "neck_mean":
        pool, unused = nn.Sequential(neck, Permute([0, 2, 3, 1]), Mean()), ()
    resize = partial(resize_tables, grid=4 if mini else 64)  # patches of 16 px
    return SamTower(trunk, pool), (Layout(renamed(*NAMES["ultrasam"]), "backbone.", left_out=unused, adapt=resize),)


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
