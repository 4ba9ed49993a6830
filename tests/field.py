"""Faults reported in the field, brought about here: ``python tests/field.py [NAME...]`` prints one line per recipe; exit code 1 if one falls.

Each recipe gets an empty folder and fails with an AssertionError; Unable says that this machine cannot bring it about. A recipe ending in
``*`` takes minutes. ``FIELD_TREE`` names another clone of fpbench to be tried.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import psutil
import yaml

CLONE = Path(os.environ.get("FIELD_TREE") or Path(__file__).parents[1])
RECIPES: dict[str, Callable[[Path], None]] = {}
SLOW: set[str] = set()
# of our own environment that no recipe shall inherit
NOISE = (
    "FPBENCH_", "HF_", "REQUESTS_", "SSL_", "CURL_", "JUPYTER", "IPYTHON", "MPL", "MATPLOTLIB", "HTTP", "http", "LC_", "LANG", "XDG_RUNTIME",
)  # fmt: skip


class Unable(Exception):
    """This machine cannot bring the fault about."""


def recipe(name: str, *cases: object, slow: bool = False) -> Callable:
    """Register a function under a name; with cases once for each, the case behind a dash."""

    def register(function: Callable) -> Callable:
        for case in cases:
            RECIPES[f"{name}-{case if isinstance(case, str | int) else case[0]}"] = partial(function, case=case)
        if not cases:
            RECIPES[name] = function
        SLOW.update(one for one in RECIPES if slow and one.startswith(name))
        return function

    return register


# ---- what recipes are made of -----------------------------------------------------------------------------------------


def run(*command: str | Path, work: Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a folder, in an environment that is ours without NOISE; no process of it may be left."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(NOISE)}
    env |= {"PYTHONPATH": str(CLONE), "FPBENCH_HOME": str(CLONE), "FIELD": (mark := str(work))}
    env |= dict.fromkeys(("TMPDIR", "XDG_RUNTIME_DIR"), short())  # ours alone: what is left there, we have left
    env |= {f"FPBENCH_{root.upper()}": str(work / root) for root in ("results", "cache", "data", "weights")}
    given = {"env": env | environment, "cwd": work, "timeout": timeout}
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False, **given)
    done.stdout, done.stderr = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    left = left_of(mark)
    _, alive = psutil.wait_procs(left, 5)
    assert not alive, f"left behind: {[' '.join(one.cmdline())[:200] for one in alive]}"
    return done


def left_of(mark: str) -> list[psutil.Process]:
    """Return the processes in whose environment a folder stands."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.pid != os.getpid() and one.environ().get("FIELD") == mark and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.Error:
            continue
    return found


def fpbench(*arguments: str | Path, **given) -> subprocess.CompletedProcess:
    return run(sys.executable, "-P", "-m", "fpbench.cli", *arguments, **given)


def python(code: str, *arguments: str | Path, **given) -> subprocess.CompletedProcess:
    return run(sys.executable, "-P", "-c", code, *arguments, **given)


# What ipykernel 7.4 may print of its own when a kernel ends, after the notebook is whole: it still says "idle" through a socket that its
# other thread has closed (https://github.com/ipython/ipykernel/pull/1518 mends one of the two places).
CLOSED = re.compile(
    r"^Traceback .*\n(?:(?: .*)?\n)*zmq\.error\.ZMQError: Socket operation on non-socket$", re.MULTILINE
)


def clean(stderr: str) -> str:
    """Return what was said on stderr; no traceback may be in it."""
    assert "Traceback" not in CLOSED.sub("", stderr), stderr[-1500:]
    return stderr


def good(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
    clean(done.stderr)
    return done.stdout


def refused(done: subprocess.CompletedProcess, *says: str) -> str:
    assert done.returncode == 1, f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
    clean(done.stderr)
    for word in says:
        assert word in done.stderr, f"expected {word!r} in {done.stderr[-1500:]}"
    return done.stderr


def notebook(work: Path, *cells: str) -> Path:
    """Write a notebook with a cell of parameters before others; return its path without the ending."""
    code = [nbformat.v4.new_code_cell(text) for text in ("given = ''", *cells)]
    code[0].metadata["tags"] = ["parameters"]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=about), work / "in.ipynb")
    return work / "in"


def said(executed: Path) -> str:
    """Return what the cells of an executed notebook printed or showed."""
    outputs = [one for cell in nbformat.read(executed, 4).cells for one in cell.get("outputs", [])]
    return "".join(one.get("text") or one.get("data", {}).get("text/plain", "") for one in outputs)


@cache
def short() -> str:
    """Return a folder with a short name, for sockets of our own processes."""
    return tempfile.mkdtemp(prefix="fd")


def left_in() -> list[str]:
    """Return what lies in the folder for sockets when all is over."""
    return [str(path) for path in Path(short()).glob("fpbench[!-]*")]


