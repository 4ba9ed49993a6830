"""The GPUs of one machine, leased one by one: a job that computes with an encoder holds one until it ends or dies."""

import os
import tempfile
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from fpbench.files import machine, sharing


def devices() -> list[str]:
    """Return the GPUs to share out here: ``FPBENCH_GPUS``, else all that are visible if several are; under Slurm, those of its job."""
    if named := machine.named_gpus():
        return named
    cards = [] if "SLURM_JOB_ID" in os.environ else Path("/dev").glob("nvidia[0-9]*")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(str(number) for number, _ in enumerate(cards)))
    names = [name for name in visible.split(",") if name]
    return names if len(names) > 1 else []


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
    named = machine.named_gpus()
    job = "" if named else os.environ.get("SLURM_JOB_ID", "")  # it may count those of every job from 0
    ours = {name: f"gpu-{job}-{name.replace('/', '-')}" for name in names}  # MIG-GPU-.../1/0
    files = [(name, folder / f"{ours[name]}.{seat}.lock") for seat in seats for name in names]
    while (found := next(((name, one) for name, file in files for one in _take(stack, file)), None)) is None:
        time.sleep(0.5)
    mine = found[0] if found[1] is not None else names[os.getpid() % len(names)]
    own = machine.visible([mine]) | ({"FPBENCH_GPUS": mine} if named else {})
    stack.enter_context(machine.environment(own))  # of the kernel too
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
