"""Fixtures: results go to temporary folders, tiny archives in the true layout, the real sample where it is."""

import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
from PIL import Image
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores: their threads would wait for each other

matplotlib.use("agg")  # here alone: a kernel started by a test draws inline, as it does for a reader

from fpbench import cohorts
from fpbench.cohorts.phantoms import ensure
from fpbench.files import paths
from fpbench.images import mha

PLANES = ("Other", "Fetal abdomen", "Fetal brain", "Maternal cervix", "Fetal femur", "Fetal thorax")  # by plane number
CENTRES = {"Algeria": "DZA", "Egypt": "EGY", "Ghana": "GHA", "Malawi": "MWI", "Uganda": "UGA"}
AFRICAN = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")


FIRST = (
    "test_field", "test_notebooks", "test_image_quality", "test_pretraining", "test_quality", "test_wheel", "test_rehearsal",
    "test_encoders_golden", "test_grid", "test_pipeline", "test_profiles", "test_hostile", "test_faults", "test_forkserver", "test_demo",
    "test_finetuning", "test_shortcuts", "test_report", "test_benchmarks", "test_phantom",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first, so that parallel workers end together; the libraries that execute notebooks may warn."""
    last = len(FIRST)
    items.sort(
        key=lambda item: (item.path.suffix == ".py", FIRST.index(item.path.stem) if item.path.stem in FIRST else last)
    )
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.filterwarnings("default"))
            if item.path.stem[:2] in ("10", "11", "12", "13"):  # of demo-brain and demo-quality, which take minutes
                item.add_marker(pytest.mark.slow)
        if "sample_run" in getattr(item, "fixturenames", ()):  # the whole study of the real sample
            item.add_marker(pytest.mark.slow)


class Scheduler(LoadFileScheduling):
    """A test file goes to one worker, and so do all committed notebooks, in number order."""

    def _split_scope(self, nodeid: str) -> str:
        return "notebooks" if ".ipynb::" in nodeid else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def _own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("FPBENCH_CACHE", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real sample; a clone without it skips, a machine that promises it (FPBENCH_REQUIRE_SHARED) fails."""
    folder = paths.shared()
    if (folder / "data" / "africa").is_dir():
        return folder
    reason = f"needs the real sample: set FPBENCH_SHARED ({folder} has no data/africa)"
    if os.environ.get("FPBENCH_REQUIRE_SHARED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """A folder for the whole test session, shared by parallel workers as by any processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def session_cache(session_folder) -> Path:
    """A cache for the whole test session: the sample is embedded once."""
    return session_folder / "cache"


@pytest.fixture(scope="session")
def phantoms(session_folder) -> Path:
    """The data folder of the demo, its two cohorts drawn once; tests read it and do not write there."""
    for kind in ("spain", "africa"):
        ensure(session_folder / "data" / f"phantom-{kind}", kind)
    return session_folder / "data"


def picture(rng: np.random.Generator, kind: int, width: int = 60, height: int = 44) -> np.ndarray:
    """A noisy picture whose bright spot says its class, not always clearly."""
    y, x = np.mgrid[:height, :width]
    angle = 2 * np.pi * kind / 6 + rng.normal(0, 0.35)
    spot = np.exp(
        -((x - width * (0.5 + 0.3 * np.cos(angle))) ** 2 + (y - height * (0.5 + 0.3 * np.sin(angle))) ** 2) / 60
    )
    return np.clip(60 * rng.random((height, width)) + 170 * spot, 0, 255).astype(np.uint8)


def write_spain(root: Path, patients: int = 48, images: int = 3, seed: int = 0) -> Path:
    """A small archive in the layout of FETAL_PLANES_DB: every patient has one plane, the first half trains."""
    rng = np.random.default_rng(seed)
    (root / "Images").mkdir(parents=True)
    lines = ["Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "]
    for patient in range(1, patients + 1):
        kind = patient % 6
        brain = ("Trans-thalamic", "Trans-ventricular", "Trans-cerebellum", "Other")[patient // 6 % 4]
        for image in range(1, images + 1):
            name = f"Patient{patient:05d}_Plane{kind + 1}_{image}_of_{images}"
            Image.fromarray(picture(rng, kind)).save(root / "Images" / f"{name}.png")
            cells = [
                name,
                patient,
                PLANES[kind],
                brain if kind == 2 else "Not A Brain",
                "Op. 1",
                "Aloka",
                int(patient <= patients // 2),
            ]
            lines.append(";".join(map(str, cells)) + " ")
    (root / "FETAL_PLANES_DB_data.csv").write_text("\n".join(lines) + "\n")
    return root


def write_africa(root: Path, patients: int = 3, seed: int = 1) -> Path:
    """A small archive in the layout of the African cohort: patient 2 of Algeria is a copy of patient 1; Egypt is RGB."""
    rng = np.random.default_rng(seed)
    lines = ["Patient_num,Plane,Train,Center,Filename"]
    for centre, code in CENTRES.items():
        (root / centre).mkdir(parents=True)
        for patient in range(1, patients + 1):
            for number, plane in enumerate(AFRICAN):
                if plane == "Fetal thorax" and centre in ("Ghana", "Uganda"):
                    continue
                name = f"patient{patient:03d}_{code}_plane{number}"
                array = picture(rng, PLANES.index(plane), 50, 40)
                if centre == "Egypt":
                    array = np.stack([array] * 3, axis=-1)
                Image.fromarray(array).save(root / centre / f"{name}.png")
                lines.append(f"{patient},{plane},{patient % 2},{centre},{name}")
    for number in range(4):
        first, copy = (root / "Algeria" / f"patient{patient:03d}_DZA_plane{number}.png" for patient in (1, 2))
        copy.write_bytes(first.read_bytes())
    (root / "African_planes_database.csv").write_text("\n".join(lines) + "\n")
    return root


class Case(NamedTuple):
    """A case of an archive of sweeps; its frames are numbered through its six sweeps."""

    uuid: str
    subject: str
    ac: list[str]  # six cells of the table, empty where nobody has annotated
    quality: np.ndarray  # (frames,): what the mask holds of each, 0, 1 (optimal) or 2


def write_acouslic(root: Path, cases: list[Case], side: int = 8, seed: int = 2) -> Path:
    """An archive of sweeps in the layout of ACOUSLIC-AI; a mask covers the upper half of its frame, in the corner one pixel less."""
    rng = np.random.default_rng(seed)
    stacks, masks = root / "images" / "stacked_fetal_ultrasound", root / "masks" / "stacked_fetal_abdomen"
    for folder in (stacks, masks, root / "circumferences"):
        folder.mkdir(parents=True)
    lines = [",".join(["uuid", "subject_id", *(f"sweep_{number}_ac_mm" for number in range(1, 7))])]
    for case in cases:
        frames = rng.integers(0, 256, (len(case.quality), side, side), np.uint8)
        mask = np.zeros_like(frames)
        mask[:, : side // 2] = case.quality[:, None, None]
        mask[:, 0, 0] = 0
        mha.write(stacks / f"{case.uuid}.mha", frames, 0.28)
        mha.write(masks / f"{case.uuid}.mha", mask, 0.28)
        lines.append(",".join([case.uuid, case.subject, *case.ac]))
    content = "\r\n".join(lines) + "\r\n"
    (root / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv").write_bytes(content.encode())
    return root


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small archives in the true layout, registered with their own counts: returns {"spain": folder, "africa": folder}."""
    counts = {"spain": {"total": {"images": 144, "patients": 48}}, "africa": {"total": {"images": 54, "patients": 15}}}
    for name, count in counts.items():
        monkeypatch.setitem(cohorts.SOURCES, name, replace(cohorts.SOURCES[name], counts=count))
    return {"spain": write_spain(tmp_path / "spain"), "africa": write_africa(tmp_path / "africa")}


SMALL_STUDY = """
name: small
title: A small study
label: made by a test
split: {split}
folds: 4
threads: 1
probes: [logistic, ridge, knn, sgd]
cohorts:
  - {{name: spain, root: "{spain}"}}
  - {{name: africa, root: "{africa}"}}
encoders:
  - name: tiny
    model: timm:mobilenetv3_small_050
    weights: random
    geometry: {{kind: squash, size: 32}}
    batch_size: 8
"""


@pytest.fixture
def small_study(small, tmp_path):
    """A study file over the small archives."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_STUDY.format(split="crossval", **small))
    return path


OPENING = """
import sys
from dataclasses import replace
from fpbench import cohorts, load_study, loading, make_splits
from fpbench.training import probing, tuning
from fpbench.training.bench import open_bench
for name, images, patients in (("spain", 144, 48), ("africa", 54, 15)):
    counts = {"total": {"images": images, "patients": patients}}
    cohorts.SOURCES[name] = replace(cohorts.SOURCES[name], counts=counts)
study = load_study(sys.argv[1]).begin()
home, external = loading.load_cohorts(study)
splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
"""
PIPELINE = (
    OPENING
    + """
bench = open_bench(study, "tiny", home, external, splits)
for probe in study.probes:
    probing.run_probe(bench, probe)
print("done")
"""
)


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["fpbench.training.finetuning", "fpbench.protocols", "fpbench.encoders.adapters.timm", "scipy.stats"]
)


class Fork:
    """A process of its own with what takes long already imported; the part of ``subprocess.Popen`` that the tests use."""

    def __init__(self, code: str, *arguments: str, **environment: str) -> None:
        folder = tempfile.mkdtemp(dir=Path(os.environ["FPBENCH_RESULTS"]).parent)
        self.said = [Path(folder, name) for name in ("stdout", "stderr")]
        given = self.said, code, arguments, {**os.environ, **environment}
        self.process = FORKS.Process(target=self._run, args=given)
        self.process.start()

    @staticmethod
    def _run(said: list[Path], code: str, arguments: tuple, environment: dict) -> None:
        for number, path in enumerate(said, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c", *arguments]
        exec(code, {"__name__": "__main__"})

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> list[str]:
        assert self.wait(timeout) is not None, f"still running after {timeout} s"
        return [path.read_text() for path in self.said]

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()


def start_pipeline(study: Path, results: Path, before: str = "") -> Fork:
    """Run every step from decoding to predictions in a process of its own."""
    return Fork(before + PIPELINE, str(study), FPBENCH_RESULTS=str(results))


def kill_when(process: Fork, pattern: str, root: Path, timeout: float = 120) -> bool:
    """Kill -9 as soon as a file that matches appears below root; False if the process ended before."""
    stop = time.monotonic() + timeout
    while time.monotonic() < stop:
        if next(root.rglob(pattern), None):
            process.kill()
            process.communicate()
            return True
        if process.poll() is not None:
            process.communicate()
            return False
        time.sleep(0.001)
    process.kill()
    raise AssertionError(f"{pattern} did not appear in {timeout} s")
