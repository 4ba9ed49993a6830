"""FETAL_PLANES_DB: 12,400 images of 1,792 patients, two hospitals in Barcelona (Burgos-Artizzu et al., 2020).

The archive: ``FETAL_PLANES_DB_data.csv`` (``;``, a space behind the last header and the last value of every row, image
names without extension) and ``Images/<Image_name>.png``. ``Train`` is 1 for the published training half, 0 for the test
half. The name repeats patient and plane: ``Patient00017_Plane3_2_of_5``.
"""

from pathlib import Path

import pandas as pd

from fpbench.cohorts.download import SPAIN as ARCHIVE
from fpbench.cohorts.source import Source, read_table, translate
from fpbench.errors import InputError

CSV = "FETAL_PLANES_DB_data.csv"
HEADER = ("Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train")
PLANES = {
    "Fetal abdomen": "abdomen",
    "Fetal brain": "brain",
    "Fetal femur": "femur",
    "Fetal thorax": "thorax",
    "Maternal cervix": "cervix",
    "Other": "other",
}
BRAIN_PLANES = {
    "Not A Brain": None,
    "Trans-thalamic": "trans-thalamic",
    "Trans-ventricular": "trans-ventricular",
    "Trans-cerebellum": "trans-cerebellar",
    "Other": "other",
}
NUMBERS = {"other": "1", "abdomen": "2", "brain": "3", "cervix": "4", "femur": "5", "thorax": "6"}
SPLIT = {"1": "train", "0": "test"}


def read(path: Path, name: str = "spain") -> pd.DataFrame:
    """Read the label file of FETAL_PLANES_DB.

    Returns
    -------
    pandas.DataFrame
        Columns ``source.COLUMNS``, in file order.

    Raises
    ------
    InputError
        Another header, an unknown class, or a name that contradicts its row.
    """
    raw = read_table(path, ";", HEADER)
    rows = pd.DataFrame(
        {
            "image_id": name + "/" + raw["Image_name"],
            "path": "Images/" + raw["Image_name"] + ".png",
            "patient": name + "/" + raw["Patient_num"].str.zfill(5),
            "plane": translate(raw, "Plane", PLANES, path),
            "brain_plane": translate(raw, "Brain_plane", BRAIN_PLANES, path),
            "machine": raw["US_Machine"],
            "operator": raw["Operator"],
            "centre": "Barcelona",
            "official_split": translate(raw, "Train", SPLIT, path),
        }
    )
    _check_names(raw, rows, path)
    return rows


def _check_names(raw: pd.DataFrame, rows: pd.DataFrame, path: Path) -> None:
    said = raw["Image_name"].str.extract(r"^Patient(?P<patient>\d{5})_Plane(?P<plane>\d)_\d+_of_\d+$")
    wrong = (said["patient"] != raw["Patient_num"].str.zfill(5)) | (said["plane"] != rows["plane"].map(NUMBERS))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise InputError(
            f"{path}: data row {row + 1}: the name {raw['Image_name'].iloc[row]!r} does not fit patient "
            f"{raw['Patient_num'].iloc[row]!r} and plane {raw['Plane'].iloc[row]!r} ({int(wrong.sum())} such rows)"
        )


SOURCE = Source(
    name="spain",
    title="Spain (FETAL_PLANES_DB)",
    population="spain",
    csv=CSV,
    read=read,
    counts={
        "total": {"images": 12_400, "patients": 1_792},
        "official_split": {"train": 7_129, "test": 5_271},
        "plane": {"other": 4_213, "brain": 3_092, "thorax": 1_718, "cervix": 1_626, "femur": 1_040, "abdomen": 711},
        "brain_plane": {"trans-thalamic": 1_638, "trans-cerebellar": 714, "trans-ventricular": 597, "other": 143},
        "operator": {"Other": 3_613, "Op. 3": 3_560, "Op. 1": 2_792, "Op. 2": 2_435},
        "machine": {"Voluson E6": 5_862, "Aloka": 5_114, "Voluson S10": 1_082, "Other": 342},
    },
    confounder="machine",
    licence=ARCHIVE.licence,
    citation=ARCHIVE.citation,
    archive=ARCHIVE,
    csv_sha256="18f8250244dd7ee312b6444fdc5285f4adca47f784d4a68d991464b4a15c3679",
)
