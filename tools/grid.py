"""The grid of a study: its jobs, which of them are current, what the others cost, and the run of those through Snakemake.

A job (``grid.yaml``) is one notebook with its parameters. Everything it depends on are its *parts*; their digest is its key. A job that
ended well leaves ``jobs/<job>.json``: its parts, and the SHA-256 of its files. It is current while both still hold; any other
runs, with what needs it. A job that failed leaves ``jobs/<job>.failed.json`` with the reason, and its notebook.
"""

import fcntl
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import filter as matching
from itertools import takewhile
from pathlib import Path

import psutil
import yaml

from fpbench import artifacts, notebooks, paths, progress
from fpbench.errors import InputError
from fpbench.study import Study, extension

PLAN = "FPBENCH_PLAN"  # names the file in which a job finds its parts
LIBRARY, LOCK = paths.REPOSITORY / "fpbench", ".run.lock"
ANALYSIS = "metrics.py tables.py statistics.py calibration.py shift.py claims.py figures.py inspection.py report.py claims.csv published.csv report.html report.yaml"  # fmt: skip
FILES = ("cohort", "weights", "notebook", "file", "code")  # parts that are digests


@dataclass(frozen=True)
class Job:
    """One notebook of a study with its parameters."""

    name: str  # of its executed notebook
    folder: Path  # of the study
    output: Path  # there when it is done
    needs: list[str]  # jobs that come before
    parts: dict  # what it depends on
    encoder: str = ""
    mode: str = ""  # of fine-tuning

    def path(self, what: str, end: str = ".json") -> Path:
        """Return one of its files: of ``jobs`` (also ".failed.json"), ``progress``, or ``notebooks`` (".ipynb")."""
        return self.folder / what / f"{self.name}{end}"

    @property
    def hole(self) -> str:
        """Return its name among ``Study.holes``."""
        return f"{self.encoder}/{self.mode or 'probing'}"

    @property
    def record(self) -> dict:
        """Return what a good end left; empty if there was none."""
        try:
            return artifacts.read_json(self.path("jobs"))
        except (OSError, InputError):
            return {}

    def stale(self) -> str:
        """Return why it must run, whatever becomes of other jobs; empty if it is current."""
        if not (record := self.record):
            return "never finished" if self.output.exists() else "never run"
        bad = [name for name, known in record["files"].items() if not _holds(self.folder / name, known)]
        return "; ".join(changes(record["parts"], self.parts)) or (bad and f"missing or damaged: {bad[0]}") or ""

    def failure(self) -> str:
        """Return why its last try failed; empty if it did not."""
        if (path := self.path("jobs", ".failed.json")).is_file():
            return artifacts.read_json(path)["reason"]
        return "killed, without a traceback" if self.running().get("alive") is False else ""

    def running(self) -> dict:
        """Return what its process last wrote, if it has one; ``alive`` is None where only another host knows."""
        with suppress(OSError, ValueError):
            told = json.loads(self.path("progress").read_text())
            return told | {"alive": _lives(told["pid"]) if told["host"] == socket.gethostname() else None}
        return {}


def _holds(path: Path, known: str) -> bool:
    with suppress(OSError, InputError):  # a predictions file is as good as its sidecar
        found = artifacts.checked(path)["sha256"] if path.suffix == ".parquet" else artifacts.file_sha256(path)
        return known in ("", found)
    return False


def _lives(pid: int) -> bool:
    with suppress(psutil.Error):
        return any("fpbench" in word for word in psutil.Process(pid).cmdline())  # the number may be another's by now
    return False


