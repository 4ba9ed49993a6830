"""Cells that name pictures, and the files that they mean: how a cell becomes a path, and which folder and suffix make them meet.

A cell is a path with ``/`` or ``\\``, relative to a folder or absolute, with or without the suffix; ``#3`` behind it is one frame
of a file of several. Contents: ``tidy``, ``short``, `Match`, ``match``.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fpbench.images.folders import SUFFIX

FRAME = re.compile(r"#\d+$")


def tidy(cell: str) -> str:
    """Return a cell as a path with ``/``, without ``./`` and doubled slashes."""
    return str(PurePosixPath(cell.replace("\\", "/"))) if cell else ""


def short(cell: str) -> str:
    """Return a tidy cell without the suffix of a picture; the number of a frame stays."""
    return SUFFIX.sub("", cell)


def completed(cell: str, suffix: str) -> str:
    """Return a cell with a suffix behind it, before the number of a frame."""
    frame = found[0] if (found := FRAME.search(cell)) else ""
    return cell.removesuffix(frame) + suffix + frame


@dataclass(frozen=True)
class Match:
    """Where the files of some cells lie."""

    folder: Path = Path()  # that the cells are relative to
    suffix: str = ""  # that they lack
    found: int = 0  # cells whose files are there then
    others: tuple[str, ...] = ()  # files that are called like cells which name none: other folders, suffixes or cases


def match(cells: Iterable[str], places: dict[str, set[str]]) -> Match:
    """Return the folder and the suffix with which most different cells name a file of ``places`` (of ``folders.files_below``)."""
    stems: dict[str, list[str]] = defaultdict(list)
    for name in places:
        stems[SUFFIX.sub("", name).casefold()].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    others: list[str] = []
    for cell in dict.fromkeys(cells):
        path = PurePosixPath(FRAME.sub("", tidy(cell)))
        near = {*stems.get(path.name.casefold(), ()), *stems.get(SUFFIX.sub("", path.name).casefold(), ())}
        voted = set()
        for name in near:
            suffix = name[len(path.name) :]
            if name.startswith(path.name) and (not suffix or SUFFIX.fullmatch(suffix)):
                voted |= {(base, suffix) for folder in places[name] if (base := _base(folder, path)) is not None}
        votes.update(voted)
        others += [] if voted else [f"{min(places[name])}/{name}" for name in sorted(near)]
    (folder, suffix), found = min(
        votes.items(), key=lambda one: (-one[1], len(one[0][0]), one[0]), default=(("", ""), 0)
    )
    return Match(Path(folder), suffix, found, tuple(others))


def _base(folder: str, path: PurePosixPath) -> str | None:
    """Return the folder that a path is relative to if its file lies in ``folder``; None if its own folders are others."""
    if path.is_absolute():
        return "/" if str(path.parent) == folder else None
    own = path.parent.parts
    parts = PurePosixPath(folder).parts
    if own and parts[-len(own) :] != own:
        return None
    return str(PurePosixPath(*parts[: len(parts) - len(own)]))
