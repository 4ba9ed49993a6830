"""What every benchmark shares: how two things are timed side by side, and the JSON that ``report.py`` reads.

A script makes one row: some ``entry`` each (a case of the row: ours, the alternative, their ratio), then ``save``. Times are CPU
seconds of this process and its threads unless a case says "wall"; they are comparable on a busy machine, walls are not. Both
sides run alternately in one process, first one then the other first, and the median of the repeats counts. The load of the
machine stands in the JSON. One BLAS and torch thread unless a case says otherwise.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
PACKAGES = ("fpbench", "numpy", "scipy", "scikit-learn", "torch", "torchvision", "timm", "transformers", "pillow")
PACKAGES += ("opencv-python-headless",)


def parser(doc: str, row: str, repeats: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the options of every row."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help="of each side; medians count")
    made.add_argument("--threads", type=int, default=1, help="of BLAS and torch")
    made.add_argument("--out", type=Path, default=RESULTS / f"{row}.json", help="where the figures go")
    return made


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Give BLAS, OpenMP, OpenCV and torch this many threads."""
    import cv2
    import torch
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        yield
    torch.set_num_threads(before)


def device():
    """Return the GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Let the GPU finish."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> Callable[[], float]:
    """Return the clock for work on ``device()``: CPU seconds, or wall seconds where a GPU works."""
    return time.perf_counter if device().type == "cuda" else time.process_time


def seconds(call: Callable, clock: Callable[[], float] = time.process_time) -> float:
    """Return the seconds of one call."""
    start = clock()
    call()
    return clock() - start


def alternate(calls: dict[str, Callable], repeats: int, clock: Callable[[], float] = time.process_time) -> dict:
    """Return the seconds of every repeat of each call, {name: [seconds]}; every second round runs backwards."""
    times = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: -1 if repeat % 2 else 1]:
            times[name].append(seconds(calls[name], clock))
            print(f"  round {repeat + 1}: {name} {times[name][-1]:.3f} s", flush=True)
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def entry(key: str, case: str, unit: str, ours: float, alternative: float | None = None, **more) -> dict:
    """Return one case of a row, and print it.

    ``key`` is what a goal in ``rows.yaml`` refers to. ``value``, that a goal is about, is given, or is the ratio: how many
    times cheaper ours is (``unit`` is a cost) or faster (``rate=True``: ``unit`` is a rate). ``scaled`` says "n of N".
    """
    rate = more.pop("rate", False)
    made = {"key": key, "case": case, "unit": unit, "ours": ours, "alternative": alternative, **more}
    if "value" not in made:
        made["value"] = None if alternative is None else (ours / alternative if rate else alternative / ours)
    print(f"{key}: {case}: ours {ours:.4g}, alternative {alternative}, value {made['value']} ({unit})", flush=True)
    return made


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict:
    """Return what ran this: processor, cores, GPU if torch was used and sees one, load averages (1, 5, 15 minutes)."""
    import torch

    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine(),
        "cores": cores,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def save(row: str, options: argparse.Namespace, entries: list[dict], **more) -> None:
    """Write a row's JSON; entries of an older file whose keys were not measured now stay, with their own date."""
    now = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), "versions": versions()}
    settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    fresh = [{**one, "settings": settings, **now} for one in entries]
    path = options.out
    old = json.loads(path.read_text())["entries"] if path.exists() else []
    names = {(one["key"], one["case"]) for one in fresh}
    kept = [one for one in old if (one["key"], one["case"]) not in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"row": row, **more, "entries": kept + fresh}, indent=1, default=str)
    path.write_text(text + "\n")
    print(f"written: {path}")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder that is gone afterwards, and let the cache of fpbench lie in it."""
    before = os.environ.get("FPBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FPBENCH_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("FPBENCH_CACHE")
            if before is not None:
                os.environ["FPBENCH_CACHE"] = before


def sample_files(limit: int | None = None) -> tuple[list[Path], str]:
    """Return real pictures below FPBENCH_SHARED, else phantom ones, and what they are."""
    from fpbench.files import paths

    real = sorted((paths.shared() / "data" / "spain").rglob("*.png"))
    real = real[:limit]
    if real:
        return real, f"{len(real)} real Spanish pictures at half size"
    from fpbench import load_study

    home, _ = load_study("demo").begin().load_cohorts()
    files = [Path(path) for path in home.frame["path"][:limit]]
    return files, f"{len(files)} phantom pictures"
