"""One import for all jobs of a run: they and their kernels are forked from a server instead of started anew.

Every notebook needs two processes, and importing Jupyter, torch, timm and scikit-learn into them takes ten seconds of a processor: more
than what a small job computes. So ``fpbench run`` starts a process that imports once, beside its own first work, and listens (``listening``).
The server does nothing else: a process that has computed may have threads and locks that no fork survives (OpenCV's wait for ever). The command
of a job, ``python -m fpbench.grid.forkserver PARENT fpbench notebook ...``, asks for a fork with its own arguments, folder, environment and
streams, passes signals on, and ends as the fork does. Whichever goes first, the driver, the server, Snakemake (``PARENT``), the command
or the fork, the others follow. A fork in turn forks its kernel, before it has a thread. Where nobody listens (a scheduler's node, a
machine with a GPU, which a forked process could not use) the command does the work itself.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fpbench.grid import sockets

ADDRESS = "FPBENCH_FORKSERVER"  # names the socket
PAUSE = 0.2  # seconds between two looks at whether the others are alive


@contextmanager
def listening(every: Sequence[str], later: Sequence[str]) -> Iterator[dict[str, str]]:
    """Have a server as long as the context lasts; it yields what the environment of its clients needs, nothing where none can be.

    Parameters
    ----------
    every, later
        Modules that it imports before the first fork, and if there is time; the rest after it.
    """
    if sys.platform != "linux" or any(Path("/dev").glob("nvidia[0-9]*")):
        yield {}
        return
    with sockets.folder() as (folder, short), socket.socket(socket.AF_UNIX) as listener:
        if not short:
            yield {}
            return
        listener.bind(address := f"{folder}/socket")
        listener.listen()  # whoever comes before the server has imported waits
        # by its last word the grid knows that a process is ours
        words = ["serve", str(number := listener.fileno()), ",".join(every), ",".join(later), "fpbench"]
        command = [sys.executable, "-P", "-m", "fpbench.grid.forkserver", *words]
        # it ends when its standard input does; a session of its own: the terminal's signals reach jobs through their commands
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[number], start_new_session=True, env={**os.environ, **plain()}
        )
        listener.close()  # should the server die, commands find nobody
        try:
            yield {ADDRESS: address}
        finally:
            server.kill()
            server.communicate()


def plain() -> dict[str, str]:
    """Return an environment in which Matplotlib does as it is published, whatever the user's own settings are."""
    found = find_spec("matplotlib")
    place = next(iter(found.submodule_search_locations or []), "") if found else ""
    return {"MATPLOTLIBRC": str(Path(place) / "mpl-data" / "matplotlibrc")} if place else {}


def _serve(number: str, every: str, later: str, _: str) -> None:
    """Fork a job whenever a client asks, until the standard input ends."""
    # Python 3.12 warns where libraries have threads: those of the linear algebra mind forks, and nothing has computed yet
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    listener, jobs, rest = socket.socket(fileno=int(number)), set(), later.split(",")
    _import(*every.split(","))
    while sys.stdin not in (ready := select.select([listener, sys.stdin], [], [], 0 if rest else PAUSE)[0]):
        if ready:
            jobs.add(_fork(listener))
        count = len(rest) if ready else 1  # all beside the first job, which needs none of it
        _import(*rest[:count])
        del rest[:count]
        jobs = {job for job in jobs if not os.waitpid(job, os.WNOHANG)[0]}
    os._exit(0)  # what is frozen, libraries would call a leak


def _import(*names: str) -> None:
    for name in names:
        with suppress(ImportError, ValueError):  # the job that needs it will say so; there may be none
            import_module(name)
    gc.freeze()  # no fork goes through all this again to find what could be freed


def _fork(listener: socket.socket) -> int:
    """Return the process id of a fork, which does what the next client asks, and ends."""
    connection, _ = listener.accept()
    with connection:
        if pid := os.fork():
            return pid
        code = 1
        try:
            os.setpgid(0, 0)
            listener.close()
            code = _work(connection)
            connection.sendall(bytes([code]))
        finally:
            os._exit(code)


