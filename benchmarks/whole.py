"""The long commands, timed whole by hand: the demo from nothing, and ``make test``; and what the grid costs beyond its jobs.

    python benchmarks/whole.py demo [FOLDER] [--jobs 2]             about 6 minutes
    python benchmarks/whole.py read FOLDER --wall SECONDS           a demo that was timed by hand
    python benchmarks/whole.py test [--wall SECONDS]                15 to 25 minutes; or one that was timed by hand in a fresh clone

The overhead of the grid is that of a list scheduler: ``grid`` = wall x devices, without the times in which fewer jobs were ready
than devices, over the sum of the times of all jobs, minus 1. A job is a notebook, timed by papermill from its first cell to its
last; what it takes to start Python, the kernel, and Snakemake itself is overhead.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from common import FOLDER, entry, parser, save

from fpbench.files import paths


def jobs_of(folder: Path) -> list[tuple[float, float]]:
    """Return start and end of every executed notebook below a folder, seconds since the epoch."""
    found = []
    for path in sorted(folder.rglob("notebooks/*.ipynb")):
        facts = json.loads(path.read_text())["metadata"]["papermill"]
        found.append(tuple(datetime.fromisoformat(facts[name]).timestamp() for name in ("start_time", "end_time")))
    return found


def overhead(jobs: list[tuple[float, float]], wall: float, devices: int) -> dict[str, float]:
    """Return the sum of the jobs' times, the time that ran with less than ``devices`` jobs, and the overhead."""
    marks = sorted([(start, 1) for start, _ in jobs] + [(end, -1) for _, end in jobs])
    idle, running, last = 0.0, 0, marks[0][0]
    for moment, step in marks:
        idle += (moment - last) * max(devices - running, 0)
        running, last = running + step, moment
    total = sum(end - start for start, end in jobs)
    return {
        "jobs": len(jobs),
        "sum of jobs": total,
        "core-seconds without a job": idle,
        "plain": wall * devices / total - 1,
    }


def timed(command: list[str], **environment) -> float:
    """Return the wall seconds of a command that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=FOLDER.parent, env={**os.environ, **environment})
    return time.perf_counter() - start


def main() -> None:
    """Time and write."""
    made = parser(__doc__, "whole")
    made.add_argument("what", choices=["demo", "read", "test"])
    made.add_argument("folder", type=Path, nargs="?", help="results of a demo that has run")
    made.add_argument("--jobs", type=int, default=2)
    made.add_argument("--wall", type=float, help="of that demo or test, seconds")
    args = made.parse_args()
    found = []
    if args.what == "test":
        sample, wall = (paths.shared() / "data").is_dir(), args.wall or timed(["make", "test"])
        key, case = ("sample", "with the real sample") if sample else ("make_test", "without the real sample")
        found.append(entry(key, f"make test, {case}", "wall min", wall / 60, value=wall / 60))
    else:
        with tempfile.TemporaryDirectory() as folder:
            wall, place = args.wall, args.folder or Path(folder)
            if args.what == "demo":
                command = [sys.executable, "-m", "fpbench.cli", "run", "demo", "--jobs", str(args.jobs)]
                folders = {f"FPBENCH_{name.upper()}": str(place / name) for name in ("results", "cache", "data")}
                wall = timed(command, **folders)
            found.append(entry("demo", f"demo, {args.jobs} jobs at once", "wall min", wall / 60, value=wall / 60))
            facts = overhead(jobs_of(place), wall, args.jobs)
        case = (
            f"demo, {facts['jobs']} notebooks, {args.jobs} at once: wall x devices over the sum of notebooks, minus 1"
        )
        found.append(entry("grid", case, "share", facts["plain"], value=facts["plain"], **facts))
    save("whole", args, found)


if __name__ == "__main__":
    main()
