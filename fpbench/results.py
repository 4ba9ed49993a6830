"""Where the results of a study lie, and which of them are there."""

import re
from dataclasses import asdict
from pathlib import Path

from fpbench.errors import InputError
from fpbench.files import artifacts, provenance
from fpbench.protocols import PROTOCOLS, SUBMITTED
from fpbench.study import EncoderSpec, Study


def path(study: Study, encoder: str, protocol: str, fold: int, question: str = "", seed: int | None = None) -> Path:
    """Return the path of one predictions file; those of a side question lie apart, those of another seed than the study's are named after it."""
    folder = study.folder / "questions" / question if question else study.folder / "predictions"
    end = "" if seed in (None, study.seed) else f".seed{seed}"
    return folder / encoder / protocol / f"fold{fold}{end}.parquet"


def masks(file: Path) -> Path:
    """Return where it is told, frame by frame, how well the masks behind a predictions file of a segmenter fit."""
    return file.with_suffix(".masks.parquet")


def run_of(file: Path, seed: int = 0) -> tuple[int, int]:
    """Return fold and seed of a predictions file, by its name; ``seed``: the study's."""
    found = re.fullmatch(r"fold(\d+)(?:\.seed(\d+))?\.parquet", file.name)
    if not found:
        raise InputError(f"{file}: expected fold<k>.parquet or fold<k>.seed<s>.parquet")
    return int(found[1]), int(found[2] or seed)


def files(study: Study) -> list[Path]:
    """Return every predictions file that a study calls for, but for ``missing`` ones, and those of ``submitted`` answers.

    Files of others do not count.
    """
    lost = missing(study)
    names = [(spec.name, probe) for spec in present(study) for probe in study.probes]
    names += [one for one in study.tunings() if "/".join(one) not in lost]
    names += [(name, SUBMITTED) for name in submitted(study)]
    runs = [(name, seed) for name in names for seed in study.seeds_of(*name[::-1])]
    return [path(study, *name, fold, seed=seed) for name, seed in runs for fold in range(study.folds)]


def conclude(study: Study, encoder: str, name: str, written: list[Path]) -> None:
    """Write ``predictions/<encoder>/<name>.json``, the list of predictions files with their SHA-256: the job is done."""
    done = {str(file.relative_to(study.folder)): artifacts.checked(file)["sha256"] for file in written}
    artifacts.write_json(study.folder / "predictions" / encoder / f"{name}.json", {"files": done})


def submitted(study: Study) -> dict[str, Path]:
    """Return the models whose answers were imported (``submissions``), in order, and the record of each."""
    records = sorted((study.folder / "predictions").glob(f"*/{SUBMITTED}.json"))
    return {record.parent.name: record for record in records}


def pretrained(study: Study, name: str, seed: int | None = None) -> Path:
    """Return the path of the weights of one of the study's pretrainings (``seed``: where it has several); its sidecar is the model card."""
    other = f".seed{seed}" if seed in study.pretraining[name].seeds and seed != study.seed else ""
    return study.folder / "pretraining" / name / f"{name}{other}.safetensors"


def missing(study: Study) -> dict[str, str]:
    """Return the results that failed in the last run, and why: ``encoder/probing``, ``encoder/full``, ... -> reason."""
    there = missing_file(study)
    return artifacts.read_json(there) if there.is_file() else {}


def missing_file(study: Study) -> Path:
    """Return where the missing results are noted."""
    return study.folder / "missing.json"


def present(study: Study, protocol: str = "") -> list[EncoderSpec]:
    """Return the encoders that have predictions of a protocol (default: of any probe): those called for, but for missing ones."""
    lost, part = missing(study), PROTOCOLS[protocol].part if protocol else "probing"
    called = study.encoders_of(protocol) if protocol else [spec.name for spec in study.encoders]
    return [spec for spec in study.encoders if spec.name in called and f"{spec.name}/{part}" not in lost]


def stamp(study: Study) -> str:
    """Return what an artefact was made of: digests of the study and of the predictions that are there, and the commit."""
    sidecars = [there for file in files(study) if (there := artifacts.sidecar(file)).is_file()]
    found = [artifacts.read_json(there)["sha256"] for there in sidecars]
    made = f"{len(found)} predictions files {artifacts.digest(found)[:12]}" if found else "no predictions"
    return f"study {study.name} {artifacts.digest(asdict(study))[:12]}, {made}, {provenance.program()}"
