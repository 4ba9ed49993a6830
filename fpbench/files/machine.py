"""What this process may use and has used: threads, bytes."""

import os
import sys


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
