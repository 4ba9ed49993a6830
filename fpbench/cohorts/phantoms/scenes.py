"""The scenes: each draws one plane into a view. ``g`` is its generator, ``age`` the size of the fetus (about 1)."""

from collections.abc import Callable
from functools import partial

import numpy as np

from fpbench.cohorts.phantoms.canvas import BONE, FLUID, Frame, View, cloud
from fpbench.cohorts.phantoms.facts import Setting


def _tissue(v: View, g: np.random.Generator, level: float = 0.31) -> None:
    """Paint the mother: strands along the probe's face, lanes of poor contact, bright layers near the probe."""
    v.level += level + 0.07 * cloud(g, 44, 6) + 0.05 * cloud(g, 20, 12) + 0.13 * cloud(g, 4, 5)
    v.level -= 0.5 * np.clip(cloud(g, 2, 9) - 0.8, 0, 1) * np.minimum(v.depth / 0.3, 1)
    skin = float(g.uniform(0.08, 0.16))
    v.level += 0.25 * np.exp(-v.depth / 0.03) + 0.10 * np.clip(cloud(g, 60, 3), -1, 2) * (v.depth < skin)
    v.wall(v.depth - skin - 0.02 * cloud(g, 2, 3), 0.70, 0.008)


def _womb(v: View, g: np.random.Generator, f: Frame, a: float, b: float) -> None:
    """Paint mother, amniotic fluid and, often, placenta around a fetal part with half axes ``a``, ``b``."""
    _tissue(v, g)
    pocket = f.at(g.uniform(-0.5, 0.5), g.uniform(-0.35, 0.35), g.uniform(-0.3, 0.3))
    d = pocket.oval(0, 0, a * g.uniform(1.0, 1.6), b * g.uniform(1.0, 1.5), g.uniform(-0.08, 0.08, 3))
    if g.random() < 0.75:
        v.organ(d, FLUID, 0.65, 0.008, 1.0)
    d = v.frame.oval(g.choice([-0.62, 0.62]), g.uniform(0.1, 0.5), 0.3, 0.36, g.uniform(-0.1, 0.1, 3))
    if g.random() < 0.5:
        v.fill(d, 0.47 + 0.04 * cloud(g, 12, 12), 0.01)


def _pose(v: View, g: np.random.Generator, size: float, tilt: float, rise: float = 0.0) -> Frame:
    """Return the frame of the main structure, which calipers measure: near the middle, mostly one way round."""
    f = v.frame.at(g.normal(0, 0.06), g.normal(0.05, 0.04) - rise, g.normal(0, tilt), size * v.setting.zoom)
    v.target = Frame(f.u * (1 if g.random() < 0.85 else -1), f.w, f.size)
    return v.target


def _head(v: View, g: np.random.Generator, age: float, inside: Callable) -> None:
    """Paint a head cut across: skull, sulci, insula, falx, and what the plane shows ``inside``."""
    f, b = _pose(v, g, 0.42 * age, 0.17), g.normal(0.77, 0.03)
    _womb(v, g, f, 1.15, b * 1.2)
    skull = f.oval(0, 0, 1, b, g.normal(0, 0.012, 3))
    v.wall(skull - 0.03, 0.45, 0.012, 1.0)
    v.fill(skull, 0.15 + 0.06 * cloud(g, 30, 14) + 0.05 * cloud(g, 8, 8) - 0.12 * f.w)
    side = np.clip(1 - 1.3 * np.abs(np.gradient(skull, v.step, axis=0)), 0, 1)
    v.loss += 2.5 * side * np.exp(-np.minimum((skull / 0.02) ** 2, 30))  # where the beam only grazes the skull
    for _ in range(7):  # sulci
        turn, r, n = g.uniform(0, 2 * np.pi), g.uniform(0.6, 0.85), g.uniform(0.05, 0.12)
        u, w, rise = r * np.cos(turn), r * b * np.sin(turn), n * np.cos(turn)
        v.wall(f.path((u - n, w + rise), (u + n, w - rise)), g.uniform(0.35, 0.6), 0.006)
    v.wall(f.path((-0.30, 0.50), (-0.05, 0.43), (0.20, 0.49)), 0.55, 0.008)  # insula
    v.wall(f.path((-0.86, 0), (0.3, 0)) / np.clip(0.75 + 0.5 * cloud(g, 2, 12), 0.1, 1), 0.72, 0.006)  # falx
    v.wall(f.path((0.58, 0), (0.88, 0)), 0.72, 0.006)
    inside(v, g, f)
    v.wall(skull, BONE, g.uniform(0.013, 0.019), 0.5, 0.6)


