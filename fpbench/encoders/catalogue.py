"""The facts of each encoder: where its weights are, what it expects, what it returns, what it was trained on.

What we could not verify is marked: ``confirmed=False`` on a hash, "unknown" on a fact. MODELS.md is written from here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from fpbench.errors import InputError
from fpbench.images import Geometry

if TYPE_CHECKING:
    import pandas as pd

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Source:
    """Where a weights file is published."""

    kind: str  # hub | drive | drive-folder | url
    address: str  # repository, file id, folder id, URL
    file: str  # name under <weights>/<encoder>/
    size: int | None = None  # bytes
    sha256: str = ""  # of the file; empty: pinned on first use
    confirmed: bool = False  # did anyone hash the file at its address, as far as we know
    revision: str = "main"  # of a hub repository; "main" is resolved and pinned on first use

    @property
    def url(self) -> str:
        """Return an address for a browser."""
        return {
            "hub": f"https://huggingface.co/{self.address}/blob/{self.revision}/{self.file}",
            "drive": f"https://drive.google.com/file/d/{self.address}/view",
            "drive-folder": f"https://drive.google.com/drive/folders/{self.address}",
            "url": self.address,
        }[self.kind]


@dataclass(frozen=True)
class Entry:
    """One encoder."""

    name: str
    adapter: str | Callable  # module with build(name, size, pooling, mini, **options), or such a function
    architecture: str
    geometry: Geometry  # the authors' own preprocessing
    mean: tuple[float, float, float]  # of channels in [0, 1]
    std: tuple[float, float, float]
    poolings: dict[str, int]  # name -> length of the embedding; the first is the default
    sides: str = "fixed"  # fixed | multiples of 16 | any: input sides that work
    mini: int = 64  # side of the miniature's input, pixels
    parameters: float = 0.0  # of the encoder, millions
    gmacs: str = ""  # per image, attention counted
    source: Source | None = None
    licence: str = "unknown"
    gated: str = "no"  # no | unknown | how
    trained_on: str = "unknown"
    saw_spain: str = "unknown"  # yes | no | unknown: the pretraining data hold the cohort
    saw_africa: str = "unknown"
    evidence: str = ""  # for the two above
    paper: str = ""
    note: str = ""


CATALOGUE: dict[str, Entry] = {}


def add(entry: Entry) -> None:
    """Add an entry; InputError if its name is taken or cannot be one."""
    if entry.name in CATALOGUE or not entry.name.replace("_", "").isalnum():
        raise InputError(
            f"encoder name {entry.name!r}: expected letters, digits and '_', and none of {', '.join(CATALOGUE)}"
        )
    CATALOGUE[entry.name] = entry


def find(model: str) -> tuple[Entry, bool]:
    """Return the entry of a name, and whether its miniature is meant."""
    name = model.removesuffix("-mini")
    if name not in CATALOGUE:
        families = "timm:NAME, open_clip:NAME, hf:NAME"
        raise InputError(
            f"unknown encoder {model!r}: expected one of {', '.join(CATALOGUE)} (or one of these + '-mini'), or {families}"
        )
    return CATALOGUE[name], name != model


def builder(entry: Entry) -> Callable:
    """Return the function that builds the entry's module and layouts."""
    return entry.adapter if callable(entry.adapter) else import_module(f"fpbench.encoders.{entry.adapter}").build


def check_side(entry: Entry, own: int, side: int) -> None:
    """Refuse an input side that the architecture cannot take."""
    if (entry.sides == "fixed" and side != own) or (entry.sides == "multiples of 16" and side % 16):
        raise InputError(f"{entry.name}: expected an input side of {own}, {entry.sides}; found {side}")


