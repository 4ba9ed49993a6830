"""Fetching: a real HTTP server on 127.0.0.1 with the faults of servers, and archives that no one should unpack."""

import gzip
import hashlib
import io
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Case, write_acouslic
from PIL import Image

from fpbench import cohorts
from fpbench.cohorts import acouslic, download
from fpbench.cohorts.download import ACOUSLIC, AFRICA, SPAIN, extract, fetch
from fpbench.errors import InputError, MissingError
from fpbench.files import transfer

ROOMY = {"max_bytes": 10_000_000, "max_members": 100}
SPAIN_CSV = b"Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
AFRICA_CSV = b"Patient_num,Plane,Train,Center,Filename\n"


@cache
def png(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (300, 300), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def spain_files() -> dict[str, bytes]:
    names = [f"Patient{i:05d}_Plane3_1_of_1" for i in range(1, 7)]
    rows = b"".join(
        f"{n};{i};Fetal brain;Trans-thalamic;Op. 1;Voluson E6;1 \n".encode() for i, n in enumerate(names, 1)
    )
    files = {"FETAL_PLANES_DB_data.csv": SPAIN_CSV + rows, "README.md": b"# FETAL_PLANES_DB\n"}
    return files | {f"Images/{name}.png": png(i) for i, name in enumerate(names)}


def africa_files() -> dict[str, bytes]:
    countries = {"Algeria": "DZA", "Egypt": "EGY"}
    files = {f"{c}/patient001_{iso}_plane{k}.png": png(k) for c, iso in countries.items() for k in (0, 1)}
    rows = "".join(f"1,Fetal brain,1,{n.split('/')[0]},{Path(n).stem}\n" for n in files)
    return {"African_planes_database.csv": AFRICA_CSV + rows.encode()} | files


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:xz", preset=0) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def site():
    """Serve ``site.files``; each request takes the next of ``site.faults``, if any, and is added to ``site.log``."""
    site = SimpleNamespace(files={}, faults=[], log=[], ranges=True, etag='"v1"')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = SimpleNamespace(path=self.path, headers=dict(self.headers), status=0, sent=0)
            site.log.append(asked)
            fault = site.faults.pop(0) if site.faults else {}
            body = site.files.get(self.path)
            status = fault.get("status", 200 if body is not None else 404)
            body = fault.get("body", body or b"nothing here")
            span, headers = self.headers.get("Range"), {"Content-Length": len(body)}
            current = self.headers.get("If-Range", site.etag) == site.etag
            if status == 200 and span and site.ranges and current:
                start = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
                status, total = (206, len(body)) if start < len(body) else (416, len(body))
                headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}", "Content-Length": total - start}
                body = body[start:]
            asked.status = status
            self.send_response(status)
            headers |= {"ETag": site.etag, "Content-Type": "application/octet-stream"} | fault.get("headers", {})
            for key, value in headers.items():
                if value is not None:
                    self.send_header(key, str(value))
            self.end_headers()
            body = body[: fault.get("drop", len(body))]
            self.wfile.write(body)
            asked.sent = len(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.base = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join(5)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.0)


@pytest.fixture
def spain(site, tmp_path):
    """The Spanish archive, published on ``site``."""
    data = make_zip(tmp_path / "published.zip", spain_files()).read_bytes()
    site.files["/spain.zip"] = data
    url, record = f"{site.base}/spain.zip", f"{site.base}/record"
    return replace(SPAIN, url=url, record=record, size=len(data), md5=hashlib.md5(data).hexdigest())


