"""What a user waits for first: ``import fpbench``, ``fpbench --help``, ``fpbench doctor`` (of the demo), each a new process.

    python benchmarks/start.py [--repeats 7]

CPU seconds of the process (user and system); on an idle machine they are the wall seconds. An empty Python beside it.
"""

import resource
import statistics
import subprocess
import sys
import time

from common import entry, parser, save

COMMANDS = {
    "import": ["-c", "import fpbench"],
    "help": ["-m", "fpbench.cli", "--help"],
    "doctor": ["-m", "fpbench.cli", "doctor"],
    "empty": ["-c", "pass"],
}


def children() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and write."""
    args = parser(__doc__, "start", repeats=7).parse_args()
    cpu, wall = ({name: [] for name in COMMANDS} for _ in range(2))
    for _ in range(args.repeats):
        for name, command in COMMANDS.items():
            spent, start = children(), time.perf_counter()
            subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
            cpu[name].append(children() - spent)
            wall[name].append(time.perf_counter() - start)
    titles = {"import": "import fpbench", "help": "fpbench --help", "doctor": "fpbench doctor"}
    found = []
    for name, title in titles.items():
        value, walls = statistics.median(cpu[name]), statistics.median(wall[name])
        found.append(entry(f"start_{name}", title, "CPU s", value, value=value, wall=walls))
        found[-1]["empty Python"] = statistics.median(cpu["empty"])
    save("start", args, found)


if __name__ == "__main__":
    main()
