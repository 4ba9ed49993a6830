"""Break a run in every way that a server breaks one, run it again, and compare every byte with a run that nobody broke.

A micro grid (two miniature encoders, two folds, linear probing and full fine-tuning, three epochs) goes through the real front:
`fpbench run`, Snakemake, papermill, kernels. With `--level library` the same steps are called without them, in processes forked
from this one: nothing is imported anew, so a fault takes seconds instead of minutes of a busy processor; it tries files, caches,
locks and checkpoints, not the front. The grid runs once whole: the reference. Then, for every fault:

state   a copy of the reference, in which one job (drawn from the seven, a training twice as often) has lost its outputs, in one
        of three cases its twin of the other encoder too, and in half of the cases the cache of pictures and embeddings is empty
strike  when the processes have used the share u (uniform in 0..1) of the processor time that this job took in the reference
again   the same command once more, at once, while what survived the strike may still be alive; a full or read-only disk is
        given back first. It goes up to the job, in the share --tables of the faults up to Table 1. A job that failed for a
        full disk is not asked anything else.

recovered: the second run ends with exit code 0; predictions, tables, splits, tuned weights and cached arrays that are there have
the bytes of the reference; no process is left, and no temporary file after the next write in its folder; what was damaged has its old bytes again or, where nothing
had to read it, is refused by the reader; of every training at most one epoch was begun again (for a damaged checkpoint: one
finished epoch and the one that was broken off; a damaged finished model is trained anew, of course). Otherwise it is lost.

    python benchmarks/faults.py --faults 100 --seed 0 --json benchmarks/faults.json
"""

import argparse
import ctypes
import fcntl
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from ipykernel.parentpoller import ParentPollerUnix

from fpbench import load_study, loading, make_splits, predictions, results
from fpbench.analysis import scoring
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.reporting import tables
from fpbench.splits import load_splits, prove_disjoint
from fpbench.study import Study
from fpbench.training import probing, tuning
from fpbench.training.bench import conclude, open_bench

STUDY = """
name: micro
title: A micro grid
label: phantom images, miniature encoders with random weights; not evidence
extensions: ["{folder}/micro.py"]
folds: 2
threads: 1
probes: [logistic]
full: [{names}]
recipe: {{epochs: 3, patience: 3, batch: 16, rates: [0.003], drop_path: 0.0, layer_decay: 1.0}}
cohorts: [{{name: micro-spain}}, {{name: micro-africa}}]
encoders:
  - {{name: resnet50-mini, model: resnet50-mini, weights: random}}
  - {{name: usfm-mini, model: usfm-mini, weights: random}}
"""
EXTENSION = '''"""Small phantom cohorts, and a note of every epoch that is begun or finished."""

import os
from dataclasses import replace
from functools import partial

from fpbench.cohorts import phantoms, register_cohort
from fpbench.cohorts.phantoms import layout
from fpbench.training import tuning

for whole, kind, patients in zip(phantoms.SOURCES, ("spain", "africa"), (20, 2), strict=True):
    draw = layout.spain_entries if kind == "spain" else layout.africa_entries
    small = replace(whole, name=f"micro-{kind}", counts=layout.counts(draw(patients=patients)))
    prepare = partial(phantoms.ensure, kind=kind, patients=patients)
    register_cohort(replace(small, prepare=prepare, prepared=lambda root: False))

tune = tuning._tune


def noted(*arguments):
    from fpbench.training.finetuning import Trainer

    train = Trainer.train_epoch

    def epoch(trainer, *rest):
        for word in ("begun", "done"):
            with open(os.environ["FAULTS_EPOCHS"], "a") as handle:
                handle.write(f"{word} {trainer.folder} {trainer.state.epoch}\\n")
            speed = train(trainer, *rest) if word == "begun" else speed
        return speed

    Trainer.train_epoch = epoch
    try:
        return tune(*arguments)
    finally:
        Trainer.train_epoch = train


tuning._tune = noted
'''
NO_FLOCK = "import fcntl\n\nfcntl.flock = lambda *_: None\n"  # some network file systems grant every lock to everyone
ENCODERS = ("resnet50-mini", "usfm-mini")
TABLE = "tables/table1.csv"
MADE = (
    "table1",
    "intervals",
    "comparisons",
    "claims",
    "public",
    "gain",
    "all_metrics",
    "duplicates",
    "per_class",
)  # by 06
JOBS = {  # name: what it is asked for, what else it leaves
    "01_cohorts": ["cohorts.json"],
    "02_splits": ["splits.csv", "splits.json"],
    **{f"04_linear_probing {e}": [f"predictions/{e}/probing.json", f"predictions/{e}/logistic"] for e in ENCODERS},
    **{
        f"05_fine_tuning {e}": [f"predictions/{e}/full.json", f"predictions/{e}/full", f"finetuning/{e}"]
        for e in ENCODERS
    },
    "06_benchmark": [TABLE, *(f"tables/{name}.*" for name in MADE)],
}
FLIPS = {  # kind: the files of which one gets a changed bit, the jobs that read them, what is missing besides
    "flip-images": ("cache/images/*.*", "04", ["cache/embeddings"]),
    "flip-scan": ("cache/scans/*.*", "0", []),
    "flip-fingerprint": ("cache/fingerprints/*.json", "04", []),
    "flip-embeddings": ("cache/embeddings/*.*", "04", []),
    "flip-checkpoint": ("micro/finetuning/**/last.pt", "05", []),
    "flip-best": ("micro/finetuning/**/best.*", "05", []),
    "flip-predictions": ("micro/predictions/**/*.*", "", []),
    "flip-splits": ("micro/splits.*", "", []),
    "flip-table": ("micro/tables/table1.[cj]s*", "", []),
    "flip-record": ("micro/jobs/0*.json", "", []),
}
KILLS = ("kill-driver", "kill-job", "kill-kernel")
DISKS = ("disk-full", "read-only")
TWINS = ("two-drivers", "no-flock")
KINDS = (*KILLS, *KILLS, *DISKS, *TWINS, *FLIPS)  # each is drawn as often as it stands here
SIGNS = ("another run is at work", "damaged", "digest does not match", "made again", "No space left", "Read-only file system",
         "not a file written by fpbench", "Kernel died", "Killed", "is not on record")  # fmt: skip