@pytest.fixture
def africa(site, tmp_path):
    """The African archive and its Zenodo record, published on ``site``; md5 and size are in the record only."""
    files = {f"Zenodo_dataset/{name}": data for name, data in africa_files().items()}
    data = make_tar(tmp_path / "published.tar.xz", files).read_bytes()
    site.files["/africa.tar.xz"] = data
    entry = {"key": AFRICA.file, "size": len(data), "checksum": f"md5:{hashlib.md5(data).hexdigest()}"}
    other = {"key": "other.zip", "size": 3, "checksum": "md5:" + "0" * 32}
    site.record = {"id": 7540448, "files": [other, entry]}
    site.files["/record"] = repr(site.record).replace("'", '"').encode()
    return replace(AFRICA, url=f"{site.base}/africa.tar.xz", record=f"{site.base}/record")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def assert_tidy(root: Path, *expected: str) -> None:
    """Only ``expected`` is there, apart from lock files."""
    assert sorted(p.name for p in root.iterdir() if p.suffix != ".lock") == sorted(expected)


# ---- the facts and the normal path ----


def test_facts():
    assert (SPAIN.size, SPAIN.md5, SPAIN.top) == (2_088_522_169, "2a5fcc2cefb789bcc0f6c1f73e0ea43f", "")
    assert (AFRICA.md5, AFRICA.top) == (None, "Zenodo_dataset")
    assert (ACOUSLIC.size, ACOUSLIC.md5, ACOUSLIC.top) == (None, None, "acouslic-ai-train-set")
    for archive, number in ((SPAIN, "3904280"), (AFRICA, "7540448"), (ACOUSLIC, "12697994")):
        assert archive.url == f"https://zenodo.org/records/{number}/files/{archive.file}?download=1"
        assert archive.record == f"https://zenodo.org/api/records/{number}"


def test_spain(site, spain, root, capsys):
    seen = []
    folder = fetch(spain, root, verify=lambda folder: seen.append((folder.name, len(tree(folder)))))
    assert folder == root / "spain"
    assert tree(folder) == spain_files()
    assert tree(folder)["FETAL_PLANES_DB_data.csv"].startswith(SPAIN_CSV)
    assert [(name.startswith(".spain."), count) for name, count in seen] == [(True, 8)]
    assert_tidy(root, "spain", SPAIN.file)
    assert [asked.path for asked in site.log] == ["/spain.zip"]  # a pinned md5: the record is not asked
    assert "python-requests" not in site.log[0].headers["User-Agent"]  # Zenodo answers 403 to it
    out, err = capsys.readouterr()
    assert "CC BY 4.0" in out
    assert SPAIN.citation in out
    assert "%" not in err  # no progress bar, this is not a terminal


def test_africa_md5_from_record(site, africa, root):
    folder = fetch(africa, root)
    assert tree(folder) == africa_files()
    assert [asked.path for asked in site.log] == ["/record", "/africa.tar.xz"]


def test_acouslic_is_fetched_and_held_to_its_counts(site, root, tmp_path, monkeypatch, capsys):
    quality = np.array([0, 1, 2, 0] * 6, np.uint8)
    top = tmp_path / "acouslic-ai-train-set"
    write_acouslic(top, [Case("u-1", "000", ["200.5", "", "", "", "", "180"], quality)])
    data = make_zip(tmp_path / "published.zip", {f"{top.name}/{name}": one for name, one in tree(top).items()})
    site.files["/acouslic.zip"] = data.read_bytes()
    entry = {"key": ACOUSLIC.file, "size": data.stat().st_size, "checksum": f"md5:{transfer.file_md5(data)}"}
    site.files["/record"] = repr({"files": [entry]}).replace("'", '"').encode()
    archive = replace(ACOUSLIC, url=f"{site.base}/acouslic.zip", record=f"{site.base}/record")
    counts = {
        "total": {"images": 8, "patients": 1, "cases": 1, "sweeps": 2},
        "quality": {"optimal": 2, "sub-optimal": 2},
    }
    monkeypatch.setitem(cohorts.SOURCES, "acouslic", replace(acouslic.SOURCE, archive=archive, counts=counts))
    folder = cohorts.fetch_cohort("acouslic", root)
    assert tree(folder) == tree(top)
    assert "Licence: CC BY-NC-SA 4.0" in capsys.readouterr().out
    assert cohorts.load_cohort("acouslic", folder).frame["quality"].value_counts().to_dict() == {"none": 4, "optimal": 2, "sub-optimal": 2}  # fmt: skip
    shutil.rmtree(folder)
    counts["total"]["sweeps"] = 3
    with pytest.raises(InputError, match="total sweeps: expected 3, found 2"):
        cohorts.fetch_cohort("acouslic", root)
    assert_tidy(root, ACOUSLIC.file)