NOT_NAMED = "not named among the authors' data; overlap not ruled out"
add(
    Entry(
        name="fetalclip",
        adapter="vit",
        architecture="CLIP ViT-L/14 (image tower)",
        geometry=Geometry("pad_square", 224, "bicubic"),
        **CLIP,
        poolings={"projected": 768, "cls": 1024, "patch_mean": 1024},
        mini=56,
        parameters=303.97,
        gmacs="77.8 to 81.1",
        source=Source("hub", "numansaeed/fetalclip-model", "FetalCLIP_weights.pt", 1_710_766_661),
        licence="CC BY-NC 4.0",
        gated="unknown",
        trained_on="210,035 image-text pairs: private fetal scans (Corniche Hospital) and a textbook",
        evidence=NOT_NAMED,
        paper="arXiv:2502.14807",
        note="Size from a third-party pointer, unconfirmed; its SHA-256 is said to begin with 90916caa. The text tower is left out.",
    )
)
add(
    Entry(
        name="usfm",
        adapter="vit",
        architecture="BEiT ViT-B/16, shared relative position bias",
        geometry=Geometry("squash", 224, "bicubic"),
        **IMAGENET,
        poolings={"patch_mean": 768, "cls": 768, "patch_mean_raw": 768},
        parameters=85.67,
        gmacs="17.6",
        source=Source("drive", "1KRwXZgYterH895Z8EpXpR1L1eSMMJo4q", "USFM_latest.pth"),
        licence="CC BY-NC 4.0 (README; the LICENSE file it names is missing)",
        trained_on="3M-US, private, 2 M images of 12 organs",
        evidence="the public part of 3M-US is not listed",
        paper="doi:10.1016/j.media.2024.103202",
        note="About 343 MB, 188 tensors. patch_mean ends with a LayerNorm that the file does not hold.",
    )
)
add(
    Entry(
        name="mofo",
        adapter="mofo",
        architecture="CSWin-S-like, last stage",
        geometry=Geometry("squash", 224, "bicubic"),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        poolings={"mean": 512, "mean_norm": 512},
        parameters=34.15,
        gmacs="6.95",
        source=Source("drive-folder", "1SpBRMuM3hCZj9RhriHkMrMIGMcT0TamA", "mofo_weight_sel.pth"),
        licence="GPL-3.0 (repository)",
        trained_on="7,039 images: BUSI, HC18, FALLMUD, DDTI and six private sets",
        saw_spain="no",
        saw_africa="no",
        evidence="the authors' table of data sets; HC18 holds other fetal images",
        paper="Chen et al., MOFO (under review, IEEE TMI)",
        note="About 172 MB. Pixels in [0, 1], no mean and std. The pooling is ours: the authors have no image classifier.",
    )
)
add(
    Entry(
        name="ultrasam",
        adapter="ultrasam",
        architecture="SAM ViT-B/16 (image encoder)",
        geometry=Geometry("fit_pad", 1024, "opencv-bilinear"),
        mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
        std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
        poolings={"patch_mean": 768, "neck_mean": 256},
        sides="multiples of 16",
        parameters=88.88,
        gmacs="482.8 at 1024 px, 112.7 at 512",
        source=Source(
            "url",
            "https://s3.unistra.fr/camma_public/github/ultrasam/UltraSam.pth",
            "UltraSam.pth",
            381_156_023,
            "d7c223dd03f56b0b77cd246aa3edfae651e99f0ee2dde2e8c50eda7b21fa8a0c",
            confirmed=True,
        ),
        licence="CC BY-NC-SA 4.0",
        trained_on="US-43d: 43 public data sets, HC18, FASS, Fast-U-Net, ACOUSLIC and FH-PS-AOP among them",
        saw_spain="no",
        evidence="the authors' list of data sets does not hold it; the African cohort was not looked up",
        paper="arXiv:2411.16222",
        note="The hash was measured by a third party on the official address. Black padding counts in the mean over tokens.",
    )
)
add(
    Entry(
        name="dinov3",
        adapter="vit",
        architecture="DINOv3 ViT-B/16, RoPE, 4 registers",
        geometry=Geometry("squash", 256, "torch-bilinear"),
        **IMAGENET,
        poolings={"cls": 768, "patch_mean": 768},
        sides="multiples of 16",
        parameters=85.64,
        gmacs="17.2 at 224 px",
        source=Source("hub", "timm/vit_base_patch16_dinov3.lvd1689m", "model.safetensors"),
        licence="DINOv3 License",
        gated="no (timm's copy; facebook/* asks for manual approval)",
        trained_on="LVD-1689M, web images",
        evidence="web images, not listed",
        paper="arXiv:2508.10104",
        note="342.6 MB. Files in timm's, Meta's and transformers' layout are read.",
    )
)
add(
    Entry(
        name="resnet50",
        adapter="timm",
        architecture="ResNet50",
        geometry=Geometry("resize_crop", 224, "bicubic", 0.95),
        **IMAGENET,
        poolings={"avg": 2048},
        sides="any",
        parameters=23.51,
        gmacs="4.1",
        source=Source("hub", "timm/resnet50.a1_in1k", "model.safetensors"),
        licence="Apache-2.0",
        trained_on="ImageNet-1k",
        saw_spain="no",
        saw_africa="no",
        evidence="ImageNet is older than both cohorts",
        paper="arXiv:2110.00476",
        note="102.5 MB. Weights tag a1_in1k; another one: timm:resnet50.TAG.",
    )
)
add(
    Entry(
        name="efficientnetv2_s",
        adapter="timm",
        architecture="EfficientNetV2-S",
        geometry=Geometry("resize_crop", 300, "bicubic"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        poolings={"avg": 1280},
        sides="any",
        parameters=20.18,
        gmacs="5.3 at 300 px, 8.4 at 384",
        source=Source("hub", "timm/tf_efficientnetv2_s.in21k_ft_in1k", "model.safetensors"),
        licence="Apache-2.0",
        trained_on="ImageNet-21k, then ImageNet-1k",
        saw_spain="no",
        saw_africa="no",
        evidence="ImageNet is older than both cohorts",
        paper="arXiv:2104.00298",
        note="86.5 MB. 300 px is the training size, 384 px the test size. Weights tag in21k_ft_in1k.",
    )
)


def published() -> list[Entry]:
    """Return the encoders of the paper: the entries whose weights somebody publishes."""
    return [entry for entry in CATALOGUE.values() if entry.source]


def table() -> "pd.DataFrame":
    """Return the facts of the paper's encoders, one row each; GMACs per image, ``saw``: does the pretraining hold the cohort."""
    import pandas as pd

    rows = [
        {
            "encoder": e.name,
            "architecture": e.architecture,
            "input": f"{e.geometry.describe()} ({e.sides})",
            "mean; std": "; ".join(", ".join(f"{v:.4g}" for v in values) for values in (e.mean, e.std)),
            "pooling: dim (first is the default)": ", ".join(f"{name}: {dim}" for name, dim in e.poolings.items()),
            "parameters (M)": e.parameters,
            "GMACs": e.gmacs,
            "licence": e.licence.split(" (")[0],
            "saw Spain": e.saw_spain,
            "saw Africa": e.saw_africa,
        }
        for e in published()
    ]
    return pd.DataFrame(rows)


def models_md() -> str:
    """Return the text of MODELS.md."""
    lines = [
        "# Models",
        "",
        "Written from `fpbench/encoders/catalogue.py` by its function `models_md`; a test compares.",
        "No file of the four ultrasound models has been opened by us yet: names and shapes are from their code and from third parties.",
        "",
        table().to_markdown(index=False, disable_numparse=True),
    ]
    for e in published():
        s = e.source
        size = f"{s.size:,} bytes" if s.size else "size unknown"
        mark = f"SHA-256 `{s.sha256}`" if s.sha256 else "SHA-256 unknown, pinned on first use"
        lines += [
            "",
            f"## {e.name}",
            "",
            f"- Weights: [{s.file}]({s.url}), {size}, {mark}; {'confirmed by a third party' if s.confirmed else 'unconfirmed'}.",
            f"- Licence: {e.licence}. Gated: {e.gated}.",
            f"- Pretraining: {e.trained_on}. Saw the Spanish cohort: {e.saw_spain}; the African: {e.saw_africa} ({e.evidence}).",
            f"- Paper: {e.paper}. {e.note}",
        ]
    return "\n".join([*lines, "", *OWN.splitlines(), ""])


OWN = """## Any other model

`timm:NAME`, `open_clip:NAME/TAG` and `hf:NAME` (transformers) take any model of those libraries. The README shows how to register
an architecture of your own.
"""
