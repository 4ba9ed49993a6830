"""Executing the numbered notebooks with papermill, each in a process of its own, as a rule without network ports.

The kernel is of the interpreter that runs this, and knows nothing of the user's settings for IPython, Jupyter and Matplotlib.

A job that computes with an encoder holds one GPU of its host (``gpus.lease``). SIGTERM and SIGINT are passed on to the kernel, which
saves a checkpoint if it trains (``training.loop.interruptible``), and are obeyed when it has ended.
"""

import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil

from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, machine, paths
from fpbench.files.records import plain_yaml
from fpbench.grid import sockets
from fpbench.grid.gpus import devices, lease
from fpbench.grid.jobs import rows
from fpbench.study import load_study

COMPUTING = tuple(row["job"][:2] for row in rows() if row["passes"])  # the notebooks that load an encoder
# what takes long to import: for every notebook, and for those
EVERY = (
    "papermill",
    "ipykernel.kernelapp",
    "matplotlib.backends.backend_pdf",
    "fontTools.subset",
    "fpbench.reporting.figures",
)
COMPUTING_TOO = (
    "torch",
    "fpbench.training.finetuning",
    "fpbench.encoders.inspection",
    "timm",
    "fpbench.encoders.adapters.open_clip",
    "peft",
)
GRACE = 600  # seconds for a kernel to save its checkpoint; a scheduler's own patience is shorter
# jsonschema would compile a grammar of web addresses: 2 s for nothing
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: it cannot be imported


def execute(source: Path, output: Path, parameters: dict) -> None:
    """Execute a notebook and keep the executed copy, also when it fails.

    Raises
    ------
    InputError
        A parameter that the notebook does not have (papermill alone would ignore it).
    papermill.PapermillExecutionError
        A cell failed; the copy holds the traceback.
    SystemExit
        A signal came; the status is 128 plus its number.
    """
    import papermill
    from traitlets.config import Config

    class Whole(papermill.iorw.LocalHandler):
        """Papermill saves after every cell: so that what is seen meanwhile, or left by a kill, is a whole notebook."""

        def write(self, buf: str, path: str) -> None:
            with artifacts.atomic(Path(path)) as temporary:
                temporary.write_text(buf, encoding="utf-8")

    if not source.is_file():
        raise MissingError(f"expected a notebook at {source}, found nothing")
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(parameters) - set(known)):
        raise InputError(f"{source.name}: unknown parameters {', '.join(unknown)}: expected some of {', '.join(known)}")
    for name, value in parameters.items():
        if isinstance(value, str) and known[name]["default"][:1] not in ("'", '"'):  # a text for a text stays as it is
            parameters = {**parameters, name: plain_yaml(value, f"{source.name}: {name}")}
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.iorw.papermill_io.register("/", Whole())
    device = load_study(parameters.get("study", "demo")).device if source.name.startswith(COMPUTING) else "cpu"
    with ExitStack() as stack:
        if device in ("auto", "cuda") and (names := devices()):
            lease(stack, names, output.parent / "devices.log", output.stem)
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, pass_on))
        # a folder of its own: kernels that share one take each other's sockets
        folder, short = stack.enter_context(sockets.folder())
        stack.enter_context(machine.environment(_environment(folder)))
        place = {"transport": "ipc", "ip": f"{folder}/kernel"} if short else {"transport": "tcp", "ip": "127.0.0.1"}
        config = Config({"KernelManager": place, "ConnectionFileMixin": place})
        settings = {"cwd": str(paths.home()), "progress_bar": False, "start_timeout": 300}
        settings["kernel_manager_class"] = _manager()
        # papermill would format the paths
        places = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, output)]
        papermill.execute_notebook(*places, parameters, config=config, **settings)


def _manager() -> type:
    """Return a manager of kernels that are always of the interpreter that runs this, whatever kernels are installed where."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    class Manager(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, display_name="fpbench", language="python")

    return Manager


def _environment(folder: Path) -> dict[str, str]:
    """Return what keeps the user's own settings of IPython and Matplotlib away from kernels, and what they write in a folder."""
    from fpbench.grid.forkserver import plain

    given = {"IPYTHONDIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder), "PYTHONSTARTUP": "", **plain()}
    try:
        with tempfile.TemporaryFile(dir=Path.home()) as probe:
            probe.write(bytes(1 << 20))
    except OSError:  # full or read-only: the cache of Matplotlib goes elsewhere
        given["MPLCONFIGDIR"] = str(folder)
    return given


def pass_on(number: int, _frame: object) -> None:
    """End the kernel by SIGTERM, wait for it, and exit."""
    for kernel in (kernels := psutil.Process().children()):
        kernel.terminate()
    psutil.wait_procs(kernels, GRACE)
    raise SystemExit(128 + number)
