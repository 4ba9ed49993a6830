"""Folders whose names are short enough for a socket: 107 bytes on Linux, 103 on macOS, whatever TMPDIR is.

Each holds a file that its owner locks and that names it: what a killed process left is told from what is in use, also by one that had no
locks, and cleared up by the next one.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LONGEST = 103 - len(b"/kernel-ipc-5")  # bytes of a folder, of which the kernel has five sockets and the fork server one
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")
OWNED = "owned"


@contextmanager
def folder() -> Iterator[tuple[Path, bool]]:
    """Have a folder of our own as long as the context lasts; yield it, and whether it is short enough.

    It lies in TMPDIR, in that of the session, or where every machine has one.
    """
    usual = tempfile.gettempdir()
    short = [place for place in (usual, os.environ.get("XDG_RUNTIME_DIR", ""), *OTHERS) if place and is_short(place)]
    for place in [*short, usual]:
        try:
            made = tempfile.TemporaryDirectory(prefix="fpbench", dir=place, ignore_cleanup_errors=True)
        except OSError:
            if place == usual and place not in short:
                raise
            continue
        _collect(Path(place))
        with made as found, open(Path(found, OWNED), "w", encoding="utf-8") as handle:
            with suppress(OSError):  # no locks: then the number alone says whose it is
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            handle.write(str(os.getpid()))
            handle.flush()
            yield Path(found), place in short
            return


def is_short(place: str) -> bool:
    """Return whether sockets can lie in a folder of ours in this one."""
    return len(os.fsencode(place)) + len("/fpbench12345678") <= LONGEST


def _collect(place: Path) -> None:
    """Delete such folders of ours whose owner has been killed."""
    for old in place.glob("fpbench*"):
        with suppress(OSError, ValueError):  # somebody else's, in use, not yet anybody's, or none of these
            if old.stat().st_uid == os.getuid():
                with open(old / OWNED, "r+b") as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not psutil.pid_exists(int(handle.read())):
                        shutil.rmtree(old, ignore_errors=True)
