"""A long step says how far it is: as a line to a person at a kernel, never in a notebook that a program executes."""

import os
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from jupyter_client.manager import start_new_kernel

from fpbench.files import progress

STEP = """
import time
from fpbench.files import progress
progress.EVERY = 0.05
for _ in progress.Progress(range(40), total=40, desc="a long step", unit="image"):
    time.sleep(0.01)
"""
BROKEN = STEP + "    if _ == 30: raise KeyError('broken')\n"
QUICK = STEP.replace("0.05", "60")


@pytest.fixture(scope="module")
def kernel():
    """A real kernel, as JupyterLab starts it."""
    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def sent(client, code, allow_stdin, metadata):
    """Return the outputs of a cell, the messages of a front end that sends it so."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": allow_stdin}
    message = client.session.msg("execute_request", {**content, "stop_on_error": True}, metadata=metadata)
    client.shell_channel.send(message)
    found, kind = [], ""
    while (kind, found[-1:]) != ("status", [{"execution_state": "idle"}]):
        answer = client.get_iopub_msg(timeout=60)
        if answer["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            kind = answer["msg_type"]
            found.append(answer["content"])
            if kind != "status":
                found[-1]["kind"] = kind
    client.get_shell_msg(timeout=60)
    return [
        one
        for one in found
        if one.get("kind") in ("display_data", "update_display_data", "stream", "error", "clear_output")
    ]


LAB = {"deletedCells": [], "recordTiming": False, "cellId": "5c3f"}  # what JupyterLab 4 sends with a cell


@pytest.mark.parametrize("code", [STEP, BROKEN])
def test_a_person_sees_one_line_that_replaces_itself_and_is_empty_in_the_end(kernel, code):
    found = [one for one in sent(kernel, code, True, LAB) if one["kind"] != "error"]
    assert [one["kind"] for one in found][:3] == ["display_data", *["update_display_data"] * 2]
    assert {one["kind"] for one in found[1:]} == {"update_display_data"}
    assert len({one["transient"]["display_id"] for one in found}) == 1  # one line
    texts = [one["data"]["text/plain"] for one in found]
    assert all(
        text.startswith("a long step: ") and " of 40 images, " in text and "to go" in text for text in texts[:-1]
    )
    assert len(set(texts)) == len(texts)  # it moves
    assert texts[-1] == ""


def test_a_quick_step_shows_nothing(kernel):
    assert sent(kernel, QUICK, True, LAB) == []


@pytest.mark.parametrize(("allow_stdin", "metadata"), [(False, {}), (False, LAB), (True, {})])
def test_nobody_who_is_not_surely_a_person_sees_anything(kernel, allow_stdin, metadata):
    assert sent(kernel, STEP, allow_stdin, metadata) == []


@pytest.fixture
def notebook(tmp_path):
    """A notebook of one long step, without outputs."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(STEP, execution_count=1)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, tmp_path / "step.ipynb")
    return tmp_path / "step.ipynb"


def test_papermill_and_nbconvert_leave_no_trace_of_it(notebook, tmp_path):
    papermill.execute_notebook(str(notebook), str(tmp_path / "papermill.ipynb"), progress_bar=False)
    command = ["nbconvert", "--to", "notebook", "--execute", "--output", "nbconvert.ipynb", str(notebook)]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    for name in ("papermill", "nbconvert"):
        (cell,) = nbformat.read(tmp_path / f"{name}.ipynb", 4).cells
        assert cell.execution_count == 1
        assert cell.outputs == [], name


def test_nbval_finds_the_outputs_as_they_were_committed(notebook):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
        "-q",
        str(notebook),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=notebook.parent)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_a_step_without_a_bar_is_noted_without_the_figures_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.FILE, str(tmp_path / "job.json"))
    progress.note(pid=os.getpid(), host="here", began=time.time())
    list(progress.Progress(range(3), total=3, desc="decoding", unit="image"))
    told = progress.json.loads((tmp_path / "job.json").read_text())
    assert progress.words(told).startswith("decoding: 3 of 3 images, ")
    assert progress.words(told).endswith("images/s, what follows is not counted")
    progress.begin("loading usfm")
    assert progress.words(progress.json.loads((tmp_path / "job.json").read_text())) == "loading usfm"


def test_no_kernel_no_person():
    assert not progress.is_watched()
