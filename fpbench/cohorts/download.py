"""Fetch a public cohort: transfer its archive from Zenodo, check the md5, unpack it safely. Sizes are bytes.

Nothing gets its final name before it is complete and checked: a transfer grows in ``<file>.part`` and goes on there
next time, an extraction in ``.<folder>.partial``, removed next time. Contents: the facts (`SPAIN`, `AFRICA`, `ACOUSLIC`; their
values are in `public.yaml`), `fetch`, `extract`.
"""

import re
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from tqdm import tqdm

from fpbench.errors import InputError
from fpbench.files import artifacts, paths, sharing, transfer

LONGEST = 1024  # bytes of a name
MAX_BYTES, MAX_MEMBERS = 8_000_000_000, 50_000  # refuse to unpack more; an archive may say otherwise
MAX_RATIO = 100  # unpacked / packed bytes; about 1 for PNG files
Reader = zipfile.ZipFile | tarfile.TarFile


class _Refused(InputError):
    """An archive with an entry that the published one does not have."""


@dataclass(frozen=True)
class Archive:
    """The facts of one published archive."""

    name: str  # folder made under the data root
    url: str
    file: str  # file name of the archive, also its key in the record
    record: str  # Zenodo API address with md5 and size of each file
    size: int | None  # bytes; None: ask the record
    md5: str | None  # hex; None: ask the record
    top: str  # leading folder inside the archive, stripped
    doi: str  # of the archive
    licence: str
    citation: str
    max_bytes: int = MAX_BYTES  # unpacked, at most


FACTS = yaml.safe_load(Path(__file__).with_name("public.yaml").read_text(encoding="utf-8"))
SPAIN, AFRICA, ACOUSLIC = (Archive(**FACTS[name]["archive"]) for name in ("spain", "africa", "acouslic"))


def fetch(archive: Archive, root: str | Path, *, verify: Callable[[Path], object] | None = None) -> Path:
    """Return the folder ``root/<archive.name>`` with the unpacked cohort; print licence and citation.

    The archive is kept in ``root`` and used again while its md5 is right. ``verify`` raises when the folder it is given is
    not the complete cohort: it runs before the new folder gets its name, and decides whether an existing one is returned
    as it is. Raises `MissingError` when the server has no such file, `InputError` when transfer, md5, disk space, archive
    or existing folder is not as it should be.
    """
    paths.trust()
    root = Path(root).resolve()
    destination = root / archive.name
    sharing.make_folder(root)
    with sharing.hold(root / f".{archive.name}.lock"):  # a second fetch waits, then finds the folder
        if _occupied(destination):
            _check_existing(destination, verify)
        else:
            archive = archive if archive.md5 and archive.size else _ask_record(archive)
            packed = _download(archive, root)
            extract(packed, destination, max_bytes=archive.max_bytes, top=archive.top, verify=verify)
    print(f"{destination}: {archive.file}, doi:{archive.doi}\nLicence: {archive.licence}\nCite: {archive.citation}")
    return destination


def _occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _check_existing(destination: Path, verify: Callable[[Path], object] | None) -> None:
    try:
        if verify is None:
            raise InputError("its content cannot be checked without `verify`")
        verify(destination)
    except Exception as error:
        raise InputError(f"{destination} is in the way and was left alone: {error}. Move it, run again") from error


