"""The recipes of ``field.py``, those of under ten seconds in the normal suite; and the rules behind them, each as small as it can be."""

import errno
import fcntl
import os
import shutil
import socket
import stat

import field
import numpy as np
import pytest
import requests
from filelock import SoftFileLock

from fpbench.files import artifacts, paths, sharing, transfer
from fpbench.grid import forkserver, gpus, run, sockets

QUICK = (
    "locks-ENOLCK", "lock-", "hub-refused", "hub-offline", "certificate-requests", "certificate-another-name", "server-", "kernel-JUPYTER_PATH",
    "locale-library", "locale-printing", "folds", "pictures", "cards",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.startswith(QUICK) else pytest.mark.slow) for name in field.RECIPES]
)
def test_a_recipe_of_the_field(tmp_path, name):
    try:
        field.RECIPES[name](tmp_path)
    except field.Unable as reason:
        pytest.skip(str(reason))


def test_of_tracebacks_only_that_of_a_kernel_that_ends_is_let_pass():
    closing = 'Traceback (most recent call last):\n  File "a"\n\n  File "b"\nzmq.error.ZMQError: Socket operation on non-socket\n'
    other = 'Traceback (most recent call last):\n  File "a"\nKeyError: 3\n'
    assert field.clean(f"first\n{closing}last\n")
    for told in (other, other + closing, closing + other, closing.replace("non-socket", "a socket")):
        with pytest.raises(AssertionError):
            field.clean(told)


# ---- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def refuses(monkeypatch):
    """Let flock give an error, and every folder be one of which nothing was said."""
    monkeypatch.setattr(sharing, "_told", set())

    def give(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return give


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ESTALE]
)
def test_a_refused_lock_is_said_once_per_folder_and_costs_nothing(tmp_path, refuses, capsys, number):
    refuses(number)
    for name in ("a", "b", "x/a"):
        with artifacts.lock(tmp_path / name), run.alone(tmp_path) as handle:
            assert handle is None
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in said] == [str(tmp_path), str(tmp_path / "x")]
    assert os.strerror(number) in said[0]


def test_gpus_are_spread_where_there_are_no_locks(tmp_path, refuses, monkeypatch):
    from contextlib import ExitStack

    refuses(errno.ENOLCK)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "FPBENCH_GPUS"):
        monkeypatch.setenv(name, "")
    seen = set()
    for number in (10, 11, 12):
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        with ExitStack() as stack:
            gpus.lease(stack, ["a", "b"], tmp_path / "log", "job")
            seen.add(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == {"a", "b"}


def test_a_soft_lock_that_was_left_keeps_nobody_waiting(tmp_path):
    SoftFileLock(tmp_path / ".x.lock").acquire()  # as an older version where flock was not there
    with artifacts.lock(tmp_path / "x", 1):
        pass


def test_a_lock_excludes_between_threads_and_is_free_afterwards(tmp_path):
    with artifacts.lock(tmp_path / "x"), pytest.raises(sharing.Held), artifacts.lock(tmp_path / "x", 0.1):
        pass
    with artifacts.lock(tmp_path / "x", 0):
        pass


def test_a_lock_file_that_is_a_folder_or_in_one_that_cannot_be_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sharing, "_told", set())
    (tmp_path / ".x.lock").mkdir()
    (tmp_path / "file").touch()
    for name in ("x", "file/x"):
        with sharing.hold((tmp_path / name).with_name(".x.lock")) as handle:
            pass
        assert handle is None
    assert capsys.readouterr().err.count("no locks here") == 2


# ---- several people ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_folder_that_another_process_makes_meanwhile_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    asked, first = sharing.Path.is_dir, []

    def is_dir(path):
        if path.name == "x" and not first:
            first.append(path)
            return False  # it is made now
        return asked(path)

    monkeypatch.setattr(sharing.Path, "is_dir", is_dir)
    sharing.make_folder(tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file'$"):
        sharing.make_folder(tmp_path / "file" / "deep" / "er")


def test_a_cache_in_a_folder_that_is_hidden_from_us_is_not_writable(tmp_path):
    (hidden := tmp_path / "hidden").mkdir()
    hidden.chmod(0)
    before = os.getresuid()
    try:
        if not before[1]:  # root sees everything
            os.setresuid(65534, 65534, 0)
        assert not sharing.is_writable(hidden / "cache" / "images")
    finally:
        os.setresuid(*before)
        hidden.chmod(0o700)


@pytest.mark.parametrize("mode", [0o2775, 0o775, 0o2770, 0o755, 0o700, 0o777, 0o1777], ids=oct)
def test_what_is_made_in_a_shared_folder_is_as_open_as_it_is(tmp_path, umask, mode):
    (folder := tmp_path / "f").mkdir()
    folder.chmod(mode)
    artifacts.write_json(folder / "deep" / "er" / "x.json", {"a": 1})
    with artifacts.lock(folder / "deep" / "x"):
        pass
    given = mode & 0o070 if mode & 0o020 else 0
    given |= mode & 0o007 if mode & 0o002 else 0
    given = 0 if mode & stat.S_ISVTX else given
    for path in folder.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask | (given if path.is_dir() else given & 0o666)
        assert path.stat().st_mode & 0o777 == expected, (path, oct(path.stat().st_mode))


def test_what_is_closed_is_counted_and_what_is_new_is_kept_with_the_results(tmp_path, monkeypatch, capsys):
    """Root may read everything: the answer of the system is put in its place."""
    monkeypatch.setenv("FPBENCH_CACHE", str(cache := tmp_path / "cache"))
    monkeypatch.setattr(artifacts, "_told", set())

    def build(path):
        with open(path, "wb") as handle:
            np.save(handle, np.arange(3))

    artifacts.cached_array(cache / "arrays", {"key": 1}, build)
    asked = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: asked(path, mode) and not (mode & os.W_OK and str(path).startswith(str(cache)))
    )
    for key in (1, 2, 2):
        assert artifacts.cached_array(cache / "arrays", {"key": key}, build).tolist() == [0, 1, 2]
    assert (
        len(list((cache / "arrays").glob("*.npy")))
        == len(list((paths.results() / "cache" / "arrays").glob("*.npy")))
        == 1
    )
    assert capsys.readouterr().err.count("cannot be written") == 1
    assert sharing.closed(cache) == []
    assert sharing.closed(cache, write=True) == [cache / "arrays"]


