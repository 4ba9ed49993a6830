"""What several processes and several people share: locks that save work and never cost it, and folders that stay open to all of them.

A lock is ``flock`` on an empty file that stays where it is; the system frees it when its holder dies, so none can be stale. Where it
cannot be had (a file system that knows no locks or has run out of them, a folder that is read-only, a lock file of somebody else
that is closed to us) one line says so, once per process and folder, and the work goes on without: files are whole all the same
(``artifacts.atomic``), some may be made twice.

A folder is shared if its group, or everybody, may write in it and it is not sticky (as /tmp is). There a new file can be read and
written, and a new folder used, by the same people, whatever the umask of who makes it; anywhere else the umask decides. Contents:
``hold``; ``share``, ``share_tree``, ``make_folder``; ``is_writable``, ``closed``, ``owner``.
"""

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EVERY = 0.05  # seconds between two tries
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)  # what flock says of a lock that somebody else holds
_told: set[Path] = set()  # folders of which this process has said that they know no locks


class Held(TimeoutError):
    """Another process holds the lock."""


@contextmanager
def hold(file: Path, timeout: float = -1, waiting: str = "") -> Iterator[int | None]:
    """Hold a lock file; yield its handle, which a child may inherit, or None where there is no lock to be had.

    Parameters
    ----------
    file
        Made if it is not there; never deleted.
    timeout
        Seconds to wait for whoever holds it; below zero: for ever.
    waiting
        Said once if somebody else holds it.

    Raises
    ------
    Held
        It was not free in time.
    """
    handle = _open(file)
    try:
        until = time.monotonic() + timeout
        while handle is not None and (problem := _try(handle)):
            if problem.errno not in HELD:
                _tell(file, problem)
                os.close(handle)
                handle = None
            elif timeout >= 0 and until <= time.monotonic():
                raise Held(problem.errno, "is held by another process", str(file))
            else:
                if waiting:
                    print(waiting, flush=True)
                waiting = ""
                time.sleep(EVERY)
        yield handle
    finally:
        if handle is not None:
            os.close(handle)  # and the lock with it, unless a child holds on to it


def _open(file: Path) -> int | None:
    """Return a handle of a lock file, of another user's too; None, and a word about it, if it cannot be had."""
    try:
        make_folder(file.parent)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            share(file)  # whoever may write beside it may lock it, whatever the umask of the first
            return handle
        except FileExistsError:
            with suppress(PermissionError):
                return os.open(file, os.O_RDWR)
            return os.open(file, os.O_RDONLY)  # of somebody else: enough for a lock on most file systems
    except OSError as problem:
        _tell(file, problem)
        return None


def _try(handle: int) -> OSError | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem
    return None


def _tell(file: Path, problem: OSError) -> None:
    if file.parent not in _told:
        _told.add(file.parent)
        why = problem.strerror or problem
        print(f"{file.parent}: no locks here ({why}): going on without, some work may be done twice", file=sys.stderr)


def share(path: Path) -> None:
    """Open a file or folder of ours to those who may write in its folder."""
    with suppress(OSError):  # not ours, or a file system without modes: as open as it is
        found, given = path.lstat(), _given(path.parent)
        if stat.S_ISREG(found.st_mode):
            given &= 0o666
        elif stat.S_ISDIR(found.st_mode):
            given |= stat.S_ISGID if given else 0
        else:
            return
        if given & ~found.st_mode:
            path.chmod(stat.S_IMODE(found.st_mode) | given)


def share_tree(folder: Path) -> None:
    """Do so with a folder and all that is in it."""
    if _given(folder.parent):
        share(folder)
        for path in folder.rglob("*"):  # a folder comes before what is in it
            share(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are not there."""
    if not folder.is_dir():
        if folder.exists() and not folder.is_dir():  # else another process has just made it
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        share(folder)


def is_writable(folder: Path) -> bool:
    """Return whether we may make files in a folder, or in the nearest above it that is there."""
    while not os.path.exists(folder):  # false too where it is hidden from us
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def closed(folder: Path, write: bool = False) -> list[Path]:
    """Return what lies below a folder and we cannot read, also folders in which we cannot ``write``."""
    found = []
    try:
        for one in sorted(os.scandir(folder), key=lambda one: one.name):
            path = Path(one.path)
            if one.is_dir(follow_symlinks=False):
                open_to_us = os.access(path, os.R_OK | os.X_OK | (os.W_OK if write else 0))
                found += [*([] if open_to_us else [path]), *closed(path, write)]
            elif not one.is_symlink() and not os.access(path, os.R_OK):
                found.append(path)
    except OSError:  # closed itself, or not there
        return found
    return found


def owner(path: Path) -> str:
    """Return the name of the user whose a file is, its number if it has none."""
    try:
        return path.owner()
    except (KeyError, OSError):
        return str(path.lstat().st_uid)


def _given(folder: Path) -> int:
    """Return the permissions that a shared folder hands on: those of its group, of everybody, or none."""
    mode = os.stat(folder).st_mode
    groups = [] if mode & stat.S_ISVTX else [who for who in (stat.S_IRWXG, stat.S_IRWXO) if mode & who & 0o222]
    return mode & sum(groups)
