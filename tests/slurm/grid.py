"""The grid through a real Slurm: killed, requeued, drained, and the same rows as on one machine.

Not collected by default (``make test-slurm`` names this file): it needs root, and takes some minutes. Paths hold spaces throughout.
"""

import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

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


def start(study: Path, results: Path, *arguments: str) -> subprocess.Popen:
    """Start ``fpbench run`` as a user would."""
    environment = {**os.environ, "FPBENCH_RESULTS": str(results), "FPBENCH_DATA": str(study.parent / "data")}
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
