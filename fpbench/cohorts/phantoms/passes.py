"""What a convex probe sees that passes over a fetus: the frames of one blind sweep, and the ellipse of the abdomen.

The fetus lies along an axis; a frame cuts it at a *place*, in units of the abdomen's radius: 0 is the plane of the circumference, the heart lies
near 1.45, the head near 3.4, kidneys near -0.95, the bladder near -1.65, the legs behind. Around the plane the trunk looks much the same but
for its two marks, stomach and umbilical vein: both are clear in an optimal frame, one of them is faint or both are half there in a sub-optimal
one, and elsewhere other dark things stand in for them: heart, veins of the liver, kidneys, gall bladder, bowel, bladder. Anatomy moves smoothly
from frame to frame; speckle is new in each.
"""

from functools import cache
from itertools import groupby

import cv2
import numpy as np
from PIL import Image

from fpbench.cohorts.phantoms.canvas import BONE, FLUID, Frame, View
from fpbench.cohorts.phantoms.drawing import sign
from fpbench.cohorts.phantoms.facts import Setting, rng
from fpbench.cohorts.phantoms.sweeps import OPTIMAL, SIZE, SPACING, SUB_OPTIMAL, Sweep, labels

GRID = (120, 104)  # samples in depth, beams
HEIGHT = SIZE[1] * SPACING  # of a picture, mm
PROBE = {
    "near": 0.374,
    "opening": np.pi / 6,
    "apex": -0.324,
    "far": 1.325,
}  # the real frames' field of view, picture heights
EDGE = 0.5  # place where the marks begin
HELD = 4  # frames of a sweep that is not annotated for which the anatomy stands still
TRUNK = ((-2.3, -1.9, -1.2, -0.5, 0.5, 1.2, 1.9, 2.3), (0.3, 0.6, 0.85, 0.99, 0.99, 0.92, 0.75, 0.35))  # place, size
TISSUE = ((-1.5, -0.6, 0.6, 1.3), (0.33, 0.4, 0.4, 0.28))  # place, brightness of bowel, liver, lungs
NOISE = {  # knots along and across the beams
    "strands": (30, 6), "patches": (4, 5), "lanes": (2, 9), "skin": (2, 3), "placenta": (10, 10), "liver": (24, 24), "lobes": (9, 9),
    "brain": (14, 14), "muscle": (20, 20),
}  # fmt: skip


def draw_sweep(key: tuple, sweep: Sweep) -> tuple[np.ndarray, np.ndarray]:
    """Draw one sweep.

    Parameters
    ----------
    key, sweep
        Of the stack: they decide every random number.

    Returns
    -------
    tuple
        Pictures and masks, uint8, (frames, H, W).
    """
    g, frames = rng(*key, sweep.number), len(sweep.shown)
    gain, contrast, fade = float(g.normal(0, 0.08)), float(g.uniform(0.85, 1.15)), float(g.uniform(0.05, 0.2))
    setting = Setting(SIZE, gain, contrast, fade, beam=(0.7, 1.0))
    places, body, weak = _places(g, sweep.shown), _Body(g, sweep), int(g.integers(2))
    pictures, masks = np.zeros((2, frames, *SIZE[::-1]), np.uint8)
    y, x = (np.mgrid[0 : SIZE[1], 0 : SIZE[0]].astype(np.float32) + 0.5) / SIZE[1]
    screen = Frame(x - SIZE[0] / SIZE[1] / 2, y, 1.0)
    for frame, (shown, mask) in enumerate(zip(sweep.shown, labels(sweep), strict=True)):
        now = rng(*key, sweep.number, frame)
        if sweep.annotated or frame % HELD == 0:
            view = View(setting, **PROBE, shift=(0, -0.5, 0, 0), grid=GRID)
            body.draw(view, frame, places[frame], _marks(now, shown, weak))
        pictures[frame] = view.develop(now)
        if mask:
            masks[frame] = mask * (body.trunk(screen, frame, places[frame])[1] < 0)
    pictures[:, -13:, :46] = _corner()
    return pictures, masks


@cache
def _corner() -> np.ndarray:
    """Return the corner in which every picture says PHANTOM."""
    picture = Image.new("L", SIZE)
    sign(picture)
    return np.asarray(picture)[-13:, :46]


