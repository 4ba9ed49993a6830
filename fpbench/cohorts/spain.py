"""FETAL_PLANES_DB: 12,400 images of 1,792 patients, two hospitals in Barcelona (Burgos-Artizzu et al., 2020).

The archive: ``FETAL_PLANES_DB_data.csv`` (``;``, a space behind the last header and the last value of every row, image
names without extension) and ``Images/<Image_name>.png``. ``Train`` is 1 for the published training half, 0 for the test
half. The name repeats patient and plane: ``Patient00017_Plane3_2_of_5``.
"""

from pathlib import Path

import pandas as pd

from fpbench.cohorts.download import FACTS, SPAIN
from fpbench.cohorts.source import filled, published, read_table, rows_error, translate

LABELS = FACTS["spain"]["labels"]


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
    raw = read_table(path, LABELS["separator"], LABELS["columns"])
    ours, number = translate(raw, LABELS["words"], path), filled(raw["Patient_num"], 5)
    _check_names(raw, number, ours["Plane"].map(LABELS["numbers"]), path)
    rows = pd.DataFrame({"image_id": name + "/" + raw["Image_name"], "path": "Images/" + raw["Image_name"] + ".png"})
    rows["patient"] = name + "/" + number
    rows[["plane", "brain_plane"]] = ours[["Plane", "Brain_plane"]]
    rows[["machine", "operator"]] = raw[["US_Machine", "Operator"]]
    return rows.assign(centre="Barcelona", official_split=ours["Train"])


def _check_names(raw: pd.DataFrame, patient: pd.Series, plane: pd.Series, path: Path) -> None:
    """Raise InputError for a name that says another patient, or number of a plane, than its row."""
    said = raw["Image_name"].str.extract(r"^Patient(?P<patient>\d{5})_Plane(?P<plane>\d)_\d+_of_\d+$")
    if len(wrong := raw[(said["patient"] != patient) | (said["plane"] != plane)]):
        name, patient, plane = wrong[["Image_name", "Patient_num", "Plane"]].iloc[0]
        raise rows_error(path, wrong, f"the name {name!r} does not fit patient {patient!r} and plane {plane!r}")


SOURCE = published(SPAIN, read)
CSV = SOURCE.csv
