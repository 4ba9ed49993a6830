"""Weights files from where their authors put them, checked, and pinned by hash.

``fetch(name)`` transfers a file to ``<weights>/<encoder>/<file>`` (FPBENCH_WEIGHTS); a file placed there by hand counts as
well. A hash that the catalogue does not know is pinned in a lock on first use, and compared ever after. Sizes are bytes.
"""

import html
import re
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

from fpbench.encoders import miniatures
from fpbench.encoders.catalogue import Entry, Source, find
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths, sharing, transfer

DRIVE = "https://drive.usercontent.google.com/download"
DRIVE_FOLDER = "https://drive.google.com/embeddedfolderview"
QUOTA = re.compile("quota exceeded|too many users have viewed or downloaded", re.I)


def path_of(name: str) -> Path:
    """Return where the weights file of an encoder lies, or shall lie."""
    source = entry(name)[1]
    return miniatures.FOLDER / source.file if source.kind == "package" else paths.weights() / name / source.file


def fetch(name: str) -> Path:
    """Return the weights file of an encoder (a name in the catalogue), transferred if it is not there; print its licence.

    Raises
    ------
    InputError
        The server refused, sent a web page, or another file than the pinned one; the message says what to do by hand.
    MissingError
        The address holds no such file.
    """
    paths.trust()
    (about, source), path = entry(name), path_of(name)
    print(f"{name}: {source.url}\n  licence: {about.licence}; gated: {about.gated}")
    if source.kind == "package":
        return locate(name)
    with artifacts.lock(path):
        if not path.is_file():
            revision = _transfer(name, source, path)
            try:
                record(name, path, revision=revision)
            except InputError:
                path.replace(f"{path}.wrong-sha256")  # never leave it where it would be used
                raise
    return locate(name)


def locate(name: str, lock: Path | None = None) -> Path:
    """Return the weights file of an encoder after comparing its hash with the catalogue's or the pinned one.

    Parameters
    ----------
    name
        In the catalogue.
    lock
        JSON file with the pinned hashes; default ``<weights>/lock.json``.

    Raises
    ------
    MissingError
        It is not there; the message says how to get it.
    InputError
        It is not the file that was used before.
    """
    path = path_of(name)
    if not path.is_file():
        how = f"run `fpbench fetch weights {name}`\n{by_hand(name)}"
        raise MissingError(f"expected the weights of {name} at {path}, found nothing: {how}")
    if entry(name)[1].kind == "package":
        compare(name, path, sha256(path))
    else:
        record(name, path, lock)
    return path


def by_hand(name: str) -> str:
    """Return what to do where fetching is not possible."""
    _, source = entry(name)
    return f"By hand: open {source.url}, accept what it asks, and save {source.file} as {path_of(name)}"


def record(name: str, path: Path, lock: Path | None = None, revision: str = "") -> None:
    """Compare a weights file with what is known of it; pin it in the lock if the lock does not know it.

    A line of the lock holds file, size, sha256, licence, source, revision, pinned (time).
    """
    (about, source), lock, found = entry(name), _lock(lock), sha256(path)
    with artifacts.lock(lock):
        compare(name, path, found, lock)
        pinned = _pinned(lock)
        if name not in pinned:
            line = {"file": path.name, "size": path.stat().st_size, "sha256": found, "licence": about.licence}
            line |= {"source": source.url, "revision": revision or source.revision}
            line["pinned"] = datetime.now(UTC).isoformat(timespec="seconds")
            artifacts.write_json(lock, {**pinned, name: line})


def compare(name: str, path: Path, found: str, lock: Path | None = None) -> str:
    """Return who says that the file at ``path`` has the SHA-256 ``found`` (empty: nobody yet). Only reads.

    Raises
    ------
    InputError
        The catalogue or the lock says another.
    """
    (_, source), lock = entry(name), _lock(lock)
    known = source.sha256 if source.confirmed else ""
    expected = known or _pinned(lock).get(name, {}).get("sha256", "")
    origin = "published under this name" if known else f"pinned in {lock}" if expected else ""
    if source.kind == "package":
        origin = source.url
    if expected and found != expected:
        wrong = f"expected SHA-256 {expected} ({origin}), found {found}: another file, or a damaged one"
        want = f"if you want this one, name it in the study (weights: PATH), or delete {name} from the lock"
        how = "Install fpbench again" if source.kind == "package" else f"Move it away and fetch again; {want}"
        raise InputError(f"{path}: {wrong}. {how}")
    return origin


def _lock(lock: Path | None = None) -> Path:
    return lock or paths.weights() / "lock.json"


def _pinned(lock: Path) -> dict:
    return artifacts.read_json(lock) if lock.exists() else {}