@contextmanager
def serving(answer: Callable, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Have a server on localhost whose GET and HEAD answer (status, headers, body) by path; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that does not trust us hangs up
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def certificate(work: Path, name: str = "localhost", days: int = 2) -> tuple[Path, Path]:
    """Make a self-signed certificate; return it and its key."""
    if not shutil.which("openssl"):
        raise Unable("needs openssl")
    pair = work / f"{name}.pem", work / f"{name}.key"
    words = f"req -x509 -newkey rsa:2048 -nodes -days {days} -subj /CN={name} -addext subjectAltName=DNS:{name}".split()
    subprocess.run(["openssl", *words, "-out", pair[0], "-keyout", pair[1]], check=True, capture_output=True)
    return pair


# ---- locks (field 4) --------------------------------------------------------------------------------------------------

PRELOAD = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <fcntl.h>
#include <stdarg.h>
#include <dlfcn.h>
static int answer(void) { errno = atoi(getenv("FIELD_ERRNO")); return errno ? -1 : 0; }
int flock(int f, int o) { return answer(); }
int lockf(int f, int c, off_t l) { return answer(); }
"""
# every place that locks, in one process; prints a digest of all that it made
LOCKING = """
import hashlib, sys, zipfile
from contextlib import ExitStack
from pathlib import Path
import numpy as np
from fpbench.cohorts import download, phantoms
from fpbench.encoders import fetch
from fpbench.files import artifacts
from fpbench.grid import gpus, run
root = Path(sys.argv[1])
for key in 1, 2:
    artifacts.cached_array(root / "arrays", {"key": key}, lambda path: np.save(open(path, "wb"), np.arange(5)))
with run.alone(root / "study"), ExitStack() as stack:
    gpus.lease(stack, ["0", "1"], root / "devices.log", "title")
phantoms.ensure(root / "phantom", "spain", patients=8)
path = fetch.path_of("usfm")
path.parent.mkdir(parents=True)
path.write_bytes(b"weights")
print(fetch.fetch("usfm"))
(root / "data").mkdir()
with zipfile.ZipFile(root / "data" / "a.zip", "w") as archive:
    archive.writestr(zipfile.ZipInfo("a/b.txt"), "text")
md5 = hashlib.md5((root / "data" / "a.zip").read_bytes()).hexdigest()
about = download.Archive("a", "http://127.0.0.1:9", "a.zip", "", 1, md5, "a", "", "", "")
download.fetch(about, root / "data")
files = [p for p in sorted(root.rglob("*")) if p.suffix in (".npy", ".png", ".txt", ".csv")]
print(len(files), hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest())
"""


@cache
def preload() -> Path:
    """Return a library in which every flock gives FIELD_ERRNO, or is granted if that is 0."""
    folder = Path(tempfile.mkdtemp(prefix="field"))
    (folder / "noflock.c").write_text(PRELOAD, encoding="utf-8")
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "noflock.so"), str(folder / "noflock.c")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "noflock.so"


def without_locks(number: int) -> dict[str, str]:
    return {"LD_PRELOAD": str(preload()), "FIELD_ERRNO": str(number)}


@recipe("locks", ("ENOSYS", 38), ("ENOLCK", 37), ("EOPNOTSUPP", 95), ("EINVAL", 22), ("EIO", 5), ("granted", 0))
def locks(work: Path, case: tuple[str, int]) -> None:
    """A file system that refuses locks, or grants all: every place that locks goes on and makes the same bytes (ours: EINVAL, EIO of FUSE)."""
    done = python(LOCKING, work / "x", work=work, **without_locks(case[1]))
    assert good(done).splitlines()[-1] == made_with_locks()
    lines = done.stderr.splitlines()
    folders = {line.partition(": no locks here")[0] for line in lines}
    assert len(folders) == len(lines) == (7 if case[1] else 0), done.stderr  # one line per folder
    assert not list(work.rglob("*.tmp"))


@cache
def made_with_locks() -> str:
    """Return the digest of what every place that locks makes where there are locks."""
    with tempfile.TemporaryDirectory(prefix="field") as folder:
        return good(python(LOCKING, Path(folder) / "x", work=Path(folder))).splitlines()[-1]


@recipe("lock-left-by-a-soft-lock")
def left(work: Path) -> None:
    """A lock file that a killed process of another version left, with its number in it, keeps nobody waiting (ours)."""
    (work / ".x.lock").write_text("1\nelsewhere\n", encoding="utf-8")
    code = "from fpbench.files import artifacts; from pathlib import Path\nwith artifacts.lock(Path('x')): print('in')"
    for more in {}, without_locks(38):
        assert good(python(code, work=work, timeout=30, **more)) == "in\n"


@recipe("lock-is-a-lock")
def excludes(work: Path) -> None:
    """Where there are locks they still exclude, and are free as soon as their holder is killed."""
    code = "import sys, time\nfrom fpbench.files import sharing\nfrom pathlib import Path\n"
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", code + "with sharing.hold(Path('x')): print('in', flush=True); time.sleep(60)"],
        cwd=work, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(CLONE)},
    )  # fmt: skip
    assert holder.stdout.readline() == b"in\n"
    asking = code + "try:\n  with sharing.hold(Path('x'), 0.1): print('in')\nexcept sharing.Held: print('held')"
    assert good(python(asking, work=work)) == "held\n"
    holder.kill()
    holder.communicate()
    assert good(python(asking, work=work)) == "in\n"


def pocket(work: Path) -> Path:
    """Write a study with every job of the demo and two of its encoders; return its path."""
    content = yaml.safe_load((CLONE / "studies" / "demo.yaml").read_text())
    kept = [one for one in content["encoders"] if one["name"] in ("fetalclip-mini", "usfm-mini")]
    content |= {"name": "pocket", "encoders": kept, "probes": ["logistic"], "full": ["fetalclip-mini"], "lora": []}
    (work / "pocket.yaml").write_text(yaml.safe_dump(content))
    return work / "pocket.yaml"


@recipe("run-without-locks", ("ENOLCK", 37), slow=True)
def whole_run(work: Path, case: tuple[str, int]) -> None:
    """A whole study on a scratch without locks gives the table that it gives elsewhere."""
    good(fpbench("run", pocket(work), work=work, timeout=1800, **without_locks(case[1])))
    one, other = (path / "pocket" / "tables" / "table1.csv" for path in (work / "results", work / "with"))
    elsewhere = {"FPBENCH_RESULTS": str(work / "with"), "FPBENCH_CACHE": str(work / "other")}
    good(fpbench("run", pocket(work), work=work, timeout=1800, **elsewhere))
    assert one.read_bytes() == other.read_bytes()


# ---- several people (field 8) -----------------------------------------------------------------------------------------

USERS, GROUP = (f"fld{os.getpid()}a", f"fld{os.getpid()}b"), f"fld{os.getpid()}"
PEOPLE = """
import hashlib, sys
from pathlib import Path
import numpy as np
from fpbench import images
from fpbench.cohorts import phantoms
from fpbench.encoders import fetch
from fpbench.files import artifacts, paths
def build(path):
    print("built", end=" ")
    np.save(open(path, "wb"), np.arange(5))
def draw(*given):
    print("drawn", end=" ")
    return write(*given)
write, phantoms._write = phantoms._write, draw
for key in sys.argv[1:]:
    artifacts.cached_array(paths.cache() / "arrays", {"key": key}, build)
phantoms.ensure(paths.data() / "phantom-spain", "spain", patients=8)
files = sorted((paths.data() / "phantom-spain").rglob("*.png"))
images.cached_images(files, images.scan(files), images.Geometry("squash", 16))
path = fetch.path_of("usfm")
if not path.is_file():
    with artifacts.lock(path), artifacts.atomic(path) as temporary:
        temporary.write_bytes(b"weights")
fetch.fetch("usfm")
print("done", flush=True)
"""


@contextmanager
def people() -> Iterator[Callable[..., list[str]]]:
    """Make two users of one group; yield what gives the command that runs as one of them, with an umask."""
    if os.geteuid() or not all(map(shutil.which, ("useradd", "setpriv", "unshare"))):
        raise Unable("needs root, useradd, setpriv and unshare")
    subprocess.run(["groupadd", "-f", GROUP], check=True)
    for user in USERS:
        subprocess.run(["useradd", "-M", "-g", GROUP, user], capture_output=True, check=False)
    home = Path(sys.base_prefix)
    closed = next((one for one in reversed([home, *home.parents]) if not one.stat().st_mode & 0o001), None)
    here = f'mount --bind {home} "$FIELD/python"; mount -t tmpfs -o mode=755 none {closed}; mkdir -p {home}; mount --bind "$FIELD/python" {home}'
    try:
        probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
        if closed and probe.returncode:
            raise Unable("the interpreter is closed to other users, and unshare -m is not allowed")

        def as_user(user: str, umask: str, *command: str | Path) -> list[str]:
            inner = [
                "setpriv",
                f"--reuid={user}",
                f"--regid={GROUP}",
                "--clear-groups",
                "sh",
                "-c",
                f'umask {umask}; exec "$@"',
                "-",
                *map(str, command),
            ]
            if not closed:
                return inner
            return [
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-ec",
                f'mkdir -p "$FIELD/python"; {here}; exec "$@"',
                "-",
                *inner,
            ]

        yield as_user
    finally:
        for user in USERS:
            subprocess.run(["userdel", user], capture_output=True, check=False)
        subprocess.run(["groupdel", GROUP], capture_output=True, check=False)


@contextmanager
def group_folder(mode: int = 0o2775, owner: str = "root") -> Iterator[Path]:
    """Have a folder of the group below one that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="field") as name:
        top, folder = Path(name), Path(name) / "shared"
        top.chmod(0o755)
        folder.mkdir()
        shutil.chown(folder, owner, GROUP)
        folder.chmod(mode)
        yield folder