def _cavum(v: View, f: Frame) -> None:
    """Paint the cavum septi pellucidi: a dark box between two short lines."""
    v.fill(f.oval(0.44, 0, 0.15, 0.06), FLUID)
    for w in (-0.07, 0.07):
        v.wall(f.path((0.30, w), (0.58, w)), 0.78, 0.007)


def _thalami(v: View, g: np.random.Generator, f: Frame, u: float = -0.02, size: float = 1.0) -> None:
    """Paint the thalami and, at full size, the cisterns around the midbrain."""
    _cavum(v, f)
    for side in (-1, 1):
        v.organ(f.at(u, 0.15 * side * size, 0.35 * side).oval(0, 0, 0.25 * size, 0.13 * size), 0.03, 0.36)
        if size == 1:
            v.wall(f.path((-0.27, 0.03 * side), (-0.40, 0.17 * side), (-0.52, 0.22 * side)), 0.62, 0.009)
    v.wall(f.path((u - 0.2, 0), (u + 0.2, 0)), 0.55, 0.005)


def _ventricle(v: View, g: np.random.Generator, f: Frame) -> None:
    """Paint the lateral ventricles with their choroid plexus; the near one is hidden by the skull."""
    _cavum(v, f)
    for side, seen in ((1, 1.0), (-1, 0.2)):
        part = f.at(-0.30, 0.30 * side, -0.22 * side)
        d = part.oval(0, 0, 0.40, 0.135)
        v.fill(d, FLUID * seen + 0.1 * (1 - seen))
        v.wall(d + 0.4 * (part.u < -0.3), 0.25 + 0.40 * seen, 0.007, 0.7)
        v.fill(part.oval(-0.05, 0.02 * side, 0.26, 0.085, (0.05, 0.04)), 0.30 + 0.38 * seen + 0.06 * cloud(g, 40, 40))
        v.wall(f.path((0.35, 0.12 * side), (0.52, 0.24 * side)), 0.35 + 0.35 * seen, 0.009)


def _cerebellum(v: View, g: np.random.Generator, f: Frame) -> None:
    """Paint the cerebellum, its vermis and the cisterna magna."""
    _thalami(v, g, f, 0.08, 0.75)
    v.fill(f.oval(-0.74, 0, 0.22, 0.40), FLUID, 0.006)  # cisterna magna
    lobes = np.minimum(*(f.at(-0.54, 0.19 * side, 0.35 * side).oval(0, 0, 0.16, 0.23) for side in (-1, 1)))
    v.organ(lobes, 0.28 + 0.06 * np.cos(f.w * 70) + 0.06 * cloud(g, 50, 40), 0.62)
    v.fill(f.oval(-0.53, 0, 0.11, 0.08), 0.62, 0.008)  # vermis


def _butterfly(v: View, g: np.random.Generator, f: Frame) -> None:
    """Paint two large choroid plexuses and nothing else: a head that is none of the three standard planes."""
    for side in (-1, 1):
        plexus = f.at(g.normal(-0.05, 0.05), 0.36 * side, 0.2 * side).oval(0, 0, 0.48, 0.20, (0.05, 0.06))
        v.fill(plexus, 0.46 + 0.08 * cloud(g, 40, 40))


def _trunk(v: View, g: np.random.Generator, size: float) -> tuple[Frame, np.ndarray]:
    """Paint a trunk cut across, its skin and spine; return its frame (spine at -u) and the distance to the skin."""
    f = _pose(v, g, size, 0.5)
    f = f.at(0, 0, g.choice([0, 0, 0, 0, 0, 0, -np.pi / 2, np.pi / 2]))
    _womb(v, g, f, 1.15, 1.15)
    d = f.oval(0, 0, 1, g.normal(0.93, 0.03), g.normal(0, 0.012, 3))
    v.organ(d, 0.39 + 0.05 * cloud(g, 40, 40) + 0.04 * cloud(g, 12, 12), 0.85, 0.013, 1.0, 0.15)
    v.wall(d - 0.03, 0.5, 0.010, 1.0)
    for u, w in ((-0.82, 0.0), (-0.67, 0.11), (-0.67, -0.11)):
        v.loss += 3.5 * v.fill(f.oval(u, w, 0.06, 0.052), 0.95, 0.006)
    return f, d