class Forked:
    """A process forked from this one, with the methods of a Popen that are used here."""

    def __init__(self, name: str, log: Path, work, *arguments) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(name, log, work, arguments))
        self.process.start()
        self.pid = self.process.pid

    def _run(self, name: str, log: Path, work, arguments: tuple) -> None:
        ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME: 15 letters
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        try:
            code = work(*arguments) or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        """Return the exit code."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return the exit code."""
        self.process.join(timeout)
        return self.process.exitcode


def unsound(study) -> list[Path]:
    """Return the outputs of jobs that are damaged or rest on a predictions file that is; the real driver asks its records."""
    outputs = [study.folder / name for name in ("splits.csv", "tables/table1.csv")]
    found = [path for path in outputs if path.is_file() and not artifacts.whole(path)]
    for path in sorted((study.folder / "predictions").glob("*/*.json")):
        try:
            done = artifacts.read_json(path)["files"].items()
        except InputError:
            done = [("damaged", "")]
        if any(artifacts.whole(study.folder / name).get("sha256") != sha for name, sha in done):
            found.append(path)
    return found


def drive(file: Path, targets: list[str], flock: bool, env: dict[str, str], log: Path) -> int:
    """Do what `fpbench run` does: the jobs that the targets need and that are not done, those of one notebook at once."""
    os.environ.update(env)
    if not flock:
        fcntl.flock = lambda *_: None
    study = load_study(file)
    with artifacts.lock(study.folder / "run", timeout=0):
        again = {path.relative_to(study.folder).as_posix() for path in unsound(study)}
        if again:
            print("made again:", *again, flush=True)
        todo: list[str] = []
        for job in JOBS:  # in an order in which each comes after what it needs
            missing = not (study.folder / JOBS[job][0]).is_file() or JOBS[job][0] in again
            if any(needs(target, job) for target in targets) and (missing or any(needs(JOBS[job][0], x) for x in todo)):
                todo.append(job)
        for notebook in dict.fromkeys(job.split()[0] for job in todo):
            jobs = [job for job in todo if job.split()[0] == notebook]
            running = [Forked(job.replace(notebook, notebook[:2]), log, do, study, job) for job in jobs]
            if any([one.wait() for one in running]):  # noqa: C419  waits for all of them
                return 1
    return 0


