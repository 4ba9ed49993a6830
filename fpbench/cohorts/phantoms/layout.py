"""What is in a phantom cohort: its images in table order, who is who, which file is a copy of which.

A scene depends on (seed, cohort, patient, plane) and an image on its number as well, so images of one patient resemble each
other, and adding patients changes no other image.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fpbench.cohorts.phantoms.facts import CAUSE_FIELDS, CAUSES, CENTRES, KINDS, MACHINES, MENU, PLANES, rng
from fpbench.errors import InputError


class Entry(NamedTuple):
    """One image: its file, its row in the label table, how to draw it, or which file it is a copy of."""

    path: str  # below the root
    row: tuple  # values of the label table
    patient: str
    facts: dict[str, str | None]  # counted columns -> values, in our words
    recipe: tuple  # arguments of `draw_plane`
    copy: str | None = None
    tints: tuple[float, ...] = ()  # of red, green and blue; none: a grey file


def spain_entries(seed: int = 0, patients: int = KINDS["spain"]["patients"], only: str = "") -> list[Entry]:
    """Return the images of phantom Spain, in table order; ``patients`` in each half, odd numbers train.

    From 20 on, more patients change no entry (with fewer, the pair that crosses the halves may be another). ``only``: letters of the
    planes that are drawn, default all; without ``t`` and ``v`` no pair crosses the halves.
    """
    entries = [entry for n in range(1, 2 * patients + 1) for entry in _spanish_patient(seed, n, only)]
    twins = [
        j
        for j, (_, _, letters, *s10) in enumerate(MENU[:patients])
        if letters[0] in set("tv") & set(only or "tv") and not s10
    ]
    if twins:
        j = int(rng(seed, "spain", "twins").choice(twins))
        train, test = (next(k for k, e in enumerate(entries) if e.patient == str(2 * j + half)) for half in (1, 2))
        entries[test] = entries[test]._replace(copy=entries[train].path)
    return entries


def _spanish_patient(seed: int, n: int, only: str = "") -> Iterator[Entry]:
    """Yield the images of one patient; in some, the last of several images of a plane is a copy of the first."""
    machine, operator, letters, *s10 = MENU[(n - 1) // 2 % len(MENU)]
    letters = "".join(letter for letter in letters if letter in (only or letter))
    if not letters:
        return
    train = n % 2
    if s10 and not train:
        machine, operator = "Voluson S10", "Other"
    copied = letters[0] not in "tv" and rng(seed, "spain", n, "copy").random() < 0.3
    numbers = [PLANES[letter].number for letter in letters]
    first: dict[str, str] = {}
    for i, letter in enumerate(letters):
        plane, index = PLANES[letter], letters[:i].count(letter)
        k, of = (numbers[:end].count(plane.number) for end in (i + 1, None))
        name = f"Patient{n:05d}_Plane{plane.number}_{k}_of_{of}"
        row = (name, n, plane.spain, plane.brain, operator, machine, f"{train} ")
        facts = {"official_split": "train" if train else "test", "plane": plane.name, "brain_plane": plane.sub}
        facts |= {"operator": operator, "machine": machine}
        recipe = (letter, MACHINES[machine], (seed, "spain", n), index)
        copy = first[letter] if copied and 0 < index == letters.count(letter) - 1 else None
        yield Entry(f"Images/{name}.png", row, str(n), facts, recipe, copy)
        first.setdefault(letter, f"Images/{name}.png")


def africa_entries(
    seed: int = 0, patients: int = KINDS["africa"]["patients"], causes: frozenset[str] = CAUSES
) -> list[Entry]:
    """Return the images of phantom Africa, in table order; ``patients`` in each centre, every other one train."""
    if unknown := set(causes) - CAUSES:
        raise InputError(f"unknown causes {sorted(unknown)}: expected some of {sorted(CAUSES)}")
    entries = []
    for centre, here in CENTRES.items():
        number = here.first
        paths: dict[tuple[int, str] | None, str] = {}
        originals = {(twin, k): (one, k) for one, twin, planes in here.copies for k in planes}
        for i in range(patients):
            number += int(rng(seed, "africa", centre, i, "gap").integers(1, 4)) if i else 0
            for entry in _african_patient(seed, centre, i, number, causes):
                key = i, entry.path[-5]  # of "..._plane<k>.png"
                paths[key] = entry.path
                entries.append(entry._replace(copy=paths.get(originals.get(key))))
    return entries


def _african_patient(seed: int, centre: str, i: int, number: int, causes: frozenset[str]) -> Iterator[Entry]:
    """Yield the images of one patient: a Spanish machine at the centre's picture size, changed by the causes."""
    g, here = rng(seed, "africa", centre, i), CENTRES[centre]
    machines = [machine for machine, _, letters, *_ in MENU if set(letters) & set("atfh")]
    fields = {"size", *(field for cause in CAUSE_FIELDS.keys() & causes for field in CAUSE_FIELDS[cause])}
    setting = MACHINES[machines[g.integers(len(machines))]]
    setting = replace(setting, **{field: getattr(here.setting, field) for field in fields})
    for k, letter in enumerate(here.planes if "prior" in causes else _spanish_planes(g)):
        plane = PLANES[letter]
        name = f"patient{number:03d}_{here.iso}_plane{('abdomen', 'brain', 'femur', 'thorax').index(plane.name)}"
        row = (number, plane.spain, i % 2, centre, name)
        facts: dict[str, str | None] = {"official_split": "train" if i % 2 else "test", "plane": plane.name}
        facts["centre"] = centre
        recipe = (letter, setting, (seed, "africa", centre, number), 0)
        tints = () if centre != "Egypt" else (1.0, 1.0, 1.0) if i or k else (1.0, 0.86, 0.62)  # one is truly coloured
        yield Entry(f"{centre}/{name}.png", row, f"{centre}/{number}", facts, recipe, tints=tints)


def _spanish_planes(g: np.random.Generator) -> str:
    """Return the planes of a patient in the Spanish proportions, one of them of the brain."""
    menu = "".join(row[2] for row in MENU)
    brain = [letter for letter in menu if letter in "tvcb"]
    return "".join(c for c in "afh" if g.random() < menu.count(c) / len(brain)) + str(g.choice(brain))


def counts(entries: list[Entry]) -> dict[str, dict[str, int]]:
    """Return column -> value -> images, and "total" -> images, patients: the form of ``Source.counts``."""
    found = {"total": {"images": len(entries), "patients": len({entry.patient for entry in entries})}}
    for column in entries[0].facts:
        found[column] = dict(Counter(v for e in entries if (v := e.facts[column]) is not None).most_common())
    return found
