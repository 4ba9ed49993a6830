"""How a picture becomes the square that an encoder reads."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fpbench.errors import InputError

KINDS = ("squash", "resize_crop", "pad_square", "fit_pad")
PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
OPENCV = {"opencv-bilinear": 1}  # cv2.INTER_LINEAR: no antialias, as UltraSam's authors resize
TORCH = {"torch-bilinear": "bilinear", "torch-bicubic": "bicubic"}  # antialiased, on uint8: as DINOv3's authors resize
INTERPOLATIONS = (*PILLOW, *OPENCV, *TORCH)


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square of ``size`` pixels.

    ``squash``: both sides to size, aspect ratio lost. ``resize_crop``: short side to size / crop, then the central square.
    ``pad_square``: centred on a black square, then resized. ``fit_pad``: long side to size, the other in proportion, black
    to the right and below.
    """

    kind: str  # one of KINDS
    size: int  # side of the result, pixels
    interpolation: str = "bicubic"  # one of INTERPOLATIONS; Pillow's and torch's are antialiased
    crop: float = 1.0  # resize_crop only: share of the short side that is kept

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        words = {"geometry": (self.kind, KINDS), "interpolation": (self.interpolation, INTERPOLATIONS)}
        for word, (value, known) in words.items():
            if value not in known:
                raise InputError(f"unknown {word} {value!r}: expected one of {', '.join(known)}")
        numbers = isinstance(self.size, int) and isinstance(self.crop, int | float)
        if not (numbers and 8 <= self.size <= 4096 and 0 < self.crop <= 1):
            raise InputError(f"expected size 8 to 4096 (pixels) and crop in (0, 1], found {self.size} and {self.crop}")

    def describe(self) -> str:
        """Return a line for tables."""
        crop = f", crop {self.crop:g}" if self.kind == "resize_crop" else ""
        return f"{self.kind} {self.size}, {self.interpolation}{crop}"

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return ``picture`` as a uint8 array of shape (size, size) or (size, size, 3)."""
        return getattr(self, f"_{self.kind}")(picture)

    def _squash(self, picture: np.ndarray) -> np.ndarray:
        return self._resize(picture, self.size, self.size)

    def _resize_crop(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        side = int(np.floor(self.size / self.crop))
        short = min(height, width)
        resized = self._resize(picture, side * width // short, side * height // short)
        top, left = (round((edge - self.size) / 2) for edge in resized.shape[:2])
        return resized[top : top + self.size, left : left + self.size]

    def _pad_square(self, picture: np.ndarray) -> np.ndarray:
        side = max(picture.shape[:2])
        top, left = ((side - edge) // 2 for edge in picture.shape[:2])
        return self._resize(_on_black(picture, side, top, left), self.size, self.size)

    def _fit_pad(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        scale = self.size / max(height, width)  # a float, and cut off: mmdetection's 784 * (1024 / 784) is 1023
        return _on_black(self._resize(picture, max(1, int(width * scale)), max(1, int(height * scale))), self.size)

    def _resize(self, picture: np.ndarray, width: int, height: int) -> np.ndarray:
        if self.interpolation in OPENCV:
            import cv2

            cv2.setNumThreads(1)  # `_parallel` already fills the cores
            return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=OPENCV[self.interpolation])
        if self.interpolation in TORCH:
            return _torch_resize(picture, width, height, TORCH[self.interpolation])
        return np.asarray(Image.fromarray(picture).resize((width, height), PILLOW[self.interpolation]))


THUMBNAIL = Geometry("squash", 64, "bilinear")  # in which near duplicates are looked for (``cohorts.audit``)
BORDERS = Geometry("squash", 64)  # in which the borders of pictures are measured (``training.shortcuts``)


def _on_black(picture: np.ndarray, side: int, top: int = 0, left: int = 0) -> np.ndarray:
    square = np.zeros((side, side, *picture.shape[2:]), np.uint8)
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square


def _torch_resize(picture: np.ndarray, width: int, height: int, mode: str) -> np.ndarray:
    import torch

    tensor = torch.from_numpy(np.array(picture)).view(*picture.shape[:2], -1).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(tensor, (height, width), mode=mode, antialias=True)
    return resized[0].permute(1, 2, 0).reshape(height, width, *picture.shape[2:]).numpy()
