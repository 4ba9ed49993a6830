"""The grid through a real Slurm: killed, requeued, drained, and the same rows as on one machine.

Not collected by default (``make test-slurm`` names this file): it needs root, and takes some minutes. Paths hold spaces throughout.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from cluster import NODE, call, cluster, node_state, wait_for

from fpbench.files.artifacts import file_sha256

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not run: needs root")
HERE = Path(__file__).parent
PATIENCE = 3000  # seconds for one step; a busy machine is slow
ENCODERS = ("resnet50-mini", "usfm-mini")
QUICK = ["--slurm-init-seconds-before-status-checks", "2", "--default-resources", "slurm_partition=gpu"]


@pytest.fixture
def study(tmp_path):
    """The micro study under a path with spaces; cohorts are drawn once."""
    path = tmp_path / "my studies" / "micro grid.yaml"
    path.parent.mkdir()
    shutil.copy(HERE / "micro.yaml", path)
    return path


def start(study: Path, results: Path, *arguments: str, **more: str) -> subprocess.Popen:
    """Start ``fpbench run`` as a user would; ``more``: of the environment."""
    environment = {**os.environ, "FPBENCH_RESULTS": str(results), "FPBENCH_DATA": str(study.parent / "data"), **more}
    command = [sys.executable, "-m", "fpbench.cli", "run", str(study), *arguments]
    with open(results.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def targets(results: Path) -> list[str]:
    """Return what ends the part of the grid that computes: notebooks 01, 02, 04 and 05."""
    return [str(results / "micro" / "predictions" / encoder / "full.json") for encoder in ENCODERS]


def rows(results: Path) -> dict[str, str]:
    """Return the SHA-256 of every predictions file."""
    return {str(path.relative_to(results)): file_sha256(path) for path in results.rglob("predictions/**/*.parquet")}


def job(word: str) -> str:
    """Return the id of the running Slurm job whose comment holds a word; empty if there is none."""
    lines = call("squeue", "-h", "-t", "R", "-o", "%A %k").splitlines()
    return next((line.split()[0] for line in lines if word in line), "")


class Training:
    """The checkpoints of one encoder's first fold, as they come."""

    def __init__(self, results: Path, encoder: str) -> None:
        self.folder, self.encoder, self.seen = results / "micro" / "finetuning" / encoder, encoder, []

    def look(self) -> int:
        """Return the number of finished epochs of the checkpoint that is there now, or of the last that was."""
        for path in self.folder.glob("full/*/fold0/*/last.pt"):
            try:
                state = torch.load(path, weights_only=True)["state"]
            except FileNotFoundError:  # the run has ended
                break
            if (at := (state["epoch"], state["step"])) not in self.seen[-1:]:
                self.seen.append(at)
        return self.seen[-1][0] if self.seen else 0

    def repeated(self) -> int:
        """Return how many epochs were computed more than once: how far a checkpoint fell behind one before it."""
        return max((before[0] - after[0] for before, after in pairwise(self.seen)), default=0)

    def saved(self) -> list[tuple[int, int]]:
        """Return the checkpoints from within an epoch, which only a signal writes: finished epochs, steps of the next."""
        return [at for at in self.seen if at[1]]

    def ended(self) -> bool:
        """Say whether the fold is finished."""
        return any(self.folder.glob("full/*/fold0/*/best.json"))


def test_the_grid_survives_slurm_and_gives_the_same_rows(study, tmp_path):
    local, remote = tmp_path / "results of one machine", tmp_path / "results of a cluster"
    began = time.monotonic()

    def tell(words: str) -> None:
        print(f"  {time.monotonic() - began:5.0f} s  {words}", flush=True)

    print()
    process = start(study, local, "--jobs", "2", "--", *targets(local))
    assert process.wait() == 0, (local.with_suffix(".log")).read_text()[-3000:]
    expected = rows(local)
    assert len(expected) == 2 * 2 * 3, (local.with_suffix(".log")).read_text()[-3000:]
    tell(f"one machine: {len(expected)} predictions files")

    with cluster(memory=20000) as home:
        tell(f"Slurm is up: {node_state()}, {call('sinfo', '-h', '-o', '%G')}")
        process = start(study, remote, "--profile", "slurm", "--", *targets(remote), *QUICK)
        try:
            survive(remote, home, tell)
            wait_for(lambda: process.poll() is not None, PATIENCE, home)
            assert process.returncode == 0
        except BaseException:
            print(call("squeue", "-t", "all", "-o", "%A %T %r %k"), (remote.with_suffix(".log")).read_text()[-6000:])
            raise
        finally:
            process.terminate()
        tell(
            "jobs (id, state, restarts, what):\n"
            + call("squeue", "-h", "-t", "all", "-O", "JobID:8,State:12,RestartCnt:4,Comment:60")
        )
    assert rows(remote) == expected
    tell("prediction rows of the cluster are byte-identical to those of one machine")