def _places(g: np.random.Generator, shown: tuple[int, ...]) -> np.ndarray:
    """Return the place of each frame: between -EDGE and EDGE in a run of usable ones, else on the way there or away."""
    frames, sense = len(shown), float(g.choice([-1, 1]))
    speed = 20 / frames * float(g.uniform(0.26, 0.42))
    runs, start = [], 0
    for usable, group in groupby(shown, bool):
        length = len(list(group))
        runs += [(start - 0.5, start + length - 0.5)] if usable else []
        start += length
    if not runs:  # the probe passes beside the abdomen
        return sense * (g.uniform(0.9, 2.5) + speed * np.arange(frames))
    (first, last), *again = runs
    knots = [(first - frames, -EDGE - frames * speed), (first, -EDGE), (last, EDGE)]
    for begin, end in again:  # the fetus moves back
        knots += [((last + begin) / 2, EDGE + 0.3), (begin, EDGE), ((begin + end) / 2, EDGE / 2), (end, EDGE)]
        last = end
    knots.append((last + frames, EDGE + frames * speed))
    time, place = np.array(knots).T
    return sense * np.interp(np.arange(frames), time, place)


def _marks(g: np.random.Generator, shown: int, weak: int) -> list[float]:
    """Return how clear stomach and umbilical vein are, 0 to 1; ``weak``: the one that a sub-optimal frame shows less of."""
    if shown == SUB_OPTIMAL:
        clear = [g.uniform(0.65, 0.9), g.uniform(0.1, 0.4)] if g.random() < 0.7 else g.uniform(0.4, 0.6, 2).tolist()
        return clear if weak else clear[::-1]
    return g.uniform(*((0.85, 1.0) if shown == OPTIMAL else (0.0, 0.15)), 2).tolist()


def _ball(place: float, middle: float, reach: float) -> float:
    """Return the relative radius at a place of a ball around ``middle``; 0 outside it."""
    return float(np.sqrt(max(1 - ((place - middle) / reach) ** 2, 0)))


