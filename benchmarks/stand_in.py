"""Two archives of the paper's counts and picture sizes, whose pictures are drawn: what a study meets before the real ones are there.

The label files are the published ones, from ``FPBENCH_SHARED``, else made up with the same counts. A picture is a fan of speckle whose
bright spot says its class, not always clearly; its size is one of those of its machine or country, and as a PNG it takes about
as many bytes as a real one. NumPy and Pillow draw it, so that nothing of the program under test does. A share of the pictures keeps the
proportions of halves and planes, with at least ``LEAST`` pictures of each, all of different patients where there are enough.
"""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fpbench.cohorts import Source, africa, spain
from fpbench.errors import InputError
from fpbench.files import paths

VERSION = 1  # raise it when a byte of the output changes
LEAST = 6  # pictures of a plane in a half: five folds want five groups of each
DONE = "stand-in.json"
BYTES = 170_000  # of a picture, about
SPECKLE = 8  # grey values; with it a PNG of 959 x 661 takes 0.2 MB
SIZES = {  # machine or country -> width, height, how often: as published where they were counted (251 Spanish originals, all African)
    "Voluson E6": ((959, 661, 65), (961, 663, 24)),
    "Aloka": ((640, 392, 52), (740, 448, 8), (768, 519, 8), (745, 559, 5), (692, 480, 5)),
    "Voluson S10": ((1137, 787, 24), (568, 393, 2)),
    "Other": ((1137, 787, 24), (745, 559, 3), (1495, 787, 3), (793, 597, 2)),
    "Algeria": ((500, 430, 1),),
    "Egypt": ((400, 450, 1),),
    "Ghana": ((500, 500, 1),),
    "Malawi": ((500, 400, 1),),
    "Uganda": ((600, 500, 1),),
}
PARTS = {  # what the Spanish label file holds, train and test
    "patients": (896, 896),
    "Plane": {
        "Other": (2601, 1612), "Fetal abdomen": (353, 358), "Fetal brain": (1620, 1472), "Maternal cervix": (981, 645),
        "Fetal femur": (516, 524), "Fetal thorax": (1058, 660),
    },
    "Brain_plane": {"Trans-thalamic": (873, 765), "Trans-cerebellum": (375, 339), "Trans-ventricular": (295, 302), "Other": (77, 66)},
    "US_Machine": {"Voluson E6": (3456, 2406), "Aloka": (3377, 1737), "Voluson S10": (11, 1071), "Other": (285, 57)},
}  # fmt: skip
OPERATORS = {"Voluson E6": {"Op. 1": 2792, "Op. 2": 2435, "Other": 635}, "Aloka": {"Op. 3": 3560, "Other": 1554}}
PATIENTS = {"Algeria": 25, "Egypt": 25, "Ghana": 25, "Malawi": 27, "Uganda": 25}


def labels(source: Source) -> pd.DataFrame:
    """Return a label file as text, as published, where the sample holds it, else one of the same counts."""
    file = paths.shared() / "data" / source.name / source.csv
    if file.is_file():
        separator = ";" if source.name == "spain" else ","
        return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False).rename(columns=str.strip)
    return made_up_spain() if source.name == "spain" else made_up_africa()


def made_up_spain(seed: int = 0) -> pd.DataFrame:
    """Return a label file with the counts of FETAL_PLANES_DB: patients, halves, planes of each half, machines, operators."""
    rng, halves = np.random.default_rng(seed), []
    operators = {name: rng.permutation(_listed(counts)) for name, counts in OPERATORS.items()}
    for half, first in ((0, 0), (1, PARTS["patients"][0])):
        planes = rng.permutation(_listed({name: counts[half] for name, counts in PARTS["Plane"].items()}))
        machines = _listed({name: counts[half] for name, counts in PARTS["US_Machine"].items()})
        brains = rng.permutation(_listed({name: counts[half] for name, counts in PARTS["Brain_plane"].items()}))
        bounds = np.sort(rng.choice(np.arange(1, len(planes)), PARTS["patients"][half] - 1, replace=False))
        patient = first + 1 + np.searchsorted(bounds, np.arange(len(planes)), side="right")
        rows = pd.DataFrame({"Patient_num": patient, "Plane": planes, "US_Machine": machines})
        rows["Brain_plane"] = "Not A Brain"
        rows.loc[rows["Plane"] == "Fetal brain", "Brain_plane"] = brains
        halves.append(rows.assign(Train=str(1 - half)))
    table = pd.concat(halves, ignore_index=True).assign(Operator="Other")
    for name, drawn in operators.items():
        table.loc[table["US_Machine"] == name, "Operator"] = drawn
    number = table["Plane"].map({name: number for number, name in enumerate(PARTS["Plane"], 1)})
    together = [table["Patient_num"], number]
    k, of = table.groupby(together).cumcount() + 1, table.groupby(together)["Plane"].transform("size")
    names = zip(table["Patient_num"], number, k, of, strict=True)
    table["Image_name"] = [f"Patient{patient:05d}_Plane{plane}_{k}_of_{of}" for patient, plane, k, of in names]
    columns = ["Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train"]
    return table[columns].astype(str)


def _listed(counts: dict[str, int]) -> np.ndarray:
    return np.repeat(list(counts), list(counts.values()))