# ---- no way out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "requests_has", "httpx_has"),
    [
        ({"REQUESTS_CA_BUNDLE": "/a.pem"}, "/a.pem", {"SSL_CERT_FILE": "/a.pem"}),
        ({"SSL_CERT_FILE": "/a.pem"}, "/a.pem", {"SSL_CERT_FILE": "/a.pem"}),
        ({"REQUESTS_CA_BUNDLE": "/"}, "/", {"SSL_CERT_DIR": "/"}),
        ({"SSL_CERT_DIR": "/"}, "/", {"SSL_CERT_DIR": "/"}),
        ({"REQUESTS_CA_BUNDLE": "/a.pem", "SSL_CERT_FILE": "/b.pem"}, "/a.pem", {"SSL_CERT_FILE": "/b.pem"}),
        ({}, None, {}),
    ],
)
def test_both_stacks_trust_what_is_named_for_one(monkeypatch, given, requests_has, httpx_has):
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if name not in names} | given)
    paths.trust()
    assert os.environ.get("REQUESTS_CA_BUNDLE") == requests_has
    assert {name: os.environ[name] for name in names[2:] if name in os.environ} == httpx_has


def test_a_server_that_has_answered_once_may_come_back(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0)
    monkeypatch.setattr(transfer, "_answered", set())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    tries = []

    def action(url):
        tries.append(url)
        return requests.get(url, timeout=5)

    for known in (False, True):
        transfer._answered.update({host} if known else ())
        with pytest.raises(transfer.InputError, match="gave up after 6" if known else "no way to the server"):
            transfer.persist(action, f"http://{host}/x")
    assert len(tries) == 1 + transfer.ATTEMPTS


def test_a_terminal_sees_the_seconds_go_by(monkeypatch, capsys):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    transfer._wait(3, "busy")
    monkeypatch.setattr(transfer.sys.stderr, "isatty", lambda: True)
    transfer._wait(3, "busy")
    assert slept == [3, 1, 1, 1]
    assert capsys.readouterr().err == "busy in 3 s\n\rbusy in 3 s \rbusy in 2 s \rbusy in 1 s \n"


# ---- long places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [60, 85, 120, 250])
def test_a_folder_for_sockets_is_short_wherever_tmpdir_lies(tmp_path, monkeypatch, length):
    place = field.deep(tmp_path, length)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with sockets.folder() as (found, short), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{found}/kernel-ipc-5")
        assert short
        assert (found.parent == place) is sockets.is_short(str(place))
    assert not found.exists()
    monkeypatch.setattr(sockets, "OTHERS", ("/nowhere",))
    with sockets.folder() as (found, short):
        assert short is sockets.is_short(str(place))
        assert found.parent == place
    with forkserver.listening([], []) as address:
        assert bool(address) is (short and not list(sockets.Path("/dev").glob("nvidia[0-9]*")))


def test_what_a_killed_process_left_is_cleared_up_and_what_is_in_use_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    with sockets.folder() as (mine, _):
        (dead := mine.with_name(f"{mine.name}dead")).mkdir()
        (dead / sockets.OWNED).write_text(str(2**22 + 1))  # beyond the largest number of a process
        (lives := mine.with_name(f"{mine.name}lives")).mkdir()  # of a process that got no lock
        (lives / sockets.OWNED).write_text(str(os.getpid()))
        (other := mine.with_name(f"{mine.name}other")).mkdir()  # none of these
        with sockets.folder():
            assert mine.exists()
            assert not dead.exists()
            assert lives.exists()
            assert other.exists()
    other.rmdir()
    shutil.rmtree(lives)
