"""The whole study at the paper's size before the real pictures are there: minutes and memory of every job, through the real front.

    python benchmarks/rehearsal.py --folder FOLDER [--pictures 12850] [--jobs 2]        about 20 GB, and an hour
    python benchmarks/rehearsal.py --folder FOLDER --pictures 1500                      a share of the same proportions
    python benchmarks/rehearsal.py --folder FOLDER --pictures 120 --jobs 1 2            once each; the predictions must be the same bytes

The pictures are ``stand_in``'s. The seven encoders take them as the paper's do (geometry, side, mean, SD); behind that a pooling brings
them to the side of the demo's miniatures, so that decoding, caches, hashes, probes and statistics have their true size and the
networks none. ``--largest`` bounds the sides: a cache of 1,024 pixels a side takes 14 GB.

``fpbench run`` starts from nothing (the archives are there), first without fine-tuning: the goal is about this. Then it goes on with
two encoders fine-tuned. Every second the processes of the run are looked at, each job and its kernel apart: ``own`` memory is
what they hold of their own (what forks share is divided among them), ``mapped`` the pages of files that the system may take back.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import stand_in
import yaml
from common import FOLDER, entry, parser, save

from fpbench import load_study
from fpbench.encoders.catalogue import CATALOGUE, PAPER
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.grid.jobs import jobs

PAUSE = 1.0  # seconds between two looks, which take some hundredths
WHOLE = 12_850  # pictures of the paper
TUNED = ("resnet50", "usfm")
EXTENSION = '''"""Stand-in cohorts, and the miniatures of the demo that take pictures as the paper's encoders do."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from fpbench import load_encoder, register_cohort, register_encoder
from fpbench.cohorts import africa, spain
from fpbench.encoders.catalogue import CATALOGUE, PAPER

HELD = json.loads((Path(__file__).parent / "archive" / "stand-in.json").read_text())
for source in (spain.SOURCE, africa.SOURCE):
    counts = {{"total": HELD[source.name]}}
    drawn = replace(source, name="stand-in-" + source.name, title="Stand-in of " + source.title, label="stand-in")
    register_cohort(replace(drawn, counts=counts, csv_sha256="", archive=None))


def small(name):
    from torch import nn

    encoder = load_encoder(name + "-mini", "random")
    return nn.Sequential(nn.AdaptiveAvgPool2d(encoder.geometry.size), encoder.module)


for one in map(CATALOGUE.get, PAPER):
    shape = replace(one.geometry, size=min(one.geometry.size, {largest}))
    register_encoder("pooled_" + one.name, partial(small, one.name), shape, 0, one.mean, one.std)