def _abdomen(v: View, g: np.random.Generator, age: float) -> None:
    """Paint an abdomen: stomach, umbilical vein, aorta and vena cava."""
    f, _ = _trunk(v, g, 0.36 * age)
    stomach = f.at(g.normal(-0.02, 0.06), g.normal(-0.50, 0.03), g.uniform(-0.4, 0.4))
    v.organ(stomach.oval(0, 0, g.uniform(0.20, 0.28), g.uniform(0.12, 0.18), (0.06, 0.06)), FLUID, 0.5)
    bend = g.uniform(0.9, 1.1)
    vein = f.path((0.86, 0.0), (0.50, 0.02), (0.25, 0.06 * bend), (0.08, 0.18 * bend), (0.04, 0.38 * bend))
    v.organ(vein - 0.045 * f.size, FLUID, 0.62, 0.006)
    for u, w in ((-0.44, -0.10), (-0.36, 0.16)):  # aorta, vena cava
        v.fill(f.oval(u, w, 0.07, 0.06), FLUID)


def _thorax(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a thorax: ribs and a heart of four chambers."""
    f, d = _trunk(v, g, 0.38 * age)
    v.wall(d + 0.05 + 0.5 * (np.abs(np.abs(f.w) - 0.62) > 0.26), 0.95, 0.013, 0.6, 0.5)  # a rib on either side
    heart, beat = f.at(0.20, -0.12, g.normal(-0.7, 0.12), g.uniform(0.54, 0.62)), g.uniform(0.85, 1.15)
    v.organ(heart.oval(0, 0, 1, 0.78, (0.03, 0.03)), 0.30 + 0.05 * cloud(g, 40, 40), 0.55, 0.008, 0.8)
    for u, a, b in ((0.35, 0.37 * beat, 0.22), (-0.45, 0.27, 0.25)):  # ventricles, atria
        for side in (-1, 1):
            v.organ(heart.oval(u, 0.29 * side, a, b, g.normal(0, 0.03, 3)), FLUID)
    v.wall(heart.path((0.85, 0), (-0.12, 0)), 0.62, 0.014)
    v.wall(heart.path((-0.12, 0), (-0.75, 0)), 0.52, 0.008)
    v.wall(heart.path((-0.12, -0.52), (-0.10, 0), (-0.12, 0.52)), 0.62, 0.009)
    v.fill(f.oval(-0.46, -0.12, 0.07, 0.07), FLUID)  # descending aorta


def _femur(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a thigh with the femur, whose shadow is complete."""
    f = _pose(v, g, 0.36 * age, 0.16, 0.09)
    _womb(v, g, f, 1.5, 0.9)
    thigh, hip = f.oval(0.1, 0.12, 1.35, g.uniform(0.42, 0.55), (0.05, 0.03)), f.oval(1.3, 0.3, 0.9, 0.75, (0.04, 0.05))
    muscle = 0.26 + 0.12 * cloud(g, 60, 6) + 0.05 * cloud(g, 50, 50)
    v.organ(np.minimum(thigh, hip), muscle, 0.62, 0.010, 1.0)
    if g.random() < 0.35:
        v.wall(f.path((-0.75, 0.62), (0.0, 0.68), (0.8, 0.60)), 0.85, 0.014, 0.0, 0.8)  # the other leg
    for side in (-1, 1):
        v.organ(f.oval(1.14 * side, 0.04, 0.17, 0.22, (0.05, 0.05)), 0.14, 0.55, 0.010)
    for _ in range(5):
        u, w, n = g.uniform(1.0, 1.5), g.uniform(-0.3, 0.4), g.uniform(0.03, 0.10)
        v.wall(f.path((u - n, w), (u + n, w + g.uniform(-0.2, 0.2))), 0.8, 0.014, 0.0, 0.8)
    bow = g.uniform(0.03, 0.09)
    shaft = ((-1, -0.03), (-0.85, bow - 0.03), (-0.3, bow), (0.3, bow), (0.85, bow - 0.03), (1, -0.03))
    v.wall(f.path(*shaft), 1.2, g.uniform(0.013, 0.018), 0.0, 11.0)


def _cervix(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a cervix with its canal, the head above it, bladder and rectum."""
    f = Frame(v.frame.u * int(g.choice([-1, 1])), v.frame.w, 1.0)
    v.level += 0.42 + 0.05 * cloud(g, 60, 24) + 0.08 * cloud(g, 7, 7) + 0.45 * np.exp(-v.depth / 0.012)
    outer, inner, dip = g.uniform(-0.42, -0.32), g.uniform(0.20, 0.30), g.uniform(-0.03, 0.09)
    canal = f.path((outer, 0.02 + dip), (outer / 2, 0.07 + dip), (0.0, 0.06 + dip), (inner, -0.02 + dip))
    v.fill(canal - 0.13, 0.36 + 0.06 * cloud(g, 60, 30), 0.02)
    v.fill(canal - 0.055, 0.25 + 0.05 * cloud(g, 60, 30), 0.012)
    v.wall(canal - 0.055, 0.55, 0.006)
    v.fill(canal - float(g.uniform(0.006, 0.012)), -0.05)
    head = f.oval(inner + 0.42, 0.06 + dip, 0.36, g.uniform(0.30, 0.38), (0.0, 0.02))
    v.organ(head - float(g.uniform(0.02, 0.06)), FLUID)
    v.organ(head, 0.10 + 0.08 * cloud(g, 14, 10), BONE, 0.018, 0.5, 2.5)
    bladder = f.oval(g.uniform(0.20, 0.34), -0.33, g.uniform(0.10, 0.18), g.uniform(0.04, 0.09), (0.06, 0.08))
    if g.random() < 0.7:
        v.organ(bladder, FLUID)
    rectum = f.path((-0.62, -0.25), (-0.56, 0.05 + dip), (-0.42, 0.25 + dip), (-0.1, 0.33 + dip))
    v.wall(rectum, 0.85, 0.045 + 0.012 * cloud(g, 8, 8))


def _artery(v: View, g: np.random.Generator, age: float) -> None:
    """Paint an artery along its length under a linear probe: not a fetus at all."""
    v.level += 0.36 + 0.12 * cloud(g, 30, 3) + 0.05 * cloud(g, 30, 30)
    curve, (near, far) = 0.03 * cloud(g, 2, 3), g.normal((0.30, 0.58), (0.03, 0.04)).tolist()
    near, far = near + curve, far - curve
    v.fill(np.maximum(near - v.depth, v.depth - far), FLUID, 0.006)
    for at, level, width in ((near, 0.85, 0.014), (far, 0.80, 0.007), (far + 0.03, 1.0, 0.014)):
        v.wall(v.depth - at, level, width)


def _other(v: View, g: np.random.Generator, age: float) -> None:
    """Paint one of the views that belong to no plane."""
    (_kidneys, _profile, _limbs, _sac)[g.integers(4)](v, g, age)


def _kidneys(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a trunk cut at the level of the kidneys, which is no standard plane."""
    f, _ = _trunk(v, g, 0.35 * age)
    for side in (-1, 1):
        kidney = f.at(-0.38, 0.42 * side, 0.5 * side).oval(0, 0, 0.26, 0.20, (0.04, 0.05))
        v.organ(kidney, 0.24, 0.5)
        v.fill(kidney + 0.14 * f.size, FLUID)
    for _ in range(4):
        gut = f.oval(g.uniform(-0.1, 0.7), g.uniform(-0.5, 0.5), g.uniform(0.05, 0.15), 0.07, (0.1, 0.1))
        v.fill(gut, g.uniform(0.1, 0.7))


def _profile(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a face from the side: skull, nose, lips, chin."""
    f = _pose(v, g, 0.34 * age, 0.3).at(-0.15, 0.05)
    _tissue(v, g)
    v.organ(f.oval(0.5, -0.5, 1.7, 1.05, g.uniform(-0.06, 0.06, 3)), FLUID)
    v.fill(f.oval(-0.9, 0.9, 1.1, 0.6, (0.04, 0.05)), 0.36 + 0.08 * cloud(g, 16, 12))
    face = np.minimum(f.oval(0.62, 0.18, 0.42, 0.52), f.oval(-0.12, -0.04, 0.98, 0.78))
    for u, w, r in ((0.92, -0.26, 0.13), (0.98, 0.10, 0.11), (0.98, 0.29, 0.10), (0.88, 0.52, 0.15)):
        face = np.minimum(face, f.oval(u, w, r, r * 0.8))
    v.organ(face, 0.38 + 0.10 * cloud(g, 26, 16), 0.75, 0.010, 0.7)
    skull = f.oval(-0.12, -0.04, 0.90, 0.70, (0.03, 0.02))
    v.organ(skull, 0.10 + 0.07 * cloud(g, 16, 12), 0.95, 0.014, 0.8, 1.2)
    for start, end in (((0.62, -0.28), (0.88, -0.20)), ((0.50, 0.30), (0.80, 0.22)), ((0.45, 0.62), (0.78, 0.52))):
        v.wall(f.path(start, end), 0.92, 0.014, 0.0, 1.0)


def _limbs(v: View, g: np.random.Generator, age: float) -> None:
    """Paint a forearm with its two bones, a hand, and limbs cut across, in fluid."""
    f = _pose(v, g, 0.40 * age, 0.6)
    _tissue(v, g)
    v.organ(f.oval(0.0, 0.0, 1.3, 0.95, g.uniform(-0.10, 0.10, 3)), FLUID)
    soft = 0.36 + 0.10 * cloud(g, 26, 16)
    v.organ(f.oval(-0.75, 0.75, 0.95, 0.55, (0.06, 0.08)), soft, 0.75, 0.012, 0.8)
    v.organ(f.path((-1.1, -0.10), (-0.8, 0.22), (0.1, 0.05)) - 0.17 * f.size, soft, 0.65, 0.009, 0.7)
    for w in (-0.07, 0.08):
        v.wall(f.path((-0.75, 0.21 + w), (0.0, 0.07 + w)), 0.9, 0.010, 0.3, 2.5)
    for k in range(5):
        finger = f.path((0.22, -0.06 + 0.04 * k), (0.71 - 0.08 * abs(k - 2), -0.30 + 0.13 * k))
        v.fill(finger - 0.045 * f.size, 0.42)
        v.wall(finger + 0.05 * np.clip(np.cos(40 * f.u), 0, 1), 0.9, 0.010)
    for _ in range(2):
        part = f.at(g.uniform(-0.6, 0.7), g.choice([-0.62, 0.62]), 0, g.uniform(0.16, 0.24))
        v.organ(part.oval(0, 0, 1, 0.9), 0.40, 0.7)
        v.fill(part.oval(0, 0, 0.35, 0.3), 1.0)


def _sac(v: View, g: np.random.Generator, age: float) -> None:
    """Paint an early pregnancy: a small embryo and the yolk sac in dark fluid."""
    f = _pose(v, g, 0.36 * age, 0.4)
    _tissue(v, g, 0.36)
    sac = f.oval(0, 0, g.uniform(0.9, 1.2), g.uniform(0.6, 0.8), g.uniform(-0.06, 0.06, 3))
    v.wall(sac - 0.02, 0.72, 0.03)
    v.organ(sac, FLUID)
    body = np.minimum(f.oval(-0.22, 0.2, 0.36, 0.20, (0.05, 0.05)), f.oval(0.20, 0.12, 0.24, 0.22))
    v.organ(body, 0.52 + 0.10 * cloud(g, 30, 20), 0.8)
    v.fill(f.oval(0.22, 0.12, 0.10, 0.09), 0.05)
    v.wall(f.oval(g.choice([-0.5, 0.55]), -0.30, 0.13, 0.13), 0.75, 0.010)


SCENES: dict[str, Callable] = {"a": _abdomen, "h": _thorax, "f": _femur, "x": _cervix, "m": _artery, "o": _other}
for _letter, _inside in {"t": _thalami, "v": _ventricle, "c": _cerebellum, "b": _butterfly}.items():
    SCENES[_letter] = partial(_head, inside=_inside)


def place_probe(letter: str, setting: Setting, shift: np.ndarray, g: np.random.Generator) -> View:
    """Choose the probe that the plane is scanned with: vaginal for the cervix, linear for arteries, else convex."""
    if letter == "x":
        return View(setting, 0.16, g.uniform(1.0, 1.25), g.uniform(-0.02, 0.03), 0.97, shift)
    if letter == "m":
        return View(setting, 40.0, 0.0125, 0.06 - 40.0, 40.8, shift * 0.3)
    face, top = setting.face * g.uniform(0.85, 1.2), g.uniform(-0.06, 0.06)
    opening = setting.opening * (setting.cardiac if letter == "h" else 1.0) * g.uniform(0.92, 1.1)
    return View(setting, face, opening, top - face, face + g.choice([0.96, 1.3]) - top, shift)