def test_how_much_comes_out_is_a_fact_of_the_archive(site, spain, root):
    assert ACOUSLIC.max_bytes > 600 * 840 * 562 * 744 > 8_000_000_000 == SPAIN.max_bytes
    with pytest.raises(InputError, match=r"more entries .* or bytes than it may hold"):
        fetch(replace(spain, max_bytes=1000), root)


def test_record_md5_is_enforced(site, africa, root):
    site.files["/africa.tar.xz"] = site.files["/africa.tar.xz"][:-1] + b"?"
    with pytest.raises(InputError, match=r"expected md5:.*but got"):
        fetch(africa, root)
    assert_tidy(root)


@pytest.mark.parametrize(
    "record",
    [
        None,
        b"<html>",
        b"[]",
        b'{"files": []}',
        b'{"files": [{"key": "Zenodo_dataset.tar.xz", "checksum": "", "size": 1}]}',
    ],
    ids=["404", "html", "list", "no file", "no checksum"],
)
def test_record_unusable(site, africa, root, record):
    del site.files["/record"]
    if record is not None:
        site.files["/record"] = record
    with pytest.raises(InputError, match=r"expected md5 and size.*doi.org/10.5281/zenodo.7540448.*md5=.*'africa'"):
        fetch(africa, root)
    assert all(asked.path == "/record" for asked in site.log)  # nothing unchecked is downloaded


def test_record_unreachable(africa, root):
    with pytest.raises(InputError, match=r"no way to the server.*Try again later"):
        fetch(replace(africa, record="http://127.0.0.1:1/record"), root)


def test_archive_is_reused_and_checked(site, spain, root, capsys):
    folder = fetch(spain, root)
    shutil.rmtree(folder)
    assert tree(fetch(spain, root)) == spain_files()
    assert len(site.log) == 1
    shutil.rmtree(folder)
    (root / SPAIN.file).write_bytes(b"PK of something else")
    assert tree(fetch(spain, root)) == spain_files()
    assert len(site.log) == 2
    assert (root / f"{SPAIN.file}.wrong-md5").read_bytes() == b"PK of something else"
    assert "renamed" in capsys.readouterr().out


# ---- existing folders, verification, space ----


def refuse(folder: Path) -> None:
    raise InputError(f"expected 12,400 images, found {len(tree(folder))}")


def test_complete_folder_is_returned_as_it_is(site, spain, root):
    (root / "spain").mkdir(parents=True)
    (root / "spain" / "mine.txt").write_text("mine")
    assert fetch(spain, root, verify=lambda folder: None) == root / "spain"
    assert tree(root / "spain") == {"mine.txt": b"mine"}
    assert site.log == []


@pytest.mark.parametrize(("verify", "why"), [(None, "cannot be checked"), (refuse, "expected 12,400 images, found 1")])
def test_other_folder_is_left_alone(site, spain, root, verify, why):
    (root / "spain").mkdir(parents=True)
    (root / "spain" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"spain is in the way and was left alone: .*{why}"):
        fetch(spain, root, verify=verify)
    with pytest.raises(InputError, match="in the way"):
        extract(make_zip(root / "a.zip", {"a": b"a"}), root / "spain", **ROOMY)
    assert tree(root / "spain") == {"mine.txt": b"mine"}
    assert site.log == []


def test_empty_folder_is_used(spain, root):
    (root / "spain").mkdir(parents=True)
    assert tree(fetch(spain, root)) == spain_files()


