"""The grid on servers: GPUs are leased one by one, signals reach the kernel, profiles ask for what a job needs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml

from fpbench import doctor, load_study, loading
from fpbench.errors import InputError
from fpbench.files import paths
from fpbench.grid import costs, gpus

HOLD = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from fpbench.grid.gpus import devices, lease
with ExitStack() as stack:
    lease(stack, devices(), Path(sys.argv[1]), sys.argv[2])
    time.sleep(float(sys.argv[3]))
"""
LINE = re.compile(r"\S+T\S+ (leased|returned) device (\S+) \(pid (\d+), (.+)\)")
MICRO = paths.home() / "tests" / "slurm" / "micro.yaml"


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Four devices that nobody else leases, and the log."""
    (tmp_path / "host").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "host"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("FPBENCH_GPUS", "0,1,2,3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.delenv("FPBENCH_GPUS_SHARE", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path / "devices.log"


def hold(log, title, seconds):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(log), title, str(seconds)])


def lines(log):
    text = log.read_text() if log.is_file() else ""
    return [LINE.fullmatch(line).groups() for line in text.splitlines()]


def most_holders(log):
    """Replay the log: the largest number of jobs that held one device at once."""
    held, most = {}, 0
    for word, device, pid, _ in lines(log):
        if word == "leased":
            held.setdefault(device, set()).add(pid)
            most = max(most, len(held[device]))
        else:
            held[device].remove(pid)
    assert not any(held.values())
    return most


@pytest.mark.parametrize(("share", "expected"), [(None, 1), ("2", 2)])
def test_eight_jobs_on_four_devices_never_share_one_unless_asked(four, monkeypatch, share, expected):
    if share:
        monkeypatch.setenv("FPBENCH_GPUS_SHARE", share)
    jobs = [hold(four, f"job {number}", 3 if share else 0.3) for number in range(8)]
    assert [job.wait(120) for job in jobs] == [0] * 8
    assert [word for word, *_ in lines(four)].count("leased") == 8
    assert {device for _, device, *_ in lines(four)} == set("0123")
    assert most_holders(four) == expected


def test_the_device_of_a_killed_job_returns(four, monkeypatch):
    monkeypatch.setenv("FPBENCH_GPUS", "5")
    holder = hold(four, "killed", 600)
    waiting = None
    try:
        until(lambda: lines(four))
        waiting = hold(four, "waiting", 0)
        time.sleep(1.5)
        assert len(lines(four)) == 1  # it waits
        holder.send_signal(signal.SIGKILL)
        assert waiting.wait(60) == 0
    finally:
        holder.kill()
    found = lines(four)
    assert [(word, device, title) for word, device, _, title in found] == [
        ("leased", "5", "killed"), ("leased", "5", "waiting"), ("returned", "5", "waiting")
    ]  # fmt: skip


def test_what_is_shared_out(four, monkeypatch):
    assert gpus.devices() == ["0", "1", "2", "3"]
    monkeypatch.setenv("FPBENCH_GPUS", " 0, MIG-8a ,")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert gpus.devices() == ["0", "MIG-8a"]  # as they are named, in a job of Slurm too
    monkeypatch.delenv("FPBENCH_GPUS")
    for visible, expected in (("0,1", ["0", "1"]), ("3", []), ("", []), ("NoDevFiles", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus.devices() == expected  # of a job with a whole node; one that was given one GPU has no more to share
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.devices() == []  # whatever lies in /dev: others may have been given it
    monkeypatch.delenv("SLURM_JOB_ID")
    for visible, expected in (("2,GPU-5e", ["2", "GPU-5e"]), ("3", []), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus.devices() == expected


def seen():
    return {name: os.environ.get(name) for name in ("FPBENCH_GPUS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}


def test_a_holder_sees_its_device_alone_numbered_as_nvidia_smi_does_and_all_come_back(four, monkeypatch):
    """What a kernel inherits names one device, so that it cannot take another; a second notebook of this process finds all."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    before = seen()
    with ExitStack() as stack:
        gpus.lease(stack, ["a", "b"], four, "first")
        assert seen() == {"FPBENCH_GPUS": "a", "CUDA_VISIBLE_DEVICES": "a", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        assert gpus.devices() == ["a"]
    assert seen() == before
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    with ExitStack() as stack:
        gpus.lease(stack, ["a"], four, "second")
        assert seen()["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"  # who says it, means it
    monkeypatch.delenv("FPBENCH_GPUS")
    with ExitStack() as stack:
        gpus.lease(stack, ["a", "b"], four, "third")
        assert seen()["FPBENCH_GPUS"] is None  # nobody named any: without CUDA, `auto` is the CPU as before


def test_mig_instances_are_leased_by_their_names(four, monkeypatch):
    """Those of older drivers hold slashes."""
    names = ["MIG-GPU-5e/1/0", "MIG-GPU-5e/2/0", "MIG-8a77"]
    monkeypatch.setenv("FPBENCH_GPUS", ",".join(names))
    jobs = [hold(four, f"job {number}", 3) for number in range(3)]
    assert [job.wait(120) for job in jobs] == [0] * 3
    assert {device for word, device, *_ in lines(four) if word == "leased"} == set(names)


def test_jobs_of_slurm_whose_numbers_begin_at_0_do_not_wait_for_each_other_unless_the_gpus_are_named(four, monkeypatch):
    monkeypatch.delenv("FPBENCH_GPUS")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with ExitStack() as stack:
        gpus.lease(stack, gpus.devices(), four, "holds 0 of job 7")
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        with ExitStack() as other:
            gpus.lease(other, gpus.devices(), four, "0 of job 8")
    assert [device for word, device, *_ in lines(four) if word == "leased"] == ["0", "0"]
    monkeypatch.setenv("FPBENCH_GPUS", "2,3")
    with ExitStack() as stack:
        gpus.lease(stack, gpus.devices(), four, "one")
        monkeypatch.setenv("FPBENCH_GPUS", "2,3")
        monkeypatch.setenv("SLURM_JOB_ID", "9")
        with ExitStack() as other:
            gpus.lease(other, gpus.devices(), four, "another")
    assert [device for word, device, *_ in lines(four) if word == "leased"][2:] == ["2", "3"]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_notebook_sees_the_named_gpus_alone(four, monkeypatch, device):
    import torch

    study = replace(load_study(MICRO), device=device)
    monkeypatch.setenv("FPBENCH_GPUS", "2, 5")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    for count, right in (
        (0, False),
        (1, True),
        (2, True),
        (4, False),
    ):  # one: of MIG instances; four: torch looked before
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        if right:
            assert loading.device(study).partition(":")[0] == "cuda"
        else:
            with pytest.raises(
                InputError, match=f"FPBENCH_GPUS=2,5: torch sees {count} GPUs: expected numbers or names"
            ):
                loading.device(study)
        assert seen() == {"FPBENCH_GPUS": "2, 5", "CUDA_VISIBLE_DEVICES": "2,5", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_gpus_that_are_named_and_not_there_are_no_reason_to_compute_on_the_cpu(four):
    with pytest.raises(InputError, match="torch sees 0 GPUs"):
        loading.device(load_study(MICRO))
    assert loading.device(replace(load_study(MICRO), device="cpu")) == "cpu"
    (finding,) = (one for one in doctor.examine(load_study(MICRO)) if one.room == "device")
    assert (finding.state, "torch sees 0 GPUs" in finding.detail) == ("fail", True)


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


SAVING = """import os, signal, time
def save(number, frame):
    time.sleep(3)
    open(mark + ".saved", "w").write(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    os._exit(1)
signal.signal(signal.SIGTERM, save)
open(mark, "w").close()
time.sleep(600)"""


def start(source, tmp_path, study, **environment):
    """Execute a notebook whose kernel takes three seconds to save when it is asked to end."""
    cells = [nbformat.v4.new_code_cell('study = "demo"\nmark = ""', metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(SAVING))
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), tmp_path / source)
    output, given = tmp_path / "out" / source, {"study": str(study), "mark": str(tmp_path / "mark")}
    code = f"from fpbench.grid.notebooks import execute; from pathlib import Path; execute(Path({str(tmp_path / source)!r}), Path({str(output)!r}), {given!r})"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("source", "device", "number"),
    [("05_trains.ipynb", "0", signal.SIGTERM), ("06_reads.ipynb", "0,1,2,3", signal.SIGINT)],
)
def test_a_signal_to_the_job_reaches_the_kernel_and_waits_for_its_checkpoint(four, tmp_path, source, device, number):
    """The kernel's parent must outlive it: a kernel whose parent has gone ends within a second, whatever it was saving."""
    job = start(source, tmp_path, MICRO)
    try:
        until(lambda: (tmp_path / "mark").exists() or job.poll() is not None)
        job.send_signal(number)
        assert job.wait(60) == 128 + number
    finally:
        job.kill()
    assert (
        tmp_path / "mark.saved"
    ).read_text() == device  # one that computes sees its device alone; one that reads, all
    assert len(lines(tmp_path / "out" / "devices.log")) == (2 if device == "0" else 0)
    assert (tmp_path / "out" / source).is_file()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The cohorts of the small grid, drawn once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FPBENCH_DATA", str(folder := tmp_path_factory.mktemp("data")))
        loading.load_cohorts(load_study(MICRO))
    return folder


def test_the_grid_asks_for_what_each_job_needs(tmp_path, drawn):
    """Snakemake takes every profile; a job that computes asks for a GPU, time and memory; the user has the last word."""
    environment = {**os.environ, "FPBENCH_DATA": str(drawn)}
    for name in ("local", "gpubox", "slurm"):
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.home() / "Snakefile"), "--dry-run"]
        command += [
            "--profile",
            str(paths.home() / "profiles" / name),
            "--config",
            f"study={MICRO}",
            "--cores",
            "2",
        ]
        command += ["--directory", str(tmp_path), "--set-resources", "finetuning:runtime=77"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rules = {block.split(":")[0]: block for block in (done.stdout + done.stderr).split("\nrule ")[1:]}
        for rule, block in rules.items():
            gpu = rule in ("encoders", "linear_probing", "finetuning", "shortcuts", "label_efficiency")
            asked = re.search(r"resources: (.*)", block)
            assert rule == "all" or (asked and "mem_mb=" in asked[1] and "runtime=" in asked[1]), (rule, block)
            assert ("gpu=1" in block) == gpu, (rule, block)
        assert "runtime=77" in rules["finetuning"]
        if name == "local":  # the profiles differ in where jobs run, not in what they are
            first = rules
        assert rules.keys() == first.keys()


@pytest.mark.parametrize(
    ("words", "asked"),
    [("--gres=gpu:1", "gres=gpu:1"), ("--gres=gpu:a100:1", "gres=gpu:a100:1"), ("--gpus-per-node=1", "slurm_extra=--gpus-per-node=1")],
)  # fmt: skip
def test_a_cluster_is_asked_for_a_gpu_in_its_own_words(tmp_path, drawn, words, asked):
    """Of jobs that compute alone; --gpus is then sent by nothing."""
    environment = {**os.environ, "FPBENCH_DATA": str(drawn), "FPBENCH_SLURM_GPU": words}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.home() / "Snakefile"), "--dry-run", "--cores", "2"]  # fmt: skip
    command += ["--directory", str(tmp_path), "--config", f"study={MICRO}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rules = {block.split(":")[0]: block for block in (done.stdout + done.stderr).split("\nrule ")[1:]}
    gpu = ("encoders", "linear_probing", "finetuning", "shortcuts", "label_efficiency")
    assert {rule for rule, block in rules.items() if asked in block} == {*gpu}
    assert not [rule for rule, block in rules.items() if re.search(r"\bgpu=", block)]


@pytest.mark.parametrize("words", ["gpu:1", "--gpus=1", "--gpus 1"])
def test_words_that_ask_for_no_gpu_are_refused(monkeypatch, words):
    monkeypatch.setenv("FPBENCH_SLURM_GPU", words)
    with pytest.raises(InputError, match=f"FPBENCH_SLURM_GPU={words}: expected --gres=gpu:1"):
        costs.resources(load_study(MICRO), 10)
    assert "gpu" not in costs.resources(load_study(MICRO), 0)


def test_a_profile_asks_for_nothing_of_one_place_only():
    for path in (paths.home() / "profiles").glob("*/config.yaml"):
        assert "default-resources" not in yaml.safe_load(path.read_text()), "accounts and partitions are the user's"


USER = """
import sys
from fpbench import load_study, loading, make_splits
from fpbench.training import probing
from fpbench.training.bench import open_bench
study = load_study(sys.argv[1]).begin()
home, external = loading.load_cohorts(study)
splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
bench = open_bench(study, "tiny", home, external, splits)
print(len(probing.run_probe(bench, "logistic")), "files")
"""


@pytest.fixture
def common():
    """A folder with spaces for cohorts and weights, readable by all and writable by none."""
    folder = Path(tempfile.mkdtemp(prefix="common data "))
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


def powerless():
    """Return the command that runs another as a user whom permissions bind, also if root tests."""
    return (
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
        if os.geteuid() == 0
        else []
    )


@pytest.mark.skipif(sys.platform != "linux", reason="setpriv is Linux's")
def test_two_users_share_data_and_weights_that_they_cannot_write_with_a_home_that_is_full(
    tmp_path, common, drawn, monkeypatch
):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("mobilenetv3_small_050", num_classes=0).state_dict(), common / "tiny.safetensors")
    monkeypatch.setenv("FPBENCH_DATA", str(common / "data"))
    study = tmp_path / "my study.yaml"
    content = yaml.safe_load(MICRO.read_text())
    tiny = {"name": "tiny", "model": "timm:mobilenetv3_small_050", "weights": str(common / "tiny.safetensors")}
    content |= {"encoders": [tiny | {"geometry": {"kind": "squash", "size": 32}}], "full": [], "probes": ["logistic"]}
    study.write_text(yaml.safe_dump(content))
    shutil.copytree(drawn, common / "data")
    subprocess.run(["chmod", "-R", "a-w", str(common)], check=True)
    before = sorted(common.rglob("*"))
    (tmp_path / "home").mkdir(mode=0o555)
    refused = subprocess.run([*powerless(), "touch", str(common / "data" / "x")], capture_output=True, check=False)
    assert refused.returncode, "the folder can be written, so this test would prove nothing"

    def user(name, *command):
        environment = {
            **os.environ,
            "FPBENCH_RESULTS": str(tmp_path / f"results of {name}"),
            "HOME": str(tmp_path / "home"),
        }
        return subprocess.Popen(
            [*powerless(), sys.executable, *command], env=environment, stdout=-1, stderr=-1, text=True
        )

    executed = tmp_path / "results of ann" / "my first.ipynb"
    jobs = [user(name, "-c", USER, str(study)) for name in ("ann", "bob")]
    jobs += [user("ann", "-m", "fpbench.cli", "notebook", "01_cohorts", str(executed), "-p", f"study={study}")]
    for job in jobs:
        _, err = job.communicate(timeout=300)
        assert job.returncode == 0, err
    files = [(tmp_path / f"results of {name}" / "micro").rglob("fold*.parquet") for name in ("ann", "bob")]
    ann, bob = ([path.read_bytes() for path in sorted(found)] for found in files)
    assert len(ann) == 3
    assert ann == bob
    outputs = [output for cell in nbformat.read(executed, 4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]  # Matplotlib and IPython have a place
    assert sorted(common.rglob("*")) == before
