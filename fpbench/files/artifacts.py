"""Files that are either whole or absent: atomic writes, hashes, checked reads.

Every file is written to a temporary name beside its target, flushed to disk and renamed. What has a JSON sidecar is
complete when the sidecar is there: it is written last and holds the SHA-256 of its partner, and of itself. A reader checks
both, so that a half-written or damaged file is rebuilt or refused, never believed. Locks only save work (``sharing``): without them
two writers still end with one whole file.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from fpbench.errors import InputError
from fpbench.files import paths, sharing


def digest(value: object) -> str:
    """Return the SHA-256 (hex, 64 characters) of a JSON-like value; equal values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends well, and vanishes when it does not."""
    with beside(path) as temporary:
        try:
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            sharing.share(temporary)
            os.replace(temporary, path)
            _fsync_folder(path.parent)
        except OSError as error:
            if error.errno is None:  # numpy's word for a short write
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` that no other process uses; the file or folder that lies there at the end is deleted."""
    sharing.make_folder(path.parent)
    _collect_orphans(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
    finally:
        _delete(temporary)


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _collect_orphans(path: Path) -> None:
    """Delete temporaries beside ``path`` that killed processes of this host left behind."""
    for orphan in path.parent.glob(f".*.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(orphan.name.split(".")[-3]), 0)  # asks whether the process lives
        except ProcessLookupError:
            with suppress(OSError):  # in a folder of somebody else
                _delete(orphan)
        except (PermissionError, ValueError):
            pass  # it lives, and is another user's; or it is no file of ours


def _fsync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems refuse to sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file that carries its own digest."""
    content = json.loads(json.dumps(content))
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({**content, "digest": digest(content)}, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Read a file of ``write_json``; InputError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a file written by fpbench ({error}): delete it and run again") from None
    if found != digest(content):
        changed = "was changed after it was written (its digest does not match)"
        raise InputError(f"{path} {changed}: delete it and run again")
    return content


def commit(path: Path, content: dict) -> None:
    """Complete ``path`` (already written) by its sidecar: ``content`` plus the file's SHA-256."""
    write_json(sidecar(path), {**content, "sha256": file_sha256(path)})


def checked(path: Path) -> dict:
    """Return the sidecar of ``path`` after checking both; InputError or FileNotFoundError if they cannot be trusted."""
    content = read_json(sidecar(path))
    if content.get("sha256") != file_sha256(path):
        raise InputError(f"{path} does not match the SHA-256 in its sidecar: it is damaged; delete it and run again")
    return content


def whole(path: Path) -> dict:
    """Return what ``checked`` does, or nothing if the file is absent, closed to us or cannot be trusted."""
    with suppress(FileNotFoundError, PermissionError, InputError, KeyError):
        return checked(path)
    return {}


def seal(path: Path) -> None:
    """Append the SHA-256 of a file to it: for a file that must be whole by itself, without a sidecar."""
    with open(path, "ab") as handle:
        handle.write(bytes.fromhex(file_sha256(path)))


def is_sealed(path: Path) -> bool:
    """Return whether a file is as ``seal`` left it."""
    content = memoryview(path.read_bytes())
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def sidecar(path: Path) -> Path:
    """Return the path of a file's sidecar."""
    return path.with_suffix(".json")


def place(path: Path) -> Path:
    """Return where a file of the cache is, or shall be made: in the cache of our own results if its folder is closed to us."""
    own = _own(path)
    if own == path or sharing.is_writable(path.parent) or whole(path):
        return path
    if path.parent not in _told:
        _told.add(path.parent)
        print(f"{path.parent} cannot be written: what is new goes to {own.parent}", file=sys.stderr)
    return own


_told: set[Path] = set()


def _own(path: Path) -> Path:
    cache = paths.cache()
    return paths.results() / "cache" / path.relative_to(cache) if path.is_relative_to(cache) else path


@contextmanager
def lock(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of ``path`` against other processes, where there are locks; ``sharing.Held`` if it is not free within ``timeout`` seconds."""
    with sharing.hold(path.with_name(f".{path.name}.lock"), timeout):
        yield


def cached_array(folder: Path, key: dict, build: Callable[[Path], None]) -> np.ndarray:
    """Return a read-only memory-mapped array, built once per ``key`` and checked at every opening.

    Parameters
    ----------
    folder
        Where such arrays are kept; the file name is the digest of ``key``.
    key
        Everything that the content depends on.
    build
        Writes the array to the path it is given, as ``.npy``. Called under a lock, at most once per key.
    """
    path = place(folder / f"{digest(key)[:32]}.npy")
    if (array := _open(path)) is not None:
        return array
    with lock(path):
        if (array := _open(path)) is None:
            try:
                with atomic(path) as temporary:
                    build(temporary)
                commit(path, {"key": key})
            except FileNotFoundError:
                if not whole(
                    path
                ):  # else another process, to whom the lock was granted too, has made it and cleared up
                    raise
            array = _open(path)
    if array is None:  # damaged; or gone, if another process has made the whole of which it is a part
        with open(path, "rb"), open(sidecar(path), "rb"):
            raise InputError(f"{path} could not be read back after it was written: is the disk failing?")
    return array


def _open(path: Path) -> np.ndarray | None:
    return np.load(path, mmap_mode="r") if whole(path) else None


def discard(folder: Path) -> None:
    """Delete a folder of intermediate files; what another process still holds is left to it."""
    for one in {folder, _own(folder)}:
        shutil.rmtree(one, ignore_errors=True)