def made_up_africa() -> pd.DataFrame:
    """Return a label file with the counts of the African cohort: 25 pictures of each plane and country, no thorax in two."""
    planes, rows = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax"), []
    for (centre, patients), code in zip(PATIENTS.items(), ("DZA", "EGY", "GHA", "MWI", "UGA"), strict=True):
        for number, plane in enumerate(planes[: 3 if centre in ("Ghana", "Uganda") else 4]):
            for patient in range(1, 26):
                patient += (patients - 25) * (number > 1)  # more numbers than pictures of a plane
                name = f"patient{patient:03d}_{code}_plane{number}"
                rows.append((str(patient), plane, str(patient % 2), centre, name))
    return pd.DataFrame(rows, columns=["Patient_num", "Plane", "Train", "Center", "Filename"])


def thinned(table: pd.DataFrame, share: float, seed: int = 0) -> pd.DataFrame:
    """Return a share of the rows, the same of every half and plane, at least LEAST of each; of many patients rather than of few."""
    if share >= 1:
        return table
    rng, kept = np.random.default_rng(seed), []
    for _, rows in table.groupby(["Train", "Plane"]):
        shuffled = rows.iloc[rng.permutation(len(rows))]
        turn = shuffled.groupby([name for name in ("Center", "Patient_num") if name in rows]).cumcount()
        kept += list(shuffled.index[np.argsort(turn, kind="stable")][: max(LEAST, round(share * len(rows)))])
    return table.loc[sorted(kept)]


def draw(folder: Path, seed: int, task: tuple[int, str, int, int, int, bool]) -> None:
    """Write one picture; ``task``: its number, file, class, width, height, colour."""
    number, file, kind, width, height, colour = task
    rng = np.random.default_rng([seed, number])
    y, x = (side.astype(np.float32) for side in np.ogrid[:height, :width])
    fan = ((x - width / 2) ** 2 + (y + 0.15 * height) ** 2 < (1.08 * height) ** 2) & (
        np.abs(x - width / 2) < 0.6 * (y + 0.25 * height)
    )
    coarse = Image.fromarray(rng.integers(0, 110, (height // 16 + 2, width // 16 + 2), np.uint8))
    angle = 2 * np.pi * kind / 6 + rng.normal(0, 0.35)
    down, right = 0.5 + 0.2 * np.sin(angle), 0.5 + 0.2 * np.cos(angle)
    spot = np.exp(-(((y / height - down) / 0.1) ** 2)) * np.exp(-(((x / width - right) / 0.1) ** 2))
    grey = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + (100 * spot).astype(np.uint8)
    grey = np.where(fan, grey + rng.integers(0, SPECKLE, grey.shape, np.uint8), 0).astype(np.uint8)
    picture = Image.fromarray(grey)
    picture = Image.merge("RGB", [picture] * 3) if colour else picture
    picture.save(folder / file, compress_level=1)


def _tasks(source: Source, rows: pd.DataFrame, seed: int) -> list[tuple]:
    rng, found = np.random.default_rng(seed), []
    where = rows["US_Machine" if source.name == "spain" else "Center"]
    planes = sorted(PARTS["Plane"])
    for number, (name, plane, place) in enumerate(zip(rows[_file(source)], rows["Plane"], where, strict=True)):
        often = np.array([size[2] for size in SIZES[place]])
        width, height, _ = SIZES[place][rng.choice(len(often), p=often / often.sum())]
        folder = "Images" if source.name == "spain" else place
        found.append((number, f"{folder}/{name}.png", planes.index(plane), width, height, place == "Egypt"))
    return found


def _file(source: Source) -> str:
    return "Image_name" if source.name == "spain" else "Filename"


def _write(folder: Path, source: Source, rows: pd.DataFrame, seed: int) -> dict[str, int]:
    tasks = _tasks(source, rows, seed)
    for parent in {Path(file).parent for _, file, *_ in tasks}:
        (folder / parent).mkdir(parents=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(draw, folder, seed), tasks, chunksize=16))
    if source.name == "spain":  # a space behind the last header and the last value of every row
        rows = rows.assign(Train=rows["Train"].str.strip() + " ").rename(columns={"Train": "Train "})
    rows.to_csv(folder / source.csv, sep=";" if source.name == "spain" else ",", index=False, lineterminator="\n")
    patients = rows[[name for name in ("Center", "Patient_num") if name in rows]].drop_duplicates()
    return {"images": len(rows), "patients": len(patients)}


def make(folder: Path, pictures: int, seed: int = 0) -> dict:
    """Return what the archives in ``folder`` hold, drawing them if they are absent or of another number: cohort -> images, patients."""
    tables = [(source, labels(source)) for source in (spain.SOURCE, africa.SOURCE)]
    whole = sum(len(table) for _, table in tables)
    wanted = {"version": VERSION, "pictures": min(pictures, whole), "of": whole, "seed": seed}
    known = json.loads((folder / DONE).read_text()) if (folder / DONE).is_file() else {}
    if known.items() >= wanted.items():
        return known
    if folder.exists() and not known:
        raise InputError(f"{folder} holds something that is no stand-in: it is left alone; choose another folder")
    new = folder.with_name(f".{folder.name}.new")
    for old in (new, folder):
        shutil.rmtree(old, ignore_errors=True)
    for number, (source, table) in enumerate(tables):
        wanted[source.name] = _write(new / source.name, source, thinned(table, pictures / whole, seed), seed + number)
    wanted["bytes"] = sum(path.stat().st_size for path in new.rglob("*.png"))
    (new / DONE).write_text(json.dumps(wanted, indent=1) + "\n")
    new.rename(folder)
    return wanted