def _ask_record(archive: Archive) -> Archive:
    """Return ``archive`` with the md5 and size that its Zenodo record states (a pinned one is kept)."""
    try:
        record = transfer.persist(transfer.ask, archive.record).json()
        entry = next(entry for entry in record["files"] if entry["key"] == archive.file)
        found: Any = re.fullmatch("md5:([0-9a-f]{32})", entry["checksum"])
        md5 = found[1]  # of None: a TypeError, caught here
        return replace(archive, md5=archive.md5 or md5, size=archive.size or int(entry["size"]))
    except (OSError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise InputError(
            f"expected md5 and size of {archive.file} at {archive.record}, found none ({error!r}). Try again later; or "
            f"read them at https://doi.org/{archive.doi} and fetch(replace(archive, md5=..., size=...), root); or "
            f"unpack the archive yourself into the folder {archive.name!r} of the data root"
        ) from error


def _download(archive: Archive, root: Path) -> Path:
    """Return the path of the verified archive in ``root``, transferred if it is not there."""
    assert archive.md5 is not None  # both are known: `fetch` has asked the record
    assert archive.size is not None
    path = root / archive.file
    if path.exists():
        if transfer.file_md5(path) == archive.md5.lower():
            return path
        path.replace(f"{path}.wrong-md5")
        print(f"{path} is not the published archive: renamed to {path.name}.wrong-md5")
    page = f"https://doi.org/{archive.doi}"
    return transfer.download(archive.url, path, archive.size, archive.md5, room=archive.size, page=page)


def extract(
    archive_path: str | Path,
    destination: str | Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
    top: str = "",
    verify: Callable[[Path], object] | None = None,
) -> Path:
    """Unpack a zip or tar file into the new folder ``destination``: all of it, or nothing.

    Only regular files are written, each to a new file in a fresh folder. Refused: links, devices, absolute or climbing
    names, duplicates, names that differ in case only, more than ``max_members`` entries, more than ``max_bytes`` or
    `MAX_RATIO` times the archive's bytes (counted while writing). The folder ``top`` is stripped, macOS by-products are
    left out. When ``verify(temporary folder)`` raises, nothing is put in place. Raises `InputError`, also when the file
    is damaged, the disk too full, or ``destination`` not empty.
    """
    archive_path, destination = Path(archive_path), Path(destination).resolve()
    if _occupied(destination):
        raise InputError(f"{destination} is in the way and was left alone. Move it, run again")
    with artifacts.beside(destination) as temporary:
        temporary.mkdir()
        budget = min(max_bytes, MAX_RATIO * archive_path.stat().st_size)
        _unpack(archive_path, temporary, budget, max_members, top)
        if verify is not None:
            verify(temporary)
        sharing.share_tree(temporary)
        temporary.rename(destination)  # an empty folder may be there
    return destination


def _unpack(path: Path, folder: Path, budget: int, max_members: int, top: str) -> None:
    """Check the whole list before the first byte is written, then count the bytes that really come out."""
    try:
        kind: Callable[[Path], Reader] = zipfile.ZipFile if path.suffix.lower() == ".zip" else tarfile.open
        with _reading():
            archive = kind(path)
        with archive:
            with _reading():
                plan = _plan(archive, budget, max_members, top)
            transfer.need(folder, sum(size for size, _ in plan.values()), path.name)
            for name, (_, opener) in tqdm(plan.items(), unit=" files", disable=None):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as out:
                    for chunk in _chunks(opener):
                        budget -= len(chunk)
                        if budget < 0:
                            raise _Refused("more bytes come out than it may hold")
                        out.write(chunk)
    except _Refused as error:
        raise InputError(f"{path} was not unpacked: {error}. Delete it and fetch it again") from error


@contextmanager
def _reading() -> Iterator[None]:
    """Let nothing but _Refused out: on damaged files zipfile, tarfile and what they unpack with raise whatever comes."""
    try:
        yield
    except (_Refused, MemoryError, PermissionError):
        raise
    except Exception as error:
        raise _Refused(str(error)[:300] or type(error).__name__) from error


def _chunks(opener: Callable) -> Iterator[bytes]:
    """Yield the bytes of an entry."""
    with _reading(), opener() as source:
        while chunk := source.read(transfer.CHUNK):
            yield chunk


def _plan(archive: Reader, budget: int, max_members: int, top: str) -> dict[str, tuple[int, Callable]]:
    """Return {relative name: (bytes, opener)} of the files to write, or refuse the archive."""
    plan: dict[str, tuple[int, Callable]] = {}
    seen: dict[str, tuple[str, bool]] = {}  # name as a careless file system compares it -> (name, is a file)
    for count, (name, size, is_file, opener) in enumerate(_entries(archive), start=1):
        budget -= size
        if size < 0 or budget < 0 or count > max_members:
            raise _Refused(f"more entries ({max_members:,}) or bytes than it may hold")
        parts = _parts(name, top)
        if any(part in ("__MACOSX", ".DS_Store") or part.startswith("._") for part in parts):
            continue
        for depth in range(1, len(parts) + 1):
            entry = ("/".join(parts[:depth]), is_file and depth == len(parts))
            key = unicodedata.normalize("NFC", entry[0]).casefold()
            if (entry[1] and key in seen) or seen.setdefault(key, entry) != entry:
                raise _Refused(f"{name!r} is there twice, or differs from another name in case only")
        if is_file and not parts:
            raise _Refused(f"{name!r} is a file where a folder is expected")
        if is_file:
            plan["/".join(parts)] = (size, opener)
    return plan


def _entries(archive: Reader) -> Iterator[tuple[str, int, bool, Callable]]:
    """Yield name, bytes, is a file, opener of each entry; refuse what is neither a regular file nor a folder."""
    opener: Callable = archive.open if isinstance(archive, zipfile.ZipFile) else archive.extractfile
    for info in archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive:
        if isinstance(info, zipfile.ZipInfo):  # orig_filename: `filename` is cut at a NUL byte
            regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            entry = info.orig_filename, info.file_size, not info.filename.endswith("/"), partial(opener, info)
        else:
            regular = (info.isreg() and not info.issparse()) or info.isdir()
            entry = info.name, info.size, info.isreg(), partial(opener, info)
        if not regular:
            raise _Refused(f"{entry[0][:200]!r} is a link or a device")
        yield entry


def _parts(name: str, top: str) -> tuple[str, ...]:
    """Return the folders and file of a safe relative name, without ``top``."""
    parts = PurePosixPath(name).parts
    unsafe = name.startswith("/") or "\\" in name or ":" in name or not name.isprintable()  # colon: drive or stream
    if unsafe or any(part != part.rstrip(". ") for part in parts):  # "..", and names that Windows changes
        raise _Refused(f"the name {name[:200]!r} is not safe")
    if len(name.encode()) > LONGEST or any(len(part.encode()) > 255 for part in parts):
        raise _Refused(f"the name {name[:200]!r}... is too long for a file")
    return parts[1:] if top and parts[:1] == (top,) else parts
