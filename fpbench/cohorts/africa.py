"""The African cohort: 450 images from five countries (Sendra-Balcells et al., 2023).

The archive: ``African_planes_database.csv`` (``,``, file names without extension) and one folder per country. Patient
numbers restart in every country, so a patient is a country and a number. ``Train`` is 1 for the published training part
(217 images), 0 for the test part (233). Known: 47 pairs of byte-identical files, each under two patient numbers.
"""

from pathlib import Path

import pandas as pd

from fpbench.cohorts.download import AFRICA, FACTS
from fpbench.cohorts.source import filled, joined, published, read_table, rows_error, translate

LABELS = FACTS["africa"]["labels"]


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
    raw = read_table(path, LABELS["separator"], LABELS["columns"])
    ours, patient = translate(raw, LABELS["words"], path), filled(raw["Patient_num"], 3)
    file = "patient" + patient + "_" + ours["Center"] + "_plane" + ours["Plane"].map(LABELS["numbers"])
    if len(wrong := raw[raw["Filename"] != file]):
        problem = f"the name {wrong['Filename'].iat[0]!r} does not fit its patient, centre and plane"
        raise rows_error(path, wrong, problem)
    place = joined(raw[["Center", "Filename"]])
    rows = pd.DataFrame({"image_id": name + "/" + place, "path": place + ".png"})
    rows["patient"] = name + "/" + raw["Center"] + "/" + patient
    unpublished = dict.fromkeys(("brain_plane", "machine", "operator"))
    return rows.assign(plane=ours["Plane"], **unpublished, centre=raw["Center"], official_split=ours["Train"])


SOURCE = published(AFRICA, read)
CSV = SOURCE.csv
