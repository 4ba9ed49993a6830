"""How probes are fitted and networks fine-tuned: plain numbers, one rule for all encoders; fine-tuning is declared in the study."""

from dataclasses import dataclass, field

import numpy as np

from fpbench.errors import InputError

VERSION = 1  # of the training loop; raise it when its numbers change
GRID = 10 ** np.linspace(-6, 1, 45)  # C; DINOv2's 45, cut at 10: beyond, the score depends on where a solver stops
ALPHAS = 10 ** np.linspace(6, -2, 33)  # ridge; like GRID from the strongest to the weakest regularisation


@dataclass(frozen=True)
class Augmentation:
    """How much a training picture may change. All zero: not at all."""

    flip: float = 0.5  # probability of a left-right flip
    rotate: float = 15.0  # degrees, either way
    shift: float = 0.1  # share of the side, either way, each axis
    scale: float = 0.1  # share, either way
    gain: float = 0.2  # factor of brightness, either way; black stays black
    contrast: float = 0.2  # factor around the picture's mean, either way
    gamma: float = 0.2  # exponent, either way
    speckle: float = 0.1  # SD of multiplicative noise, at most


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    epochs: int = 20  # at most
    patience: int = 5  # epochs without a better validation score, then stop
    batch: int = 64  # images per step of the optimiser, whatever fits into memory at once
    rates: list[float] = field(default_factory=lambda: [1e-5, 5e-5, 2e-4])  # learning rates to choose from
    lora_rates: list[float] = field(default_factory=lambda: [2e-4, 1e-3])  # the same for LoRA
    head_factor: float = 10.0  # learning rate of the new head, in units of the encoder's
    layer_decay: float = 0.75  # factor of the learning rate per layer downwards; transformers, full only
    weight_decay: float = 0.05  # not on biases, norms and position tables
    warmup: float = 0.1  # share of all steps with a rising learning rate; then a cosine to zero
    smoothing: float = 0.1  # of labels
    class_weights: bool = False  # weigh classes by inverse frequency in the training part
    clip: float = 1.0  # largest norm of the gradient; 0: any
    drop_path: float = 0.1  # probability of leaving out the last block, rising from 0 at the first; full only
    batchnorm: str = "frozen"  # frozen: statistics as pretrained, scale and shift trained | live
    rank: int = 8  # of LoRA
    alpha: float = 16.0  # scale of LoRA: alpha / rank
    dropout: float = 0.1  # on the input of LoRA
    bf16: bool = True  # bfloat16 autocast on a GPU; a CPU computes in float32
    compile: bool = False  # torch.compile
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        counts = {"epochs": self.epochs, "patience": self.patience, "batch": self.batch, "rank": self.rank}
        if bad := {name: value for name, value in counts.items() if value < 1}:
            raise InputError(f"fine-tuning: expected whole numbers above 0, found {bad}")
        if not self.rates or not self.lora_rates or min(*self.rates, *self.lora_rates) <= 0:
            raise InputError(f"fine-tuning: expected learning rates above 0, found {self.rates} and {self.lora_rates}")
        if self.batchnorm not in ("frozen", "live"):
            raise InputError(f"fine-tuning: expected batchnorm frozen or live, found {self.batchnorm!r}")
        shares = {name: getattr(self, name) for name in ("warmup", "smoothing", "drop_path", "dropout")}
        if bad := {name: value for name, value in shares.items() if not 0 <= value < 1}:
            raise InputError(f"fine-tuning: expected shares from 0 to below 1, found {bad}")

    def grid(self, mode: str) -> list[float]:
        """Return the learning rates to choose from."""
        return self.rates if mode == "full" else self.lora_rates
