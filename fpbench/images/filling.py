"""One pass over picture files: each is decoded once, for every array that is wanted and not there.

An array in the making is a file of one process alone (``.part``); beside it lies a note of the SHA-256 of the rows that are whole. A
process that is killed leaves both: the next one takes the file over, believes the rows that the note vouches for, and makes the others.
Nobody reads such a file. When its rows are whole an array is sealed by itself as ``files.artifacts`` has it, so that its bytes are
those of an array made alone. Memory: one picture per thread, however many there are. The rows of a stack that is inflated in one go are
whole together, when its end is known to be sound.
"""

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np

from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.files.progress import Progress
from fpbench.images import decoding, walking
from fpbench.images.geometry import Geometry

EVERY = 5.0  # seconds between two notes
QUIET = 600.0  # seconds without a write after which the file of another host is nobody's
FORGOTTEN = 7 * 86400.0  # seconds after which what is nobody's is deleted
FREE = "free"  # in the place of a process id: left by one that lives on, e.g. after an interrupt


class Array:
    """Pictures in one geometry, uint8: where they lie, and how they get there."""

    def __init__(self, folder: Path, key: dict, geometry: Geometry, shape: tuple[int, ...]) -> None:
        self.path = artifacts.place(folder / f"{artifacts.digest(key)[:32]}.npy")
        self.rows = self.path.with_name(f".{self.path.stem}.rows.json")
        self.key, self.geometry, self.shape = key, geometry, shape
        self.sums = [""] * shape[0]  # SHA-256 of the rows that are whole
        self.failed = False

    def open(self) -> np.ndarray | None:
        """Return the array, read-only and checked; None if it is not there or not whole."""
        return np.load(self.path, mmap_mode="r") if artifacts.whole(self.path) else None

    @contextmanager
    def making(self) -> Iterator[None]:
        """Hold a file of its own for the rows; what is not sealed in the end is left to the next one, or deleted if it ``failed``."""
        self.part, taken = self._named(str(os.getpid())), False
        for left in filter(_nobodys, self.path.parent.glob(f".{self.path.stem}.*.part")):
            with suppress(FileNotFoundError):
                os.replace(left, self.part)
                taken = True
                break
        try:
            with open(self.part, "r+b" if taken else "x+b") as self.file:
                self._lay()
                if taken:
                    self._recall()
                yield
        except BaseException:
            self.failed |= not any(self.sums)
            raise
        finally:
            if self.part.is_file() and not self.failed:
                self.note()
                os.replace(self.part, self._named(FREE))
            self.part.unlink(missing_ok=True)

    def _named(self, owner: str) -> Path:
        name = f".{self.path.stem}.{socket.gethostname()}.{owner}.{uuid.uuid4().hex[:8]}.part"
        return self.path.with_name(name)

    def _lay(self) -> None:
        """Write the header and make room; on a full disk this is the error, before any work."""
        head = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, head)
        self.file.flush()
        self.start, self.bytes = self.file.tell(), int(np.prod(self.shape[1:]))
        size = self.start + self.bytes * self.shape[0]
        self.file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, size)

    def _recall(self) -> None:
        """Believe the rows that the note vouches for."""
        with suppress(OSError, InputError, KeyError):
            for row, known in enumerate(artifacts.read_json(self.rows)["rows"]):
                place = self.start + row * self.bytes
                if known and hashlib.sha256(os.pread(self.file.fileno(), self.bytes, place)).hexdigest() == known:
                    self.sums[row] = known

    def put(self, row: int, picture: np.ndarray) -> str:
        """Write one row, and return its SHA-256; several threads may."""
        square = self.geometry(picture)
        square = square if square.ndim == len(self.shape) - 1 else square[..., None]
        content = np.ascontiguousarray(np.broadcast_to(square, self.shape[1:])).data.cast("B")
        done = 0
        while done < len(content):
            done += os.pwrite(self.file.fileno(), content[done:], self.start + row * self.bytes + done)
        return hashlib.sha256(content).hexdigest()

    def note(self) -> None:
        """Note which rows are whole."""
        with suppress(OSError):  # a note that cannot be written costs time alone
            artifacts.write_json(self.rows, {"rows": self.sums})

    def seal(self) -> None:
        """Give the file its name and its sidecar."""
        try:
            with artifacts.atomic(self.path) as temporary:
                os.replace(self.part, temporary)
            artifacts.commit(self.path, {"key": self.key})
        except FileNotFoundError:
            if not artifacts.whole(self.path):  # else another process, to whom the lock was granted too, has made it
                raise
        self.rows.unlink(missing_ok=True)


def fill(arrays: Sequence[Array], files: Sequence[Path], bits: int = 0) -> None:
    """Make some arrays of the same pictures in one pass.

    Parameters
    ----------
    arrays
        The first is what is asked for: what goes wrong with it is raised. The others come along: one for which there is no room, or
        that cannot be made, is left to the job that needs it, which will say why.
    files
        One for every row.
    bits
        As for ``decode``.
    """
    first = arrays[0]
    _sweep(first.path.parent)
    with ExitStack() as stack:
        begun = []
        for array in arrays:
            with nullcontext() if array is first else suppress(OSError):
                stack.enter_context(array.making())
                begun.append(array)
        _decode(begun, files, bits)
        for array in begun:
            if not array.failed:
                array.seal()


def _decode(arrays: Sequence[Array], files: Sequence[Path], bits: int) -> None:
    """Decode every picture that some array lacks, for all that lack it."""
    first, noted = arrays[0], time.monotonic()

    def place(group: list[int]) -> Iterator[None]:
        put: list[tuple[Array, int, str]] = []
        for row, (picture, _) in zip(group, decoding.looks([files[row] for row in group], bits), strict=True):
            for array in arrays:
                if not array.failed and not array.sums[row]:
                    try:
                        put.append((array, row, array.put(row, picture)))
                    except Exception:
                        if array is first:
                            raise
                        array.failed = True
            if row == group[-1]:  # with its last frame a stack is known to be whole
                for array, whole, content in put:
                    array.sums[whole] = content
            yield

    lacking = [row for row in range(len(files)) if not all(array.sums[row] for array in arrays)]
    kind = f"{first.geometry.kind} {first.geometry.size}" if len(arrays) == 1 else f"{len(arrays)} geometries"
    done, title = len(files) - len(lacking), f"decoding to {kind}"
    bar = Progress(total=len(files), initial=done, desc=title, unit="image")
    with bar:
        for _ in walking.walk(place, walking.groups(files, lacking)):
            bar.update()
            if time.monotonic() - noted > EVERY:
                for array in arrays:
                    array.note()
                noted = time.monotonic()


def _nobodys(part: Path) -> bool:
    """Return whether a file is there to be taken over: the process that made it is gone, and we may write to it."""
    *host, owner, _, _ = part.name.split(".")[2:]
    try:
        if not os.access(part, os.W_OK):  # another user's
            return False
        if owner == FREE or time.time() - part.stat().st_mtime > QUIET:
            return True
        if ".".join(host) == socket.gethostname():
            os.kill(int(owner), 0)  # asks whether the process lives
    except ProcessLookupError:
        return True
    except (FileNotFoundError, PermissionError):  # taken by another; alive, and another user's
        pass
    return False


def _sweep(folder: Path) -> None:
    """Delete what passes have left behind that nobody went on with."""
    for left in (*folder.glob(".*.part"), *folder.glob(".*.rows.json")):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > FORGOTTEN:
                left.unlink()