def _work(connection: socket.socket) -> int:
    """Do what a client asks, as it would itself; return the exit code."""
    from ipykernel.parentpoller import ParentPollerUnix

    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(connection.makefile(encoding="utf-8").readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False, errors="replace") for number in (1, 2))  # noqa: SIM115
    sys.argv = asked["arguments"]
    _settle(asked)
    title = [sys.argv[2][:2], *(word[8:] for word in sys.argv if word.startswith("encoder="))]
    Path("/proc/self/comm").write_text(" ".join(title), encoding="utf-8")  # the name that ``top`` shows
    _prepare_kernel(connection)
    for thread in ParentPollerUnix(os.getppid()), threading.Thread(target=_follow, args=[connection], daemon=True):
        thread.start()
    connection.sendall(f"{os.getpid()}\n".encode())
    try:
        _command()()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def _command() -> Callable[[], object]:
    """Return what the console script does whose name and arguments stand in ``sys.argv``."""
    (script,) = entry_points(group="console_scripts", name=sys.argv[0])
    return script.load()


def _settle(asked: dict) -> None:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])


def _follow(connection: socket.socket) -> None:
    """End as soon as the client has."""
    connection.recv(1)
    os._exit(1)


def _prepare_kernel(connection: socket.socket) -> None:
    """Fork a kernel, which waits until Jupyter would start one."""
    from jupyter_client.provisioning import local_provisioner

    ours, theirs = os.pipe()
    if not (pid := os.fork()):
        try:
            os.setpgid(0, 0)
            connection.close()
            os.close(theirs)
            with open(ours, encoding="utf-8") as pipe:
                asked = pipe.readline()  # nothing, if the job has ended without a kernel
            if asked:
                _be_kernel(json.loads(asked))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(ours)
    os.setpgid(pid, pid)  # whoever is first: Jupyter kills by group, and it must not be ours

    def launch(command: list[str], cwd: str | None = None, env: dict | None = None, **_: Any) -> Kernel:
        asked = {"arguments": command[3:], "folder": cwd or os.getcwd(), "environment": env or dict(os.environ)}
        with open(theirs, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(asked) + "\n")
        return Kernel(pid)

    provisioner: Any = local_provisioner  # its own returns a Popen
    provisioner.launch_kernel = launch


def _be_kernel(asked: dict) -> None:
    import matplotlib
    import pandas
    from ipykernel import kernelapp

    _settle(asked)
    # what these two saw when they were imported was no kernel
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    pandas.set_option("display.max_columns", 20)
    quiet = "--log-level=CRITICAL"  # it calls the interrupt that ends it an error
    kernelapp.launch_new_instance(argv=[*asked["arguments"], quiet, f"--IPKernelApp.parent_handle={os.getppid()}"])


class Kernel:
    """A forked kernel, with what Jupyter uses of ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Return its exit code, minus the number if a signal has ended it; None while it lives."""
        if self.returncode is None:
            try:
                done, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # somebody else has waited for it, and its code is lost
                done, status = self.pid, 0
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self) -> int | None:
        """Return its exit code once it has ended."""
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def main() -> None:
    """Be the server, or have a command done by a fork of it, or do it here; end when the parent does."""
    if sys.argv[1] == "serve":
        _serve(*sys.argv[2:])
    parent, sys.argv = int(sys.argv[1]), sys.argv[2:]
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ[ADDRESS])
        except (KeyError, OSError):
            connection.close()
            _alone(parent)
        else:
            raise SystemExit(_ask(connection, parent))


def _alone(parent: int) -> None:
    from ipykernel.parentpoller import ParentPollerUnix

    ParentPollerUnix(parent).start()
    _command()()


def _ask(connection: socket.socket, parent: int) -> int:
    """Ask the server for a fork and return its exit code."""
    asked = {"arguments": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(connection, [b" "], [0, 1, 2])
    connection.sendall(json.dumps(asked).encode() + b"\n")
    connection.settimeout(PAUSE)
    said = b""
    while os.getppid() == parent:
        with suppress(TimeoutError):
            if not (part := connection.recv(64)):
                return 128 + signal.SIGKILL
            said += part
            pid, told, code = said.partition(b"\n")
            if code:
                return code[0]
            for number in (signal.SIGTERM, signal.SIGINT) if told else ():
                signal.signal(number, partial(_pass_on, int(pid)))
    return 1


def _pass_on(pid: int, number: int, _frame: object) -> None:
    os.kill(pid, number)


if __name__ == "__main__":
    main()
