"""Fetching weights from a server that misbehaves: what is on disk afterwards is the file, or nothing under its name."""

import hashlib
import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest

from fpbench.encoders import catalogue, fetch
from fpbench.encoders.catalogue import Source
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, transfer

BYTES = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BYTES).hexdigest()
VIRUS = (
    '<html><p>Google Drive can\'t scan this file for viruses.</p><form id="download-form" action="/confirmed" method="get">'
    '<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="ID"><input type="hidden" '
    'name="uuid" value="u-1"></form></html>'
)
QUOTA = "<html><head><title>Google Drive - Quota exceeded</title></head><body>Too many users have viewed or downloaded</body></html>"
FOLDER = (
    '<div class="flip-entry" id="entry-OTHER"><a href="https://drive.google.com/file/d/OTHER/view?usp=x" target="_blank">'
    '<div class="flip-entry-title">prior.pth</div></a></div><div class="flip-entry" id="entry-WANTED"><a '
    'href="https://drive.google.com/file/d/WANTED/view"><div class="flip-entry-title">w.pth</div></a></div>'
)


class Handler(BaseHTTPRequestHandler):
    """Answers by path; the server's ``log`` keeps every request, ``answers`` what is still to go wrong."""

    def do_GET(self):
        server, address = self.server, urlparse(self.path)
        server.log.append((self.path, self.headers.get("Range")))
        todo = server.answers.pop(0) if server.answers else "file"
        if address.path == "/folder":
            todo = "folder"
        if address.path == "/confirmed":
            assert parse_qs(address.query) == {"id": ["ID"], "uuid": ["u-1"]}
        if todo in PAGES:
            return self._send(200, PAGES[todo].encode(), {"Content-Type": "text/html; charset=utf-8"})
        if isinstance(todo, int):
            return self._send(todo, b"no", {"Retry-After": "0"})
        self._file(broken=todo == "break")

    def _file(self, broken):
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        headers = {"ETag": '"one"', "Content-Type": "application/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(BYTES) - 1}/{len(BYTES)}"
        self._send(206 if start else 200, BYTES[start:], headers, cut=len(BYTES) // 3 if broken else None)

    def _send(self, status, body, headers, cut=None):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *args):
        pass


PAGES = {"quota": QUOTA, "virus": VIRUS, "page": "<!DOCTYPE html><html>Sign in</html>", "folder": FOLDER}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server, and a catalogue whose USFM lies on it: ``server.use(kind=...)`` says how."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.log, http.answers = [], []
    threading.Thread(target=http.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("FPBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    monkeypatch.setattr(transfer, "ATTEMPTS", 3)
    monkeypatch.setattr(fetch, "DRIVE", f"{root}/drive")
    monkeypatch.setattr(fetch, "DRIVE_FOLDER", f"{root}/folder")

    def use(kind="url", **facts):
        address = {"url": f"{root}/w.pth", "drive": "ID", "drive-folder": "FOLDER"}[kind]
        entry = replace(catalogue.CATALOGUE["usfm"], source=Source(kind, address, "w.pth", **facts))
        monkeypatch.setitem(catalogue.CATALOGUE, "usfm", entry)

    http.use = use
    use()
    yield http
    http.shutdown()
    http.server_close()


def nothing_there() -> bool:
    return not fetch.path_of("usfm").exists()


def test_a_file_is_fetched_once_and_its_licence_is_shown_and_kept(server, capsys):
    path = fetch.fetch("usfm")
    assert path.read_bytes() == BYTES
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    requests = len(server.log)
    assert fetch.fetch("usfm") == path == fetch.locate("usfm")
    assert len(server.log) == requests
    line = json.loads((path.parent.parent / "lock.json").read_text())["usfm"]
    assert line["sha256"] == SHA256
    assert line["size"] == len(BYTES)
    assert "CC BY-NC" in line["licence"]


def test_a_broken_transfer_goes_on_where_it_broke(server):
    server.answers = ["file", "break", "break", "file"]
    assert fetch.fetch("usfm").read_bytes() == BYTES
    ranges = [span for _, span in server.log if span]
    assert len(ranges) == 2
    assert not list(fetch.path_of("usfm").parent.glob("*.part*"))


def test_a_transfer_that_never_ends_is_resumed_by_the_next_call(server):
    server.answers = ["file", 503, 503, 503]
    with pytest.raises(InputError, match=r"gave up after 3 attempts(.|\n)*By hand"):
        fetch.fetch("usfm")
    assert nothing_there()
    assert fetch.fetch("usfm").read_bytes() == BYTES


def test_a_web_page_is_not_a_file(server):
    server.answers = ["page"]
    with pytest.raises(InputError, match=r"web page(.|\n)*By hand: open"):
        fetch.fetch("usfm")
    assert nothing_there()


def test_another_file_than_the_published_one_never_gets_its_name(server):
    server.use(size=len(BYTES), sha256="0" * 64, confirmed=True)
    with pytest.raises(InputError, match=f"expected SHA-256 {'0' * 64} .*found {SHA256}"):
        fetch.fetch("usfm")
    assert nothing_there()
    server.use(size=len(BYTES) + 1, sha256=SHA256, confirmed=True)
    with pytest.raises(InputError, match="expected 256,001 bytes"):
        fetch.fetch("usfm")


def test_forbidden_missing_and_too_many_requests(server):
    server.answers = [403]
    with pytest.raises(InputError, match=r"HTTP 403(.|\n)*By hand"):
        fetch.fetch("usfm")
    server.answers = [404]
    with pytest.raises(MissingError, match="HTTP 404"):
        fetch.fetch("usfm")
    server.answers = [429] * 3
    with pytest.raises(InputError, match="429"):
        fetch.fetch("usfm")
    assert nothing_there()
    server.answers = [429, "file", 429, "file"]
    assert fetch.fetch("usfm").read_bytes() == BYTES


def test_drive_asks_about_viruses_and_is_answered(server):
    server.use("drive")
    server.answers = ["virus"]
    assert fetch.fetch("usfm").read_bytes() == BYTES
    assert server.log[0][0].startswith("/drive?id=ID")


def test_drive_that_asks_again_and_drive_over_its_quota(server):
    server.use("drive")
    server.answers = ["virus", "virus"]
    with pytest.raises(InputError, match="could not scan the file for viruses"):
        fetch.fetch("usfm")
    server.answers = ["quota"]
    with pytest.raises(InputError, match=r"quota(.|\n)*By hand: open https://drive\.google\.com/file/d/ID/view"):
        fetch.fetch("usfm")
    assert nothing_there()


def test_a_drive_folder_is_searched_for_the_file(server):
    server.use("drive-folder")
    assert fetch.fetch("usfm").read_bytes() == BYTES
    assert server.log[1][0].startswith("/drive?id=WANTED")


def test_a_file_put_there_by_hand_counts_and_is_pinned(server):
    path = fetch.path_of("usfm")
    with pytest.raises(MissingError, match=r"fpbench fetch weights usfm(.|\n)*By hand") as caught:
        fetch.locate("usfm")
    assert str(path) in str(caught.value)
    path.parent.mkdir(parents=True)
    path.write_bytes(BYTES)
    assert fetch.fetch("usfm") == path
    assert not server.log
    path.write_bytes(BYTES + b"!")
    with pytest.raises(InputError, match=r"pinned in .*lock\.json"):
        fetch.locate("usfm")


def test_a_study_keeps_its_own_lock(server, tmp_path):
    lock = tmp_path / "study" / "weights.lock.json"
    path = fetch.fetch("usfm")
    fetch.locate("usfm", lock)
    assert artifacts.read_json(lock)["usfm"]["sha256"] == SHA256
    path.write_bytes(b"other")
    with pytest.raises(InputError, match=r"weights\.lock\.json"):
        fetch.locate("usfm", lock)


def test_a_hash_is_remembered_by_size_and_time_and_computed_anew_on_demand(server):
    path = fetch.fetch("usfm")
    time = path.stat().st_mtime_ns
    path.write_bytes(BYTES[::-1])
    import os

    os.utime(path, ns=(time, time))
    assert fetch.sha256(path) == SHA256
    assert fetch.sha256(path, full=True) != SHA256


class Hub:
    """Stands for huggingface_hub: a repository with one file, whose branch moves on."""

    def __init__(self, monkeypatch, error=None):
        import huggingface_hub

        self.asked, self.error, self.sha = [], error, "a" * 40
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def model_info(self, repository, revision):
        return self

    def download(self, repository, file, revision, local_dir):
        if self.error:
            raise self.error
        self.asked.append(revision)
        (local_dir / file).write_bytes(BYTES)


def test_a_hub_repository_is_fetched_at_the_revision_of_the_first_time(server, monkeypatch):
    hub = Hub(monkeypatch)
    path = fetch.fetch("dinov3")
    hub.sha = "b" * 40
    path.unlink()
    assert fetch.fetch("dinov3").read_bytes() == BYTES
    assert hub.asked == ["a" * 40] * 2


def test_a_gated_repository_and_a_hub_out_of_reach_say_what_to_do(server, monkeypatch):
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    gated = GatedRepoError.__new__(GatedRepoError)
    Hub(monkeypatch, gated)
    with pytest.raises(InputError, match=r"accept its terms(.|\n)*By hand: open https://huggingface\.co/numansaeed"):
        fetch.fetch("fetalclip")
    Hub(monkeypatch, LocalEntryNotFoundError("cannot reach the hub"))
    with pytest.raises(InputError, match="cannot reach the hub"):
        fetch.fetch("fetalclip")


def test_what_has_no_published_weights_is_refused():
    with pytest.raises(InputError):
        fetch.fetch("nothing")


def test_what_is_shipped_is_there_and_is_pinned_in_no_lock(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FPBENCH_WEIGHTS", str(tmp_path / "weights"))
    assert fetch.fetch("usfm-mini").is_file()
    assert "shipped with fpbench" in capsys.readouterr().out
    assert not (tmp_path / "weights").exists()
    left = {
        path.name for path in fetch.miniatures.FOLDER.iterdir() if path.suffix not in (".py", ".safetensors", ".json")
    }
    assert left <= {"__pycache__"}, "nothing is written where the package lies, which may be read-only"
