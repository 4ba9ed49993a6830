"""The fork server: a forked job does what the command would have done itself, and none of the processes outlives another."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from fpbench.grid import forkserver

SERVER = [sys.executable, "-P", "-m", "fpbench.grid.forkserver"]
MODULES = ["papermill", "ipykernel.kernelapp", "pandas", "matplotlib"]
DRIVER = """
import json, os, subprocess, sys
from fpbench.grid.forkserver import listening

modules, command = json.loads(sys.argv[1])
with listening(modules, []) as address:
    subprocess.run(command, env={**os.environ, **address})
"""
SNAKEMAKE = """
import json, os, subprocess, sys
server, rest = json.loads(sys.argv[1])
print("code", subprocess.run([*server, str(os.getpid()), *rest]).returncode)
"""
PIDS = "import os, time\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')"


@pytest.fixture(scope="module")
def address():
    """A server for all tests of which it is not the victim, started by this process."""
    with forkserver.listening(MODULES, []) as found:
        yield found


def start(tmp_path, address, *cells, **environment):
    """What stands for Snakemake, and a job that executes some cells; without an address, a driver with a server before them."""
    code = [
        nbformat.v4.new_code_cell(text) for text in ("given = ''", f"import os\nos.chdir({str(tmp_path)!r})", *cells)
    ]
    code[0].metadata["tags"] = ["parameters"]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=about), tmp_path / "in.ipynb")
    job = ["fpbench", "notebook", str(tmp_path / "in"), str(tmp_path / "out" / "out.ipynb"), "-p", "given=a text"]
    command = [sys.executable, "-c", SNAKEMAKE, json.dumps([SERVER, job])]
    if address is None:
        command = [sys.executable, "-c", DRIVER, json.dumps([MODULES, command]), "fpbench"]
    env = {**os.environ, **(address or {}), **environment}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path, process):
    until = time.monotonic() + 120
    while not (path.is_file() and path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    return path.read_text()


def outputs(tmp_path):
    cells = nbformat.read(tmp_path / "out" / "out.ipynb", 4).cells
    found = [output for cell in cells for output in cell.get("outputs", [])]
    return [one.get("text") or one["data"].get("image/png") or one["data"]["text/plain"] for one in found]


def test_a_forked_job_writes_what_the_command_alone_would(tmp_path, address):
    cells = (
        "import pandas as pd\nimport numpy as np\npd.DataFrame(np.arange(90.0).reshape(3, 30) / 7)",
        "from fpbench.reporting import figures\nfrom matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        "print(given, os.environ['GIVEN'], os.environ['MPLBACKEND'])\nos.write(1, b'straight to the stream')",
        "import threading\nprint(threading.active_count())\nprint(input.__module__)",
    )
    found = []
    for where in ({}, address):
        said = start(tmp_path, where, *cells, GIVEN="an environment").communicate(timeout=120)[0]
        assert "code 0" in said
        found.append(outputs(tmp_path))
    assert found[0] == found[1]
    assert "29" in found[0][0]
    assert len(found[0][1]) > 1000
    assert "a text an environment module://matplotlib_inline" in found[0][2]


def test_an_error_in_a_forked_job_is_the_commands(tmp_path, address):
    said = start(tmp_path, address, "raise ValueError('this one')").communicate(timeout=120)[0]
    assert "ValueError: this one" in said
    assert "code 1" in said


@pytest.mark.parametrize(
    ("forked", "victim"),
    [(True, name) for name in ("driver", "server", "Snakemake", "command", "fork", "kernel")]
    + [(False, "Snakemake"), (False, "command")],
)
def test_none_of_the_processes_outlives_another_and_the_notebook_they_left_is_whole(tmp_path, address, forked, victim):
    where = None if forked and victim in ("driver", "server", "Snakemake") else address if forked else {}
    process = start(tmp_path, where, PIDS, "time.sleep(100)")
    kernel, job = map(int, wait_for(tmp_path / "pids", process).split())
    family = [first := psutil.Process(process.pid), *first.children()]
    (snakemake,) = [one for one in family if SNAKEMAKE in one.cmdline()]
    (command,) = snakemake.children()
    numbers = {"driver": process.pid, "Snakemake": snakemake.pid, "command": command.pid, "fork": job, "kernel": kernel}
    assert (command.pid == job) is not forked
    if forked:
        server = psutil.Process(job).parent()
        assert server.pid not in (process.pid, os.getpid())  # a process that has computed cannot be forked safely
        numbers["server"] = server.pid
    others = [psutil.Process(numbers[name]) for name in ("command", "fork", "kernel", *["server"] * (where is None))]
    os.kill(numbers[victim], signal.SIGKILL)
    if victim == "driver":
        snakemake.kill()  # the real one watches the driver by itself (Snakefile)
    _, alive = psutil.wait_procs(others, 30)
    assert not alive
    assert not forked or server.is_running() is (where is not None)  # a job that dies leaves the server to the others
    said = process.communicate(timeout=30)[0]
    assert victim in ("driver", "Snakemake") or ("code" in said and "code 0" not in said)
    assert json.loads((tmp_path / "out" / "out.ipynb").read_text())["cells"]
    if victim == "command":
        assert "code 0" in start(tmp_path, where, "done = 1").communicate(timeout=120)[0]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["out.ipynb"]  # what a kill left is cleared up


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_reaches_the_kernel_of_the_fork_and_waits_for_it(tmp_path, address, number):
    saving = """import signal
def save(number, frame):
    time.sleep(2)
    open("saved", "w").write("saved")
    os._exit(1)
signal.signal(signal.SIGTERM, save)"""
    process = start(tmp_path, address, f"import time\n{saving}\n{PIDS}", "time.sleep(100)")
    wait_for(tmp_path / "pids", process)
    (command,) = psutil.Process(process.pid).children()
    command.send_signal(number)
    assert f"code {128 + number}" in process.communicate(timeout=60)[0]
    assert (tmp_path / "saved").is_file()


def test_where_nobody_listens_the_command_does_the_work_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_FORKSERVER", str(tmp_path / "no socket"))
    said = start(tmp_path, {}, "print('done')").communicate(timeout=120)[0]
    assert "code 0" in said
    assert outputs(tmp_path) == ["done\n"]