def test_verify_failing_leaves_nothing_but_the_archive(site, spain, root):
    with pytest.raises(InputError, match="expected 12,400 images, found 8"):
        fetch(spain, root, verify=refuse)
    assert_tidy(root, SPAIN.file)
    fetch(spain, root)
    assert len(site.log) == 1


def test_disk_space(site, spain, root, monkeypatch):
    free = SimpleNamespace(free=2 * spain.size - 1)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match=rf"needs {2 * spain.size:,} bytes, {free.free:,} are free"):
        fetch(spain, root)
    assert site.log == []
    free.free += 1
    assert fetch(spain, root)
    archive = root / SPAIN.file
    free.free = sum(map(len, spain_files().values())) - 1
    with pytest.raises(InputError, match=r"needs .* are free"):
        extract(archive, root / "again", **ROOMY)
    assert not (root / "again").exists()


def test_a_second_fetch_waits_for_the_first(spain, root):
    order = []
    inside, go = threading.Event(), threading.Event()

    def hold(folder: Path) -> None:
        inside.set()
        assert go.wait(10)
        order.append("first")

    first = threading.Thread(target=fetch, args=(spain, root), kwargs={"verify": hold})
    second = threading.Thread(
        target=fetch, args=(spain, root), kwargs={"verify": lambda folder: order.append(folder.name)}
    )
    first.start()
    assert inside.wait(10)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go.set()
    first.join(10)
    second.join(10)
    assert order == ["first", "spain"]  # the second finds the finished folder


# ---- broken transfers ----


