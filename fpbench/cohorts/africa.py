"""The African cohort: 450 images from five countries (Sendra-Balcells et al., 2023).

The archive: ``African_planes_database.csv`` (``,``, file names without extension) and one folder per country. Patient
numbers restart in every country, so a patient is a country and a number. ``Train`` is 1 for the published training part
(217 images), 0 for the test part (233). Known: 47 pairs of byte-identical files, each under two patient numbers.
"""

from pathlib import Path

import pandas as pd

from fpbench.cohorts.download import AFRICA as ARCHIVE
from fpbench.cohorts.source import Source, read_table, translate
from fpbench.errors import InputError

CSV = "African_planes_database.csv"
HEADER = ("Patient_num", "Plane", "Train", "Center", "Filename")
PLANES = {"Fetal abdomen": "abdomen", "Fetal brain": "brain", "Fetal femur": "femur", "Fetal thorax": "thorax"}
NUMBERS = {"abdomen": "0", "brain": "1", "femur": "2", "thorax": "3"}
CENTRES = {"Algeria": "DZA", "Egypt": "EGY", "Ghana": "GHA", "Malawi": "MWI", "Uganda": "UGA"}
SPLIT = {"1": "train", "0": "test"}


def read(path: Path, name: str = "africa") -> pd.DataFrame:
    """Read the label file of the African cohort.

    Returns
    -------
    pandas.DataFrame
        Columns ``source.COLUMNS``, in file order. No machine, operator or brain plane is published.

    Raises
    ------
    InputError
        Another header, an unknown plane or country, or a file name that contradicts its row.
    """
    raw = read_table(path, ",", HEADER)
    plane, code = translate(raw, "Plane", PLANES, path), translate(raw, "Center", CENTRES, path)
    patient = raw["Patient_num"].str.zfill(3)
    wrong = raw["Filename"] != "patient" + patient + "_" + code + "_plane" + plane.map(NUMBERS)
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InputError(
            f"{path}: data row {row + 1}: the name {raw['Filename'].iloc[row]!r} does not fit its patient, centre and plane "
            f"({int(wrong.sum())} such rows)"
        )
    return pd.DataFrame(
        {
            "image_id": name + "/" + raw["Center"] + "/" + raw["Filename"],
            "path": raw["Center"] + "/" + raw["Filename"] + ".png",
            "patient": name + "/" + raw["Center"] + "/" + patient,
            "plane": plane,
            "brain_plane": None,
            "machine": None,
            "operator": None,
            "centre": raw["Center"],
            "official_split": translate(raw, "Train", SPLIT, path),
        }
    )


SOURCE = Source(
    name="africa",
    title="Africa (five countries)",
    population="africa",
    csv=CSV,
    read=read,
    counts={
        "total": {"images": 450, "patients": 127},
        "official_split": {"train": 217, "test": 233},
        "plane": {"abdomen": 125, "brain": 125, "femur": 125, "thorax": 75},
        "centre": {"Algeria": 100, "Egypt": 100, "Malawi": 100, "Ghana": 75, "Uganda": 75},
    },
    confounder="centre",
    licence=ARCHIVE.licence,
    citation=ARCHIVE.citation,
    archive=ARCHIVE,
    csv_sha256="ae45d482b49bb46e4d3f04e8c0f6f37d092149c530a404979b68f417c20fa4a1",
)
