"""Transfers over HTTP that go on where they broke. Sizes are bytes; a transfer grows in ``<file>.part``."""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from fpbench.errors import InputError, MissingError
from fpbench.files import paths, sharing

HEADERS = {"User-Agent": "fpbench/1", "Accept-Encoding": "identity"}  # Zenodo answers 403 to python-requests' own name
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
ATTEMPTS = 6  # per download, each going on where the last one broke
PAUSE = 2.0  # seconds before the second attempt, doubled each time, at most 60
CHUNK = 1 << 16  # bytes
UNTRUSTED = "its certificate is not trusted"
_answered: set[str] = set()  # servers that this process has heard from: what is wrong with them may pass


def need(folder: Path, size: int, what: str) -> None:
    """Raise InputError unless ``size`` bytes are free in a folder."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(f"{folder}: {what} needs {size:,} bytes, {free:,} are free: make room or choose another root")


def ask(url: str, **options: Any) -> requests.Response:
    """Return the answer to one GET request; an HTTP error is raised."""
    response = requests.get(url, headers=HEADERS, timeout=TIMEOUT, **options)
    _answered.add(urlsplit(url).netloc)
    if not response.ok:
        response.close()
    response.raise_for_status()
    return response


def persist(action: Callable[..., Any], url: str, **options: Any) -> Any:
    """Call ``action(url, ...)`` again after an error that may pass: broken connection, HTTP 408, 425, 429, 5xx.

    What waiting does not mend is said at once: a certificate that is not trusted, and no way to a server that never answered.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action(url, **options)
        except requests.RequestException as error:
            problem, answer = error, error.response
        except OSError as error:
            if "CA certificate" in str(error):  # requests' word for a bundle that is not there
                raise InputError(f"{url}: {explain(error)}") from None
            raise
        status, headers = (0, {}) if answer is None else (answer.status_code, answer.headers)
        if status in (404, 410):
            moved = "no such file. Has the record moved? Look for its doi"
            raise MissingError(f"{url}: HTTP {status}, {moved}") from problem
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise InputError(f"{url}: the server refused, HTTP {status}. Open it in a browser, try later") from problem
        host = urlsplit(url).netloc
        if (told := explain(problem)) and (host not in _answered or told.startswith(UNTRUSTED)):
            raise InputError(f"{url}: {told}") from None
        if attempt < ATTEMPTS - 1:
            after = headers.get("Retry-After", "")
            words = (
                f"{host}: {f'HTTP {status}' if status else 'the connection broke'}, attempt {attempt + 2} of {ATTEMPTS}"
            )
            _wait(min(float(after) if after.isdecimal() else PAUSE * 2**attempt, 60), words)
    raise InputError(f"{url}: gave up after {ATTEMPTS} attempts ({problem}). Run again to go on") from problem


