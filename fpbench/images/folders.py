"""Which files lie below folders, and which of them are pictures. Contents: ``SUFFIX``, ``below``, ``check_names``, ``files_below``."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from fpbench.errors import InputError

SUFFIX = re.compile(r"\.(png|jpe?g|bmp|tiff?|dcm|dicom|mha)(?=(#\d+)?$)", re.I)  # of what is read
MOST = 300_000  # files that ``files_below`` looks at


def below(folder: Path) -> list[Path]:
    """Return the pictures below a folder, in the order of their paths, hidden ones left out."""
    if not os.path.isdir(folder):
        return []
    files = sorted(file for file in folder.rglob("*") if os.path.isfile(file) and SUFFIX.search(file.name))
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def check_names(files: Iterable[Path]) -> None:
    """Raise InputError for a name that is not UTF-8: no table can hold it."""
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise InputError(f"expected names of pictures in UTF-8, found {os.fsencode(file)!r}: rename it") from None


def files_below(folders: Sequence[Path]) -> dict[str, set[str]]:
    """Return the files below some folders: name -> the folders that hold one."""
    places: dict[str, set[str]] = defaultdict(set)
    count = 0
    for top in folders:
        for folder, inner, names in os.walk(top):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in names:
                places[name].add(folder)
            if (count := count + len(names)) > MOST:
                return places
    return places
