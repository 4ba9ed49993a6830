"""Do the numbers of this run agree with committed ones? For the regression of notebooks, whose text is compared exactly.

A reference holds, for every model and fold, the true classes and the answers (arg-max over all classes) of every test image.
Images and true classes must be the same; a stated share of the answers may differ, so that another processor passes and a
real change does not.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.files.fingerprints import same
from fpbench.tasks import Task

TOLERANCE = 0.01  # share of the answers that may differ
# The same where a network was trained, which amplifies last bits. Another instruction set changed up to 9 % of the answers of a fold, and
# nine in ten of one fold whose two best epochs were nearly equal: so the fold of each model that differs most is left out.
TRAINED = 0.2


def folder() -> Path:
    """Return where the committed references lie."""
    return paths.home() / "notebooks" / "reference"


def summarise(predicted: pd.DataFrame, task: Task) -> dict[str, dict[str, str]]:
    """Return, for each model, fold and seed, a digest of the images, and true classes and answers as strings of digits."""
    test = predicted[predicted["split"] == "test"].sort_values("image_id", kind="stable")
    found = {}
    several = test.groupby(["encoder", "protocol"])["seed"].transform("nunique") > 1
    for (encoder, protocol, run, fold), rows in test.assign(
        run=np.where(several, "/seed" + test["seed"].astype(str), "")
    ).groupby(["encoder", "protocol", "run", "fold"]):
        found[f"{encoder}/{protocol}{run}/{fold}"] = {
            "images": artifacts.digest(rows["image_id"].tolist())[:16],
            "true": _digits(rows["y_true"].to_numpy()),
            "answers": _digits(rows[task.columns()].to_numpy().argmax(axis=1)),
        }
    return found


def _digits(values: np.ndarray) -> str:
    return "".join("0123456789abcdef"[value] for value in values)


def write(study: str, predicted: pd.DataFrame, task: Task) -> Path:
    """Make these predictions the reference of a study."""
    return _write(folder() / f"{study}.json", summarise(predicted, task))


def write_encoders(study: str, fingerprints: dict[str, dict]) -> Path:
    """Make the fingerprints of these encoders, by name, the reference of a study."""
    return _write(folder() / f"{study}.encoders.json", fingerprints)


def _write(path: Path, content: dict) -> Path:
    with artifacts.atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return path


def differences(study: str, predicted: pd.DataFrame, task: Task, trained: bool = False) -> tuple[int, int]:
    """Count the answers that differ from the reference, and all answers compared.

    Parameters
    ----------
    trained
        Leave out, of every model with several folds, the one that differs most.

    Raises
    ------
    InputError
        A model or fold that the reference lacks, other images, or other true classes: no tolerance applies.
    """
    reference = json.loads((folder() / f"{study}.json").read_text(encoding="utf-8"))
    folds: dict[str, list[tuple[int, int]]] = {}  # of every model
    for name, found in summarise(predicted, task).items():
        expected = reference.get(name)
        if expected is None:
            raise InputError(f"the reference of study {study} has no {name}")
        for what in ("images", "true"):
            if expected[what] != found[what]:
                raise InputError(f"{name}: the {what} differ from the reference")
        flipped = sum(one != two for one, two in zip(expected["answers"], found["answers"], strict=True))
        folds.setdefault(name.rpartition("/")[0], []).append((flipped, len(found["answers"])))
    kept = [pair for pairs in folds.values() for pair in sorted(pairs)[: -1 if trained and len(pairs) > 1 else None]]
    return sum(flipped for flipped, _ in kept), sum(total for _, total in kept)


def agrees(study: str, predicted: pd.DataFrame, task: Task, tolerance: float = TOLERANCE) -> str:
    """Return the line that closes a number-bearing cell; training amplifies last bits, so it needs a larger tolerance."""
    if not len(predicted):
        return "nothing to compare"
    if not (folder() / f"{study}.json").is_file():
        return f"study {study} has no committed reference to compare with"
    try:
        flipped, total = differences(study, predicted, task, trained := tolerance > TOLERANCE)
    except InputError as error:
        return f"agrees with the reference: False ({error})"
    verdict = flipped <= tolerance * total
    rule = f"at most {tolerance:.0%} of {total:,} answers may differ{', one fold a model left out' * trained}"
    return f"agrees with the reference ({rule}): {verdict}" + ("" if verdict else f", {flipped:,} differ")


def encoders_agree(study: str, fingerprints: dict[str, dict]) -> str:
    """Return a line: do these encoders, by name, still embed the fixed picture as they did?"""
    path = folder() / f"{study}.encoders.json"
    if not path.is_file():
        return f"study {study} has no committed reference to compare with"
    known = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, found in fingerprints.items() if name not in known or not same(known[name], found)]
    verdict = f"False ({', '.join(changed)} changed)" if changed else "True"
    return f"{len(fingerprints)} fingerprints agree with the reference: {verdict}"