def test_resume_after_drop(site, spain, root):
    whole = len(site.files["/spain.zip"])
    site.faults = [{"drop": whole // 2}]
    assert tree(fetch(spain, root)) == spain_files()
    first, second = site.log
    assert "Range" not in first.headers
    kept = int(re.fullmatch(r"bytes=(\d+)-", second.headers["Range"])[1])
    assert 0 < kept <= whole // 2
    assert second.headers["If-Range"] == '"v1"'
    assert (second.status, second.sent) == (206, whole - kept)
    assert_tidy(root, "spain", SPAIN.file)


def test_resume_in_the_next_run(site, spain, root, monkeypatch):
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    site.faults = [{"drop": 300_000}]
    with pytest.raises(InputError, match=r"gave up after 1 attempts.*Run again to go on"):
        fetch(spain, root)
    kept = (root / f"{SPAIN.file}.part").stat().st_size
    assert 0 < kept <= 300_000
    assert not (root / SPAIN.file).exists()
    assert tree(fetch(spain, root)) == spain_files()
    assert site.log[1].headers["Range"] == f"bytes={kept}-"
    assert site.log[1].sent == spain.size - kept


def test_body_without_length_ends_early(site, spain, root):
    site.faults = [{"drop": 200_000, "headers": {"Content-Length": None}}]
    assert tree(fetch(spain, root)) == spain_files()
    assert [asked.status for asked in site.log] == [200, 206]
    assert site.log[1].headers["Range"] == "bytes=200000-"


def test_always_truncated(site, spain, root):
    site.faults = [{"drop": 0}] * 20
    with pytest.raises(InputError, match="gave up after 6 attempts"):
        fetch(spain, root)
    assert len(site.log) == 6
    assert not (root / "spain").exists()
    assert not (root / SPAIN.file).exists()


def test_server_without_range(site, spain, root):
    site.ranges = False
    site.faults = [{"drop": 300_000}]
    assert tree(fetch(spain, root)) == spain_files()
    assert "Range" in site.log[1].headers
    assert (site.log[1].status, site.log[1].sent) == (200, spain.size)


def test_changed_file_is_not_continued(site, spain, root):
    """If-Range: the first bytes were of another version, so the server sends all of the new one."""
    root.mkdir()
    (root / f"{SPAIN.file}.part").write_bytes(b"old" * 1000)
    (root / f"{SPAIN.file}.part.etag").write_text('"v0"')
    assert tree(fetch(spain, root)) == spain_files()
    assert site.log[0].headers["If-Range"] == '"v0"'
    assert [asked.sent for asked in site.log] == [spain.size]


def test_weak_etag_is_not_used(site, spain, root):
    site.etag = 'W/"v1"'
    site.faults = [{"drop": 300_000}]
    assert tree(fetch(spain, root)) == spain_files()
    assert "If-Range" not in site.log[1].headers
    assert site.log[1].status == 206


@pytest.mark.parametrize("have", [1000, None], ids=["short", "whole"])
def test_wrong_part_is_discarded_once(site, spain, root, have):
    root.mkdir()
    (root / f"{SPAIN.file}.part").write_bytes(b"?" * (have or spain.size))
    assert tree(fetch(spain, root)) == spain_files()
    assert "Range" not in site.log[-1].headers
    assert len(site.log) == (2 if have else 1)
    assert_tidy(root, "spain", SPAIN.file)


def test_wrong_part_then_wrong_file(site, spain, root):
    root.mkdir()
    (root / f"{SPAIN.file}.part").write_bytes(b"?" * 1000)
    with pytest.raises(InputError, match=rf"expected md5:{'0' * 32} but got {spain.md5}"):
        fetch(replace(spain, md5="0" * 32), root)
    assert [asked.sent for asked in site.log] == [spain.size - 1000, spain.size]
    assert_tidy(root)


def test_part_longer_than_the_file(site, spain, root):
    root.mkdir()
    (root / f"{SPAIN.file}.part").write_bytes(b"?" * (spain.size + 1))
    assert tree(fetch(spain, root)) == spain_files()
    assert len(site.log) == 1
    assert "Range" not in site.log[0].headers


@pytest.mark.parametrize("fault", [{"status": 416}, {"status": 206, "headers": {"Content-Range": "bytes 7-9/10"}}])
def test_server_cannot_continue(site, spain, root, fault):
    root.mkdir()
    (root / f"{SPAIN.file}.part").write_bytes(site.files["/spain.zip"][:1000])
    site.faults = [fault]
    assert tree(fetch(spain, root)) == spain_files()
    assert "Range" not in site.log[1].headers


def test_wrong_md5(site, spain, root):
    with pytest.raises(InputError, match=rf"expected md5:{'0' * 32} but got {spain.md5}.*Run again.*zenodo.3904280"):
        fetch(replace(spain, md5="0" * 32), root)
    assert len(site.log) == 1  # no byte came from an earlier run: 2 GB are not fetched twice
    assert_tidy(root)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html; charset=utf-8", b"Please log in"),
        ("application/octet-stream", b"\n<!DOCTYPE html><html>log in</html>"),
    ],
)
def test_web_page(site, spain, root, kind, body):
    site.faults = [{"body": body, "headers": {"Content-Type": kind}}]
    with pytest.raises(InputError, match="the server sent a web page"):
        fetch(spain, root)
    assert len(site.log) == 1
    assert_tidy(root)


def test_web_page_does_not_spoil_the_part(site, spain, root):
    root.mkdir()
    (root / f"{SPAIN.file}.part").write_bytes(site.files["/spain.zip"][:1000])
    site.ranges = False
    site.faults = [{"body": b"<html>log in</html>"}]
    with pytest.raises(InputError, match="web page"):
        fetch(spain, root)
    assert (root / f"{SPAIN.file}.part").stat().st_size == 1000


@pytest.mark.parametrize(("status", "error"), [(404, MissingError), (410, MissingError), (403, InputError)])
def test_permanent_refusal(site, spain, root, status, error):
    site.faults = [{"status": status}] * 9
    with pytest.raises(error, match=f"HTTP {status}"):
        fetch(spain, root)
    assert len(site.log) == 1
    assert_tidy(root)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_refusal(site, spain, root, status, monkeypatch):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    monkeypatch.setattr(transfer, "PAUSE", 2.0)
    site.faults = [{"status": status}, {"status": status, "headers": {"Retry-After": "7"}}]
    assert tree(fetch(spain, root)) == spain_files()
    assert pauses == [2.0, 7.0]
    site.faults = [{"status": status, "headers": {"Retry-After": "86400"}}] * 9
    with pytest.raises(InputError, match=f"gave up after 6 attempts.*{status}"):
        fetch(replace(spain, name="again", file="again.zip"), root)
    assert pauses[2:] == [60] * 5