class _Body:
    """Mother and fetus of one sweep: the same things in each of its frames."""

    def __init__(self, g: np.random.Generator, sweep: Sweep) -> None:
        """Decide where everything lies; lengths in units of the abdomen's first half axis, of the mother in picture heights."""
        frames, axes = len(sweep.shown), np.array(sweep.axes) / HEIGHT
        self.half, self.ratio = float(axes[0]), float(axes[1] / axes[0])
        drift = np.linspace(0, 3, frames)
        knots = g.normal((0, 0.52, 0), (0.04, 0.03, 0.1), (4, 3)) + g.normal(0, (0.04, 0.03, 0.25))
        moves = np.stack([np.interp(drift, range(4), column) for column in knots.T], axis=1)
        self.moves = (moves + g.normal(0, (0.008, 0.008, 0.04), (frames, 3))).tolist()  # x, y, turn of each frame
        self.knots = {name: g.standard_normal((4, *size), np.float32) for name, size in NOISE.items()}
        self.time = np.minimum(drift, 3 - 1e-6)
        self.level, self.skin = float(g.uniform(0.24, 0.38)), float(g.uniform(0.08, 0.16))
        self.pocket = g.uniform((-0.5, -0.5, 1.3, 1.1, -1.5, 2.5), (0.5, 0.5, 1.9, 1.6, 1.5, 6)).tolist()
        self.placenta = float(g.choice([-0.6, 0, 0.6])), float(g.uniform(0.5, 1.0))
        self.bumps = g.uniform(-0.09, 0.09, (2, 3))
        self.stomach = g.uniform((-0.1, -0.52, -0.3, 0.32, 0.22), (0.08, -0.44, 0.3, 0.42, 0.28)).tolist()
        self.bend, self.beat, self.gall = (float(g.uniform(*of)) for of in ((0.85, 1.15), (-0.9, -0.5), (-0.95, -0.7)))
        self.reach = g.uniform((0.25, 0.25, 0.25), (0.55, 0.4, 0.55)).tolist()  # of kidneys, gall bladder, veins
        self.bowels = g.uniform((0.1, -0.6, -1.7, -0.2), (0.65, 0.6, -0.7, 0.3), (5, 4)).tolist()  # u, w, place, level
        self.legs = g.uniform(-0.5, 0.5, 2).tolist()

    def draw(self, v: View, frame: int, place: float, marks: list[float]) -> None:
        """Paint one frame."""
        first = int(self.time[frame])
        s = np.float32(self.time[frame] - first)

        def noise(name: str) -> np.ndarray:
            """Return noise that drifts from frame to frame, on the grid, SD about 0.6."""
            mixed = ((1 - s) * self.knots[name][first] + s * self.knots[name][first + 1]) / np.hypot(s, 1 - s)
            return cv2.resize(mixed, GRID[::-1], interpolation=cv2.INTER_CUBIC)

        noises = {name: noise(name) for name in NOISE}
        x, y, turn = self.moves[frame]
        axis = v.frame.at(x, y, turn, self.half)
        self._mother(v, noises, place, axis)
        if abs(place) < TRUNK[0][-1]:
            self._trunk(v, noises, place, *self.trunk(v.frame, frame, place), marks)
        elif head := _ball(place, 3.4, 1.0):
            self._head(v, noises, axis.at(0, 0, 0, 1.1 * head))
        elif -4.2 < place < 0:
            self._legs(v, noises, axis, 1 + 0.25 * (place + 2.3))

    def trunk(self, f: Frame, frame: int, place: float) -> tuple[Frame, np.ndarray]:
        """Return the frame of the trunk, its spine at -u and its left at -w, and the distance to its skin; ``f``: of the picture."""
        x, y, turn = self.moves[frame]
        trunk = f.at(x, y, turn, self.half * float(np.interp(place, *TRUNK)))
        return trunk, trunk.oval(0, 0, 1, self.ratio)

    def _mother(self, v: View, noise: dict[str, np.ndarray], place: float, f: Frame) -> None:
        """Paint the mother's tissue, lanes of poor contact, amniotic fluid and placenta."""
        v.level += self.level + 0.08 * noise["strands"] + 0.12 * noise["patches"]
        v.level -= 0.5 * np.clip(noise["lanes"] - 0.8, 0, 1) * np.minimum(v.depth / 0.3, 1)
        v.level += 0.25 * np.exp(-v.depth / 0.03)
        v.wall(v.depth - self.skin - 0.02 * noise["skin"], 0.7, 0.008)
        u, w, a, b, middle, reach = self.pocket
        if (pocket := _ball(place, middle, reach)) > 0.2:
            v.organ(f.oval(u, w, a * pocket, b * pocket, self.bumps[0]), FLUID, 0.65, 0.008, 1.0)
        if self.placenta[0]:
            d = v.frame.oval(*self.placenta, 0.3, 0.34, self.bumps[1])
            v.fill(d, 0.47 + 0.04 * noise["placenta"], 0.01)

    def _trunk(
        self, v: View, noise: dict[str, np.ndarray], place: float, f: Frame, skin: np.ndarray, marks: list[float]
    ) -> None:
        """Paint a trunk cut across and what lies in it at a place."""
        soft = float(np.interp(place, *TISSUE)) + 0.06 * noise["liver"] + 0.05 * noise["lobes"]
        v.organ(skin, soft, 0.85, 0.014, 1.0, 0.15)
        v.wall(skin - 0.02, 0.5, 0.010, 1.0)
        for u, w in ((-0.82, 0.0), (-0.67, 0.11), (-0.67, -0.11)):  # spine
            v.loss += 3.5 * v.fill(f.oval(u, w, 0.07, 0.06), 0.95, 0.006)
        for u, w in ((-0.44, -0.10), (-0.36, 0.16)):  # aorta, vena cava
            v.fill(f.oval(u, w, 0.07, 0.06), FLUID)
        if heart := _ball(place, 1.45, 0.7):
            self._heart(v, f, skin, heart)
        self._bowels(v, f, place)
        if veins := _ball(place, 0.85, self.reach[2]):  # of the liver: they meet at the vena cava
            for w in (-0.35, 0.1, 0.5):
                v.fill(f.path((-0.3, 0.14), (0.1, w)) - 0.04 * f.size * veins, FLUID * veins + 0.2 * (1 - veins))
        self._marked(v, f, soft, *marks)

    def _bowels(self, v: View, f: Frame, place: float) -> None:
        """Paint what the lower abdomen holds, if it is there: kidneys, bladder, gall bladder, bowel."""
        if kidney := _ball(place, -0.95, self.reach[0]):
            for side in (-1, 1):
                d = f.at(-0.38, 0.42 * side, 0.5 * side, kidney).oval(0, 0, 0.27, 0.2)
                v.organ(d, 0.24, 0.5)
                v.fill(d + 0.14 * f.size, FLUID)
        if bladder := _ball(place, -1.65, 0.45):
            v.organ(f.oval(0.3, 0, 0.32 * bladder, 0.28 * bladder), FLUID, 0.5)
        if gall := _ball(place, self.gall, self.reach[1]):
            v.organ(f.at(0.42, 0.3, 0.9).oval(0, 0, 0.26 * gall, 0.09 * gall), FLUID, 0.5)
        for u, w, middle, level in self.bowels:
            if size := _ball(place, middle, 0.5):
                v.fill(f.oval(u, w, 0.17 * size, 0.1 * size), level)

    def _marked(self, v: View, f: Frame, soft: np.ndarray, stomach: float, vein: float) -> None:
        """Paint stomach and umbilical vein as clear as they are: fainter ones are smaller, and less dark."""
        u, w, turn, a, b = self.stomach
        grow = 0.4 + 0.6 * stomach
        d = f.at(u, w, turn).oval(0, 0, a * grow, b * grow, (0.05, 0.05))
        v.organ(d, stomach * FLUID + (1 - stomach) * soft, 0.3 + 0.25 * stomach, 0.006)
        lost, bend = 1 - vein, self.bend
        front = ((0.86 - 0.5 * lost, 0.0), (0.5 - 0.2 * lost, 0.02))
        d = f.path(*front, (0.25, 0.06 * bend), (0.08, 0.18 * bend), (0.04, 0.38 * bend))
        v.organ(d - (0.03 + 0.055 * vein) * f.size, vein * FLUID + lost * soft, 0.3 + 0.3 * vein, 0.006)

    def _heart(self, v: View, f: Frame, skin: np.ndarray, size: float) -> None:
        """Paint ribs and a heart of four chambers."""
        v.wall(skin + 0.03 + 0.5 * (np.abs(np.abs(f.w) - 0.62) > 0.26), 0.9, 0.012, 0.6, 0.5)
        heart = f.at(0.2, -0.12, self.beat, 0.58 * size)
        v.organ(heart.oval(0, 0, 1, 0.78), 0.3, 0.55, 0.008, 0.8)
        for u, a, b in ((0.35, 0.37, 0.22), (-0.45, 0.27, 0.25)):  # ventricles, atria
            for side in (-1, 1):
                v.fill(heart.oval(u, 0.29 * side, a, b), FLUID)

    def _head(self, v: View, noise: dict[str, np.ndarray], f: Frame) -> None:
        """Paint a head cut across: skull, falx, choroid plexuses."""
        skull = f.oval(0, 0, 1, 0.8)
        v.wall(skull - 0.02, 0.45, 0.012, 1.0)
        v.fill(skull, 0.14 + 0.06 * noise["brain"])
        v.wall(f.path((-0.86, 0), (0.88, 0)), 0.6, 0.006)
        for side in (-1, 1):
            v.fill(f.oval(-0.1, 0.34 * side, 0.35, 0.14), 0.45 + 0.06 * noise["liver"])
        v.wall(skull, BONE, 0.015, 0.5, 0.6)

    def _legs(self, v: View, noise: dict[str, np.ndarray], f: Frame, size: float) -> None:
        """Paint two thighs cut across, with their bones."""
        for side, turn in zip((-1, 1), self.legs, strict=True):
            thigh = f.at(0, 0.52 * side, turn, 0.45 * size)
            v.organ(thigh.oval(0, 0, 1, 0.85), 0.38 + 0.08 * noise["muscle"], 0.7, 0.01, 1.0)
            v.loss += 6 * v.fill(thigh.oval(0, 0, 0.2, 0.16), 0.95, 0.006)
