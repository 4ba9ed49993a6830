"""The beam grid on which a phantom is drawn, and its scan conversion into a picture.

A picture is drawn on the *beam grid* of its probe, shape (DEPTHS, BEAMS), and scan-converted last; so shadows follow the beams
and speckle broadens with depth, as in a scanner. Lengths are in units of the image height, x to the right and y down from the
middle of the upper edge. Brightness is a log-compressed echo: 0 is black, 1 is white, sums are gains, and fluid is simply
below 0.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np

from fpbench.cohorts.phantoms.facts import Setting

DEPTHS, BEAMS = GRID = 192, 208  # samples of the beam grid
FLUID, BONE = -0.25, 1.05  # brightness of what does not scatter, and of what reflects everything


class Frame(NamedTuple):
    """Coordinates of a structure on the beam grid, in units of its size."""

    u: np.ndarray
    w: np.ndarray
    size: float  # image heights

    def at(self, u: float, w: float, turn: float = 0.0, size: float = 1.0) -> "Frame":
        """Return the frame of a part: its middle, its turn (radians) and its size in units of this one."""
        size, du, dw = float(size), self.u - float(u), self.w - float(w)  # numpy scalars would turn float32 to float64
        c, s = float(np.cos(turn)) / size, float(np.sin(turn)) / size
        return Frame(du * c + dw * s, dw * c - du * s, self.size * size)

    def oval(self, u: float, w: float, a: float, b: float, bumps: Sequence[float] | np.ndarray = ()) -> np.ndarray:
        """Return the distance to an oval in image heights, negative inside; ``bumps`` deform it."""
        x, y = (self.u - float(u)) / float(a), (self.w - float(w)) / float(b)
        q = np.hypot(x, y)
        if len(bumps):
            turn = power = (x + 1j * y) / np.maximum(q, 1e-6)
            wave = np.ones_like(q)
            for k, bump in enumerate(bumps, 2):
                power = power * turn
                wave += (power * complex(bump * np.exp(99j * k * bumps[0]))).real
            q *= wave
        return (q - 1) * (float(min(a, b)) * self.size)

    def path(self, *points: tuple[float, float]) -> np.ndarray:
        """Return the distance to a chain of straight lines, image heights."""
        best = np.float32(np.inf)
        for (u0, w0), (u1, w1) in pairwise(np.array(points, float).tolist()):
            du, dw, u, w = u1 - u0, w1 - w0, self.u - u0, self.w - w0
            t = np.clip((u * du + w * dw) / (du * du + dw * dw), 0, 1)
            best = np.minimum(best, (u - t * du) ** 2 + (w - t * dw) ** 2)
        return np.sqrt(best) * self.size


class View:
    """A picture while it is drawn: brightness and loss on the beam grid."""

    def __init__(
        self,
        setting: Setting,
        near: float,
        opening: float,
        apex: float,
        far: float,
        shift: Sequence[float] | np.ndarray,
        grid: tuple[int, int] = GRID,
    ):
        """Place the probe: radii of its face and of the deepest echo, half opening, apex; the image's own shift; samples of the grid."""
        self.setting, self.opening, self.apex, self.near, self.grid = setting, opening, apex, near, grid
        r = np.linspace(near, far, grid[0], dtype=np.float32)[:, None]
        t = np.linspace(-opening, opening, grid[1], dtype=np.float32)[None]
        self.depth, self.step = np.broadcast_to(r - near, grid), (far - near) / (grid[0] - 1)
        middle = Frame(r * np.sin(t), apex + r * np.cos(t), 1.0)
        self.frame = self.target = middle.at(shift[0], 0.5 + shift[1], shift[2], 1 + shift[3])
        self.level, self.loss = np.zeros((2, *grid), np.float32)

    def fill(self, d: np.ndarray, level: float | np.ndarray, soft: float = 0.004) -> np.ndarray:
        """Paint where ``d`` is negative; return how much of each sample was covered."""
        cover = 1 / (1 + np.exp(np.clip(d / soft, -30, 30)))
        self.level += cover * (level - self.level)
        return cover

    def wall(
        self, d: np.ndarray, level: float, width: float | np.ndarray = 0.008, facing: float = 0.0, loss: float = 0.0
    ) -> None:
        """Paint a reflector where ``d`` is near 0: dim where it does not face the beam, shadows behind it."""
        line = np.exp(-np.minimum((d / width) ** 2, 30)).astype(np.float32)
        if facing:
            line *= np.clip(np.abs(np.gradient(d, self.step, axis=0)) * 1.15, 0.25, 1) ** facing
        self.level = np.maximum(self.level, self.level + line * (float(level) - self.level))
        self.loss += float(loss) * line

    def organ(self, d: np.ndarray, level: float | np.ndarray, *rim: float) -> None:
        """Paint an organ and, given what `wall` takes, its rim. Behind fluid all is brighter."""
        cover = self.fill(d, level)
        if np.ndim(level) == 0 and level < 0:
            self.loss -= 0.25 * cover
        if rim:
            self.wall(d, *rim)

    def locate(self, f: Frame, u: float, w: float) -> tuple[float, float]:
        """Return where a point of a frame lies: x, y in pixels."""
        row, beam = np.unravel_index(np.argmin((f.u - u) ** 2 + (f.w - w) ** 2), f.u.shape)
        r, t = self.near + row * self.step, self.opening * (2 * beam / (self.grid[1] - 1) - 1)
        width, height = self.setting.size
        return width / 2 + height * r * np.sin(t), height * (self.apex + r * np.cos(t))

    def develop(self, g: np.random.Generator) -> np.ndarray:
        """Return the picture, uint8 of shape (height, width): loss, speckle, display curve, scan conversion."""
        s = self.setting
        beam: dict[str, Any] = {"ksize": (0, 0), "sigmaX": s.beam[1], "sigmaY": s.beam[0]}
        noise = g.standard_normal((2, *self.grid), np.float32)
        speckle = np.hypot(cv2.GaussianBlur(noise[0], **beam), cv2.GaussianBlur(noise[1], **beam))
        speckle /= np.sqrt(np.mean(speckle**2))
        shadow = cv2.GaussianBlur(np.cumsum(self.loss, axis=0), (0, 0), 2.5, sigmaY=0.5) * self.step
        grey = (cv2.GaussianBlur(self.level, **beam) - shadow - 0.4) * s.contrast + 0.4 + s.gain
        grey += 0.24 * np.log10(speckle + 0.03) - s.fade * (self.depth - 0.4)
        row, column = _samples(s.size, self.near, self.opening, self.apex, self.step, self.grid[1])
        lit = np.clip(grey, 0.0, 1.0) ** 1.25 * 255
        return np.rint(cv2.remap(lit, column, row, cv2.INTER_LINEAR, borderValue=0)).astype(np.uint8)


@lru_cache(maxsize=4)
def _samples(
    size: tuple[int, int], near: float, opening: float, apex: float, step: float, beams: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which sample of the grid each pixel shows: row and column, (height, width)."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x - width / 2) / height, y / height - np.float32(apex)
    row = ((np.hypot(x, y) - near) / step).astype(np.float32)
    return row, (np.arctan2(x, y) / opening + 1) * ((beams - 1) / 2)


def cloud(g: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return smooth noise on the beam grid: ``rows`` x ``columns`` knots, SD about 0.6."""
    return cv2.resize(g.standard_normal((rows, columns), np.float32), (BEAMS, DEPTHS), interpolation=cv2.INTER_CUBIC)
