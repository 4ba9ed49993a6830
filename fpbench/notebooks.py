"""Executing the numbered notebooks with papermill, each in a process of its own, without network ports.

A job that computes with an encoder holds one GPU of its host (``lease``). SIGTERM and SIGINT are passed on to the kernel, which
saves a checkpoint if it trains (``finetuning.interruptible``), and are obeyed when it has ended.
"""

import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fpbench import artifacts, paths
from fpbench.errors import InputError, MissingError
from fpbench.study import load_study, plain_yaml

COMPUTING = ("03", "04", "05", "08", "09")  # the notebooks that load an encoder
# what takes long to import: for every notebook, and for those
EVERY = ("papermill", "ipykernel.kernelapp", "matplotlib.backends.backend_pdf", "fontTools.subset", "fpbench.figures")
COMPUTING_TOO = ("torch", "fpbench.finetuning", "fpbench.inspection", "timm", "fpbench.encoders.open_clip", "peft")
GRACE = 600  # seconds for a kernel to save its checkpoint; a scheduler's own patience is shorter
# jsonschema would compile a grammar of web addresses: 2 s for nothing
sys.modules.setdefault("rfc3987_syntax", None)


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
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fpbench"))
        try:
            with tempfile.TemporaryFile(dir=Path.home()) as probe:
                probe.write(bytes(1 << 20))
        except OSError:  # full or read-only: the caches of IPython and Matplotlib go elsewhere
            os.environ.update(IPYTHONDIR=folder, MPLCONFIGDIR=folder)
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        config = Config({"KernelManager": sockets, "ConnectionFileMixin": sockets})
        settings = {"cwd": str(paths.REPOSITORY), "progress_bar": False, "start_timeout": 300}
        # papermill would format the paths
        places = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, output)]
        papermill.execute_notebook(*places, parameters, config=config, **settings)


def devices() -> list[str]:
    """Return the GPUs to share out here: ``FPBENCH_GPUS``, else all that are visible if several are; none under Slurm, which does it."""
    visible = ",".join(str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))
    named = os.environ.get("FPBENCH_GPUS")
    names = [name for name in (named or os.environ.get("CUDA_VISIBLE_DEVICES", visible)).split(",") if name]
    return names if (named or len(names) > 1) and "SLURM_JOB_ID" not in os.environ else []


def lease(stack: ExitStack, names: list[str], log: Path, title: str) -> None:
    """Hold the first free one of some GPUs until the stack closes, and see no other; wait while all are held; note both ends in the log.

    The locks lie in the host's own temporary folder (a network file system may grant a lock to everyone); the system frees them when
    their holder dies. ``FPBENCH_GPUS_SHARE`` is how many jobs may hold one GPU at once: one, unless it says more.
    """
    folder = Path(tempfile.gettempdir()) / f"fpbench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seats = range(int(os.environ.get("FPBENCH_GPUS_SHARE", 1)))
    locks = [(name, FileLock(folder / f"gpu-{name}.{seat}.lock")) for seat in seats for name in names]
    while (mine := next((pair for pair in locks if _take(pair[1])), None)) is None:
        time.sleep(0.5)
    # a second notebook of this process finds the names, though it sees one device
    os.environ.update(CUDA_VISIBLE_DEVICES=mine[0], FPBENCH_GPUS=",".join(names))
    stack.callback(mine[1].release)
    words = f"device {mine[0]} (pid {os.getpid()}, {title})"
    _note(log, f"leased {words}")
    stack.callback(_note, log, f"returned {words}")


def _take(lock: FileLock) -> bool:
    with suppress(Timeout):
        lock.acquire(blocking=False)
    return lock.is_locked


def _note(log: Path, words: str) -> None:
    with open(log, "a") as handle:
        handle.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {words}\n")


def pass_on(number: int, _frame) -> None:
    """End the kernel by SIGTERM, wait for it, and exit."""
    for kernel in (kernels := psutil.Process().children()):
        kernel.terminate()
    psutil.wait_procs(kernels, GRACE)
    raise SystemExit(128 + number)