def survive(results: Path, home: Path, tell) -> None:
    """Drain and resume the node; kill one training and requeue the other in the middle."""
    wait_for(lambda: job("linear_probing"), PATIENCE, home)
    call("scontrol", "update", f"NodeName={NODE}", "State=DRAIN", "Reason=test")
    wait_for(lambda: node_state() == "drained", PATIENCE, home)
    wait_for(lambda: call("squeue", "-h", "-t", "PD", "-o", "%r"), PATIENCE, home)
    tell(f"drained; waiting jobs: {call('squeue', '-h', '-t', 'PD', '-o', '%A %r %k')}")
    assert not job("")
    call("scontrol", "update", f"NodeName={NODE}", "State=RESUME")
    wait_for(lambda: job("finetuning"), PATIENCE, home)
    tell(f"resumed: {node_state()}")

    trainings = [Training(results, encoder) for encoder in ENCODERS]
    waiting = dict(zip(trainings, ("killed by scancel --signal=TERM", "requeued by scontrol requeue"), strict=True))

    def step() -> bool:
        for training in trainings:
            epochs = training.look()
            if training in waiting and epochs >= 3 and (number := job(f"finetuning_wildcards_{training.encoder}")):
                what = waiting.pop(training)
                call(*(["scancel", "--signal=TERM", number] if "TERM" in what else ["scontrol", "requeue", number]))
                tell(f"{training.encoder}, Slurm job {number}, {what} after {epochs} epochs")
            elif training in waiting:
                assert not training.ended(), f"{training.encoder} ended before it could be {waiting[training]}"
        return all(training.ended() for training in trainings)

    wait_for(step, PATIENCE, home)
    for training in trainings:
        tell(
            f"{training.encoder}: epochs computed twice {max(training.repeated(), 0)}, saved on a signal {training.saved()}"
        )
        assert training.repeated() <= 1
    assert trainings[0].saved(), "SIGTERM did not reach the kernel, or it was not given the time to save"


FILTER = """#!/bin/sh
echo "$@" >> "$0.log"
case " $* " in *" --gpus"*) echo "sbatch: error: ask for GPUs by --gres" >&2; exit 1;; esac
case " $* " in *" -A lab "*) ;; *) echo "sbatch: error: an account is required" >&2; exit 1;; esac
exec {sbatch} "$@"
"""
LEASE = """
from contextlib import ExitStack
from pathlib import Path
from fpbench.grid.gpus import devices, lease
with ExitStack() as stack:
    lease(stack, devices(), Path("devices.log"), "a job of Slurm")
"""


def sees(word: str) -> str | None:
    """Return the GPUs that a running job of the grid sees, as Slurm has told it; None if none runs whose command holds a word."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "notebook" in process.cmdline() and word in " ".join(process.cmdline()):
                return process.environ().get("CUDA_VISIBLE_DEVICES", "")
    return None


def test_schedulers_as_they_are(study, tmp_path, monkeypatch):
    """The commands of the README, in a cluster that takes --gres alone and wants an account, and within a whole node."""
    (bin := tmp_path / "bin").mkdir()
    account = [*QUICK, "slurm_account=lab", "--retries", "0"]
    job = ["--profile", "slurm", "--", "03_encoders"]

    def run(name: str, *options: str, ok: bool = True, **more: str) -> tuple[str | None, str]:
        process, seen = start(study, results := tmp_path / name, *job, *options, **more), None
        while process.poll() is None:
            seen = seen or sees("03_encoders")
            time.sleep(0.1)
        log = results.with_suffix(".log").read_text()
        assert (process.returncode == 0) == ok, log[-3000:]
        return seen, log

    with cluster(memory=20000) as home:
        (bin / "sbatch").write_text(FILTER.format(sbatch=shutil.which("sbatch")))
        (bin / "sbatch").chmod(0o755)
        filtered = {"PATH": f"{bin}:{os.environ['PATH']}"}
        gres = {"FPBENCH_SLURM_GPU": "--gres=gpu:v100:1"}
        assert "ask for GPUs by --gres" in run("gpus", *account, ok=False, **filtered)[1]
        assert "an account is required" in run("nobody", *QUICK, "--retries", "0", ok=False, **filtered, **gres)[1]
        assert run("gres", *account, **filtered, **gres)[0] == "1"  # the second card, a V100
        last = (bin / "sbatch.log").read_text().splitlines()[-1]
        assert "--gres=gpu:v100:1" in last
        assert "--gpus" not in last
        assert run("per node", *QUICK, FPBENCH_SLURM_GPU="--gpus-per-node=1")[0] == "0"
        assert run("as ever", *QUICK)[0] == "0"

        # a whole node: Slurm gives it, and the jobs share its GPUs out
        results = tmp_path / "whole node"
        monkeypatch.setenv("FPBENCH_RESULTS", str(results))
        monkeypatch.setenv("FPBENCH_DATA", str(study.parent / "data"))
        fpbench = shlex.join(
            [sys.executable, "-m", "fpbench.cli", "run", str(study), "--profile", "gpubox", "--jobs", "2"]
        )
        probing = [f"04_linear_probing.{encoder}" for encoder in ENCODERS]
        whole = ["--exclusive", "--gres=gpu:a100:1,gpu:v100:1", "--wait", f"--output={tmp_path}/whole.log"]
        call("sbatch", *whole, "--wrap", f"{fpbench} -- {shlex.join(probing)}")
        log = (results / "micro" / "notebooks" / "devices.log").read_text()
        assert {line.split()[3] for line in log.splitlines() if "leased" in line} == {"0", "1"}

        # named GPUs, whatever Slurm gave
        monkeypatch.setenv("FPBENCH_GPUS", "MIG-8a77")
        python = shlex.join([sys.executable, "-c", LEASE])
        call(
            "sbatch",
            "--gres=gpu:1",
            "--wait",
            f"--chdir={tmp_path}",
            f"--output={tmp_path}/named.log",
            "--wrap",
            python,
        )
        assert "leased device MIG-8a77" in (tmp_path / "devices.log").read_text()
        assert node_state() == "idle", home