def needs(target: str, job: str) -> bool:
    """Return whether a target is made by a job, or needs what it makes."""
    maker = next(name for name in JOBS if JOBS[name][0] == target)
    same = job.split()[1:] in ([], maker.split()[1:]) or maker == "06_benchmark"
    return same and job.split()[0] <= maker.split()[0]


def do(study: Study, job: str) -> None:
    """Do what a notebook does, without its prose, figures and statistics."""
    ParentPollerUnix(os.getppid()).start()
    notebook, encoder = (*job.split(), "")[:2]
    study.begin()
    home, external = loading.load_cohorts(study)
    if notebook == "01_cohorts":
        about = {cohort.name: {"digest": cohort.fingerprint()} for cohort in (home, *external)}
        artifacts.write_json(study.folder / "cohorts.json", about)
    elif notebook == "02_splits":
        splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
        prove_disjoint(splits, home, external)
        splits.save(study.folder / "splits.csv")
    elif notebook == "06_benchmark":
        scores = scoring.evaluate(predictions.read(results.files(study), study.the_task), study.the_task)
        tables.save(scoring.summarise(scores), study, "table1", "Macro F1")
    else:
        bench = open_bench(study, encoder, home, external, load_splits(study.folder / "splits.csv", home))
        if notebook == "04_linear_probing":
            conclude(study, encoder, "probing", probing.run_probe(bench, "logistic"))
        else:
            files = tuning.run_finetuning(bench, "full")
            print(len(tuning.histories(bench, "full")), len(tuning.movements(bench, "full", files)))
            conclude(study, encoder, "full", files)


class Grid:
    """The micro grid in a folder of its own: how it is run, and the reference."""

    def __init__(self, work: Path, name: str, level: str) -> None:
        self.work, self.whole, self.trial, self.level = work, work / f"whole.{level}", work / name, level
        self.study, self.shims = work / "micro.yaml", work / "shims"
        self.shims.mkdir(parents=True, exist_ok=True)
        (work / "micro.py").write_text(EXTENSION)
        self.study.write_text(STUDY.format(folder=work, names=", ".join(ENCODERS)))
        (self.shims / "sitecustomize.py").write_text(NO_FLOCK)

    def start(self, root: Path, targets: list[str], log: Path, flock: bool = True, results: str = "") -> psutil.Popen:
        """Start `fpbench run` on the results and the cache in a folder."""
        env = os.environ | {"FPBENCH_RESULTS": str(root / results), "FPBENCH_CACHE": str(root / "cache")}
        env |= {"FPBENCH_DATA": str(self.work / "data"), "FAULTS_EPOCHS": str(root / "epochs"), "HF_HUB_OFFLINE": "1"}
        shims = [] if flock else [str(self.shims)]
        env |= {paths.HOME: str(clone := paths.PACKAGE.parent)}
        env["PYTHONPATH"] = os.pathsep.join([*shims, str(clone), *env.get("PYTHONPATH", "").split(os.pathsep)])
        wanted = [str(root / results / "micro" / target) for target in targets]
        if self.level == "library":
            return Forked("faults-driver", log, drive, self.study, targets, flock, env, log)
        command = [sys.executable, "-m", "fpbench.cli", "run", str(self.study), "--jobs", "2", "--", *wanted]
        with open(log, "a") as handle:
            return psutil.Popen(command, env=env, stdout=handle, stderr=handle, start_new_session=True)

    def reference(self) -> dict:
        """Return what the uninterrupted run took: seconds, and processor seconds of every job; run it if it is not there."""
        facts = self.work / f"reference.{self.level}.json"
        if not facts.is_file():
            shutil.rmtree(self.whole, ignore_errors=True)
            self.whole.mkdir()
            began, log, used = time.perf_counter(), self.work / f"reference.{self.level}.log", {}
            process = self.start(self.whole, [TABLE], log)
            while process.poll() is None:
                for pid, (job, seconds) in work_of(family(process)).items():
                    before = used.get(pid, (job,))[0]  # a kernel outlives its job by a moment
                    used[pid] = (before if job == "driver" else job, seconds)
                time.sleep(0.05)
            if process.returncode:
                raise SystemExit(f"the micro grid does not run:\n{log.read_text()[-4000:]}")
            jobs = Counter()
            for job, seconds in used.values():
                jobs[job] += seconds
            facts.write_text(json.dumps({"seconds": time.perf_counter() - began, "processor seconds": jobs}))
        return json.loads(facts.read_text())


