"""Transfers over HTTP that go on where they broke. Sizes are bytes; a transfer grows in ``<file>.part``."""

import os
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
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
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(f"{folder}: {what} needs {size:,} bytes, {free:,} are free: make room or choose another root")


def persist(action: Callable[[], Any], url: str) -> Any:
    """Call ``action`` again after an error that may pass: broken connection, HTTP 408, 425, 429, 5xx."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except requests.RequestException as error:
            status = 0 if error.response is None else error.response.status_code
            after = "" if error.response is None else error.response.headers.get("Retry-After", "")
            problem = error
        if status in (404, 410):
            raise MissingError(
                f"{url}: HTTP {status}, no such file. Has the record moved? Look for its doi"
            ) from problem
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise InputError(f"{url}: the server refused, HTTP {status}. Open it in a browser, try later") from problem
        if attempt < ATTEMPTS - 1:
            time.sleep(min(float(after) if after.isdecimal() else PAUSE * 2**attempt, 60))
    raise InputError(f"{url}: gave up after {ATTEMPTS} attempts ({problem}). Run again to go on") from problem


class Resume:
    """Downloader for `pooch.retrieve` that goes on from a ``.part`` file (RFC 9110: Range and If-Range)."""

    def __init__(self, part: Path, size: int, progress: bool) -> None:
        self.part, self.size, self.progress = part, size, progress
        self.etag = Path(f"{part}.etag")
        self.fresh = False  # no byte is from an earlier run: if the md5 is wrong, starting again will not help

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Transfer ``url`` to ``output_file``, from where an earlier transfer broke."""
        self.fresh = self._have() == 0
        need(self.part.parent, 2 * self.size - self._have(), "the archive with its unpacked files")
        persist(partial(self.transfer, url), url)
        os.replace(self.part, output_file)
        self.etag.unlink(missing_ok=True)

    def _have(self) -> int:
        have = self.part.stat().st_size if self.part.exists() else 0
        return have if have <= self.size else 0  # longer than the file: not a part of it

    def transfer(self, url: str) -> None:
        """Make one attempt; what arrives before it breaks is kept."""
        have = self._have()
        if have == self.size:
            return
        ask = {"Range": f"bytes={have}-"} if have else {}
        tag = self.etag.read_text(encoding="latin-1") if have and self.etag.exists() else ""
        if tag:
            ask["If-Range"] = tag
        with requests.get(url, headers=HEADERS | ask, stream=True, timeout=TIMEOUT) as response:
            span = re.match(rf"bytes {have}-\d+/(\d+)$", response.headers.get("Content-Range", ""))
            resumed = response.status_code == 206
            if response.status_code == 416 or (resumed and span is None):
                self.part.unlink(missing_ok=True)
                raise requests.ConnectionError("the server did not go on where the transfer broke")
            response.raise_for_status()
            announced = span[1] if resumed else response.headers.get("Content-Length", self.size)
            self._save(response, have if resumed else 0, int(announced))
        if self._have() < self.size:
            raise requests.ConnectionError(f"the transfer ended after {self._have():,} of {self.size:,} bytes")

    def _save(self, response: requests.Response, start: int, announced: int) -> None:
        chunks = response.iter_content(CHUNK)
        chunk = next(chunks, b"")
        if "text/html" in response.headers.get("Content-Type", "") or (not start and chunk.lstrip()[:1] == b"<"):
            raise InputError(
                f"{response.url}: the server sent a web page, not an archive. Open it in a browser, try later"
            )
        if announced != self.size:
            raise InputError(f"{response.url}: expected {self.size:,} bytes, the server has {announced:,}. Try later")
        tag = response.headers.get("ETag", "")
        if not start:  # a weak tag (W/) may not be used with Range
            self.etag.write_text(tag if tag.startswith('"') else "", encoding="latin-1")
        bar = tqdm(total=self.size, initial=start, unit="B", unit_scale=True, disable=None if self.progress else True)
        with open(self.part, "ab" if start else "wb") as out, bar:
            while chunk:
                out.write(chunk)
                bar.update(len(chunk))
                if out.tell() > self.size:
                    raise InputError(f"{response.url}: more than the {self.size:,} bytes expected came. Try later")
                chunk = next(chunks, b"")