@pytest.mark.parametrize("more", [-5, 5])
def test_lying_length(site, spain, root, more):
    site.faults = [{"headers": {"Content-Length": spain.size + more}}] * 9
    with pytest.raises(InputError, match=rf"expected {spain.size:,} bytes, the server has {spain.size + more:,}"):
        fetch(spain, root)
    assert_tidy(root)


def test_endless_body(site, spain, root):
    site.faults = [{"body": b"x" * (spain.size + 5_000_000), "headers": {"Content-Length": None}}]
    with pytest.raises(InputError, match=rf"more than the {spain.size:,} bytes"):
        fetch(spain, root)
    assert (root / f"{SPAIN.file}.part").stat().st_size < spain.size + 2 * transfer.CHUNK
    assert tree(fetch(spain, root)) == spain_files()


# ---- hostile and damaged archives ----


def zip_entry(name: str, mode: int = 0, data: bytes = b"x") -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("placeholder")
    info.filename, info.external_attr = name, mode << 16
    return info, data


ZIPS = {
    "climbing": [zip_entry("../out.txt")],
    "climbing inside": [zip_entry("Images/../../out.txt")],
    "climbing folder": [zip_entry("../out/", data=b"")],
    "absolute": [zip_entry("/TMP/out.txt")],
    "drive": [zip_entry("C:/out.txt")],
    "backslash": [zip_entry("..\\out.txt")],
    "zero byte": [zip_entry("out.txt\0.png")],
    "control character": [zip_entry("out\x1b.txt")],
    "trailing dot": [zip_entry("Images./a.png")],
    "symlink": [zip_entry("link", stat.S_IFLNK | 0o777, b"/etc/passwd")],
    "write through symlink": [zip_entry("link", stat.S_IFLNK | 0o777, b".."), zip_entry("link/out.txt")],
    "fifo": [zip_entry("pipe", stat.S_IFIFO | 0o600)],
    "device": [zip_entry("null", stat.S_IFCHR | 0o600)],
    "duplicate": [zip_entry("a.png"), zip_entry("a.png")],
    "case": [zip_entry("a.png"), zip_entry("A.png")],
    "case of folder": [zip_entry("Images/a.png"), zip_entry("images/b.png")],
    "unicode form": [zip_entry("\u00e9.png"), zip_entry("e\u0301.png")],
    "file and folder": [zip_entry("a"), zip_entry("a/b")],
    "no name": [zip_entry("")],
    "file in the place of the folder": [zip_entry("Zenodo_dataset")],
    "long": [zip_entry("n" * 300)],
    "long in bytes": [zip_entry("\u00e9" * 200)],
    "deep": [zip_entry("/".join("d" * 2100))],
}


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 1) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    info.size = size if kind == tarfile.REGTYPE else 0
    return info