def family(process: psutil.Popen | Forked) -> list[psutil.Process]:
    """Return a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]
    return []


def words(process: psutil.Process) -> str:
    """Return name and command line of a process, or nothing if it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            return " ".join([process.name(), *process.cmdline()])
    return ""


def part_of(process: psutil.Process) -> str:
    """Return what a process is: the name of a job, kernel, driver, or nothing of these."""
    line = words(process)
    if line[:1] == "0":  # a fork bears the name of its job, and so does the kernel that is forked from it
        number, _, encoder = (name := line.partition(" /")[0]).partition(" ")
        with suppress(psutil.NoSuchProcess):
            if words(process.parent()).startswith(f"{name} /"):
                return "kernel"
        return next((job for job in JOBS if job[:2] == number and (job.partition(" ")[2].startswith(encoder))), "")
    if any(
        mark in line for mark in ("faults-driver", "fpbench.cli run", "-m snakemake", "fpbench.grid.forkserver serve")
    ):
        return "driver"
    if "fpbench.grid.forkserver" in line:
        return " ".join(map("".join, re.findall(r" notebook (\w+)|encoder=(\S+)", line)))
    return "kernel" if "ipykernel_launcher" in line else ""


def job_of(process: psutil.Process) -> str:
    """Return the job that a process works for, or ``driver``."""
    with suppress(psutil.NoSuchProcess):
        part = part_of(process)
        part = part_of(process.parent()) if part == "kernel" else part
        return part if part in JOBS else "driver"
    return "driver"


def work_of(processes: list[psutil.Process]) -> dict[int, tuple[str, float]]:
    """Return job and processor seconds of every process that lives."""
    found = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if words(process):
                found[process.pid] = (job_of(process), sum(process.cpu_times()[:2]))
    return found