def together(
    umasks: tuple[str, str], mode: int, second: str, doctor: str, spoil: Callable = lambda folder: None
) -> None:
    """Let a and then b do the same with shared folders.

    ``second``: what b makes anew; ``doctor``: what it says to b, nothing where all is open; ``spoil``: done between them.
    """
    with people() as as_user, group_folder(mode, USERS[0]) as shared:
        roots = {f"FPBENCH_{one.upper()}": str(shared / one) for one in ("cache", "data", "weights")}
        for user, umask, expected in zip(USERS, umasks, ("built drawn", second), strict=True):
            own = shared.parent / user
            own.mkdir()
            shutil.chown(own, user, GROUP)
            given = {**roots, "FPBENCH_RESULTS": str(own / "results"), "HOME": str(own), "work": own}
            found = run(*as_user(user, umask, sys.executable, "-P", "-m", "fpbench.cli", "doctor", "demo"), **given)
            clean(found.stderr)
            done = run(*as_user(user, umask, sys.executable, "-P", "-c", PEOPLE, "one"), **given)
            out = good(done)
            assert out.split("usfm:")[0].split() == expected.split(), f"{user}: {out}{done.stderr}"
            assert out.endswith("done\n")
            spoil(shared)
        lines = " ".join(found.stdout.split())
        assert doctor in lines if doctor else "WARN  writing" not in lines and "FAIL  writing" not in lines, lines


@recipe("people", ("022", "022"), ("002", "002"), ("077", "077"), slow=True)
def shared(work: Path, case: tuple[str, str]) -> None:
    """Two people of a group share cache, data and weights: the second reuses all that the first made, whatever the umasks."""
    together(case, 0o2775, "", "")