def changes(old: dict, new: dict) -> list[str]:
    """Return what differs between the parts of two times, in words: ``recipe changed: epochs 8 -> 6``."""
    found = []
    for name in [name for name in {**new, **old} if old.get(name) != new.get(name)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found.append(f"{name} changed: {', '.join(changes(before, after))}")
        elif before is None or after is None or name.partition(" ")[0] in FILES:
            found.append(f"{name} {'is new' if before is None else 'is gone' if after is None else 'changed'}")
        else:
            found.append(f"{name}{': code version' * name.startswith('step ')} {before} -> {after}")
    return found


def jobs(study: Study, holes: dict[str, str] | None = None) -> dict[str, Job]:
    """Return the jobs of a study by name, each after those it needs; the analysis needs no holes (default: the study's)."""
    from fpbench.protocols import key_parts

    holes, found = study.holes() if holes is None else holes, {}
    code = [artifacts.file_sha256(LIBRARY / name) for name in ANALYSIS.split()]
    groups = {"analysis": {"code of the analysis": artifacts.digest(code)}, "holes": {"holes": holes}}
    groups["probing holes"] = {"holes": {name: why for name, why in holes.items() if name.endswith("/probing")}}
    groups |= key_parts(study)
    every = {"{mode}": study.tunings(), "{encoder}": [(spec.name, "") for spec in study.encoders], "": [("", "")]}
    for row in yaml.safe_load(Path(__file__).with_name("grid.yaml").read_text()):
        if row["job"].startswith("07") and len(study.the_task.tests) < 2:
            continue
        for encoder, mode in next(pairs for mark, pairs in every.items() if mark in row["job"]):
            given = {"encoder": encoder, "mode": mode}
            name, output = row["job"].format(**given), study.folder / row["output"].format(**given)
            wanted = [group for one in row["parts"] for group in matching(groups, one.format(**given))]
            parts = {key: part for group in wanted for key, part in groups[group].items()}
            parts = json.loads(json.dumps(parts | _sources(name.partition(".")[0])))
            needs = [need for one in row["needs"] for need in matching(found, one.format(**given))]
            needs = [need for need in needs if encoder or found[need].hole not in holes]
            found[name] = Job(name, study.folder, output, needs, parts, encoder, mode)
    return found


def _sources(notebook: str) -> dict[str, str]:
    """Return digests of the cells of a notebook, whatever their outputs, and of the files that it loads as extensions."""
    if not (path := paths.REPOSITORY / "notebooks" / f"{notebook}.ipynb").is_file():
        return {}
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    files = re.findall(r'extension\("([^"]+)"\)', "\n".join(cells))
    loaded = {f"file {file}": artifacts.file_sha256(paths.expand(file)) for file in files}
    return {f"notebook {notebook}": artifacts.digest(cells), **loaded}


def stale(plan: dict[str, Job]) -> dict[str, str]:
    """Return the jobs that must run, with the reason: their own, or a job that they need."""
    found = {}
    for name, job in plan.items():
        late = [need for need in job.needs if need in found]
        if why := job.stale() or (late and f"upstream: {', '.join(late[:3])}{', ...' * (len(late) > 3)}"):
            found[name] = why
    return found


def announce(study: Study, plan: dict[str, Job] | None = None) -> dict[str, dict]:
    """Return ``key`` and ``needs`` (files) of every job by name, for the Snakefile.

    They are handed on in a file that the environment names, so that Snakemake and its jobs, wherever they run, act on one plan.
    """
    if plan is None and (known := os.environ.get(PLAN)):
        return artifacts.read_json(Path(known))
    told, plan = {}, plan or jobs(study)
    for name, job in plan.items():
        needs = [str(plan[need].output) for need in job.needs]
        told[name] = {"key": artifacts.digest(job.parts)[:16], "needs": needs}
        told[name] |= {"output": str(job.output), "parts": job.parts}
    path = study.folder / "jobs" / f"plan-{artifacts.digest(told)[:16]}.json"
    if not path.is_file():
        artifacts.write_json(path, told)
    os.environ[PLAN] = str(path)
    return told


@contextmanager
def noted(name: str) -> Iterator[None]:
    """Say that a job of an announced plan runs, and afterwards that it is done, or why it failed."""
    known = Path(os.environ.get(PLAN) or os.devnull)
    if not (told := artifacts.read_json(known).get(name) if known.is_file() else None):
        yield
        return
    job = Job(name, known.parent.parent, Path(told["output"]), [], told["parts"])
    failed, running, began = job.path("jobs", ".failed.json"), job.path("progress"), time.time()
    os.environ[progress.FILE] = str(running)
    try:
        failed.unlink(missing_ok=True)
        running.parent.mkdir(exist_ok=True)
        progress.note(pid=os.getpid(), host=socket.gethostname(), began=began)
        yield
        content = {"parts": job.parts, "files": _files(job), "seconds": time.time() - began}
        artifacts.write_json(job.path("jobs"), content)
    except BaseException as error:
        why = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        with suppress(OSError):
            artifacts.write_json(failed, {"reason": " ".join(why.replace("|", "/").split())[:300]})
        raise
    finally:
        running.unlink(missing_ok=True)


def _files(job: Job) -> dict[str, str]:
    """Return the files of a job with their SHA-256: its output (the page changes with the day), and what that lists."""
    content = artifacts.read_json(job.output) if job.output.suffix == ".json" else {}
    found = {job.output: "" if job.output.suffix == ".html" else artifacts.file_sha256(job.output)}
    found |= {job.output.with_suffix(".csv"): content["sha256"]} if "sha256" in content else {}
    return {str(path.relative_to(job.folder)): known for path, known in found.items()} | content.get("files", {})


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Hold the study against another driver, waiting for it; yield a handle that a child can hold on to when we are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run of this study is at work (`fpbench status {folder.name}`): waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.utime(folder / LOCK)  # by the clock of the file system: what is younger was made by this run
        yield handle.fileno()


def run(
    study: Study, asked: str, workers: int, only: Sequence[str] = (), dry: bool = False, why: bool = False, extra=()
) -> int:
    """Run the jobs of a study that are not current (``only``: those of some encoders, and what they need); return the exit code.

    Where encoders fail, the others are finished and the analysis is made without them: Table 1 shows the holes.

    Parameters
    ----------
    asked
        The study as the user named it.
    dry
        Print the jobs and what they cost, with ``why`` also why they run; run nothing.
    extra
        Further arguments of Snakemake; if jobs are among them, by name or by their output (with any ending), these jobs and what
        they need are all that runs.

    Raises
    ------
    InputError
        ``extra`` begins with what is no job.
    """
    only = [study.encoder_spec(name).name for name in only]
    location, snakefile = Path(asked).resolve() if Path(asked).suffix else asked, str(paths.REPOSITORY / "Snakefile")
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", str(study.folder)]
    command += [
        "--config",
        f"study={json.dumps(str(location))}",
        f"parent={os.getpid()}",
        "--cores",
        str(workers * study.threads),
        "--rerun-triggers",
        "params",
    ]
    command += ["--rerun-incomplete", "--keep-going", "--nolock"]
    here = not dry and str(paths.REPOSITORY / "profiles" / "local") in extra
    with nullcontext() if dry else alone(study.folder) as handle, _forks() if here else nullcontext({}) as forks:
        given = {"forks": forks, "pass_fds": [handle] if handle else []}
        plan, holes = jobs(study, None if only else {}), study.folder / "holes.json"
        command += (extra := _outputs(plan, extra))
        if not (dry or only):
            holes.unlink(missing_ok=True)  # what failed is tried again
        due, wanted = stale(plan if dry else _settled(plan)), _wanted(plan, only, extra)
        if not wanted & set(due):
            print(f"nothing to do: {len(wanted)} jobs are current")
            return 0
        if dry:
            return _rehearse(study, command, plan, wanted, due, why)
        for name in wanted:
            plan[name].path("jobs", ".failed.json").unlink(missing_ok=True)
        _snakemake(study, command, plan, wanted, ["--quiet", "rules"], **given)
        left, gone = [plan[name] for name in stale(plan) if plan[name].encoder], {}
        for job in left if not only else []:
            after = [f"after {need}: {why}" for need in job.needs if (why := plan[need].failure())]
            if why := job.failure() or "".join(after):
                gone[job.hole] = why
        some = any(f"{spec.name}/probing" not in gone for spec in study.encoders)
        named = any(str(job.output) in extra for job in plan.values())  # then these are all that runs
        ready = some and not named and all(job.hole in gone for job in left)
        if (only or gone) and ready:  # the analysis, of what is there
            artifacts.write_json(holes, gone) if gone else holes.unlink(missing_ok=True)
            plan = jobs(study)
            wanted, rest = set(plan), {name for name in plan if plan[name].hole not in gone}
            _snakemake(study, command, plan, rest, ["--quiet", "rules"], **given)
    return _conclude(study, asked, plan, wanted)


def _settled(plan: dict[str, Job]) -> dict[str, Job]:
    """Wait for jobs on this host that a killed driver left behind, and forget those that were killed too."""
    for name, job in plan.items():
        said = False
        while (lives := job.running().get("alive")) is not None:
            if not lives:
                job.path("progress").unlink(missing_ok=True)
            elif not said:
                said = not print(f"{name} still runs, left behind by a run that was killed: waiting for it", flush=True)
            time.sleep(lives)
    return plan


def _outputs(plan: dict[str, Job], extra: Sequence[str]) -> list[str]:
    """Return arguments of Snakemake, a job's name or output (``splits.csv`` for ``splits.json``) turned into the output as planned."""
    known = {}
    for name, job in plan.items():
        known[name] = known[os.path.splitext(os.path.abspath(job.output))[0]] = str(job.output)
    found = [known.get(one) or known.get(os.path.splitext(os.path.abspath(one))[0]) or one for one in extra]
    for one in takewhile(lambda word: not word.startswith("-"), found):
        if one not in known.values():
            raise InputError(f"expected jobs of this study, or their output: {', '.join(plan)}; found {one!r}")
    return found


def _wanted(plan: dict[str, Job], only: Sequence[str], extra: Sequence[str]) -> set[str]:
    """Return the jobs of some encoders, or whose output ``extra`` names, and those that they need; all if there are none."""
    found = {name for name, job in plan.items() if str(job.output) in extra}
    found = found or {name for name, job in plan.items() if not only or job.encoder in only}
    for name in reversed(plan):
        found |= set(plan[name].needs) if name in found else set()
    return found


def _forks() -> AbstractContextManager[dict[str, str]]:
    """Return a context with a server for the jobs of this run; it imports while cohorts are drawn and the plan is made."""
    return extension("tools/forkserver.py").listening(notebooks.EVERY, notebooks.COMPUTING_TOO)


def _snakemake(
    study: Study,
    command: list[str],
    plan: dict[str, Job],
    wanted: set[str],
    more: list[str],
    forks: dict[str, str] | None = None,
    **options,
):
    """Let Snakemake make what is wanted; it is told which files that are there are not current."""
    announce(study, plan)
    forced = [str(plan[name].output) for name in stale(plan) if name in wanted and plan[name].output.exists()]
    targets = [] if "report" in wanted else [str(plan[name].output) for name in plan if name in wanted]
    command = [one for one in command if one not in targets]  # the user may have named some
    command = [*command, *more, *(["--forcerun", *forced] if forced else []), *(["--", *targets] if targets else [])]
    print(shlex.join(command), flush=True)
    return subprocess.run(command, env={**os.environ, **(forks or {})}, check=False, text=True, **options)


def _conclude(study: Study, asked: str, plan: dict[str, Job], wanted: set[str]) -> int:
    """Print what ran, what was reused, what is missing and how to try it again, and Table 1; return the exit code."""
    left, table = stale(plan), study.folder / "tables" / "table1.md"
    began, lost = (
        (study.folder / LOCK).stat().st_mtime,
        [job for name, job in plan.items() if name in wanted & set(left)],
    )
    ran = [name for name in plan if name in wanted - set(left) and plan[name].path("jobs").stat().st_mtime >= began]
    print(f"\nran: {', '.join(ran) or 'nothing'}\nreused: {len(wanted) - len(ran) - len(lost)} jobs")
    for job in lost:
        print(f"missing: {job.name}: {job.failure() or left[job.name]}")
        if job.failure():
            print(f"  its notebook: {job.path('notebooks', '.ipynb')}")
            print(f"  to try it again: fpbench run {asked}{f' --only {job.encoder}' * bool(job.encoder)}")
    if "06_benchmark" not in left:
        print(f"\n{table.read_text()}\nTables, figures and executed notebooks: {study.folder}")
    if "report" not in left:
        print(f"Everything on one page: {study.folder / 'report.html'}")
    return int(bool(wanted & set(left)))


def _rehearse(
    study: Study, command: list[str], plan: dict[str, Job], wanted: set[str], due: dict[str, str], why: bool
) -> int:
    """Print the jobs that Snakemake would run, why, and what they would cost."""
    done = _snakemake(study, command, plan, wanted, ["--dry-run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    named = re.findall(r"^ +log: .*/(.+)\.ipynb$|^(?:local)?rule (report):", done.stdout, re.M)
    names = [name for name in plan if name in {one or other for one, other in named}]
    if done.returncode:
        print(done.stdout)
        return done.returncode
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {due.get(name, '')}" if why else name)
    print(f"{len(names)} of {len(wanted)} jobs would run")
    own = [plan[name] for name in names if plan[name].encoder and not due.get(name, "upstream").startswith("upstream")]
    if own:
        print(f"\n{bill(study, own)}")
    return 0


def bill(study: Study, due: list[Job]) -> str:
    """Return what jobs of encoders would cost on this device, as a table: a row per encoder, and their sum.

    The encoders are built with random weights and timed on a picture or a batch; nothing is embedded or trained.
    """
    import pandas as pd

    from fpbench import inspection, make_splits, protocols

    home, external = study.begin().load_cohorts()
    cut = make_splits(home, study.the_task, study.split, study.folds, study.seed)
    images, shapes, rows = sum(map(len, (home, *external))), set(), []
    for name in dict.fromkeys(job.encoder for job in due):
        spec, encoder = study.encoder_spec(name), protocols.blank(study, name)
        modes, gpu = [job.mode for job in due if job.encoder == name], encoder.device.type == "cuda"
        row = {"encoder": name, "jobs": len(modes), "hours": 0.0, "embeddings GB": 4e-9 * images * encoder.dim}
        if "" in modes:
            rate = inspection.cost(encoder, spec.batch_size if gpu else 1, spec.bf16, 0)["images/s"]
            row["hours"] = images / rate / 3600
        if tuned := [(name, mode) for mode in modes if mode]:
            found = protocols.costs(study, home, cut, tuned, disk=True).sum(numeric_only=True)
            row |= {**found.drop(["runs", "steps"]), "hours": found["hours"] + row["hours"]}
        rows.append(row)
        shapes.add(encoder.geometry)
    table = pd.DataFrame(rows).fillna(0.0)
    table.loc[len(table)] = table.sum(numeric_only=True).to_dict() | {"encoder": "together"}
    table = table.rename(columns={"hours": "GPU-hours" if gpu else "hours on this CPU"})
    text = table.astype({"jobs": int}).to_string(index=False, float_format="{:,.3g}".format)
    cache = sum(images * shape.size**2 for shape in shapes) / 1e9
    return f"Every epoch run, the choice of the learning rate included:\n{text}\nimage cache: {cache:,.3g} GB; the analysis is not counted"


def status(study: Study) -> str:
    """Return how far a study is, as text: jobs done, running (on any host), waiting, failed, and when it will end."""
    plan, now = jobs(study), time.time()
    due, told = stale(plan), {name: job.running() for name, job in plan.items()}
    told = {name: about for name, about in told.items() if about and about["alive"] is not False}
    failed = {name: why for name in due if name not in told and (why := plan[name].failure())}
    waiting = [name for name in due if name not in told and name not in failed]
    count = f"{len(told)} running, {len(waiting)} waiting, {len(failed)} failed"
    lines = [f"{study.name}: {len(plan)} jobs: {len(set(plan) - set(due) - set(told))} done, {count}"]
    for name, one in told.items():
        what = ", ".join(text for text in (one.get("title", "starting"), one.get("stage")) if text)
        if one.get("rate"):
            what += f": {one['done']:,} of {one['total']:,} {one['unit']}s, {one['rate']:,.1f} {one['unit']}s/s"
            what += f", {_span(max(0, one['total'] - one['done']) / one['rate'])} to go"
        where = f"{one['host']}, process {one['pid']}{' alive' * bool(one['alive'])}, wrote {now - one['updated']:.0f} s ago"
        lines.append(f"running  {name}  {what}; {where}")
    for name, why in failed.items():
        lines += [f"failed   {name}  {why}", f"         {plan[name].path('notebooks', '.ipynb')}"]
    took, left, now = {}, 0.0, time.time()  # seconds of finished jobs, by kind
    for name, job in plan.items():
        took.setdefault(name.partition(".")[0], []).extend([job.record["seconds"]] if job.record else [])
    for name in [*waiting, *told]:
        known = took[name.partition(".")[0]]
        left += max(0.0, sum(known) / max(1, len(known)) - (now - told[name]["began"] if name in told else 0.0))
    if waiting or told:
        new = ", ".join(sorted({kind for name in [*waiting, *told] if not took[kind := name.partition(".")[0]]}))
        but = f"; not counted, for none has finished yet: {new}" if new else ""
        lines.append(f"about {_span(left / max(1, len(told)))} to go, {max(1, len(told))} at once{but}")
    return "\n".join(lines)


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
