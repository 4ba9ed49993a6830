"""What this process may use and has used: threads, GPUs, bytes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def workers() -> int:
    """Return how many threads decode at once (Pillow frees the interpreter lock)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Return how many cores this process may use: those of its affinity, no more than its cgroup is granted."""
    import joblib

    return joblib.cpu_count()


def named_gpus() -> list[str]:
    """Return the GPUs that ``FPBENCH_GPUS`` names: numbers as nvidia-smi counts, or names of cards and MIG instances (GPU-..., MIG-...)."""
    return [name for one in os.environ.get("FPBENCH_GPUS", "").split(",") if (name := one.strip())]


def visible(names: list[str]) -> dict[str, str]:
    """Return the environment in which CUDA, as long as it has not started, sees some GPUs alone, in this order."""
    order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's; CUDA's own would begin with the fastest
    return {"CUDA_VISIBLE_DEVICES": ",".join(names), "CUDA_DEVICE_ORDER": order}


@contextmanager
def environment(given: dict[str, str]) -> Iterator[None]:
    """Set variables of this process's environment, which its children inherit, as long as the context lasts."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