@recipe("people-in-a-folder-of-one", ("022", "077"), slow=True)
def read_only(work: Path, case: tuple[str, str]) -> None:
    """The folder may be written by its owner alone: the second reads, and doctor says what becomes of the new (ours)."""
    together(case, 0o2755, "", "cannot be written")


@recipe("people-closed", ("077", "022"), slow=True)
def closed(work: Path, case: tuple[str, str]) -> None:
    """Arrays that the first keeps to itself, as older versions left them, are made again; doctor says whose and how many."""

    def spoil(folder: Path) -> None:
        for path in (folder / "cache").rglob("*"):
            path.chmod(0o2770 if path.is_dir() else 0o600)

    together(case, 0o2775, "built", f"of {USERS[0]} are closed to you", spoil)


# ---- no way out (field 5) ---------------------------------------------------------------------------------------------

HUB = "fetalclip"  # of a hub repository
BY_HAND = "By hand: open https://"


def fetched(work: Path, within: float = 20, **environment: str) -> subprocess.CompletedProcess:
    began = time.monotonic()
    done = fpbench("fetch", "weights", HUB, work=work, **{"HF_HOME": str(work / "hub"), **environment})
    assert time.monotonic() - began < within, f"took {time.monotonic() - began:.0f} s"
    return done


@recipe("hub", "refused", "proxy", "offline", "unknown-host")
def hub(work: Path, case: str) -> None:
    """No way to the hub: one message, at once (ours: a host that no name server knows)."""
    ways = {
        "refused": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no way to the server"),
        "proxy": (
            {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_ENDPOINT": "https://huggingface.co"},
            "no way to the server",
        ),
        "offline": ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        "unknown-host": ({"HF_ENDPOINT": "http://nowhere.invalid"}, "no way to the server"),
    }
    environment, says = ways[case]
    refused(fetched(work, **environment), says, BY_HAND)


@recipe("hub-answers", 401, 403, 404, 407)
def hub_answers(work: Path, case: int) -> None:
    """The hub, or a proxy before it, refuses: one message, at once (ours: 407 of a proxy)."""
    with serving(lambda path: (case, {"Content-Type": "application/json"}, b"{}")) as address:
        refused(fetched(work, HF_ENDPOINT=address), str(case), BY_HAND)
        if case == 407:
            refused(
                fetched(work, HTTPS_PROXY=address, HF_ENDPOINT="https://huggingface.co"),
                "proxy does not let us through",
                BY_HAND,
            )


@recipe("model-of-a-library", "timm", "hf", "open_clip", slow=True)
def family(work: Path, case: str) -> None:
    """A model whose library fetches its weights, without a network: one message, at once."""
    name = {
        "timm": "timm:mobilenetv3_small_050",
        "hf": "hf:facebook/dinov2-small",
        "open_clip": "open_clip:ViT-B-32/openai",
    }[case]
    for way in {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}:
        began = time.monotonic()
        done = fpbench("embed", name, work, "--out", work / "x.npz", work=work, HF_HOME=str(work / "hub"), **way)
        refused(done, "HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in way else "no way to the server")
        assert time.monotonic() - began < 120  # not the minutes of retries


PERSIST = """
import sys, time
from fpbench.errors import InputError
from fpbench.files import paths, transfer
paths.settle()
transfer.PAUSE = float(sys.argv[2])
began = time.monotonic()
try:
    print(transfer.persist(transfer.ask, sys.argv[1]).status_code)
except (InputError, OSError) as error:
    print(f"{type(error).__name__}: {error}")
print(f"\\n{time.monotonic() - began:.1f}")
"""


def asked(url: str, work: Path, pause: float = 2, **environment: str) -> tuple[str, float, str]:
    done = python(PERSIST, url, str(pause), work=work, **environment)
    *lines, seconds = good(done).splitlines()
    return "\n".join(lines).strip(), float(seconds), done.stderr


@recipe("certificate", "requests", "hub", "another-name")
def bad_certificate(work: Path, case: str) -> None:
    """A certificate that is not trusted fails at once and names both variables; each of them mends both stacks (ours: of another name)."""
    pair = certificate(work, "elsewhere.invalid" if case == "another-name" else "localhost")
    told, body = (
        ("certificate is not trusted", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
        json.dumps({"sha": "a" * 40, "id": "x/y"}).encode(),
    )
    with serving(lambda path: (200, {"Content-Type": "application/json"}, body), pair) as address:
        if case == "hub":
            refused(fetched(work, HF_ENDPOINT=address), *told, BY_HAND)
            for name in "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE":
                assert "not trusted" not in fetched(work, HF_ENDPOINT=address, **{name: str(pair[0])}).stderr
            return
        answer, seconds, _ = asked(f"{address}/x", work)
        assert all(word in answer for word in told), answer
        assert seconds < 5
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE") if case == "requests" else ():
            assert asked(f"{address}/x", work, **{name: str(pair[0])})[0] == "200"
        if case == "another-name":  # trusted, and still not this server's
            answer, seconds, _ = asked(f"{address}/x", work, SSL_CERT_FILE=str(pair[0]))
            assert f"now REQUESTS_CA_BUNDLE={pair[0]}" in answer, answer


@recipe("bundle-that-is-not-there")
def no_bundle(work: Path) -> None:
    """REQUESTS_CA_BUNDLE or SSL_CERT_FILE names nothing: said, in both stacks (ours)."""
    for name in "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE":
        answer, seconds, _ = asked("https://localhost:9/x", work, **{name: str(work / "none.pem")})
        assert "none.pem" in answer, answer
        assert name in answer, answer
        assert seconds < 5
        refused(fetched(work, HF_ENDPOINT="https://localhost:9", **{name: str(work / "none.pem")}), BY_HAND)


@recipe("server", "refused", "unknown-host", "busy", 401, 403, 404)
def server(work: Path, case: str | int) -> None:
    """A server of files: refusals at once; what may pass is tried again, and each try is announced."""
    if case in ("refused", "unknown-host"):
        url = "http://127.0.0.1:9/x" if case == "refused" else "http://nowhere.invalid/x"
        answer, seconds, _ = asked(url, work)
        assert "no way to the server" in answer, answer
        assert seconds < 10
        return
    with serving(lambda path: (503 if case == "busy" else case, {}, b"")) as address:
        answer, seconds, err = asked(f"{address}/x", work, pause=0.1)
        if case == "busy":
            assert "gave up after 6 attempts" in answer, answer
            assert len([line for line in err.splitlines() if "HTTP 503, attempt" in line]) == 5, err
        else:
            assert f"HTTP {case}" in answer
            assert seconds < 5


# ---- whose kernel (field 3) -------------------------------------------------------------------------------------------

WHO = "import sys; print(sys.executable)"


def kernelspec(folder: Path, interpreter: str = "/other/python") -> None:
    folder = folder / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [interpreter, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Other", "language": "python"}), encoding="utf-8"
    )


@recipe("kernel", "HOME", "JUPYTER_PATH", "environment")
def kernel(work: Path, case: str) -> None:
    """A foreign kernel is installed where Jupyter looks first; ours runs (ours: the environment's own kernel.json moved away)."""
    home = work / "home"
    home.mkdir()
    environment = {"HOME": str(home), "JUPYTER_PREFER_ENV_PATH": "0"}
    if case == "HOME":
        kernelspec(home / ".local" / "share" / "jupyter")
    else:
        kernelspec(work / "site")
        environment |= {"JUPYTER_PATH": str(work / "site")}
    if case == "environment":
        environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_DATA_DIR": str(work / "site")}
    good(fpbench("notebook", notebook(work, WHO), work / "out.ipynb", work=work, **environment))
    assert said(work / "out.ipynb").strip() == sys.executable


SETTINGS = {  # files of a user that must change nothing
    ".ipython/profile_default/startup/00.py": "import sys; sys.exit(3)\nimport numpy; numpy.random.seed(0)\nmine = 1",
    ".ipython/profile_default/ipython_config.py": "c.InteractiveShellApp.exec_lines = ['mine = 1', 'print(1 / 0)']",
    ".ipython/profile_default/ipython_kernel_config.py": "c.InlineBackend.rc = {'figure.figsize': (1, 1)}\nc.IPKernelApp.pylab = 'agg'",
    ".config/matplotlib/matplotlibrc": "lines.linewidth: 9\nfont.size: 30\nfigure.dpi: 30\naxes.grid: True\nbackend: pdf",
    ".jupyter/jupyter_config.json": '{"KernelManager": {"transport": "nonsense"}}',
    ".jupyter/jupyter_notebook_config.py": "raise SystemExit(4)",
    "start.py": "mine = 1\nprint('started')",
}
DRAWING = """import hashlib, io, locale, sys
import numpy as np
from matplotlib import pyplot as plt
from fpbench.files import artifacts
buffer = io.BytesIO()
figure, ax = plt.subplots()
ax.plot([1, 2], label="±")
ax.set_title("ä ± 1")
figure.savefig(buffer, format="png", metadata={"Software": None})
plt.close(figure)
print(hashlib.sha256(buffer.getvalue()).hexdigest(), "mine" in globals(), "±")"""
OURS = """from fpbench.reporting import figures
buffer = io.BytesIO()
figure, ax = plt.subplots()
ax.plot([1, 2])
figure.savefig(buffer, format="png", metadata={"Software": None})
print(hashlib.sha256(buffer.getvalue()).hexdigest())"""


@recipe("settings", "alone", "forked", "current-folder")
def settings(work: Path, case: str) -> None:
    """Startup files and settings of a user change neither picture nor exit code (ours: PYTHONSTARTUP; a matplotlibrc where one stands)."""
    home, found = work / "home", []
    source = (
        notebook(work, DRAWING, OURS) if case != "current-folder" else notebook(work, DRAWING.rpartition("\n")[0], OURS)
    )
    code = "import subprocess, sys, os\nfrom fpbench.grid.forkserver import listening\n"
    code += "with listening(['papermill', 'ipykernel.kernelapp', 'matplotlib.backends.backend_agg', 'pandas'], []) as address:\n"
    code += "    sys.exit(subprocess.run([sys.executable, '-P', '-m', 'fpbench.grid.forkserver', str(os.getpid()), 'fpbench', *sys.argv[1:]], env={**os.environ, **address}).returncode)"
    for step in "plain", "own":
        home.mkdir(exist_ok=True)
        more = {"HOME": str(home)}
        if step == "own" and case != "current-folder":
            for name, text in SETTINGS.items():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_text(text, encoding="utf-8")
            more["PYTHONSTARTUP"] = str(home / "start.py")
        elif step == "own":
            (work / "matplotlibrc").write_text(SETTINGS[".config/matplotlib/matplotlibrc"], encoding="utf-8")
            more["MPLCONFIGDIR"] = more["MATPLOTLIBRC"] = str(work)
        words = "notebook", source, work / f"{step}.ipynb"
        good(fpbench(*words, work=work, **more) if case != "forked" else python(code, *words, work=work, **more))
        found.append(said(work / f"{step}.ipynb"))
    assert found[0] == found[1], found
    assert found[0]


@cache
def latin() -> dict[str, str]:
    """Return an environment whose encoding is ISO-8859-1."""
    folder = Path(tempfile.mkdtemp(prefix="field"))
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US")], capture_output=True, check=False
    )
    if not (folder / "en_US").is_dir():
        raise Unable(f"localedef cannot make en_US in ISO-8859-1: {made and made.stderr.decode()[-200:]}")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US", "LANG": "en_US"}


LATIN = """
import locale, os
from pathlib import Path
from fpbench.files import artifacts
assert locale.getpreferredencoding(False).upper() == "ISO-8859-1"
from fpbench.cohorts import SOURCES, phantoms
from fpbench.encoders import catalogue, checkpoint
from fpbench.study import load_study
from fpbench.grid import jobs
artifacts.write_json(Path("x.json"), {"a": "\\u00e4 \\u00b1 \\u2026"})
Path("study.yaml").write_text('name: x\\ntitle: "Gr\\u00f6\\u00dfe \\u00b1 \\u2026 \\u5e73\\u9762"\\ncohorts: [{name: phantom-spain}]\\nencoders: [{name: a, model: usfm-mini, weights: random}]', encoding="utf-8")
print(ascii((study := load_study("study.yaml")).title), len(jobs.rows()))
import pandas as pd
from fpbench.reporting import tables
tables.save(pd.DataFrame({"F1": ["0.5 \\u00b1 0.1"]}), study, "t", "\\u00b1 \\u2026")
"""
PRINTING = """
import sys
from fpbench import cli, doctor
doctor.examine, doctor.render = (lambda *_: []), (lambda *_: "\\u5e73 \\u00b1")
sys.argv = ["fpbench", "doctor", "demo"]
cli.main()
"""


@recipe("locale", "library", "notebook", "printing")
def latin_1(work: Path, case: str) -> None:
    """Everything is read and written as UTF-8 where the user's encoding is Latin-1 (ours: a sign that the terminal does not know)."""
    environment = latin()
    if case == "library":
        out = good(python(LATIN, work=work, **environment))
        assert out.startswith("'Gr\\xf6\\xdfe \\xb1 \\u2026 \\u5e73\\u9762'"), out
        (work / "other").mkdir()
        good(python(LATIN.replace("assert locale", "0 and locale"), work=work / "other"))
        made = {path.relative_to(work): path.read_bytes() for path in (work / "results").rglob("*.*") if path.is_file()}
        assert len(made) == 5
        for name, content in {**made, "x.json": (work / "x.json").read_bytes()}.items():
            assert content == (work / "other" / name).read_bytes(), name
    elif case == "notebook":
        good(
            fpbench(
                "notebook", notebook(work, DRAWING, "print('… 平面')"), work / "out.ipynb", work=work, **environment
            )
        )
        good(fpbench("notebook", work / "in", work / "plain.ipynb", work=work))
        assert said(work / "out.ipynb") == said(work / "plain.ipynb")
        assert "± \n" in said(work / "out.ipynb") or "±\n" in said(work / "out.ipynb")
    else:
        done = python(PRINTING, work=work, **environment)
        assert good(done) == "? \ufffd\n"  # Latin-1, read as UTF-8 here


# ---- long and odd places (field 6) ------------------------------------------------------------------------------------

ODD = 'ein Ordner\'s "ä{b}" $c é'


def deep(top: Path, length: int) -> Path:
    """Return a folder of that many bytes."""
    room = length - len(os.fsencode(top)) - 1
    name = ("x" * 40 + "/") * (room // 41) + "y" * (room % 41)
    folder = top / name if room > 0 else top
    folder.mkdir(parents=True, exist_ok=True)
    return folder


FORKED = """
import os, subprocess, sys
from fpbench.grid.forkserver import ADDRESS, listening
with listening(["papermill", "ipykernel.kernelapp", "pandas", "matplotlib"], []) as address:
    assert address or "optional" in sys.argv[1]
    command = [sys.executable, "-P", "-m", "fpbench.grid.forkserver", str(os.getpid()), "fpbench", *sys.argv[2:]]
    sys.exit(subprocess.run(command, env={**os.environ, **address}).returncode)
"""


@recipe(
    "place", ("TMPDIR", 120), ("TMPDIR-250", 250), ("HOME", 250), ("results", 250), ("odd", 0), ("nowhere-short", 120)
)
def place(work: Path, case: tuple[str, int]) -> None:
    """Long and odd names of folders: a notebook runs, forked and alone, and nothing is left (ours: not even /tmp is to be had; both at once)."""
    kind, length = case
    top = work / ODD if kind == "odd" else work
    top.mkdir(exist_ok=True)
    folder = deep(top, length) if length else top
    environment, out = {}, work / "out.ipynb"
    if kind.startswith("TMPDIR") or kind in ("odd", "nowhere-short"):
        environment["TMPDIR"] = str(folder)
    if kind == "nowhere-short":
        environment["XDG_RUNTIME_DIR"] = ""
    if kind in ("HOME", "odd"):
        environment["HOME"] = str(folder)
    if kind in ("results", "odd"):
        environment |= {
            "FPBENCH_RESULTS": str(folder / "r"),
            "FPBENCH_DATA": str(folder / "d"),
            "FPBENCH_CACHE": str(folder / "c"),
        }
        out = folder / "r" / "out.ipynb"
    source = notebook(work, WHO, "import tempfile; print(tempfile.gettempdir())")
    code = FORKED
    if kind == "nowhere-short":
        closing = "from fpbench.grid import sockets\nsockets.OTHERS = ('/nowhere',)\nfrom pathlib import Path\nfrom fpbench.grid.notebooks import execute\n"
        good(
            python(
                closing + "import sys\nexecute(Path(sys.argv[1] + '.ipynb'), Path(sys.argv[2]), {})",
                source,
                out,
                work=work,
                **environment,
            )
        )
        code = closing + FORKED
    else:
        good(fpbench("notebook", source, out, work=work, **environment))
    assert said(out).startswith(sys.executable)
    out.unlink()
    good(python(code, "optional" * (kind == "nowhere-short") or "-", "notebook", source, out, work=work, **environment))
    assert said(out).startswith(sys.executable)
    assert not left_in(), left_in()
    left = [path for path in folder.rglob("fpbench*") if path.is_socket() or path.is_dir()]
    assert not left, left


@recipe("run-in-an-odd-place", ("TMPDIR-and-results", 150), slow=True)
def odd_run(work: Path, case: tuple[str, int]) -> None:
    """A whole study where everything lies in a long folder with quotes, spaces and umlauts."""
    folder = deep(work / ODD.replace("{b}", "b"), case[1])
    names = ("TMPDIR", "HOME", "FPBENCH_RESULTS", "FPBENCH_DATA", "FPBENCH_CACHE")
    refused(fpbench("run", "demo", work=work, FPBENCH_RESULTS=str(work / ODD)), "without braces in its path")
    good(fpbench("run", pocket(work), work=work, timeout=1800, **{name: str(folder) for name in names}))
    assert (folder / "pocket" / "report.html").is_file()
    assert not left_in(), left_in()


# ---- encoders and cohorts (field 1, 2, 7; two towers, compiled models, turned and half pictures) ----------------------

ENCODER = """
import json, os, sys
from pathlib import Path
import numpy as np, torch
from fpbench.encoders import load_encoder
from fpbench.errors import InputError
def refused(action, *says):
    try:
        action()
    except InputError as error:
        assert all(word in str(error) for word in says), error
    else:
        raise AssertionError("it was taken")
picture = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
half = {"image_mean": [.5] * 3, "image_std": [.5] * 3, "size": {"height": 64, "width": 64}, "resample": 3, "image_processor_type": "ViTImageProcessor"}
small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
def saved(model):
    model.save_pretrained("d")
    Path("d/preprocessor_config.json").write_text(json.dumps(half), encoding="utf-8")
"""
ENCODERS = {
    "masked-autoencoder": """
import transformers
saved(transformers.ViTMAEModel(transformers.ViTMAEConfig(**small, image_size=64, patch_size=16)))
one, other = (load_encoder("hf:d", pooling="mean") for _ in range(2))
assert np.array_equal(one.embed([picture]), one.embed([picture])) and one.fingerprint == other.fingerprint
assert np.array_equal(one.embed([picture]), other.embed([picture]))""",
    "two-towers": """
import transformers
text = {**small, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
saved(transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config={**small, "image_size": 64, "patch_size": 16})))
refused(lambda: load_encoder("hf:d"), "part: vision")
assert load_encoder("hf:d", options={"part": "vision"}).embed([picture]).shape == (1, 32)""",
    "quick-gelu": """
import open_clip
vision = {"image_size": 64, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
tiny = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
for name, more in {"Tiny": {}, "Tiny-quickgelu": {"quick_gelu": True}}.items():
    Path("configs").mkdir(exist_ok=True)
    Path(f"configs/{name}.json").write_text(json.dumps(tiny | more), encoding="utf-8")
open_clip.add_model_config("configs")
open_clip.pretrained._PRETRAINED["Tiny"] = {"quick": {"url": "none", "quick_gelu": True, "mean": (.5,) * 3}}
torch.manual_seed(0)
content = open_clip.create_model("Tiny").state_dict()
torch.save({name: tensor * 8 if "mlp" in name else tensor for name, tensor in content.items()}, "w.pt")
plain, quick, tagged = (load_encoder(f"open_clip:{name}", "w.pt") for name in ("Tiny", "Tiny-quickgelu", "Tiny/quick"))
assert np.abs(plain.embed([picture]) - quick.embed([picture])).max() > 1e-3
assert tagged.mean == (.5,) * 3 and type(tagged.module) is type(quick.module)
assert sum("QuickGELU" in str(part) for part in tagged.module.modules()) > 0
refused(lambda: load_encoder("open_clip:Tiny/nonsense", "w.pt"), "nonsense")""",
    "compiled": """
import timm
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
for head in "", "_orig_mod.", "module._orig_mod.":  # as torch.compile and data parallel leave them
    torch.save({head + name: tensor for name, tensor in model.state_dict().items()}, "w.pt")
    found = load_encoder("timm:vit_tiny_patch16_224", "w.pt", options={"img_size": 64}).embed([picture])
    assert not head or np.array_equal(found, first)
    first = found""",
}


@recipe("encoder", *ENCODERS, slow=True)
def encoder(work: Path, case: str) -> None:
    """Weights as people have them answer as their authors' code does, or are refused in one sentence (ours: data parallel and compiled)."""
    good(python(ENCODER + ENCODERS[case], work=work))


COHORT = """
import numpy as np, pandas as pd
from fpbench import load_cohort, make_splits, metrics
from fpbench.cohorts import Cohort, spain
from fpbench.errors import InputError
from fpbench.tasks import Task
def design(seed):
    rng = np.random.default_rng(seed)
    K, G = rng.integers(2, 7), rng.integers(5, 40)
    rows = [(g, k) for g in range(G) for k in rng.choice(K, rng.integers(1, 12), p=rng.dirichlet(np.ones(K) / 2))]
    frame = pd.DataFrame(rows, columns=["patient", "plane"])
    names = np.array([f"c{k}" for k in range(K)])
    frame = frame.assign(patient=frame["patient"].map("p{:02}".format), plane=names[frame["plane"]], official_split="train")
    frame.insert(0, "image_id", [f"i{number:04}" for number in range(len(frame))])
    return frame.assign(group=frame["patient"], pixels=frame["image_id"], file=frame["image_id"]), tuple(names)
def holds(seed):
    frame, names = design(seed)
    task = Task("mine", "plane", names, "mine")
    try:
        splits = make_splits(Cohort(spain.SOURCE, frame), task, "crossval", 5, 0)
    except InputError as error:
        assert "fold" in str(error) or "patients" in str(error), error
        return False
    for number in range(5):
        fold = splits.fold(number)
        for rows in fold.train, fold.validation, fold.test:
            assert set(frame["plane"].iloc[rows]) == set(names), number
    return True
assert holds(12) and sum(map(holds, range(20))) > 5
y = np.array([0, 0, 1, 1])
assert np.isnan(metrics.scores(y, np.eye(3)[y], range(3))["macro F1"])
"""


@recipe("folds")
def folds(work: Path) -> None:
    """Every part of every fold holds every class, or the cut says which does not; an absent class is no zero (ours: twenty designs)."""
    good(python(COHORT, work=work))


PICTURES = """
import numpy as np
from pathlib import Path
from PIL import Image, ImageFile
from fpbench import images
from fpbench.errors import InputError
pixels = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
exif = Image.Exif()
exif[0x0112] = 6
Image.fromarray(pixels).save("turned.png", exif=exif)
Image.fromarray(pixels).save("half.png")
Image.fromarray(pixels).save("half.jpg")
for name in "half.png", "half.jpg":
    Path(name).write_bytes(Path(name).read_bytes()[:-600])
assert np.array_equal(images.decode(Path("turned.png")), np.rot90(pixels, -1))
for ImageFile.LOAD_TRUNCATED_IMAGES in False, True:
    for name in "half.png", "half.jpg":
        try:
            images.decode(Path(name))
        except InputError as error:
            assert name in str(error)
        else:
            raise AssertionError(f"{name} was taken")
"""


@recipe("pictures")
def pictures(work: Path) -> None:
    """A turned picture is turned back, half a file is refused whatever other libraries have set (ours: half a JPEG)."""
    good(python(PICTURES, work=work))


# ---- cards (mixed, MIG; what a submit filter refuses, field 9, is tried in a real Slurm: tests/slurm) -----------------

CARDS = """
import os, sys
from contextlib import ExitStack
from pathlib import Path
from fpbench.grid import gpus
held = []
with ExitStack() as stack:
    for name in gpus.devices():
        gpus.lease(stack, gpus.devices() if not held else names[len(held):], Path("log"), "job")
        held.append(os.environ["CUDA_VISIBLE_DEVICES"])
        names = sys.argv[1].split(",")
        os.environ["FPBENCH_GPUS"] = sys.argv[1]
        assert os.environ["CUDA_DEVICE_ORDER"] == sys.argv[2]
print(",".join(held), "CUDA_VISIBLE_DEVICES" in os.environ)
"""


@recipe("cards", ("mixed", "2,0"), ("MIG", "MIG-a,MIG-GPU-b/1/0"), ("order-of-ones-own", "1"))
def cards(work: Path, case: tuple[str, str]) -> None:
    """Named cards and MIG instances are held in their turn, numbered as nvidia-smi does (ours: unless the user has said otherwise)."""
    own = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"} if case[0].startswith("order") else {}
    order = own.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    done = python(CARDS, case[1], order, work=work, FPBENCH_GPUS=case[1], TMPDIR=str(work), **own)
    assert good(done) == f"{case[1]} False\n"


# ---- the command line of this file ------------------------------------------------------------------------------------


def main(names: list[str]) -> int:
    """Try recipes and print a line for each; return how many fell, at most 1."""
    fell = 0
    for name in [one for one in RECIPES if not names or any(one.startswith(word) for word in names)]:
        began, work = time.monotonic(), Path(tempfile.mkdtemp(prefix="field"))
        try:
            RECIPES[name](work)
            word = "stands"
        except Unable as error:
            word = f"untried: {error}"
        except (AssertionError, subprocess.SubprocessError) as error:
            word, fell = f"FALLS: {' '.join(str(error).split())[:300] or traceback.format_exc()[-300:]}", 1
        shutil.rmtree(work, ignore_errors=True)
        print(f"{name:<36} {time.monotonic() - began:5.1f} s  {word}", flush=True)
    return fell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