TARS = {
    "climbing": [tar_entry("Zenodo_dataset/../../out.txt")],
    "absolute": [tar_entry("/TMP/out.txt")],
    "symlink": [tar_entry("link", tarfile.SYMTYPE, "/etc/passwd")],
    "write through symlink": [tar_entry("link", tarfile.SYMTYPE, ".."), tar_entry("link/out.txt")],
    "inner symlink": [tar_entry("Zenodo_dataset/link", tarfile.SYMTYPE, "Algeria")],
    "hard link": [tar_entry("link", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [tar_entry("null", tarfile.CHRTYPE)],
    "block device": [tar_entry("disk", tarfile.BLKTYPE)],
    "fifo": [tar_entry("pipe", tarfile.FIFOTYPE)],
    "duplicate": [tar_entry("a.png"), tar_entry("a.png")],
    "duplicate after stripping": [tar_entry("a.png"), tar_entry("Zenodo_dataset/a.png")],
    "case": [tar_entry("a.png"), tar_entry("A.PNG")],
    "file in the place of the folder": [tar_entry("Zenodo_dataset")],
    "long": [tar_entry("n" * 300)],
}
UNFIT = r"link or a device|not safe|there twice|too long for a file|a file where a folder is expected"


def assert_refused(archive: Path, match: str, **limits) -> None:
    home = archive.parent
    (home / "deep").mkdir(exist_ok=True)
    before = sorted(p.name for p in home.rglob("*"))
    with pytest.raises(InputError, match=match):
        extract(archive, home / "deep" / "africa", **(ROOMY | limits), top="Zenodo_dataset")
    assert sorted(p.name for p in home.rglob("*")) == before


@pytest.mark.parametrize("kind", ZIPS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zip(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("README.md", "good")
        for info, data in deepcopy(ZIPS[kind]):
            info.filename = info.filename.replace("/TMP", str(tmp_path))  # an absolute name that may be written to
            archive.writestr(info, data)
    assert_refused(tmp_path / "a.zip", UNFIT)


@pytest.mark.parametrize("kind", TARS)
def test_hostile_tar(tmp_path, kind):
    entries = deepcopy(TARS[kind])
    for info in entries:
        info.name = info.name.replace("/TMP", str(tmp_path))
    archive = make_tar(tmp_path / "a.tar.xz", {"Zenodo_dataset/README.md": b"good"}, *entries)
    assert_refused(archive, UNFIT)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bounds(tmp_path, make):
    path = tmp_path / ("a.zip" if make is make_zip else "a.tar.xz")
    make(path, {"a": png(1), "b": png(2)})
    size = len(png(1)) + len(png(2))
    assert_refused(path, "bytes than it may hold", max_bytes=size - 1)
    assert_refused(path, r"more entries \(1\)", max_members=1)
    assert tree(extract(path, tmp_path / "ok", max_bytes=size, max_members=2)).keys() == {"a", "b"}
    make(path, {"zeros": bytes(1_000_000)})  # within max_bytes, but about 1,000 times the archive
    assert_refused(path, "bytes than it may hold")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bytes_are_counted_while_writing(tmp_path, make, monkeypatch):
    path = make(tmp_path / ("a.zip" if make is make_zip else "a.tar.xz"), {"a": png(1)})
    honest = download._entries
    monkeypatch.setattr(download, "_entries", lambda archive: [(n, 1, f, o) for n, _, f, o in honest(archive)])
    assert_refused(path, "more bytes come out", max_bytes=len(png(1)) - 1)


def test_zip_with_lying_header(tmp_path):
    data, size = make_zip(tmp_path / "a.zip", {"a": png(1)}).read_bytes(), len(png(1))
    assert data.count(size.to_bytes(4, "little")) == 2
    (tmp_path / "a.zip").write_bytes(data.replace(size.to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert_refused(tmp_path / "a.zip", "CRC.*fetch it again")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_damaged(tmp_path, make, damage):
    path = make(tmp_path / ("a.zip" if make is make_zip else "a.tar.xz"), {"a": png(1)})
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    path.write_bytes({"truncated": data[:middle], "flipped": flipped, "text": b"no archive"}[damage])
    assert_refused(path, "Delete it and fetch it again")


def test_an_archive_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(b"x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(PermissionError, match=r"a\.zip"):
        extract(path, tmp_path / "out")


def test_zip_whose_directory_points_outside_the_file(tmp_path):
    data = bytearray(make_zip(tmp_path / "a.zip", {"a": png(1)}).read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 16 : end + 20] = (2**31).to_bytes(4, "little")  # where the list of entries begins
    (tmp_path / "a.zip").write_bytes(data)
    assert_refused(tmp_path / "a.zip", "Invalid argument.*fetch it again")


def test_tar_whose_packing_is_damaged(tmp_path):
    """gzip says so by an OSError, as a disk does."""
    (info := tarfile.TarInfo("a")).size = 512
    data = bytearray(gzip.compress(info.tobuf() + bytes(512)))  # without the end, so that the sum of the stream is read
    data[-6] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert_refused(tmp_path / "a.tar", "Delete it and fetch it again")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_top_and_by_products(tmp_path, make):
    junk = {"__MACOSX/a.png": b"j", "Zenodo_dataset/.DS_Store": b"j", "Zenodo_dataset/._a.png": b"j"}
    path = tmp_path / ("a.zip" if make is make_zip else "a.tar.xz")
    make(path, junk | {"Zenodo_dataset/Algeria/a.png": b"a", "./Zenodo_dataset/b.csv": b"b", "README": b"r"})
    folder = extract(path, tmp_path / "africa", **ROOMY, top="Zenodo_dataset")
    assert tree(folder) == {"Algeria/a.png": b"a", "b.csv": b"b", "README": b"r"}


def test_folder_entries_and_modes(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tar_entry("Zenodo_dataset", tarfile.DIRTYPE))
        archive.addfile(tar_entry("Zenodo_dataset/Egypt", tarfile.DIRTYPE))
        info = tar_entry("Zenodo_dataset/Egypt/a.png")
        info.mode = 0o6777
        archive.addfile(info, io.BytesIO(b"x"))
    folder = extract(tmp_path / "a.tar", tmp_path / "africa", **ROOMY, top="Zenodo_dataset")
    assert tree(folder) == {"Egypt/a.png": b"x"}
    assert not (folder / "Egypt/a.png").stat().st_mode & 0o7111


KILLED = """
import importlib.util, sys, time

spec = importlib.util.spec_from_file_location("download", sys.argv[3])  # without the imports of fpbench.cohorts
download = sys.modules["download"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)

def stuck(items, **_):
    for n, item in enumerate(items):
        if n == 3:
            print("three are written", flush=True)
            time.sleep(60)
        yield item

download.tqdm = stuck
download.extract(sys.argv[1], sys.argv[2], max_bytes=10_000_000, max_members=100)
"""


def test_killed_extraction(tmp_path):
    path, folder = make_zip(tmp_path / "a.zip", spain_files()), tmp_path / "spain"
    command = [sys.executable, "-c", KILLED, str(path), str(folder), download.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        try:
            assert process.stdout.readline() == "three are written\n"
        finally:
            process.kill()
    assert process.returncode == -9
    assert not folder.exists()
    (left,) = tmp_path.glob(".spain.*.tmp")
    assert len(tree(left)) == 3
    (left / "Images").mkdir(exist_ok=True)
    (left / "Images" / "half.png").write_bytes(b"half")
    assert tree(extract(path, folder, **ROOMY)) == spain_files()
    assert_tidy(tmp_path, "a.zip", "spain")


def test_a_fetched_cohort_is_held_to_the_published_counts(spain, root, monkeypatch):
    """The path of `fpbench fetch spain`: transfer, md5, extraction, counts, and only then a folder."""
    from fpbench import cohorts

    source = replace(cohorts.SOURCES["spain"], archive=spain)
    monkeypatch.setitem(cohorts.SOURCES, "spain", source)
    with pytest.raises(InputError, match="total images: expected 12,400, found 6"):
        cohorts.fetch_cohort("spain", root)
    assert not (root / "spain").exists()
    monkeypatch.setitem(cohorts.SOURCES, "spain", replace(source, counts={"total": {"images": 6, "patients": 6}}))
    assert len(cohorts.load_cohort("spain", cohorts.fetch_cohort("spain", root))) == 6
    monkeypatch.setitem(cohorts.SOURCES, "mine", replace(source, name="mine", archive=None))
    with pytest.raises(InputError, match="no archive is known for 'mine'"):
        cohorts.fetch_cohort("mine", root)