'''


def prepare(folder: Path, names: list[str], tuned: list[str], epochs: int, largest: int) -> Path:
    """Write the study with its extension beside the archives; return the study."""
    extension = folder / "stand_ins.py"
    extension.write_text(EXTENSION.format(largest=largest))
    content = {
        "name": "rehearsal",
        "title": "Stand-in pictures of the paper's counts and sizes",
        "label": "drawn pictures, miniature encoders with random weights; not evidence",
        "threads": 1,
        "device": "cpu",
        "extensions": [str(extension)],
        "probes": ["logistic", "ridge", "knn", "sgd"],
        "recipe": {
            "epochs": max(1, epochs),
            "patience": max(1, epochs),
            "batch": 64,
            "rates": [0.002],
            "layer_decay": 1.0,
        },
        "cohorts": [
            {"name": f"stand-in-{name}", "root": str(folder / "archive" / name)} for name in ("spain", "africa")
        ],
        # as in studies/paper.yaml, smaller batches of the largest pictures
        "encoders": [
            {
                "name": f"{name}-mini",
                "model": f"pooled_{name}-mini",
                "weights": "random",
                "batch_size": 8 if name == "ultrasam" else 32,
            }
            for name in names
        ],
        "full": [f"{name}-mini" for name in tuned],
    }
    (file := folder / "rehearsal.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return file


@dataclass
class Use:
    """What processes used: the most memory at one time, processor time so far."""

    own: float = 0.0  # GiB that they hold of their own; what forks share is divided among them
    mapped: float = 0.0  # GiB of pages of files, which the system may take back
    cpu: float = 0.0  # seconds

    def then(self, now: "Use") -> "Use":
        """Return what was used up to a later look."""
        return Use(*(max(getattr(self, one.name), getattr(now, one.name)) for one in fields(self)))


def looked(process: psutil.Process) -> Use:
    """Return what one process uses now; nothing if it has just ended."""
    with suppress(OSError, psutil.Error):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        held = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}
        return Use(held["Pss_Anon"], held["Pss"] - held["Pss_Anon"], sum(process.cpu_times()[:2]))
    return Use()


def family(number: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    with suppress(psutil.Error):
        return [process := psutil.Process(number), *process.children(recursive=True)]
    return []


def looks(running: subprocess.Popen, folder: Path) -> Iterator[dict[str, Use]]:
    """Yield what a run uses, as long as it lasts: the whole (``""``), and every job that is at work."""
    while running.poll() is None:
        seen = {process.pid: looked(process) for process in family(running.pid)}
        parts = {"": list(seen)}
        for note in (folder / "progress").glob("*.json"):
            with suppress(OSError, ValueError):  # the job has just ended
                parts[note.stem] = [process.pid for process in family(json.loads(note.read_text())["pid"])]
        for name, numbers in parts.items():
            found = [seen.get(number, Use()) for number in numbers]
            parts[name] = Use(*(sum(getattr(one, what.name) for one in found) for what in fields(Use)))
        yield parts
        time.sleep(PAUSE)


def run(study: Path, place: Path, workers: int) -> tuple[float, dict[str, Use]]:
    """Run the study as a user does, results and cache in ``place``; return wall minutes, and what each job used at most."""
    command = [sys.executable, "-m", "fpbench.cli", "run", str(study), "--jobs", str(workers)]
    folders = {"FPBENCH_RESULTS": str(place), "FPBENCH_CACHE": str(place / "cache")}
    most: dict[str, Use] = {}
    start = time.perf_counter()
    running = subprocess.Popen(command, cwd=FOLDER.parent, env={**os.environ, **folders})
    try:
        for look in looks(running, place / "rehearsal"):
            most |= {name: most.get(name, Use()).then(now) for name, now in look.items()}
    finally:
        running.terminate()  # it ends with us
    if running.returncode:
        where = place / "rehearsal" / "notebooks"
        raise SystemExit(
            f"{' '.join(command)} ended with {running.returncode}: expected 0; its notebooks lie in {where}"
        )
    return (time.perf_counter() - start) / 60, most


def minutes(study: Path, place: Path) -> dict[str, float]:
    """Return the minutes of every job that has ended, as the grid has noted them."""
    os.environ["FPBENCH_RESULTS"] = str(place)
    return {name: job.record["seconds"] / 60 for name, job in jobs(load_study(study)).items() if job.record}


def check_room(folder: Path, pictures: int, encoders: list[str], runs: int, largest: int) -> None:
    """Raise InputError unless archives and the picture caches of some runs have room on the disk."""
    sides = [min(CATALOGUE[name].geometry.size, largest) for name in PAPER if name in encoders]
    wanted, free = pictures * (stand_in.BYTES + runs * sum(side**2 for side in sides)), shutil.disk_usage(folder).free
    if free < wanted:
        how = "name another --folder, or a smaller --largest"
        raise InputError(f"expected {wanted / 1e9:,.0f} GB free in {folder}, found {free / 1e9:,.0f}: {how}")


def answers(place: Path) -> dict[str, str]:
    """Return the SHA-256 of every predictions file."""
    found = sorted(place.rglob("*.parquet"))
    return {str(path.relative_to(place)): artifacts.file_sha256(path) for path in found if "cache" not in path.parts}


def rehearse(args, workers: int, held: dict) -> list[dict]:
    """Run the study, first without fine-tuning; return the cases."""
    place, what = args.folder / f"results-{workers}", f"{held['pictures']:,} pictures, {workers} at once"
    if place.exists():
        raise SystemExit(f"expected no {place}, for a rehearsal starts from nothing: delete it, or name another folder")
    key = "rehearsal" if held["pictures"] == WHOLE else "rehearsal_part"
    study = prepare(args.folder, args.encoders, [], args.epochs, args.largest)
    wall, most = run(study, place, workers)
    whole, about = most[""], {"largest": args.largest, "encoders": len(args.encoders)}
    held_most = entry(
        f"{key}_memory", f"own memory of all processes, {what}", "GiB", whole.own, value=whole.own, mapped=whole.mapped
    )
    found = [entry(key, f"all but fine-tuning, {what}", "wall min", wall, value=wall, **about), held_most]
    first, tuned = minutes(study, place), [name for name in TUNED if name in args.encoders]
    if args.epochs and tuned:
        wall, more = run(prepare(args.folder, args.encoders, tuned, args.epochs, args.largest), place, workers)
        case = f"then {len(tuned)} fine-tuned for {args.epochs} epochs, {what}"
        found.append(entry(f"{key}_tuned", case, "wall min", wall, value=wall))
        most = more | most
    for name, spent in (minutes(study, place) | first).items():
        used = most.get(name, Use())  # none: shorter than the time between two looks
        facts = {"value": used.own, "mapped": used.mapped, "cpu_minutes": used.cpu / 60}
        found.append(
            entry(f"{key}_job", f"job {name}, {what}: minutes; value: GiB of its own", "wall min", spent, **facts)
        )
    return found


def main() -> int:
    """Draw, run, compare, write."""
    made = parser(__doc__, "rehearsal", repeats=1)
    made.add_argument(
        "--folder", type=Path, required=True, help="for archives and results; archives that are there are used again"
    )
    made.add_argument("--pictures", type=int, default=WHOLE)
    made.add_argument(
        "--jobs", type=int, nargs="+", default=[2], help="notebooks at once; several: one run each, the bytes compared"
    )
    made.add_argument("--encoders", nargs="+", default=list(PAPER))
    made.add_argument("--epochs", type=int, default=3, help="of fine-tuning; 0: none")
    made.add_argument("--largest", type=int, default=1024, help="side of a picture, pixels")
    made.add_argument("--before", type=Path, help="what an earlier rehearsal wrote, to stand beside this one")
    args = made.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    check_room(args.folder, args.pictures, args.encoders, len(args.jobs), args.largest)
    start = time.perf_counter()
    held = stand_in.make(args.folder / "archive", args.pictures)
    print(f"archives: {held}, {time.perf_counter() - start:.0f} s", flush=True)
    found = [one for workers in args.jobs for one in rehearse(args, workers, held)]
    before = json.loads(args.before.read_text())["entries"] if args.before else []
    known = {one["case"]: one["ours"] for one in before}
    found = [one | {"alternative": known.get(one["case"])} for one in found]
    bytes_of = {workers: answers(args.folder / f"results-{workers}") for workers in args.jobs}
    same = all(one == bytes_of[args.jobs[0]] for one in bytes_of.values())
    files = len(bytes_of[args.jobs[0]])
    if len(args.jobs) > 1:
        print(
            f"{files} predictions files, {' and '.join(map(str, args.jobs))} jobs at once: {'the same bytes' if same else 'OTHER BYTES'}"
        )
    args.out.unlink(missing_ok=True)  # one rehearsal stands in the table
    save("rehearsal", args, found, archive=held, predictions={"files": files, "same": same, "jobs": args.jobs})
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
