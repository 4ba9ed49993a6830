"""One picture of a phantom: its scene, then the marks that the machine or the centre puts on the screen."""

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFont
from PIL.ImageDraw import Draw, ImageDraw

from fpbench.cohorts.phantoms.canvas import View
from fpbench.cohorts.phantoms.facts import MACHINES, Setting, rng
from fpbench.cohorts.phantoms.scenes import SCENES, place_probe


def _text(draw: ImageDraw, x: float, y: float, words: str, fill: int, size: int = 8, align: str = "left") -> None:
    """Write lines of small text with their upper left (or right) corner at (x, y)."""
    draw.multiline_text((x, y), words, fill, ImageFont.load_default(size), align[0] + "a", 1, align)


def _cross(draw: ImageDraw, x: float, y: float) -> None:
    """Draw a caliper."""
    draw.line((x - 3, y, x + 3, y), 210)
    draw.line((x, y - 3, x, y + 3), 210)


def _mark_spain(draw: ImageDraw, w: int, h: int, letter: str, style: str, g: np.random.Generator) -> None:
    """Draw what Spanish machines show; as in the archive, some of it names the class."""
    number = int(g.integers(20, 700))
    for y in range(h // 5):
        draw.line((1, y + 2, 4, y + 2), max(255 - 5 * y, 0))
    if letter == "m":
        _mark_artery(draw, w, h, number, g)
    elif style == "aloka":
        heart = "\n2.50M\nR7.0\nG80\nC17\nA2" if letter == "h" else ""
        _text(draw, w - 3, 1, f"{number}/{number + 1}\n{number % 15 + 12}Hz{heart}", 230, 10, "right")
    else:
        preset = {"x": ("qCERVIX", "Cervix"), "h": ("Cardiac", "2. Trim.")}.get(letter, ("2. Trim.", "2+3. Trim."))
        rate = f"{number % 30 + 20}Hz/{number % 9 + 9}.6cm\n" * (style != "voluson")
        words = f"{rate}{preset[number % 2]}\nHar-mid\nGn {number % 9 - 8}\nC6 / M7\nFF2 / E3\nSRI II 3"
        _text(draw, w - 3, 2, words, 140, 7, "right")
        _text(draw, w * 0.31, 6, "Voluson" + {"voluson": "\n   E6", "s10": "\n   S10"}.get(style, ""), 170, 6)


def _mark_artery(draw: ImageDraw, w: int, h: int, number: int, g: np.random.Generator) -> None:
    """Draw preset, distances, heart beats and calipers of an arterial study."""
    words = f"16:{number % 47:02d}:07\n8LS #{number}\n8.0MHz\nVASCULAR\nGeneral\nFC= {number % 30 + 55}"
    _text(draw, w * 0.82, 2, words, 200)
    draw.rectangle((w * 0.81, h * 0.68, w - 2, h * 0.96), 90, 160)
    _text(draw, w * 0.82, h * 0.69, "\n".join(f"Dist= {v:.2f}cm" for v in g.uniform(0.03, 0.8, 4)), 220, 7)
    draw.line([(x, h * 0.93 - 10 * (x % 37 < 2) + 3 * (x % 37 == 9)) for x in range(int(w * 0.2), int(w * 0.78))], 190)
    for x in range(4):
        _cross(draw, w * 0.45 + 12 * x, h * 0.63)


def _mark_centre(draw: ImageDraw, w: int, v: View, style: str) -> None:
    """Draw what African centres show: calipers where the plane is measured, a logo, faint words, or nothing."""
    ends = [v.locate(v.target, *end) for end in ((-1, 0), (1, 0), (0, -0.85), (0, 0.85))]
    if style == "calipers":
        for end in ends:
            _cross(draw, *end)
    elif style == "tags":
        for start, end in (ends[:2], ends[2:]):
            draw.point([tuple(point) for point in np.linspace(start, end, 30)], 190)
        _text(draw, max(ends[0][0] - 20, 8), ends[0][1], "GA1", 180)
    elif style == "logo":
        draw.rectangle((w * 0.18, 3, w * 0.18 + 10, 12), 190)
        _text(draw, w * 0.18 + 2, 1, "M", 20, 10)
    elif style == "faint":
        _text(draw, w * 0.12, 6, "LOGIQ\n P5", 100, 7)


def draw_plane(letter: str, setting: Setting, scene: tuple, number: int) -> Image.Image:
    """Draw one picture.

    Parameters
    ----------
    letter
        Key of `PLANES`.
    setting
        Machine or centre.
    scene
        Seed, cohort and patient: with the plane they decide the anatomy, so pictures of one patient agree.
    number
        Which picture of the patient's plane this is: decides probe movement, speckle and numbers on the screen.
    """
    pose = rng(*scene, letter, "pose", number // 2 if letter in "om" else 0)  # what is called Other is many things
    person, now = rng(*scene), rng(*scene, letter, number)
    age, shine = np.clip(person.normal(1.0, 0.13), 0.72, 1.25), person.normal(0, 0.035) + now.normal(0, 0.02)
    shift = now.normal(0, 1, 4) * (0.03, 0.02, 0.07, 0.04)
    view = place_probe(letter, replace(setting, gain=setting.gain + shine), shift, pose)
    SCENES[letter](view, pose, age)
    picture, (w, h) = Image.fromarray(view.develop(now)), setting.size
    draw = Draw(picture)
    if setting.marks in {machine.marks for machine in MACHINES.values()}:
        _mark_spain(draw, w, h, letter, setting.marks, now)
    else:
        _mark_centre(draw, w, view, setting.marks)
    sign(picture)
    return picture


def sign(picture: Image.Image) -> None:
    """Write PHANTOM into the lower left corner of a picture."""
    draw, h = Draw(picture), picture.height
    draw.rectangle((1, h - 12, 43, h - 2), 0)
    _text(draw, 3, h - 12, "PHANTOM", 110)
