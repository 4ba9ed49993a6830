"""A segmenter on a frozen transformer, and the class that its mask says.

Four blocks of the encoder are read, *taps*; a U-shaped decoder (as UNETR's, arXiv:2103.10504) makes of them and of the picture one number
per pixel: the logit of foreground. Taps are numbered as ``adaptation.blocks`` and stand in proportion to the depth: of 24, 6 is a quarter
of the way; 12 blocks have 3, 4, 6, 12 for FetalCLIP-IQA's 6, 8, 12, 24 (UNETR's own would be 6, 12, 18, 24). A miniature of two blocks reads the first
three times.

The features of a tap are tokens without class token and registers, or a map, laid on a grid of side / 16; where the encoder's own is
another (patches of 14, windows that merge), bilinearly. Widths follow arXiv:2507.22802: 512 at the grid, half at each doubling of the
sides, 32 at the picture's own; less where the encoder is a miniature. A side that is no multiple of 16 is stretched to the next one.

The score of a picture is the area that is found. Class logits are 0 and log(area / needed): ``answers``.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpbench.encoders import Encoder
from fpbench.encoders.adapters.tower import on_grid
from fpbench.errors import InputError
from fpbench.recipe import Recipe
from fpbench.study import EncoderSpec
from fpbench.training.adaptation import blocks, is_transformer
from fpbench.training.finetuning import LAST, Learner

FILTERS, LEVELS = 32, 5  # channels at the picture's own sides; doubled at each level down to the grid
STRIDE = 2 ** (LEVELS - 1)  # pixels of the picture that a cell of the grid spans, each way
NEEDED = 100  # a picture is positive if one pixel in so many, or more, is foreground


def answers(pixels: Tensor, positive: int) -> Tensor:
    """Return class logits (B, 2) from logits of pixels (B, S, S).

    The positive class has log(area / needed), the other 0. ``area`` counts pixels above 0.5, and no less than half a pixel; half the mean
    probability (below 0.5) is added, so that pictures of one count, most of all of none, keep an order. ``needed`` is one pixel in NEEDED,
    rounded up: the arg-max is the rule of arXiv:2507.22802, to the pixel, and ranking is by area.
    """
    flat = pixels.double().flatten(1)
    area = (flat > 0).sum(1).clamp(min=0.5) + flat.sigmoid().mean(1) / 2
    score = torch.log(area / -(-flat.shape[1] // NEEDED))
    return torch.stack([score if column == positive else 0 * score for column in (0, 1)], dim=1)


def unit(before: int, after: int) -> nn.Sequential:
    """Return a depthwise-separable convolution: 3 x 3 within channels, 1 x 1 across them."""
    parts: list[nn.Module] = []
    for convolution in (nn.Conv2d(before, before, 3, padding=1, groups=before), nn.Conv2d(before, after, 1)):
        parts += [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
    return nn.Sequential(*parts)


def doubled(before: int, after: int) -> nn.ConvTranspose2d:
    """Return a grouped 2 x 2 up-convolution: both sides double."""
    return nn.ConvTranspose2d(before, after, 2, stride=2, groups=math.gcd(before, after))


def risen(before: int, widths: Sequence[int]) -> nn.Sequential:
    """Return what lifts a tap off the grid: an up-convolution and a unit for every width."""
    parts = [nn.Sequential(doubled(a, b), unit(b, b)) for a, b in zip([before, *widths], widths, strict=False)]
    return nn.Sequential(*parts)


class Decoder(nn.Module):
    """Features of four taps, first blocks first, each (B, C, g, g), and the picture (B, 3, 16 g, 16 g), to logits (B, 16 g, 16 g)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        first = min(FILTERS, channels[-1] // 6)  # the narrowest encoder that is no miniature has 192 channels
        widths = [first << level for level in range(LEVELS)]
        self.deepest = unit(channels[-1], widths[-1])
        skips = [
            risen(channels[i], widths[-2:i:-1]) for i in range(3)
        ]  # three doublings for the first, one for the third
        self.skips = nn.ModuleList([unit(3, first), *skips])
        self.ups = nn.ModuleList(doubled(2 * width, width) for width in widths[:-1])
        self.merges = nn.ModuleList(nn.Sequential(unit(2 * width, width), unit(width, width)) for width in widths[:-1])
        self.last = nn.Conv2d(first, 1, 1)

    def forward(self, features: Sequence[Tensor], picture: Tensor) -> Tensor:
        """Return logits."""
        skips = [skip(x) for skip, x in zip(self.skips, [picture, *features[:-1]], strict=True)]
        x = self.deepest(features[-1])
        for up, merge, skip in reversed(list(zip(self.ups, self.merges, skips, strict=True))):
            x = merge(torch.cat([up(x), skip], dim=1))
        return self.last(x)[:, 0]


class Segmenter(Learner):
    """A frozen encoder with a decoder: normalised pictures (B, 3, S, S) to class logits (B, 2), or by ``pixels`` to a mask.

    The encoder stays in eval mode and sees ``micro`` pictures at once; the decoder's BatchNorm learns from whole batches. Of the recipe,
    what is of the encoder's training or of class labels has no say: dropped paths, BatchNorm, class weights, smoothing, compile.

    Raises
    ------
    InputError
        The encoder is no transformer, or its blocks give no tokens or maps of the whole picture.
    """

    def __init__(self, encoder: Encoder, positive: int, recipe: Recipe, spec: EncoderSpec, seed: int = 0) -> None:
        super().__init__(encoder, 2, recipe, "segmentation", spec)
        self.positive, self.grid = positive, -(-encoder.geometry.size // STRIDE)
        names = blocks(self.body)
        if not is_transformer(self.body) or not names:
            raise InputError(
                f"{encoder.name}: segmentation: expected a transformer, whose blocks can be read, found none"
            )
        self.taps = [names[max(1, tap * len(names) // 24) - 1] for tap in recipe.taps]
        self.seen: dict[str, Tensor] = {}
        for name in set(self.taps):
            self.body.get_submodule(name).register_forward_hook(self._keep(name))
        self.body.requires_grad_(False)
        blank = torch.zeros(1, 3, encoder.geometry.size, encoder.geometry.size, device=encoder.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = Decoder([tap.shape[1] for tap in self.eval().features(blank)])
        self.decoder.to(memory_format=LAST)
        self.to(encoder.device).eval()

    def _keep(self, name: str) -> Callable[..., None]:
        """Return a hook that keeps what a block gives."""

        def keep(_module: nn.Module, _given: tuple, found: Tensor | tuple[Tensor, ...]) -> None:
            self.seen[name] = found[0] if isinstance(found, tuple) else found

        return keep

    def train(self, mode: bool = True) -> "Segmenter":
        """Switch the decoder to training; the encoder stays as it is."""
        super().train(mode)
        self.body.eval()
        return self

    def changing(self) -> dict[str, Tensor]:
        """Return the decoder, statistics of BatchNorm included."""
        return {f"decoder.{name}": tensor for name, tensor in self.decoder.state_dict(keep_vars=True).items()}

    @torch.no_grad()
    def features(self, x: Tensor) -> list[Tensor]:
        """Return what the taps give of normalised pictures, each (B, C, g, g)."""
        parts = []
        for some in x.split(self.micro):
            self.body(some)
            parts.append([self._laid(self.seen[name]) for name in self.taps])
        self.seen.clear()
        return [torch.cat(of_tap) for of_tap in zip(*parts, strict=True)]

    def _laid(self, found: Tensor) -> Tensor:
        """Return features on the grid, channels first."""
        if found.ndim not in (3, 4) or (found.ndim == 4 and found.shape[1] != found.shape[2]):
            shape = tuple(found.shape)
            raise InputError(
                f"{self.encoder.name}: segmentation: expected tokens or maps (B, h, h, C) of blocks, found {shape}"
            )
        return stretched(on_grid(found).permute(0, 3, 1, 2), self.grid)

    def pixels(self, x: Tensor) -> Tensor:
        """Return the logit of foreground of every pixel, (B, S, S), of normalised pictures (B, 3, S, S)."""
        found = self.decoder(self.features(x), stretched(x, self.grid * STRIDE))
        return stretched(found[:, None], x.shape[-1])[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits (B, 2)."""
        return answers(self.pixels(x), self.positive)


def stretched(x: Tensor, side: int) -> Tensor:
    """Return pictures or features (B, C, h, h) bilinearly resized, those of this side as they are."""
    return x if x.shape[-1] == side else functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)
