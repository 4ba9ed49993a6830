"""UltraSAM's global attention at 1024 px (64 x 64 tokens, 12 heads): our folded bias against timm's materialised one.

    python benchmarks/attention.py [--size 1024] [--batch 1]

One attention layer with the same random weights and tables. ``attention_error``: the largest difference of outputs and of all
gradients, relative to the largest value. ``attention_memory``: what one forward and backward pass adds to the peak (the size of the
process on a CPU, torch's memory on a GPU). ``attention_step``: the time of both passes; ``attention_forward``: forward only, without
gradients, as in extraction. Our side runs where it is built (``fpbench/encoders/adapters/ultrasam.py``).
"""

from types import SimpleNamespace

import torch
from common import alternate, clock, device, entry, medians, parser, pinned, save, wait
from timm.models.vision_transformer_sam import Attention
from transformers import SamVisionConfig

from fpbench.encoders.adapters.ultrasam import FoldedAttention
from fpbench.encoders.inspection import peak, reset_peak


def pair(side: int, kind: torch.device) -> dict[str, torch.nn.Module]:
    """Return both layers with the same numbers."""
    torch.manual_seed(0)
    theirs = Attention(768, 12, True, use_rel_pos=True, input_size=(side, side))
    torch.nn.init.normal_(theirs.rel_pos_h, std=0.2)
    torch.nn.init.normal_(theirs.rel_pos_w, std=0.2)
    ours = FoldedAttention(SamVisionConfig(image_size=16 * side), 0)
    ours.load_state_dict(theirs.state_dict())
    return {"ours": ours.to(kind), "timm": theirs.to(kind)}


def both(module: torch.nn.Module, x: torch.Tensor, bf16: bool = False) -> list[torch.Tensor]:
    """Run forward and backward; return the output and all gradients."""
    x = x.clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        y = forward(module, x)
    y.float().square().sum().backward()
    wait()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


def forward(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the output."""
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def measure(size: int, batch: int, repeats: int, bf16: bool = False) -> list[dict]:
    """Return the cases."""
    kind, side = device(), size // 16
    modules, x = pair(side, kind), torch.randn(batch, side, side, 768, device=kind)
    holder, results, memory = SimpleNamespace(device=kind), {}, {}
    for name, module in modules.items():
        both(module, x, bf16)  # kernels are chosen at the first call
        reset_peak(holder)
        before = peak(holder)
        results[name] = both(module, x, bf16)
        memory[name] = (peak(holder) - before) / 2**20
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results.values(), strict=True))
    results.clear()

    @torch.inference_mode()
    def infer(module: torch.nn.Module) -> None:
        with torch.autocast(kind.type, torch.bfloat16, enabled=bf16):
            forward(module, x)
        wait()

    step = medians(alternate({n: lambda m=m: both(m, x, bf16) for n, m in modules.items()}, repeats, clock()))
    only = medians(alternate({n: lambda m=m: infer(m) for n, m in modules.items()}, repeats, clock()))
    case = f"{size} px, batch {batch}, {'bf16' if bf16 else 'float32'}, {kind.type}"
    where = ("" if size == 1024 else f"_{size}") + ("_gpu" if kind.type == "cuda" else "")
    unit = "s" if kind.type == "cuda" else "CPU s"
    found = [
        entry(f"attention_memory{where}", f"peak memory of a step, {case}", "MiB", memory["ours"], memory["timm"]),
        entry(f"attention_step{where}", f"forward and backward, {case}", unit, step["ours"], step["timm"]),
        entry(f"attention_forward{where}", f"forward, no gradients, {case}", unit, only["ours"], only["timm"]),
    ]
    if not bf16:
        found += [
            entry(
                f"attention_error{where.removesuffix('_gpu')}",
                f"outputs and gradients, {case}",
                "relative",
                error,
                value=error,
            )
        ]
    return found


def main() -> None:
    """Measure and write."""
    made = parser(__doc__, "attention", repeats=3)
    made.add_argument("--size", type=int, default=1024, help="side of the picture, pixels")
    made.add_argument("--batch", type=int, default=1)
    args = made.parse_args()
    with pinned(args.threads):
        save("attention", args, measure(args.size, args.batch, args.repeats))


if __name__ == "__main__":
    main()
