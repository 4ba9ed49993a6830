"""Transfers over HTTP that go on where they broke. Sizes are bytes; a transfer grows in ``<file>.part``."""

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from fpbench.errors import InputError, MissingError

HEADERS = {"User-Agent": "fpbench/1", "Accept-Encoding": "identity"}  # Zenodo answers 403 to python-requests' own name
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
ATTEMPTS = 6  # per download, each going on where the last one broke
PAUSE = 2.0  # seconds before the second attempt, doubled each time, at most 60
CHUNK = 1 << 16  # bytes


def need(folder: Path, size: int, what: str) -> None:
    """Raise InputError unless ``size`` bytes are free in a folder."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(f"{folder}: {what} needs {size:,} bytes, {free:,} are free: make room or choose another root")


def ask(url: str, **options: Any) -> requests.Response:
    """Return the answer to one GET request; an HTTP error is raised."""
    response = requests.get(url, headers=HEADERS, timeout=TIMEOUT, **options)
    if not response.ok:
        response.close()
    response.raise_for_status()
    return response


def persist(action: Callable[..., Any], url: str, **options: Any) -> Any:
    """Call ``action(url, ...)`` again after an error that may pass: broken connection, HTTP 408, 425, 429, 5xx."""
    for attempt in range(ATTEMPTS):
        try:
            return action(url, **options)
        except requests.RequestException as error:
            problem, answer = error, error.response
        status, headers = (0, {}) if answer is None else (answer.status_code, answer.headers)
        if status in (404, 410):
            moved = "no such file. Has the record moved? Look for its doi"
            raise MissingError(f"{url}: HTTP {status}, {moved}") from problem
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise InputError(f"{url}: the server refused, HTTP {status}. Open it in a browser, try later") from problem
        if attempt < ATTEMPTS - 1:
            after = headers.get("Retry-After", "")
            time.sleep(min(float(after) if after.isdecimal() else PAUSE * 2**attempt, 60))
    raise InputError(f"{url}: gave up after {ATTEMPTS} attempts ({problem}). Run again to go on") from problem


def download(url: str, target: Path, size: int, md5: str = "", room: int = 0, page: str = "") -> Path:
    """Bring a file of ``size`` bytes to ``target``, going on where an earlier transfer broke.

    It gets its name when it is whole and, if one is given, has the ``md5`` (hex). When bytes of an earlier run turn out
    wrong, all are fetched once more. ``room``: bytes that must be free besides; ``page``: where to read about the file.
    Bars show on a terminal only.
    """
    part = Path(f"{target}.part")
    while True:
        have = _have(part, size)
        need(target.parent, size + room - have, f"{target.name}{' with its unpacked files' if room else ''}")
        persist(_go_on, url, part=part, size=size)
        _etag(part).unlink(missing_ok=True)
        if not md5 or (found := file_md5(part)) == md5.lower():
            return part.replace(target)
        part.unlink()
        if not have:  # no byte is of an earlier run: starting again will not help
            raise InputError(f"{url}: expected md5:{md5} but got {found}. Run again; if it repeats, see {page}")


def file_md5(path: Path) -> str:
    """Return the MD5 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _have(part: Path, size: int) -> int:
    have = part.stat().st_size if part.exists() else 0
    return have if have <= size else 0  # longer than the file: not a part of it


def _etag(part: Path) -> Path:
    return Path(f"{part}.etag")


def _go_on(url: str, part: Path, size: int) -> None:
    """Make one attempt (RFC 9110: Range and If-Range); what arrives before it breaks is kept."""
    have, wanted = _have(part, size), {}
    if have == size:
        return
    if have:
        wanted["Range"] = f"bytes={have}-"
        if _etag(part).exists() and (tag := _etag(part).read_text(encoding="latin-1")):
            wanted["If-Range"] = tag
    with requests.get(url, headers=HEADERS | wanted, stream=True, timeout=TIMEOUT) as response:
        span = re.match(rf"bytes {have}-\d+/(\d+)$", response.headers.get("Content-Range", ""))
        resumed = response.status_code == 206
        if response.status_code == 416 or (resumed and span is None):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the server did not go on where the transfer broke")
        response.raise_for_status()
        announced = int(span[1] if resumed and span else response.headers.get("Content-Length", size))
        _save(response, part, have if resumed else 0, announced, size)
    if (have := _have(part, size)) < size:
        raise requests.ConnectionError(f"the transfer ended after {have:,} of {size:,} bytes")


def _save(response: requests.Response, part: Path, start: int, announced: int, size: int) -> None:
    url, chunks = response.url, response.iter_content(CHUNK)
    first = next(chunks, b"")
    if "text/html" in response.headers.get("Content-Type", "") or (not start and first.lstrip()[:1] == b"<"):
        raise InputError(f"{url}: the server sent a web page, not the file. Open it in a browser, try later")
    if announced != size:
        raise InputError(f"{url}: expected {size:,} bytes, the server has {announced:,}. Try later")
    tag = response.headers.get("ETag", "")
    if not start:  # a weak tag (W/) may not be used with Range
        _etag(part).write_text(tag if tag.startswith('"') else "", encoding="latin-1")
    bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, disable=None)
    with open(part, "ab" if start else "wb") as out, bar:
        for chunk in chain([first], chunks):
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() > size:
                raise InputError(f"{url}: more than the {size:,} bytes expected came. Try later")
