"""The jobs of a study: what each depends on, and which of them are current.

A job (``grid.yaml``) is one notebook with its parameters. Everything it depends on are its *parts*; their digest is its key. A job that
ended well leaves ``jobs/<job>.json``: its parts, and the SHA-256 of its files. It is current while both still hold; any other
runs, with what needs it. A job that failed leaves ``jobs/<job>.failed.json`` with the reason, and its notebook.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path

import psutil
import yaml

from fpbench import loading, results
from fpbench.errors import InputError
from fpbench.files import artifacts, paths, progress
from fpbench.grid.keys import key_parts
from fpbench.study import Study

PLAN = "FPBENCH_PLAN"  # names the file in which a job finds its parts
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
    pretraining: str = ""  # that it runs

    def path(self, what: str, end: str = ".json") -> Path:
        """Return one of its files: of ``jobs`` (also ".failed.json"), ``progress``, or ``notebooks`` (".ipynb")."""
        return self.folder / what / f"{self.name}{end}"

    @property
    def result(self) -> str:
        """Return its name among ``results.missing``."""
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
        with suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads(self.path("progress").read_text(encoding="utf-8"))
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


def rows() -> list[dict]:
    """Return the kinds of jobs, in order: the rows of ``grid.yaml``, each with all its fields."""
    absent: dict = {"priority": 0, "passes": 0, "code": []}
    return [absent | row for row in yaml.safe_load(Path(__file__).with_name("grid.yaml").read_text(encoding="utf-8"))]


def call(row: dict, folder: Path, study: str, wildcards: dict[str, str]) -> list[str]:
    """Return the arguments of ``fpbench`` that do a job of one kind, in a study's folder."""
    if row["rule"] == "report":
        return ["report", study]
    name = row["job"].format(**wildcards)
    words = ["notebook", name.partition(".")[0], str(folder / "notebooks" / f"{name}.ipynb"), "-p", f"study={study}"]
    return words + [word for one, value in wildcards.items() for word in ("-p", f"{one}={value}")]


def jobs(study: Study, missing: dict[str, str] | None = None) -> dict[str, Job]:
    """Return the jobs of a study by name, each after those it needs; the analysis needs none that is missing (default: the study's)."""
    missing = results.missing(study) if missing is None else missing
    found: dict[str, Job] = {}
    task, submitted = study.the_task, results.submitted(study)
    scored = {"tests": task.tests, "headline": task.headline, "positive": task.positive}
    groups: dict[str, dict] = {"analysis": {"code of the analysis": _analysis(), "scores": scored}}
    groups["submitted"] = {"submitted answers": {name: artifacts.file_sha256(path) for name, path in submitted.items()}}
    probed = {name: why for name, why in missing.items() if name.endswith("/probing")}
    groups |= {"missing": {"missing results": missing}, "missing probing": {"missing results": probed}}
    groups |= key_parts(study)
    for row in rows():
        if not _called_for(study, row["rule"]):
            continue
        for given in _wildcards(study, row):
            encoder = given["encoder"]
            name, output = row["job"].format(**given), study.folder / row["output"].format(**given)
            wanted = [group for one in row["parts"] for group in matching(groups, one.format(**given))]
            parts = {key: part for group in wanted for key, part in groups[group].items()}
            code = {f"file {file}": artifacts.file_sha256(paths.PACKAGE / file) for file in row["code"]}
            parts = json.loads(json.dumps(parts | code | _sources(name.partition(".")[0])))
            needs = [need for one in row["needs"] for need in matching(found, one.format(**given))]
            needs = [need for need in needs if encoder or not _lost(study, found[need], missing)]
            own = given["pretraining"] if "{pretraining}" in row["job"] else ""
            found[name] = Job(name, study.folder, output, needs, parts, encoder, given["mode"], own)
    return found


def _called_for(study: Study, rule: str) -> bool:
    """Return whether a study has what a kind of job is about: two populations, an adapted encoder, or blind sweeps."""
    if rule == "cross_population":
        return len(study.cohorts) > 1
    if rule == "image_quality":
        return loading.has_sweeps(study)
    return rule != "adaptation" or any(spec.pretraining for spec in study.encoders)


def _wildcards(study: Study, row: dict) -> list[dict[str, str]]:
    """Return what stands in the place of {encoder}, {mode} and {pretraining}, of every job of a kind."""
    job, names = row["job"], [(spec.name, "") for spec in study.encoders]
    if "{pretraining}" in job:
        return [{"encoder": "", "mode": "", "pretraining": name} for name in study.pretraining]
    pairs = study.tunings(row["rule"]) if "{mode}" in job else names if "{encoder}" in job else [("", "")]
    made = {spec.name: spec.pretraining for spec in study.encoders}
    return [{"encoder": one, "mode": mode, "pretraining": made.get(one, "")} for one, mode in pairs]


def _lost(study: Study, job: Job, missing: dict[str, str]) -> bool:
    """Return whether the results of a job, or of every encoder that a pretraining was for, are missing."""
    if job.pretraining:
        users = [spec.name for spec in study.encoders if spec.pretraining == job.pretraining]
        return bool(users) and all(f"{name}/probing" in missing for name in users)
    return job.result in missing


def _analysis() -> str:
    """Return a digest of the code that reads predictions."""
    both = (paths.PACKAGE / room for room in ("analysis", "reporting"))
    rooms = [path for room in both for path in sorted(room.rglob("*.*")) if path.suffix != ".pyc"]
    files = [paths.PACKAGE / "metrics.py", paths.PACKAGE / "encoders" / "inspection.py", *rooms]
    return artifacts.digest([artifacts.file_sha256(path) for path in files])


def _sources(notebook: str) -> dict[str, str]:
    """Return a digest of the cells of a notebook, whatever their outputs."""
    if not (path := paths.home() / "notebooks" / f"{notebook}.ipynb").is_file():
        return {}
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    return {f"notebook {notebook}": artifacts.digest(cells)}


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
    told: dict[str, dict] = {}
    plan = plan or jobs(study)
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