class Fault:
    """One fault: drawn, struck, repaired, judged."""

    def __init__(self, grid: Grid, number: int, seed: int, kind: str, tables: float) -> None:
        self.grid, self.kind, self.rng = grid, kind, np.random.default_rng([seed, number])
        rng = self.rng
        reads = FLIPS.get(kind, ("", "0", []))[1]
        names = [job for job in JOBS if reads and job.startswith(reads)]
        names += [job for job in names if job.startswith("05")]
        self.jobs = [str(rng.choice(names))] if names else []
        if self.jobs and " " in self.jobs[0] and rng.random() < 1 / 3:
            self.jobs = [job for job in JOBS if job.split()[0] == self.jobs[0].split()[0]]
        self.fresh = bool(rng.random() < 0.5) and kind not in FLIPS
        self.share = float(rng.random())
        if kind == "flip-checkpoint":
            self.share = 0.5 + self.share / 2  # there has to be one
        self.targets = [JOBS[job][0] for job in self.jobs]
        if not self.jobs or rng.random() < tables:
            self.targets = [TABLE]
        self.root, self.log, self.seen, self.mounted = grid.trial, grid.trial.with_suffix(".log"), [], ""
        self.damaged: tuple[Path, bytes] | None = None
        self.survivors: list[psutil.Process] = []  # of the strike: some may live for a moment
        self.epochs_again = 0

    def run(self, took: dict) -> dict:
        """Return what happened."""
        began = time.perf_counter()
        try:
            self.prepare()
            if self.kind in FLIPS and self.kind != "flip-checkpoint":
                self.flip()
            elif self.kind in TWINS:
                self.twins()
            else:
                self.strike(took)
            code = self.again()
            wrong = ([f"the second run ended with {code}"] if code else []) + self.wrong()
        finally:
            self.unmount()
        row = {"kind": self.kind, "jobs": self.jobs, "fresh": self.fresh, "share": round(self.share, 3)}
        row |= {"targets": self.targets, "seen": "; ".join(dict.fromkeys(self.seen)), "epochs again": self.epochs_again}
        return row | {"recovered": not wrong, "wrong": wrong, "seconds": round(time.perf_counter() - began, 1)}

    def prepare(self) -> None:
        """Lay out the state: a copy of the reference without the outputs of the jobs."""
        self.unmount()
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.log.write_text("")
        if self.kind in DISKS:
            self.mounted = str(self.rng.choice(["micro", "cache"]))
            (self.root / self.mounted).mkdir()
            mount("-t", "tmpfs", "-o", "size=400m", "tmpfs", self.root / self.mounted)
        shutil.copytree(self.grid.whole, self.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("epochs"))
        gone = [f"micro/{name}" for job in self.jobs for name in JOBS[job]]
        if self.kind == "flip-best":  # the job is to be done again, what it trained is there
            gone = [name for name in gone if name.endswith(".json")]
        gone += FLIPS.get(self.kind, ("", "", []))[2]
        gone += ["cache/images", "cache/embeddings", "cache/scans", "cache/fingerprints"] if self.fresh else []
        for path in [path for name in gone for path in self.root.glob(name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def strike(self, took: dict) -> None:
        """Start, wait for the moment, break something, wait for the end."""
        for _ in range(4):
            process = self.grid.start(self.root, self.targets, self.log)
            seconds, first = took["processor seconds"], [job.split()[0] for job in self.jobs]
            usual = sum(seconds[job] for job in self.jobs) * (1 if self.fresh else 0.6)  # less if all is in the cache
            until = self.share * (seconds["driver"] / 4 + usual)
            known: dict[int, psutil.Process] = {}
            used: dict[int, float] = {}
            while process.poll() is None:
                living = family(process)
                known |= {one.pid: one for one in living}
                used |= {pid: spent for pid, (_, spent) in work_of(living).items()}
                if sum(used.values()) >= until and self.hit(living):
                    break
                time.sleep(0.02)
            else:  # the run ended first: sooner
                self.seen.append(f"ended before {first[0]} was struck")
                self.share /= 2
                self.prepare()
                continue
            if self.kind in DISKS:
                code = process.wait(600)
                self.seen.append(f"exit {code}")
                self.lift()
            elif self.kind != "kill-driver":
                process.wait(600)
            self.survivors = list(known.values())
            if self.kind == "flip-checkpoint":
                psutil.wait_procs(self.survivors, 30)
                self.flip()
            return
        raise SystemExit(f"no moment found for {self.kind}")

    def hit(self, living: list[psutil.Process]) -> bool:
        """Break it; say whether it could be."""
        if self.kind in DISKS:
            return self.fill() if self.kind == "disk-full" else self.freeze()
        parts = [(one, part_of(one)) for one in living]
        if self.kind == "flip-checkpoint":
            found = living if list(self.root.glob(FLIPS[self.kind][0])) else []
        else:
            wanted = self.kind.removeprefix("kill-")
            found = [one for one, part in parts if part == wanted or (wanted == "job" and part in JOBS)]
            if found and (wanted != "driver" or self.rng.random() < 0.5):
                found = [
                    found[int(self.rng.integers(len(found)))]
                ]  # of the drivers, Snakemake or what started it, or both
        for one in found:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        if found:
            killed = "all" if self.kind == "flip-checkpoint" else f"{len(found)} {self.kind.removeprefix('kill-')}"
            self.seen.append(f"killed {killed} of {len(living)} processes")
        return bool(found)

    def fill(self) -> bool:
        """Use up the disk."""
        handle = os.open(self.root / self.mounted / "balloon", os.O_WRONLY | os.O_CREAT)
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while os.write(handle, b"\0" * size):
                    pass
        os.close(handle)
        return True

    def freeze(self) -> bool:
        """Make the disk read-only; not possible while a file on it is open for writing."""
        return mount("-o", "remount,ro", self.root / self.mounted, check=False)

    def lift(self) -> None:
        """Give the disk back."""
        if self.kind == "read-only":
            mount("-o", "remount,rw", self.root / self.mounted)
        (self.root / self.mounted / "balloon").unlink(missing_ok=True)

    def unmount(self) -> None:
        """Let go of the small disk."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.root / self.mounted], check=False)
            self.mounted = ""

    def flip(self) -> None:
        """Change one bit of one file."""
        files = sorted(path for path in self.root.glob(FLIPS[self.kind][0]) if path.is_file() and path.stat().st_size)
        files = [path for path in files if not path.name.startswith(".")]
        path = files[int(self.rng.integers(len(files)))]
        before = path.read_bytes()
        content, where = bytearray(before), int(self.rng.integers(len(before)))
        content[where] ^= 1 << int(self.rng.integers(8))
        path.write_bytes(content)
        self.damaged = (path, before)
        self.seen.append(f"bit {where:,} of {path.relative_to(self.root)}")

    def twins(self) -> None:
        """Start two drivers at nearly the same time, on one folder or on two with one cache."""
        apart, flock = bool(self.rng.random() < 0.5), self.kind != "no-flock"
        if apart:
            shutil.copytree(self.root / "micro", self.root / "other" / "micro")
        runs = [self.grid.start(self.root, self.targets, self.log, flock)]
        time.sleep(self.share * 10)
        runs.append(self.grid.start(self.root, self.targets, self.log, flock, "other" if apart else ""))
        codes = [run.wait(1200) for run in runs]
        self.seen.append(f"{'one cache' if apart else 'one folder'}, exit {codes[0]} and {codes[1]}")

    def again(self) -> int:
        """Run the same command once more; return its exit code."""
        process = self.grid.start(self.root, self.targets, self.log)
        code = process.wait(1200)
        if code and "another run is at work" in self.log.read_text() and self.survivors:
            self.seen.append("the first Snakemake was still at work and said so")
            psutil.wait_procs(self.survivors, 600)
            code = self.grid.start(self.root, self.targets, self.log).wait(1200)
        text = self.log.read_text()
        self.seen += [sign for sign in SIGNS if sign in text]
        return code

    def wrong(self) -> list[str]:
        """Return what is not as it must be."""
        found = []
        roots = [("", self.root / "micro")] + [("other/", self.root / "other" / "micro")] * (
            self.root / "other"
        ).exists()
        for name, folder in roots:
            for pattern in ("predictions/**/*.parquet", "tables/*.csv", "splits.csv", "finetuning/**/best.safetensors"):
                for path in sorted((self.grid.whole / "micro").glob(pattern)):
                    mine = folder / path.relative_to(self.grid.whole / "micro")
                    if self.damaged and mine == self.damaged[0] and mine.is_file() and not trusted(mine):
                        continue  # nothing had to read it, and its reader refuses it
                    if not mine.is_file() or mine.read_bytes() != path.read_bytes():
                        found.append(f"{name}{mine.relative_to(folder)} is {'other' if mine.exists() else 'not there'}")
        for path in (self.root / "cache").rglob("*.npy"):
            if path.read_bytes() != (self.grid.whole / path.relative_to(self.root)).read_bytes() and trusted(path):
                found.append(f"{path.name} is other")
        for path in self.root.rglob("*.ipynb"):
            with suppress(ValueError):
                json.loads(path.read_text())
                continue
            found.append(f"{path.name} is half-written")
        for folder in {
            path.parent for path in self.root.rglob("*.tmp")
        }:  # of a job that ended after the second run wrote
            artifacts.write_json(folder / "next.json", {})
            (folder / "next.json").unlink()
            self.seen.append("the next write collected a temporary file")
        found += [f"{path.relative_to(self.root)} is left" for path in self.root.rglob("*.tmp")]
        found += [f"process {words(one)} is left" for one in self.survivors if one.is_running() and words(one)]
        if self.damaged and self.damaged[0].is_file() and self.damaged[0].read_bytes() != self.damaged[1]:
            path = self.damaged[0]
            if self.kind not in ("flip-record", "flip-checkpoint") and trusted(path):
                same = self.kind.split("-")[1] in (
                    "predictions",
                    "best",
                    "table",
                    "fingerprint",
                    "scan",
                    "embeddings",
                    "images",
                )
                if not same or path.suffix != ".json":  # a sidecar that was made again holds another time
                    found.append(f"{path.relative_to(self.root)} is believed")
        lines = (self.root / "epochs").read_text().splitlines() if (self.root / "epochs").is_file() else []
        begun = Counter(line for line in lines if line.startswith("begun"))
        done = Counter(line for line in lines if line.startswith("done"))
        runs = {line.split()[1] for line in begun}
        again = {run: sum(n - 1 for line, n in begun.items() if line.split()[1] == run) for run in runs}
        self.epochs_again = max(again.values(), default=0)
        if self.kind not in TWINS:
            limit = 2 if self.kind == "flip-checkpoint" else 1
            found += [f"{run}: {n} epochs were begun again" for run, n in again.items() if n > limit]
            found += [f"{line} {n} times" for line, n in done.items() if n > limit]
        return found


def trusted(path: Path) -> bool:
    """Return whether the reader of a file would take it for whole."""
    with suppress(FileNotFoundError, InputError, KeyError, UnicodeDecodeError):
        if path.suffix == ".json":
            artifacts.read_json(path)
            path = next(
                p
                for p in path.parent.glob(f"{path.stem}.*")
                if p.suffix in (".npy", ".csv", ".parquet", ".safetensors")
            )
        artifacts.checked(path)
        return True
    return False


def mount(*arguments, check: bool = True) -> bool:
    """Mount something; return whether that was possible."""
    return subprocess.run(["mount", *map(str, arguments)], check=check, capture_output=True).returncode == 0


def may_mount() -> bool:
    """Return whether this process may mount a small disk."""
    with tempfile.TemporaryDirectory() as folder:
        may = os.geteuid() == 0 and mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder, check=False)
        if may:
            subprocess.run(["umount", folder], check=True)
    return may


@contextmanager
def workplace(folder: Path | None):
    """Yield the folder to work in: the given one, which stays, or a temporary one."""
    if folder:
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="faults") as temporary:
        yield Path(temporary)


def main() -> None:
    """Draw faults, print a line for each, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(set(KINDS)), default=KINDS)
    parser.add_argument(
        "--tables", type=float, default=0.2, help="share of the faults whose second run goes up to Table 1"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no fault after that time")
    parser.add_argument("--level", choices=["front", "library"], default="front")
    parser.add_argument("--work", type=Path, help="keeps the reference, for a later call")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    kinds, began = list(given.kinds), time.perf_counter()
    if given.level == "library":
        import torch

        import fpbench.training.finetuning  # noqa: F401  so that the forked processes need not

        torch.set_num_threads(1)
        kinds = [kind for kind in kinds if kind not in ("kill-kernel", "flip-record")]
    if set(kinds) & set(DISKS) and not may_mount():
        print(f"skipped, since they need root and the right to mount: {', '.join(sorted(set(kinds) & set(DISKS)))}")
        kinds = [kind for kind in kinds if kind not in DISKS]
    with workplace(given.work) as work:
        grid = Grid(work, f"trial{given.seed}", given.level)
        took, rng, rows = grid.reference(), np.random.default_rng(given.seed), []
        print(f"the micro grid, whole: {took['seconds']:.0f} s; processor seconds of each job:")
        print(
            "  " + ", ".join(f"{job} {seconds:.1f}" for job, seconds in took["processor seconds"].items()), flush=True
        )
        for number in range(given.faults):
            if time.perf_counter() - began > given.minutes * 60:
                break
            row = Fault(grid, number, given.seed, str(rng.choice(kinds)), given.tables).run(took)
            rows.append(row)
            where = " + ".join(row["jobs"]) or "all done"
            line = f"{number:3} {row['kind']:16} {where}{' (cache empty)' if row['fresh'] else ''}, u={row['share']:.2f}: {row['seen']}"
            told = "recovered yes" if row["recovered"] else f"recovered NO: {'; '.join(row['wrong'])}"
            print(f"{line}; {told}, {row['seconds']:.0f} s", flush=True)
            if not row["recovered"]:
                shutil.copy(grid.trial.with_suffix(".log"), work / f"lost.{given.seed}.{number}.log")
        good = sum(row["recovered"] for row in rows)
        print(f"faults {len(rows)}, recovered {good}, lost {len(rows) - good}")
        shutil.rmtree(grid.trial, ignore_errors=True)
    if given.json:
        facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        facts["versions"] = {
            name: version(name) for name in ("torch", "snakemake", "papermill", "ipykernel", "filelock")
        }
        facts |= {
            "level": given.level,
            "seed": given.seed,
            "minutes": round((time.perf_counter() - began) / 60, 1),
            "reference": took,
        }
        facts |= {"faults": len(rows), "recovered": good, "lost": len(rows) - good, "rows": rows}
        given.json.write_text(json.dumps(facts, indent=1) + "\n")
    raise SystemExit(int(good < len(rows)))


if __name__ == "__main__":
    main()
