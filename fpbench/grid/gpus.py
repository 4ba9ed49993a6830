"""The GPUs of one machine, leased one by one: a job that computes with an encoder holds one until it ends or dies."""

import os
import tempfile
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from fpbench.files import sharing


def devices() -> list[str]:
    """Return the GPUs to share out here: ``FPBENCH_GPUS``, else all that are visible if several are; none under Slurm, which does it."""
    visible = ",".join(str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))
    named = os.environ.get("FPBENCH_GPUS")
    names = [name for name in (named or os.environ.get("CUDA_VISIBLE_DEVICES", visible)).split(",") if name]
    return names if (named or len(names) > 1) and "SLURM_JOB_ID" not in os.environ else []


def lease(stack: ExitStack, names: list[str], log: Path, title: str) -> None:
    """Hold the first free one of some GPUs until the stack closes, and see no other; wait while all are held; note both ends in the log.

    The locks lie in the host's own temporary folder (a network file system may grant a lock to everyone); the system frees them when
    their holder dies. ``FPBENCH_GPUS_SHARE`` is how many jobs may hold one GPU at once: one, unless it says more. Where there are no
    locks, jobs are spread by the numbers of their processes.
    """
    folder = Path(tempfile.gettempdir()) / f"fpbench-{os.getuid()}"
    with suppress(OSError):  # then there are no locks, and it is said
        folder.mkdir(mode=0o700, exist_ok=True)
    seats = range(int(os.environ.get("FPBENCH_GPUS_SHARE", 1)))
    files = [(name, folder / f"gpu-{name}.{seat}.lock") for seat in seats for name in names]
    while (found := next(((name, one) for name, file in files for one in _take(stack, file)), None)) is None:
        time.sleep(0.5)
    mine = found[0] if found[1] is not None else names[os.getpid() % len(names)]
    # a second notebook of this process finds the names, though it sees one device
    os.environ.update(CUDA_VISIBLE_DEVICES=mine, FPBENCH_GPUS=",".join(names))
    words = f"device {mine} (pid {os.getpid()}, {title})"
    _note(log, f"leased {words}")
    stack.callback(_note, log, f"returned {words}")


def _take(stack: ExitStack, file: Path) -> list[int | None]:
    """Return the handle of a lock (None: there are no locks), held until the stack closes; nothing if another process holds it."""
    with suppress(sharing.Held):
        return [stack.enter_context(sharing.hold(file, 0))]
    return []


def _note(log: Path, words: str) -> None:
    with open(log, "a", encoding="utf-8") as handle:
        handle.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {words}\n")
