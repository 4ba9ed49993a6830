"""How probes are fitted, networks fine-tuned and pretrained: plain numbers, one rule for all encoders; declared in the study."""

from dataclasses import dataclass, field

import numpy as np

from fpbench.errors import InputError

VERSION = 1  # of the training loop; raise it when its numbers change
GRID = 10 ** np.linspace(-6, 1, 45)  # C; DINOv2's 45, cut at 10: beyond, the score depends on where a solver stops
COARSE = GRID[::3]  # of side questions: half a decade apart, for a third of the heads
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
    segmentation_rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3])  # the same for a segmenter's decoder
    head_factor: float = 10.0  # learning rate of the new head, in units of the encoder's
    layer_decay: float = 0.75  # factor of the learning rate per layer downwards; transformers, full only
    weight_decay: float = 0.05  # not on biases, norms and position tables
    warmup: float = 0.1  # share of all steps with a rising learning rate; then a cosine to zero
    smoothing: float = 0.1  # of labels
    class_weights: bool = False  # weigh classes by inverse frequency in the training part
    sampling: str = (
        "natural"  # natural: an epoch shows every training picture once | balanced: as many, classes equally often
    )
    clip: float = 1.0  # largest norm of the gradient; 0: any
    drop_path: float = 0.1  # probability of leaving out the last block, rising from 0 at the first; full only
    batchnorm: str = "frozen"  # frozen: statistics as pretrained, scale and shift trained | live
    rank: int = 8  # of LoRA
    alpha: float = 16.0  # scale of LoRA: alpha / rank
    dropout: float = 0.1  # on the input of LoRA
    taps: list[int] = field(default_factory=lambda: [6, 8, 12, 24])  # of 24 blocks, those that a segmenter reads
    bf16: bool = True  # bfloat16 autocast on a GPU; a CPU computes in float32
    compile: bool = False  # torch.compile
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        counts = {"epochs": self.epochs, "patience": self.patience, "batch": self.batch, "rank": self.rank}
        if bad := {name: value for name, value in counts.items() if value < 1}:
            raise InputError(f"fine-tuning: expected whole numbers above 0, found {bad}")
        grids = [self.rates, self.lora_rates, self.segmentation_rates]
        if not all(grids) or min(map(min, grids)) <= 0:
            raise InputError(f"fine-tuning: expected learning rates above 0, found {', '.join(map(str, grids))}")
        if len(self.taps) != 4 or self.taps != sorted(self.taps) or not 1 <= self.taps[0] <= self.taps[-1] <= 24:
            raise InputError(f"fine-tuning: taps: expected four blocks of 24, the first ones first, found {self.taps}")
        if self.batchnorm not in ("frozen", "live"):
            raise InputError(f"fine-tuning: expected batchnorm frozen or live, found {self.batchnorm!r}")
        if self.sampling not in ("natural", "balanced"):
            raise InputError(f"fine-tuning: expected sampling natural or balanced, found {self.sampling!r}")
        if self.sampling == "balanced" and self.class_weights:
            raise InputError(
                "fine-tuning: expected balanced sampling or class_weights, found both: rare classes count twice"
            )
        shares = {name: getattr(self, name) for name in ("warmup", "smoothing", "drop_path", "dropout")}
        if bad := {name: value for name, value in shares.items() if not 0 <= value < 1}:
            raise InputError(f"fine-tuning: expected shares from 0 to below 1, found {bad}")

    def grid(self, mode: str) -> list[float]:
        """Return the learning rates to choose from."""
        return {"full": self.rates, "segmentation": self.segmentation_rates}.get(mode, self.lora_rates)


@dataclass(frozen=True)
class Views:
    """What pretraining shows of a picture: crops of a cached grey array, each changed in its own way."""

    cache: int = 320  # side of the cached grey pictures, pixels
    size: int = 224  # side of a global view, pixels
    local_size: int = 96  # side of a local view, pixels; 98 for patches of 14
    locals: int = 6  # local views of a picture, beside two global ones
    scale: list[float] = field(default_factory=lambda: [0.32, 1.0])  # area of a global crop, share of the picture's
    local_scale: list[float] = field(default_factory=lambda: [0.05, 0.32])  # the same of a local crop
    black: float = 0.5  # a local crop that is black to a larger share is drawn again
    blur: float = 0.3  # probability of a mild blur
    change: Augmentation = field(default_factory=lambda: Augmentation(rotate=10.0, shift=0.0, scale=0.0))

    def __post_init__(self) -> None:
        """Refuse what cannot be cut."""
        sides = {name: getattr(self, name) for name in ("cache", "size", "local_size")}
        if bad := {name: value for name, value in sides.items() if not 8 <= value <= 1024} or self.locals < 0:
            raise InputError(f"views: expected sides from 8 to 1024 pixels and locals >= 0, found {bad or self.locals}")
        for name in ("scale", "local_scale"):
            found = getattr(self, name)
            if len(found) != 2 or not 0 < found[0] <= found[1] <= 1:
                raise InputError(f"views: {name}: expected two shares, the smaller first, found {found}")
        if not 0 <= self.blur <= 1 or not 0 < self.black <= 1:
            raise InputError(f"views: expected blur and black from 0 to 1, found {self.blur} and {self.black}")


