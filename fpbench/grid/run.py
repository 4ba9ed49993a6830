"""The run of a study: the jobs that are not current, through Snakemake, and what is said at the end."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from fpbench import cohorts, loading, results
from fpbench.errors import InputError
from fpbench.files import artifacts, machine, paths, records, sharing
from fpbench.grid import forkserver, notebooks
from fpbench.grid.costs import bill
from fpbench.grid.jobs import Job, announce, jobs, stale
from fpbench.study import Study

LOCK = ".run.lock"
USUAL = 6e9  # bytes that a job may need, where nobody said how many run at once


@contextmanager
def alone(folder: Path) -> Iterator[int | None]:
    """Hold the study against another driver, waiting for it; yield a handle that a child can hold on to when we are killed, if there are locks."""
    sharing.make_folder(folder)
    waiting = f"another run of this study is at work (`fpbench status {folder.name}`): waiting for it"
    with sharing.hold(folder / LOCK, waiting=waiting) as handle:
        with suppress(PermissionError):  # of another user
            os.utime(folder / LOCK)  # by the clock of the file system: what is younger was made by this run
        yield handle


def run(
    study: Study,
    asked: str,
    workers: int = 0,
    only: Sequence[str] = (),
    dry: bool = False,
    why: bool = False,
    extra: Sequence[str] = (),
) -> int:
    """Run the jobs of a study that are not current (``only``: those of some encoders, and what they need); return the exit code.

    Where encoders fail, the others are finished and the analysis is made without them: Table 1 names what is missing.

    Parameters
    ----------
    asked
        The study as the user named it.
    workers
        Notebooks at once; 0: as many as fit. On this machine no more run than have cores for the threads of the study, which are
        never reduced: results depend on them.
    dry
        Print the jobs and what they cost, with ``why`` also why they run; run nothing.
    extra
        Further arguments of Snakemake; if jobs are among them, by name or by their output (with any ending), these jobs and what
        they need are all that runs.

    Raises
    ------
    InputError
        ``extra`` begins with what is no job; or the results lie where Snakemake finds nothing.
    """
    if {"{", "}"} & {*str(study.folder)}:
        taken = "which Snakemake takes for wildcards: name another with FPBENCH_RESULTS"
        raise InputError(f"{study.folder}: expected a results folder without braces in its path, {taken}")
    only = [study.encoder_spec(name).name for name in only]
    cluster = bool(_profile(extra).get("executor"))
    cores = max(1, workers) * study.threads if cluster else _held(workers, study.threads)
    quiet = [] if cluster else ["--quiet", "rules"]  # which would keep to itself why a scheduler refuses a job
    location, snakefile = Path(asked).resolve() if Path(asked).suffix else asked, str(paths.home() / "Snakefile")
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", str(study.folder)]
    command += [
        "--config",
        f"study={json.dumps(str(location))}",
        f"parent={os.getpid()}",
        "--cores",
        str(cores),
        "--rerun-triggers",
        "params",
    ]
    command += ["--rerun-incomplete", "--keep-going", "--nolock"]
    here = not dry and str(paths.home() / "profiles" / "local") in extra
    with nullcontext() if dry else alone(study.folder) as handle, _forks() if here else nullcontext({}) as forks:
        given: dict[str, Any] = {"forks": forks, "pass_fds": [handle] if handle else []}
        plan, missing = jobs(study, None if only else {}), results.missing_file(study)
        command += (extra := _outputs(plan, extra))
        if not (dry or only):
            missing.unlink(missing_ok=True)  # what failed is tried again
        due, wanted = stale(plan if dry else _settled(plan)), _wanted(plan, only, extra)
        if not wanted & set(due):
            print(f"nothing to do: {len(wanted)} jobs are current")
            return 0
        if dry:
            return _rehearse(study, command, plan, wanted, due, why)
        if any("cohort" in part for name in wanted & set(due) for part in plan[name].parts):
            _verify(study)
        for name in wanted:
            plan[name].path("jobs", ".failed.json").unlink(missing_ok=True)
        _snakemake(study, command, plan, wanted, quiet, **given)
        left, gone = [plan[name] for name in stale(plan) if plan[name].encoder], {}
        for job in left if not only else []:
            after = [f"after {need}: {late}" for need in job.needs if (late := plan[need].failure())]
            if reason := job.failure() or "".join(after):
                gone[job.result] = reason
        some = any(f"{spec.name}/probing" not in gone for spec in study.encoders)
        named = any(str(job.output) in extra for job in plan.values())  # then these are all that runs
        ready = some and not named and all(job.result in gone for job in left)
        if (only or gone) and ready:  # the analysis, of what is there
            artifacts.write_json(missing, gone) if gone else missing.unlink(missing_ok=True)
            plan = jobs(study)
            wanted, rest = set(plan), {name for name in plan if plan[name].result not in gone}
            _snakemake(study, command, plan, rest, quiet, **given)
    return _conclude(study, asked, plan, wanted)


def _verify(study: Study) -> None:
    """Hash every picture once for all jobs of this run, and say which changed under the same time and size."""
    for spec in study.cohorts:
        with suppress(InputError, OSError):  # the jobs say what is wrong
            source, _, rows, there = cohorts.list_images(*loading.where(study, spec), spec.missing)
            if changed := cohorts.changed(source, rows.loc[there, "path"].tolist()):
                what = "changed under the same time and size"
                print(f"{spec.title}: {len(changed):,} pictures {what}, the first is {changed[0]}", flush=True)


def _held(workers: int, threads: int) -> int:
    """Return the cores that Snakemake may fill with jobs of ``threads``, and say where fewer run at once than were asked for."""
    here = machine.cores()
    fit = max(1, here // threads)
    if not workers:
        return threads * min(fit, max(1, int(psutil.virtual_memory().available / USUAL)))
    if workers > fit:
        print(f"{workers} jobs of {threads} threads on {here} cores: {fit} at once, the others wait", flush=True)
    return threads * min(workers, fit)


def _profile(extra: Sequence[str]) -> dict:
    """Return what the profile that is named among the arguments of Snakemake says."""
    words = list(extra)
    file = Path(words[words.index("--profile") + 1]) / "config.yaml" if "--profile" in words[:-1] else Path(os.devnull)
    content = (records.plain_yaml(file.read_bytes(), str(file)) if file.is_file() else None) or {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a table of Snakemake's options, found {type(content).__name__}")
    return content


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
    return forkserver.listening(notebooks.EVERY, notebooks.COMPUTING_TOO)


def _snakemake(
    study: Study,
    command: list[str],
    plan: dict[str, Job],
    wanted: set[str],
    more: list[str],
    forks: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess:
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
        print(f"\n{table.read_text(encoding='utf-8')}\nTables, figures and executed notebooks: {study.folder}")
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
    costly = [plan[name] for name in names if plan[name].encoder or plan[name].pretraining]
    own = [job for job in costly if not due.get(job.name, "upstream").startswith("upstream") or job.pretraining]
    if own:
        print(f"\n{bill(study, own)}")
    return 0
