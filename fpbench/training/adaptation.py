"""How a pretrained network is made ready to be trained: low-rank additions, dropped paths, learning rates per layer.

A *block* is one member of the sequences called blocks, layers, layer or stageN that all our networks are built of; they are
numbered in the order of the network, whatever the library that built it.
"""

import re
import sys
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fpbench.errors import InputError
from fpbench.recipe import Recipe

if TYPE_CHECKING:
    from fpbench.training.finetuning import Learner

BLOCK = re.compile(r"^(?:.*\.)?(?:blocks|layers|layer\d*|stages?\d*)\.\d+(?=\.)")
POSITIONS = ("pos_embed", "cls_token", "reg_token", "rel_pos", "relative_position_bias_table", "position_embeddings")
QUERIES = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value")  # left as they are by LoRA
LORA = {"lora": False, "lora_mlp": True}  # modes -> whether the MLPs of the blocks alone are added to


def is_transformer(body: nn.Module) -> bool:
    """Return whether a network attends."""
    return any("attn" in name or "attention" in name for name, _ in body.named_modules())


def blocks(body: nn.Module) -> list[str]:
    """Return the names of the blocks of a network, in its order."""
    return list(dict.fromkeys(match[0] for name, _ in body.named_parameters() if (match := BLOCK.match(name))))


def layers(body: nn.Module) -> dict[str, int]:
    """Return the layer of every parameter: 0 before the first block, then one per block, then one for what stands behind."""
    found: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for name, _ in body.named_parameters():
        if match := BLOCK.match(name):
            found[name] = numbers.setdefault(match[0], len(numbers) + 1)
        else:
            found[name] = sys.maxsize if numbers and not any(word in name for word in POSITIONS) else 0
    return {name: min(layer, len(numbers) + 1) for name, layer in found.items()}


def rate_groups(model: "Learner", recipe: Recipe, rate: float) -> list[dict]:
    """Return parameter groups for AdamW, each with its ``base`` learning rate and weight decay.

    The head gets ``rate * head_factor``; block i of n gets ``rate * layer_decay ** (n + 1 - i)`` if the network is a
    transformer trained in full; all else ``rate``. Vectors and position tables do not decay.
    """
    depth = layers(model.body)
    top = max(depth.values())
    decay = recipe.layer_decay if model.mode == "full" and is_transformer(model.body) else 1.0
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            part, _, inner = name.partition(".")
            base = rate * (recipe.head_factor if part == "head" else decay ** (top - depth.get(inner, top)))
            plain = tensor.ndim <= 1 or any(word in name for word in POSITIONS)
            groups.setdefault((base, 0.0 if plain else recipe.weight_decay), []).append(tensor)
    return [{"params": tensors, "lr": base, "base": base, "weight_decay": w} for (base, w), tensors in groups.items()]


class DropPath(nn.Module):
    """Leave out a residual branch for some samples; the coins are drawn beforehand, so that a resumed run tosses the same."""

    def __init__(self, place: int, rate: float) -> None:
        super().__init__()
        self.place, self.rate = place, rate
        self.coins: Tensor | None = None  # (B, paths) uniform in [0, 1), set before each forward pass

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in training with the branch of some samples set to zero and the others scaled up."""
        if not self.training or self.rate == 0:
            return x
        assert self.coins is not None
        keep = (self.coins[:, self.place] >= self.rate).to(x) / (1 - self.rate)
        return x * keep.view(-1, *[1] * (x.ndim - 1))


def drop_paths(body: nn.Module, rate: float) -> list[DropPath]:
    """Put a DropPath wherever the network has a place for one; the rate rises from 0 at the first to ``rate`` at the last."""
    names = ("drop_path1", "drop_path2", "drop_path") if rate else ()
    places = [(m, name) for m in body.modules() for name in names if isinstance(getattr(m, name, None), nn.Identity)]
    paths = [DropPath(place, rate * place / max(1, len(places) - 1)) for place in range(len(places))]
    for (module, name), path in zip(places, paths, strict=True):
        setattr(module, name, path)
    return paths


def keep_less(body: nn.Module) -> None:
    """Have activations computed twice rather than kept; InputError where the network cannot."""
    switches = [switch for m in body.modules() if (switch := getattr(m, "set_grad_checkpointing", None))]
    if not switches:
        raise InputError("checkpointing: this network has no such switch: leave it out of the study")
    switches[0](True)


def add_lora(body: nn.Module, recipe: Recipe, mlp_alone: bool = False) -> None:
    """Freeze a transformer and add low-rank matrices to the linear layers of its blocks, queries, keys and values apart.

    So arXiv:2507.22802 says. Its networks were trained a little otherwise: of open_clip's towers the MLPs alone, since an addition to
    the output of ``nn.MultiheadAttention`` is never called (``mlp_alone`` does the same); of timm's networks the convolution that
    cuts patches as well (it is called ``proj`` too), and of Swin not the linear layers between the stages (``reduction``).

    ``body`` must be fresh: wrapping it twice would stack the additions.

    Raises
    ------
    InputError
        The network is no transformer, or has been wrapped before.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if any("lora_" in name for name, _ in body.named_parameters()):
        raise InputError("LoRA: this network has been wrapped before: load the encoder anew for each run")
    linear = [name for name, module in body.named_modules() if isinstance(module, nn.Linear) and BLOCK.match(name)]
    targets = [name for name in linear if name.rsplit(".", 1)[-1] not in QUERIES]
    targets = [name for name in targets if "mlp" in name.split(".")] if mlp_alone else targets
    if not is_transformer(body) or not targets:
        where = "the MLPs of its blocks" if mlp_alone else "its blocks"
        raise InputError(f"LoRA: expected a transformer with linear layers in {where}, found none: use mode full")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
    )
    inject_adapter_in_model(config, body)
    for name, tensor in body.named_parameters():
        tensor.requires_grad_("lora_" in name)


def movement(before: nn.Module, after: nn.Module) -> dict[int, float]:
    """Return how far the weights of each layer moved: the norm of the change over the norm before, additions of LoRA counted."""
    for module in after.modules():
        merge = getattr(module, "merge", None)
        if merge is not None and not module.merged:
            merge()
    moved = {name.replace(".base_layer", ""): tensor for name, tensor in after.named_parameters()}
    squares: dict[int, list[float]] = {}
    depth = layers(before)
    for name, tensor in before.named_parameters():
        found = squares.setdefault(depth[name], [0.0, 0.0])
        found[0] += float((moved[name].detach() - tensor.detach()).square().sum())
        found[1] += float(tensor.detach().square().sum())
    return {layer: (change / max(size, 1e-30)) ** 0.5 for layer, (change, size) in sorted(squares.items())}
