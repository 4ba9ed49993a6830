"""The weights of the miniatures: small networks that have learnt from drawn pictures, shipped here, pinned in ``pins.json``.

``tools/miniatures.py`` makes them again. The four of ultrasound have seen phantom ultrasound of a seed that no study draws, the three of
natural images textures that hold no anatomy; nobody told them what a picture shows.
"""

from functools import cache
from pathlib import Path

from fpbench.encoders.catalogue import Source
from fpbench.errors import InputError
from fpbench.files import artifacts

FOLDER = Path(__file__).parent
LICENCE = "Apache-2.0 (drawn pictures)"
CORPUS = {
    "fetalclip": "ultrasound", "usfm": "ultrasound", "mofo": "ultrasound", "ultrasam": "ultrasound",
    "dinov3": "textures", "resnet50": "textures", "efficientnetv2_s": "textures",
}  # fmt: skip
NOTES = {
    "ultrasound": "learnt without labels from phantom ultrasound of another seed",
    "textures": "learnt without labels from textures that hold no anatomy",
}


@cache
def pins() -> dict[str, str]:
    """Return the SHA-256 of every file, by the name of the encoder."""
    return artifacts.read_json(FOLDER / "pins.json")


def source(name: str) -> Source:
    """Return where the weights of a miniature are; InputError for an encoder that was registered, which has none."""
    if name not in pins():
        raise InputError(f"{name}-mini has no weights of its own: use weights='random' or a file")
    return Source(
        "package", "fpbench", f"{name}.safetensors", (FOLDER / f"{name}.safetensors").stat().st_size, pins()[name], True
    )


def note(path: Path) -> str:
    """Return what a weights file has learnt from, if it is one of these; else nothing."""
    return NOTES[CORPUS[path.stem]] if path.parent == FOLDER and path.stem in CORPUS else ""