def sha256(path: Path, full: bool = False, remember: bool = True) -> str:
    """Return the SHA-256 of a file, remembered (unless not to ``remember``) by its size, time and inode; computed anew if ``full``."""
    memory = paths.cache() / "hashes.json"
    about = path.stat()
    stamp = [about.st_size, about.st_mtime_ns, about.st_ino]
    known = {}
    with suppress(OSError, ValueError, InputError):
        known = artifacts.read_json(memory)
    if not full and known.get(str(path), [None])[:-1] == stamp:
        return known[str(path)][-1]
    found = artifacts.file_sha256(path)
    if remember:
        with suppress(OSError):
            artifacts.write_json(memory, {**known, str(path): [*stamp, found]})
    return found


def entry(name: str) -> tuple[Entry, Source]:
    """Return an encoder of the catalogue, and where its weights are; of a miniature: those that are shipped."""
    found, mini = find(name)
    if mini:
        return replace(found, licence=miniatures.LICENCE, gated="no"), miniatures.source(found.name)
    if found.source is None:
        raise InputError(f"{name} has no published weights: use weights='random' or a file")
    return found, found.source


def _transfer(name: str, source: Source, path: Path) -> str:
    """Bring the file to ``path``; return the revision of a hub repository."""
    address = source.address
    try:
        if source.kind == "hub":
            return _from_hub(name, source, path)
        if source.kind == "page":
            raise InputError(f"expected a file to download, its authors have put it on a page for browsers: {address}")
        if source.kind == "drive-folder":
            address = _in_folder(address, source.file)
        if source.kind != "url":
            address = f"{DRIVE}?{urlencode({'id': address, 'export': 'download', 'confirm': 't'})}"
        address, size = transfer.persist(_probe, address)
        if source.confirmed and size != source.size:
            raise InputError(f"{address}: expected {source.size:,} bytes, the server has {size:,}")
        transfer.download(address, path, size)
    except (InputError, MissingError) as error:
        raise type(error)(f"{name}: {error}\n{by_hand(name)}") from None
    return ""


def _probe(address: str, confirmed: bool = False) -> tuple[str, int]:
    """Return the address that really sends the file, and its size; Drive's page about viruses is answered once."""
    with transfer.ask(address, stream=True) as response:
        if "text/html" not in response.headers.get("Content-Type", ""):
            if length := response.headers.get("Content-Length"):
                return address, int(length)
            silent = "the server does not say how long the file is, so a broken transfer would pass"
            raise InputError(f"{address}: {silent}")
        page = response.text
    if QUOTA.search(page):
        free_again = "it is free again within 24 hours, or sooner for a signed-in account"
        raise InputError(f"Google Drive has reached this file's download quota; {free_again}")
    form = re.search(r'<form[^>]*id="download-form"[^>]*action="([^"]+)"', page)
    if form and not confirmed:
        hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page)
        return _probe(f"{urljoin(address, html.unescape(form[1]))}?{urlencode(hidden)}", True)
    viruses = "asks to confirm that Drive could not scan the file for viruses"
    raise InputError(f"{address}: the answer {viruses if form else 'is a web page: a login or an error'}, not the file")


def _in_folder(folder: str, file: str) -> str:
    """Return the id of a file in a public Drive folder."""
    page = transfer.persist(transfer.ask, DRIVE_FOLDER, params={"id": folder}).text
    entries = re.findall(r"/file/d/([\w-]+)/.*?flip-entry-title[^>]*>([^<]*)<", page, re.S)
    found = [file_id for file_id, title in entries if html.unescape(title) == file]
    if not found:
        titles = ", ".join(title for _, title in entries) or "nothing that we can read"
        raise MissingError(f"expected {file} in the Drive folder {folder}, found {titles}")
    return found[0]


def _from_hub(name: str, source: Source, path: Path) -> str:
    """Fetch with huggingface_hub at the pinned revision; "main" is resolved first."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    stack: Any = next((sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules), None)
    errors = (
        HfHubHTTPError,
        OSError,
        *((stack.HTTPError,) if stack else ()),
    )  # of the hub, of the disk, of the way there
    revision = _pinned(_lock()).get(name, {}).get("revision")
    try:
        revision = revision or HfApi().model_info(source.address, revision=source.revision).sha
        hf_hub_download(source.address, source.file, revision=revision, local_dir=path.parent)
        sharing.share_tree(path.parent)
    except GatedRepoError:
        how = "accept its terms in a browser, then log in with `hf auth login`, and fetch again"
        raise InputError(f"{source.address} is gated: {how}") from None
    except errors as error:
        gone = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        kind = MissingError if gone else InputError
        told = transfer.explain(error) or next(iter(str(error).splitlines()), type(error).__name__)
        raise kind(f"{source.address}: {told}") from None
    return revision or ""
