"""Hashes of many files, remembered: so that gigabytes are not read again before every job.

A file is taken for the one that was hashed while its path, size, time of change (ns) and inode are the same, and the time lies a while
before it was hashed. ``fpbench run`` reads all of them anew once (``whole``), and so does ``fpbench doctor --full``: what was changed
under the same stamp is found there. Few files are not worth remembering.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from fpbench.errors import InputError
from fpbench.files import artifacts, paths

FEWEST = 100  # files that are remembered
SETTLED = 2_000_000_000  # ns between a change and the hash: file systems tell times in steps
STAMP = ["size", "changed", "inode"]
KINDS = {**dict.fromkeys((*STAMP, "hashed"), "int64"), "sha256": "str"}  # of the columns


def sha256s(
    files: Sequence[Path], compute: Callable[[list[Path]], list[str]], whole: bool = False, keep: bool = True
) -> tuple[list[str], list[Path]]:
    """Return the SHA-256 of every file, and which had another one under the same stamp (only if ``whole``).

    Parameters
    ----------
    files
        Different paths.
    compute
        Hashes some of them, in order.
    whole
        Trust nothing that is remembered.
    keep
        Remember what was found.
    """
    if len(files) < FEWEST:
        return compute(list(files)), []
    names = [str(file) for file in files]
    place = paths.cache() / "hashes" / f"{artifacts.digest(names)[:32]}.parquet"
    stamps = [(s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files)]
    table, now = pd.DataFrame(stamps, columns=STAMP), time.time_ns()
    known = _remembered(place, len(files))
    same = (known[STAMP] == table[STAMP]).all(axis=1) & (known["changed"] < known["hashed"] - SETTLED)
    todo = [number for number in range(len(files)) if whole or not same[number]]
    table["sha256"], table["hashed"] = known["sha256"].where(same, ""), known["hashed"].where(same, 0)
    found = pd.Series(compute([files[number] for number in todo]), index=todo, dtype=object)
    other = [files[number] for number in todo if same[number] and known["sha256"][number] != found[number]]
    table.loc[todo, "sha256"], table.loc[todo, "hashed"] = found, now
    if todo and keep:
        with suppress(OSError):  # a cache that cannot be written costs time alone
            with artifacts.atomic(place) as temporary:
                table.to_parquet(temporary, index=False)
            artifacts.commit(place, {"files": len(files)})
    return table["sha256"].tolist(), other


def _remembered(place: Path, count: int) -> pd.DataFrame:
    """Return the rows of the last time; none of which any file is like where there are none."""
    with suppress(OSError, InputError, ValueError, KeyError, TypeError):  # of another version, or damaged
        if artifacts.whole(place) and len(known := pd.read_parquet(place)) == count:
            return known[[*KINDS]].astype(KINDS)
    nothing: dict[str, list] = {name: [-1] * count for name in (*STAMP, "hashed")}
    return pd.DataFrame(nothing | {"sha256": [""] * count})