@dataclass(frozen=True)
class Objective:
    """What pretraining asks for, and how it steps. Pairs are values at the first and at the last step."""

    batch: int = 64  # pictures per step; all of a step's views are in memory at once
    dino: float = 1.0  # weight of the cross-entropy between views
    ibot: float = 1.0  # weight of the same on masked patches; 0: no patch is masked (networks without patches)
    koleo: float = 0.1  # weight of the spread of features within a batch
    prototypes: int = 0  # 0: by the size of the corpus, 1,024 up to 20,000 pictures
    hidden: int = 2048  # width of the head
    bottleneck: int = 256  # numbers before the prototypes
    head_batchnorm: bool = False  # in the head: few steps of a network that knows nothing begin to learn at once
    targets: str = "centring"  # centring | sinkhorn
    student_temperature: float = 0.1
    temperature: list[float] = field(
        default_factory=lambda: [0.04, 0.07]
    )  # of the teacher, over the first `warm` of all steps
    warm: float = 0.3
    centre_momentum: float = 0.9
    momentum: list[float] = field(default_factory=lambda: [0.992, 1.0])  # of the teacher, cosine
    rate: float = 0.004  # learning rate at 1,024 pictures, times sqrt(batch / 1,024); a tenth from released weights
    rate_end: float = 1e-6
    warmup: float = 0.1  # share of all steps with a rising learning rate; then a cosine
    weight_decay: list[float] = field(default_factory=lambda: [0.04, 0.04])  # of matrices, cosine
    layer_decay: float = 0.9  # factor of the learning rate per layer downwards; transformers
    patch_factor: float = 0.2  # factor of the learning rate of what cuts patches; transformers
    heads: float = 0.1  # share of all steps that train the heads alone, where it starts from released weights
    frozen: float = 0.01  # share of all steps in which the prototypes stand still
    clip: float = 3.0  # largest norm of the gradient, of network and head apart; 0: any
    drop_path: float = 0.1  # as in fine-tuning, of the student
    batchnorm: str = "live"  # live: statistics of the batch | frozen
    masked: float = 0.5  # share of the global views that are masked
    mask: list[float] = field(default_factory=lambda: [0.1, 0.5])  # share of their patches
    bf16: bool = True  # bfloat16 autocast on a GPU; losses are float32

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.batch < 2 or min(self.hidden, self.bottleneck) < 1 or self.prototypes < 0:
            raise InputError(
                f"pretraining: expected batch >= 2, hidden, bottleneck >= 1, prototypes >= 0, found {self}"
            )
        if min(self.dino, self.ibot, self.koleo) < 0 or not self.dino + self.ibot:
            raise InputError("pretraining: expected weights of losses >= 0, and dino or ibot above 0")
        if self.targets not in ("centring", "sinkhorn") or self.batchnorm not in ("live", "frozen"):
            found = f"{self.targets!r} and {self.batchnorm!r}"
            raise InputError(
                f"pretraining: expected targets centring or sinkhorn, batchnorm live or frozen, found {found}"
            )
        pairs = {name: getattr(self, name) for name in ("temperature", "momentum", "weight_decay", "mask")}
        if bad := {name: pair for name, pair in pairs.items() if len(pair) != 2 or min(pair) < 0 or max(pair) > 1}:
            raise InputError(f"pretraining: expected pairs of numbers from 0 to 1, found {bad}")
        if min(self.temperature) <= 0 or self.student_temperature <= 0 or self.rate <= 0:
            raise InputError("pretraining: expected temperatures and rate above 0")
        names = ("warm", "centre_momentum", "warmup", "heads", "frozen", "drop_path")
        if bad_shares := {name: getattr(self, name) for name in names if not 0 <= getattr(self, name) < 1}:
            raise InputError(f"pretraining: expected shares from 0 to below 1, found {bad_shares}")

    def prototypes_for(self, pictures: int) -> int:
        """Return the number of prototypes for a corpus: as declared, else by its size."""
        steps = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16_384), (500_000, 32_768))
        return self.prototypes or next((count for most, count in steps if pictures <= most), 65_536)


@dataclass(frozen=True)
class CorpusSpec:
    """A part of a pretraining corpus; labels are not needed."""

    name: str = ""  # a cohort, as in `cohorts`
    file: str = ""  # or the YAML file that describes one
    folder: str = ""  # or any folder of pictures
    root: str = ""  # folder of a named cohort; empty: as the study's own, else <data>/<name>
    parts: list[str] = field(default_factory=list)  # of the published split: train, test; empty: all that may enter
    missing: str = "error"  # error | drop

    def __post_init__(self) -> None:
        """Refuse what names none, or two."""
        if sum(map(bool, (self.name, self.file, self.folder))) != 1 or (self.root and not self.name):
            raise InputError(f"corpus: expected one of name (with root), file, folder, found {self}")

    @property
    def title(self) -> str:
        """Return what a person calls it."""
        return self.name or self.file or self.folder


@dataclass(frozen=True)
class Pretraining:
    """One pretraining of a study: where it starts, on what, how long."""

    start: str  # an encoder of the study; its weights, also random ones, are the start
    corpus: list[CorpusSpec]
    epochs: int = 100
    seed: int = 0
    seeds: list[int] = field(
        default_factory=list
    )  # one pretraining with each, in place of `seed`; scores are means over them
    transductive: bool = False  # test pictures replace as many training pictures: measures a leak
    views: Views = field(default_factory=Views)
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.epochs < 1 or not self.corpus:
            raise InputError(f"pretraining from {self.start}: expected epochs >= 1 and a corpus")
        seeds = self.seeds or [self.seed]
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise InputError(
                f"pretraining from {self.start}: expected different seeds from 0 to 2^32 - 1, found {seeds}"
            )