def explain(error: BaseException) -> str:
    """Return what stands in the way to a server, and what to do, if an error of requests or httpx says so; else an empty text."""
    chain_of = _causes(error)
    text = " ".join(str(chain_of[-1]).split())[-200:]
    kinds = {kind.__name__ for one in chain_of for kind in type(one).__mro__}
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    hub = any(word in str(one) for one in chain_of for word in ("offline mode", "huggingface.co"))
    if "OfflineModeIsEnabled" in kinds or (offline and hub):  # not all libraries say why they found nothing
        return "HF_HUB_OFFLINE is set, and the file is not in the cache of the hub: unset it where there is a network"
    named = ", ".join(f"{name}={os.environ[name]}" for name in (*paths.BUNDLES, *paths.FOLDERS) if name in os.environ)
    if "CA certificate" in str(error):
        return f"{UNTRUSTED}: no certificates where {named} says: correct it"
    if "SSLCertVerificationError" in kinds or "CERTIFICATE_VERIFY_FAILED" in str(error):
        way = "does a proxy look into the traffic? Ask who runs it for the certificate of its authority"
        return f"{UNTRUSTED} ({text}): {way}, and name that file in {' or '.join(paths.BUNDLES)} (now {named or 'not set'})"
    if "ProxyError" in kinds:
        return f"the proxy does not let us through ({text}): correct HTTPS_PROXY, or list the server in NO_PROXY"
    if kinds & {"NewConnectionError", "ConnectTimeoutError", "ConnectError", "ConnectTimeout"}:
        return f"no way to the server ({text}): is a firewall between? Set HTTPS_PROXY if there is a proxy"
    return "the hub has no such file in its cache, and was not asked" if "LocalEntryNotFoundError" in kinds else ""


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and all that led to it, the first cause last."""
    found = [error]
    for one in found:  # which grows
        inner = (getattr(one, "reason", None), one.__cause__, one.__context__, *one.args)
        found += [more for more in inner if isinstance(more, BaseException) and more not in found]
    return found


@contextmanager
def hub() -> Iterator[None]:
    """Let a library fetch from the hub; where there is no way to it, take what is in its cache, or say at once what stands in the way.

    Left alone, huggingface_hub tries for half a minute per file.

    Raises
    ------
    InputError
        There is no way, and the library found that a file is missing.
    """
    from huggingface_hub import constants

    told = ""
    if not constants.HF_HUB_OFFLINE:
        try:
            requests.head(constants.ENDPOINT, headers=HEADERS, timeout=TIMEOUT)
        except OSError as error:  # as those of requests are; what a server answers is the library's affair
            told = explain(error)
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE or bool(told)
    try:
        yield
    except Exception as error:
        if told and any(
            explain(one) or isinstance(one, OSError) for one in _causes(error)
        ):  # transformers names no cause
            what = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"{constants.ENDPOINT}: {told}. Only what was fetched before can be had now: {what}"
            ) from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _wait(seconds: float, words: str) -> None:
    """Sleep; a terminal sees the seconds go by, a log one line."""
    if not sys.stderr.isatty():
        print(f"{words} in {seconds:.0f} s", file=sys.stderr, flush=True)
        time.sleep(seconds)
        return
    for left in range(int(seconds + 0.5), 0, -1):
        print(f"\r{words} in {left} s ", end="", file=sys.stderr, flush=True)
        time.sleep(1)
    print(file=sys.stderr)


def download(url: str, target: Path, size: int, md5: str = "", room: int = 0, page: str = "") -> Path:
    """Bring a file of ``size`` bytes to ``target``, going on where an earlier transfer broke.

    It gets its name when it is whole and, if one is given, has the ``md5`` (hex). When bytes of an earlier run turn out
    wrong, all are fetched once more. ``room``: bytes that must be free besides; ``page``: where to read about the file.
    Bars show on a terminal only.
    """
    part = Path(f"{target}.part")
    if part.exists() and not os.access(part, os.W_OK):  # begun by another user, and closed to us
        part.unlink()
    while True:
        have = _have(part, size)
        need(target.parent, size + room - have, f"{target.name}{' with its unpacked files' if room else ''}")
        persist(_go_on, url, part=part, size=size)
        _etag(part).unlink(missing_ok=True)
        if not md5 or (found := file_md5(part)) == md5.lower():
            sharing.share(part)
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
        _answered.add(urlsplit(url).netloc)
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
        _etag(part).unlink(missing_ok=True)  # it may be another user's
        _etag(part).write_text(tag if tag.startswith('"') else "", encoding="latin-1")
    bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, disable=None)
    with open(part, "r+b" if start else "wb") as out, bar:
        out.seek(start)  # not to append: without locks another process may write the same bytes
        sharing.share(part)
        sharing.share(_etag(part))
        for chunk in chain([first], chunks):
            out.write(chunk)
            bar.update(len(chunk))
            if out.tell() > size:
                raise InputError(f"{url}: more than the {size:,} bytes expected came. Try later")
