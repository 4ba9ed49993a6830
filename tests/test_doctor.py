"""What the doctor finds: each thing is broken on purpose, and nothing is changed by looking."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from fpbench import __version__, cli, doctor, load_cohort, load_study
from fpbench.cohorts import SOURCES
from fpbench.cohorts import phantoms as phantom
from fpbench.cohorts.spain import SOURCE as SPAIN
from fpbench.encoders import catalogue, fetch

USFM = {"name": "usfm", "model": "usfm"}
TINY = {"name": "tiny", "model": "timm:resnet18", "weights": "random", "geometry": {"kind": "squash", "size": 32}}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FPBENCH_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture
def study(small, tmp_path, monkeypatch):
    """Return a function that makes a study over the small archives, with some fields changed."""
    for name in small:  # their label files are nobody's
        monkeypatch.setitem(doctor.SOURCES, name, replace(doctor.SOURCES[name], csv_sha256=""))

    def make(*encoders, **changes):
        cohorts = [{"name": name, "root": str(root)} for name, root in small.items()]
        content = {"name": "small", "title": "Small", "cohorts": cohorts, "encoders": [*(encoders or [TINY])]}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump({**content, "device": "cpu", **changes}))
        return load_study(tmp_path / "small.yaml")

    return make


def found(findings, room, what=None):
    (one,) = [one for one in findings if one.room == room and what in (None, one.what)]
    return one


def examined(study, room, what=None, full=False):
    return found(doctor.examine(study, full), room, what)


def says(one, state, *parts):
    assert one.state == state, one
    for part in parts:
        assert part in one.detail + one.remedy


def tree(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def run(*arguments):
    command = [sys.executable, "-m", "fpbench.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_demo_can_run_where_nothing_was_made_yet(tmp_path):
    done = run()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "study demo can run (red lines: 0, warnings: 0)"
    assert max(map(len, lines)) <= 120
    assert "FAIL" not in done.stdout
    assert done.stdout.count("phantom, drawn on first use") == 2
    assert done.stdout.count("shipped with fpbench") == 7
    assert not tree(tmp_path)


def test_a_study_that_cannot_run_says_so_in_json_with_a_remedy_for_each_red_line(tmp_path):
    done = run("paper", "--json")
    assert done.returncode == 1
    content = json.loads(done.stdout)
    assert (content["study"], content["can_run"]) == ("paper", False)
    red = {one["what"]: one for one in content["findings"] if one["state"] == "fail"}
    assert len(red) == 9
    assert "run `fpbench fetch spain`" in red["spain"]["remedy"]
    assert "run `fpbench fetch weights usfm`. By hand: open https" in red["usfm"]["detail"]
    assert all(one["remedy"] for one in red.values())
    assert not tree(tmp_path)
    text = run("paper")
    assert text.returncode == 1
    assert text.stdout.splitlines()[-1].startswith("study paper cannot run (red lines: 9")
    assert max(map(len, text.stdout.splitlines())) <= 120


def test_a_study_that_is_not_there():
    done = run("nothing")
    assert done.returncode == 1
    assert "the studies are brain, demo" in done.stderr


@pytest.mark.skipif(any(next(Path("/dev").glob(name), None) for name in doctor.GPUS), reason="torch must be asked")
def test_torch_is_not_imported_where_there_is_no_gpu():
    code = "import sys; from fpbench import doctor, load_study; doctor.examine(load_study('demo')); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_small_archives_are_whole_and_stay_as_they_are(study, tmp_path):
    plan = study()
    before = tree(tmp_path)
    findings = doctor.examine(plan, full=True)
    assert doctor.can_run(findings)
    assert "48 patients, 144 of 144 images, all opened" in found(findings, "cohorts", "spain").detail
    assert tree(tmp_path) == before


def test_a_missing_cohort_hides_nothing_else(study, small):
    shutil.rmtree(small["spain"])
    (small["africa"] / "Egypt" / "patient001_EGY_plane0.png").unlink()
    findings = doctor.examine(study(USFM))
    red = [(one.room, one.what) for one in findings if one.state == "fail"]
    assert red == [("cohorts", "spain"), ("cohorts", "africa"), ("weights", "usfm")]
    spain, africa = (found(findings, "cohorts", name) for name in ("spain", "africa"))
    says(spain, "fail", str(small["spain"]), "run `fpbench fetch spain`, and leave `root` out of the study")
    says(africa, "fail", "1 of 54 images of africa are not in", "missing='drop'")


def test_missing_images_may_be_declared(study, small):
    for path in sorted((small["spain"] / "Images").glob("*.png"))[:2]:
        path.unlink()
    cohorts = [{"name": "spain", "root": str(small["spain"]), "missing": "drop"}]
    spain = examined(study(cohorts=cohorts), "cohorts", "spain")
    says(spain, "ok", "142 of 144 images")
    assert examined(study(), "cohorts", "spain").state == "fail"


def test_published_counts_are_held(study, small):
    table = small["spain"] / SPAIN.csv
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    spain = examined(study(), "cohorts", "spain")
    says(spain, "fail", "total images: expected 144, found 143", "move the folder away, run `fpbench fetch spain`")


def test_an_unknown_cohort_and_a_study_without_a_cohort_to_train_on(study):
    findings = doctor.examine(study(cohorts=[{"name": "spian"}]))
    assert "unknown cohort 'spian'" in found(findings, "cohorts", "spian").detail
    africa = examined(study(cohorts=[{"name": "phantom-africa"}]), "cohorts", "phantom-africa")
    says(africa, "fail", "one cohort of the population 'spain' to train on, found africa; or write")


@pytest.mark.parametrize("place", [-14, -200])  # the checksum of the pixels, unseen by decoding; the pixels
def test_a_flipped_byte_is_found_by_full_and_claimed_by_nobody_else(study, small, place):
    path = sorted((small["spain"] / "Images").glob("*.png"))[7]
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    says(examined(study(), "cohorts", "spain"), "ok", "none opened")
    done = CliRunner().invoke(cli.app, ["doctor", str(small["spain"].parent / "small.yaml"), "--full", "--json"])
    assert done.exit_code == 1
    (red,) = [one for one in json.loads(done.stdout)["findings"] if one["state"] == "fail"]
    assert red["what"] == "spain"
    assert red["detail"].startswith("1 damaged images")
    assert path.name in red["detail"]


def test_three_damaged_images_are_named_at_most(study, small):
    for path in (small["africa"] / "Malawi").glob("*.png"):
        path.write_bytes(path.read_bytes()[:-100])
    africa = examined(study(), "cohorts", "africa", full=True)
    assert africa.detail.startswith("12 damaged images")
    assert africa.detail.count(".png: ") == 3


def test_a_whole_file_that_the_loader_refuses_is_damaged_too(study, small):
    Image.fromarray(np.zeros((40, 50), np.uint16)).save(small["africa"] / "Malawi" / "patient001_MWI_plane0.png")
    says(
        examined(study(), "cohorts", "africa", full=True),
        "fail",
        "found more (mode I;16): say how many of its bits are used",
    )


@pytest.mark.shared
def test_the_real_label_files_are_known(shared, tmp_path, study, monkeypatch):
    root = shared / "data" / "spain"
    plan = study(cohorts=[{"name": "spain", "root": str(root), "missing": "drop"}])
    monkeypatch.setitem(doctor.SOURCES, "spain", SPAIN)
    spain = examined(plan, "cohorts", "spain")
    assert (spain.state, spain.detail[-12:]) == ("ok", "as published")
    image = next((root / "Images").glob("*.png"))
    (tmp_path / "copy" / "Images").mkdir(parents=True)
    shutil.copy(image, tmp_path / "copy" / "Images")
    (tmp_path / "copy" / SPAIN.csv).write_bytes((root / SPAIN.csv).read_bytes().replace(b"\n", b"\r\n"))
    plan = study(cohorts=[{"name": "spain", "root": str(tmp_path / "copy"), "missing": "drop"}])
    says(examined(plan, "cohorts", "spain"), "warn", "published 18f8250244dd")


def test_phantoms_are_drawn_again_as_the_loader_would_and_others_are_left_alone(tmp_path):
    root, plan = tmp_path / "data" / "phantom-africa", load_study("demo")
    phantom.ensure(root, "africa")
    before = tree(tmp_path)
    africa = examined(plan, "cohorts", "phantom-africa", full=True)
    total = SOURCES["phantom-africa"].counts["total"]["images"]
    says(africa, "ok", f"{total} of {total} images, all opened")
    assert tree(tmp_path) == before
    next(root.glob("*/*.png")).unlink()
    assert examined(plan, "cohorts", "phantom-africa").detail == "phantom, drawn on first use"
    (root / "phantom.json").unlink()
    says(examined(plan, "cohorts", "phantom-africa"), "fail", "not a phantom")


def put(name, content=b"weights" * 1000):
    path = fetch.path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_weights_put_by_hand_are_not_pinned_by_looking(study, tmp_path):
    put("usfm")
    plan = study(USFM)
    before = tree(tmp_path)
    says(examined(plan, "weights", "usfm"), "ok", "to be pinned on first use", "CC BY-NC 4.0")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("own", [True, False])  # lock of the study; lock of `fpbench fetch weights`
def test_truncated_weights_differ_from_the_pinned_hash(study, own):
    path, plan = put("usfm"), study(USFM)
    fetch.locate("usfm", plan.folder / "weights.lock.json" if own else None)
    says(examined(plan, "weights", "usfm"), "ok", "pinned in")
    path.write_bytes(path.read_bytes()[:-1])
    says(examined(plan, "weights", "usfm"), "fail", "another file, or a damaged one")


def test_weights_differ_from_the_published_hash(study):
    put("ultrasam")
    says(
        examined(study({"name": "ultrasam", "model": "ultrasam"}), "weights", "ultrasam"),
        "fail",
        catalogue.CATALOGUE["ultrasam"].source.sha256,
        "published under this name",
    )


def test_full_hashes_weights_anew(study, tmp_path):
    path, plan = put("usfm"), study(USFM)
    fetch.locate("usfm", plan.folder / "weights.lock.json")
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(time, time))
    before = tree(tmp_path)
    assert examined(plan, "weights", "usfm").state == "ok"
    assert examined(plan, "weights", "usfm", full=True).state == "fail"
    assert tree(tmp_path) == before


def test_weights_of_the_study_unknown_encoders_and_settings_that_do_not_fit(study, tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"mine")
    plan = study(
        {**TINY, "name": "mine", "weights": str(tmp_path / "mine.pth")},
        {**TINY, "name": "gone", "weights": str(tmp_path / "gone.pth")},
        {**USFM, "name": "odd", "model": "usmf"},
        {**USFM, "name": "pool", "weights": "random", "pooling": "max"},
        {**USFM, "name": "side", "weights": "random", "geometry": {"size": 256}},
    )
    findings = doctor.examine(plan)
    states = {one.what: (one.state, one.detail) for one in findings if one.room == "weights"}
    assert [state for state, _ in states.values()] == ["ok", "fail", "fail", "fail", "fail"]
    assert "held to no hash" in states["mine"][1]
    assert "No such file" in states["gone"][1]
    assert "gone.pth" in states["gone"][1]
    assert "unknown encoder 'usmf'" in states["odd"][1]
    assert "no pooling 'max': expected one of patch_mean" in states["pool"][1]
    assert "expected an input side of 224" in states["side"][1]


def test_weights_that_a_library_fetches(study):
    usual = examined(study({"name": "usual", "model": "timm:resnet18.a1_in1k"}), "weights")
    assert (usual.state, usual.detail.startswith("fetched by timm on first use")) == ("warn", True)


def test_a_disk_too_small(study, small, monkeypatch):
    plan = study(probes=["logistic", "knn"])

    def states(free):
        usage = namedtuple("usage", "total used free")(free, 0, int(free))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        return [examined(plan, "disk", what).state for what in ("cache", "results")]

    cache, results = 198 * (32 * 32 + 4 * doctor.GUESS[1]), 120 * 198 * 5 * 2
    assert [states(share * cache)[0] for share in (0.99, 1.01, 1.99, 2.01)] == ["fail", "warn", "warn", "ok"]
    assert [states(share * results)[1] for share in (0.99, 1.01, 2.01)] == ["fail", "warn", "ok"]
    assert "FPBENCH_CACHE" in examined(plan, "disk", "cache").remedy
    load_cohort("spain", small["spain"])  # part of what is needed may be in the cache now
    assert states(0.99 * cache)[0] == "warn"


def test_memory_too_small(study, monkeypatch):
    plan = study({**USFM, "weights": "random"})
    assert examined(plan, "memory").state != "fail"
    monkeypatch.setitem(catalogue.CATALOGUE, "usfm", replace(catalogue.CATALOGUE["usfm"], parameters=1e9))
    memory = examined(plan, "memory")
    assert (memory.state, memory.remedy) == ("fail", "use a larger machine")
    assert "needs at least 8,000,000.00 GB" in memory.detail


def test_devices(study, monkeypatch):
    torch = pytest.importorskip("torch")
    assert "expected auto, cpu, cuda or cuda:N" in examined(study(device="tpu"), "device").detail
    real = {"cohorts": [{"name": "spain"}, {"name": "africa"}]}
    monkeypatch.setattr(doctor, "SMALL", 100)
    slow = examined(study({**USFM, "weights": "random"}, device="cpu", **real), "device")
    says(slow, "warn", "slow with usfm on 198 images")
    assert examined(study(device="cpu", **real), "device").state == "ok"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no GPU" in examined(study(device="cuda"), "device").detail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    facts = namedtuple("facts", "name total_memory")("a GPU", 24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    gpu = examined(study(device="cuda"), "device")
    assert (gpu.state, gpu.detail) == ("ok", "cuda: a GPU, 24 GB, bfloat16: no")
    assert examined(study({**TINY, "bf16": True}, device="cuda"), "device").state == "warn"
    assert "torch sees 1 GPUs" in examined(study(device="cuda:1"), "device").detail


def test_a_results_folder_that_cannot_be_written(study, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "file" / "results"))
    findings = doctor.examine(study())
    for what in ("results", "cache"):
        one = found(findings, "writing", what)
        assert (one.state, one.detail.endswith("cannot be written: Not a directory")) == ("fail", True)
        assert f"FPBENCH_{what.upper()}" in one.remedy
    assert found(findings, "writing", "weights").state == "ok"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that refuses even root")
def test_folders_that_refuse_to_be_written(study, monkeypatch):
    monkeypatch.setenv("FPBENCH_WEIGHTS", "/proc/weights")
    monkeypatch.setenv("FPBENCH_DATA", "/proc/data")
    findings = doctor.examine(study(USFM))  # neither is written while nothing is fetched
    assert [found(findings, "writing", what).state for what in ("weights", "data")] == ["warn", "warn"]
    assert examined(load_study("demo"), "writing", "data").state == "fail"  # phantoms are drawn there


def test_versions(study, monkeypatch):
    plan, real = study(), doctor.version
    versions = examined(plan, "versions")
    says(versions, "ok", f"torch {real('torch')}, ")
    assert versions.detail.startswith(f"fpbench {__version__}, python {platform.python_version()}, ")
    installed = {"torch": "2.9.1", "numpy": "1.26.4"}
    monkeypatch.setattr(doctor, "version", lambda name: installed.get(name) or real(name))
    versions = examined(plan, "versions")
    assert (versions.state, "pip install" in versions.remedy) == ("fail", True)
    assert versions.detail == "expected numpy>=2.0, found 1.26.4; expected torch>=2.10, found 2.9.1"
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=2.4", "not-there>=1", 'also-not; extra == "x"'])
    assert examined(plan, "versions").detail == "expected not-there>=1, found nothing"


def test_an_fpbench_that_is_not_installed(study, monkeypatch):
    def absent(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", absent)
    assert examined(study(), "versions").state == "fail"


def test_text_fits_the_screen_and_counts():
    one = doctor.Finding("weights", "usfm", "fail", "expected /" + "x" * 300, "look\nagain")
    text = doctor.render([one, replace(one, state="warn"), replace(one, room="disk")], "mine")
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[-1] == "study mine cannot run (red lines: 2, warnings: 1)"
    assert text.count("-> look again") == 3
