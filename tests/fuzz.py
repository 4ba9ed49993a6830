"""Throw damaged and made-up files at the readers; only the errors of `fpbench.errors` may come out.

    python tests/fuzz.py [SECONDS] [READER ...]

Each reader runs in a process of its own, so that one that dies counts as a crash too; the seconds (default 600) are shared
between them. Inputs start from a valid file (bytes flipped, cut, copied, spliced) or from nothing. An input that crashes
is shrunk and kept below ``results/fuzz`` with its traceback; the exit code is 1. `test_hostile.py` runs a few examples of each.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import fuzz_archives
import fuzz_models
import fuzz_tables
import hypothesis
import numpy as np
import pandas as pd
import yaml
from fuzz_inputs import NASTY, Reader, mutated, plain
from hypothesis import strategies as st

from fpbench import images, loading, predictions, protocols
from fpbench.cohorts import africa, spain
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths
from fpbench.recipe import CorpusSpec, Pretraining
from fpbench.study import CohortSpec, EncoderSpec, Study, load_study
from fpbench.tasks import TASKS

TASK = TASKS["planes"]
HANG = 60  # seconds after which one example counts as a crash
ROUND = 250  # examples between two looks at the clock


class Hang(BaseException):
    """An example took longer than HANG seconds; no reader may catch it."""


# ---- label files ------------------------------------------------------------------------------------------------------


def label_files() -> list[tuple[object, bytes]]:
    """The two published layouts, two rows each."""
    home = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
    home += "Patient00001_Plane3_1_of_2;1;Fetal brain;Trans-thalamic;Op. 1;Aloka;1 \nPatient00012_Plane1_1_of_1;12;Other;Not A Brain;Op. 2;Other;0 \n"
    away = "Patient_num,Plane,Train,Center,Filename\n1,Fetal brain,1,Algeria,patient001_DZA_plane1\n2,Fetal femur,0,Egypt,patient002_EGY_plane3\n"
    return [(spain, home.encode()), (africa, away.encode())]


def label_reader(module, valid: bytes) -> Reader:
    """Mutations, tables of any cells under the true header, and any bytes."""
    header, first, *_ = valid.decode().splitlines()
    mark = ";" if ";" in header else ","
    cell = (
        st.sampled_from(first.split(mark))
        | st.text(max_size=12)
        | st.sampled_from(NASTY).map(lambda b: b.decode("latin-1"))
    )
    row = st.lists(cell, max_size=len(header.split(mark)) + 1).map(mark.join)
    table = st.lists(row, max_size=4).map(lambda rows: "\n".join([header, *rows]))
    coded = st.builds(
        lambda text, code: text.encode(code, "replace"),
        table,
        st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    )
    return Reader(".csv", module.read, mutated(valid) | coded | st.binary(max_size=200))


# ---- studies ----------------------------------------------------------------------------------------------------------


def whole_study() -> dict:
    """A study that says every field, also those of its recipe and its pretraining."""
    cohorts = [CohortSpec("spain"), CohortSpec("acouslic", root="x", missing="drop")]
    start = EncoderSpec("a", "usfm-mini", geometry={"kind": "squash", "size": 32}, ignore=["x"], options={"x": 1})
    plan = Pretraining("a", [CorpusSpec("spain"), CorpusSpec(folder="x", parts=["train"])], seeds=[0, 7], transductive=True)  # fmt: skip
    made = EncoderSpec("transductive", "usfm-mini", "pretraining/p", mean=[0.5] * 3, std=[0.5] * 3, options={"x": 1})
    more = {"tests": {"acouslic": ["brain"]}, "train": "spain", "seeds": [7, 0], "pretraining": {"p": plan}}
    said = asdict(Study("x", "X", cohorts, [start, made], **more))
    for key in ("own_task", "tuned", "extensions"):
        del said[key]
    task = {"name": "mine", "label": "plane", "classes": ["abdomen", "brain"], "headline": "AUPRC", "positive": "brain"}
    return {**said, "task": task, **{name: ["a"] for name in protocols.tunings()}}


def places(content: object, place: tuple = ()) -> Iterator[tuple]:
    """Yield the place of every value of a table or list, and of those in it."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield (*place, key)
        yield from places(content[key], (*place, key))


def get(content: dict, place: tuple) -> object:
    """Return the value in a place."""
    for key in place:
        content = content[key]
    return content


def put(content: dict, place: tuple, value: object) -> dict:
    """Return a copy with another value in a place."""
    content = copy.deepcopy(content)
    get(content, place[:-1])[place[-1]] = value
    return content


def read_study(path: Path) -> None:
    """As a command begins: what it says is printed, keyed, and asked which runs it calls for."""
    study = load_study(path)
    with contextlib.redirect_stdout(io.StringIO()):
        study.describe()
    artifacts.digest(asdict(study))
    for name, protocol in study.tunings():
        study.seeds_of(protocol, name)
    for spec in study.encoders:
        loading.weights_file(spec)
    loading.geometries(study)
    loading.sources(study)


def study_reader() -> Reader:
    """Mutations of the shipped studies, one field of any depth replaced by any value, and any value."""
    shipped = [
        (paths.home() / "studies" / f"{name}.yaml").read_bytes() for name in ("sample", "paper", "brain", "quality")
    ]
    valid = whole_study()
    words = st.sampled_from(["official", "crossval", "published", "balanced", "natural", "quality", "planes", "spain", "a", "live", "sinkhorn"])  # fmt: skip
    value = plain(st.none() | st.booleans() | st.integers(-1, 30) | st.floats() | st.text(max_size=9) | words)

    def alike(old: object) -> st.SearchStrategy:
        """Values of the same kind, which are not refused for that."""
        if isinstance(old, bool | dict):
            return st.booleans() if isinstance(old, bool) else st.dictionaries(words, value, max_size=2)
        if isinstance(old, list):
            return st.lists(alike(old[0]) if old else words, max_size=4)
        return words if isinstance(old, str) else st.integers(-1, 2**40) | st.floats(-2, 2) | st.sampled_from([0, 1])

    def changed(study: dict) -> st.SearchStrategy[dict]:
        place = st.sampled_from(list(places(study)))
        return place.flatmap(lambda where: (alike(get(study, where)) | value).map(lambda one: put(study, where, one)))

    by_case = {**valid, "split": "published", "folds": 1, "pretraining": {}, "encoders": valid["encoders"][:1]}
    dumped = (changed(valid) | changed(by_case) | plain()).map(
        lambda content: yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "replace")
    )
    soup = st.lists(st.sampled_from(NASTY) | st.sampled_from([b"name", b"\n", b"  ", b"folds: "]), max_size=12).map(
        b"".join
    )
    return Reader(".yaml", read_study, mutated(*shipped, yaml.safe_dump(valid).encode()) | dumped | soup)


# ---- checkpoints ------------------------------------------------------------------------------------------------------


def torch_reader() -> Reader:
    """Mutations of a whole file (new and old format), and any pickle in a whole file."""
    import torch

    from fpbench.encoders import checkpoint

    tensors = {"state_dict": {"module.a": torch.arange(12.0).view(3, 4), "b": torch.arange(5)}, "epoch": 3}
    files = []
    for new in (True, False):
        torch.save(tensors, stream := io.BytesIO(), _use_new_zipfile_serialization=new)
        files.append(stream.getvalue())
    with zipfile.ZipFile(io.BytesIO(files[0])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (inside,) = (name for name in entries if name.endswith("/data.pkl"))

    def packed(content: bytes) -> bytes:
        with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
            for name, data in {**entries, inside: content}.items():
                archive.writestr(name, data)
        return stream.getvalue()

    operations = st.lists(st.sampled_from([bytes([code]) for code in range(128)] + NASTY), max_size=40).map(b"".join)
    pickles = (
        mutated(entries[inside])
        | operations.map(lambda code: b"\x80\x02" + code)
        | plain().map(lambda x: pickle.dumps(x, 2))
    )
    return Reader(".pth", checkpoint.read, mutated(*files) | pickles.map(packed) | st.binary(max_size=100))


def safetensors_reader() -> Reader:
    """Mutations of a whole file, and made-up headers before some bytes."""
    import torch
    from safetensors.torch import save

    from fpbench.encoders import checkpoint

    number = st.integers(-1, 40) | st.integers()
    entry = st.fixed_dictionaries(
        {"dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "BOOL", "x"]), "shape": st.lists(number, max_size=3), "data_offsets": st.lists(number, min_size=2, max_size=2)}
    )  # fmt: skip
    header = (
        st.dictionaries(st.sampled_from(["a", "module.a", "__metadata__", ""]), entry | plain(), max_size=3) | plain()
    )
    coded = st.builds(
        lambda head, body: len(text := json.dumps(head).encode()).to_bytes(8, "little") + text + body,
        header,
        st.binary(max_size=64),
    )
    valid = save({"module.a": torch.arange(12.0).view(3, 4), "b": torch.arange(5)})
    return Reader(".safetensors", checkpoint.read, mutated(valid) | coded | st.binary(max_size=100))


# ---- predictions ------------------------------------------------------------------------------------------------------


def table() -> tuple[pd.DataFrame, dict]:
    """Six rows of one model, and their sidecar."""
    n, fingerprint = 6, {"dim": 2, "norm": 1.0, "values": [0.5] * 16, "digest": "a"}
    names = [f"spain/{row}" for row in range(n)]
    run = {
        "cohort": "spain",
        "population": "spain",
        "split": ["val", "test"] * 3,
        "fold": 0,
        "encoder": "e",
        "protocol": "logistic",
    }
    frame = pd.DataFrame(
        {"image_id": names, "patient": names, "group": names, "centre": "Barcelona", "distinct": True, **run}
    )
    frame = frame.assign(target="planes", n_patients=3, seed=0, y_true=np.arange(n, dtype="int16"))
    frame = frame.assign(**dict.fromkeys(TASK.columns(), np.float32(0.1)))[[*predictions.COLUMNS, *TASK.columns()]]
    return frame, {
        "key": "k",
        "study": {},
        "encoder": {"name": "e", "fingerprint": fingerprint},
        "chosen": {},
        "provenance": {},
    }


def read_predictions(path: Path) -> pd.DataFrame:
    """The file itself, and twice beside a sound one of another fold, so that fingerprints are compared."""
    predictions.is_current(path, "k")
    predictions.read([path], TASK)
    frame, about = table()
    sound = path.with_name("predictions.sound.parquet")
    if not sound.exists():
        predictions.write(sound, frame.assign(fold=1), TASK, about)
    return predictions.read([sound, path], TASK)


def predictions_reader() -> Reader:
    """Damaged bytes under a right hash, columns of wrong kinds, and made-up content of the sidecar under a right digest."""
    frame, about = table()
    frame.to_parquet(stream := io.BytesIO(), index=False)
    value = plain(st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4) | st.just("=1+1"))

    def changed(column: str, cell: object) -> bytes:
        try:
            frame.assign(**{column: pd.Series([cell] * len(frame))}).to_parquet(stream := io.BytesIO(), index=False)
        except Exception:  # what cannot be written cannot be read
            hypothesis.reject()
        return stream.getvalue()

    files = mutated(stream.getvalue()) | st.builds(changed, st.sampled_from(list(frame.columns)), value)
    prints = st.builds(lambda key, x: {"name": "e", "fingerprint": {**about["encoder"]["fingerprint"], "digest": "b", key: x}}, st.sampled_from(["dim", "norm", "values", "digest"]), value)  # fmt: skip
    sidecars = st.builds(lambda key, x: {**about, key: x}, st.sampled_from(sorted(about)), value) | prints.map(
        lambda x: {**about, "encoder": x}
    )
    both = st.tuples(files, st.just(about)) | st.tuples(st.just(stream.getvalue()), sidecars | st.just({}))

    def write(path: Path, content: tuple[bytes, dict]) -> None:
        path.write_bytes(content[0])
        artifacts.commit(path, content[1])

    return Reader(".parquet", read_predictions, both, write)


def sidecar_reader() -> Reader:
    """Mutations of a JSON file of ours, and any other."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts.write_json(path := Path(folder, "a.json"), table()[1])
        valid = path.read_bytes()
    return Reader(
        ".json",
        artifacts.read_json,
        mutated(valid, b"[" * 5000) | plain().map(lambda x: json.dumps(x).encode()) | st.binary(max_size=60),
    )


# ---- pictures ---------------------------------------------------------------------------------------------------------


def read_picture(path: Path) -> None:
    """As it is, as a frame with bits, and under the suffix of DICOM; no message may quote the patient."""
    from odd_pictures import NAMES

    shutil.copy(path, copy := path.with_suffix(".dcm"))
    refused = []
    for one, bits in ((path, 0), (path.with_name(f"{path.name}#1"), 12), (copy, 16)):
        try:
            picture = images.decode(one, bits)
            if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)) or not picture.size:
                raise TypeError(f"no picture: {picture.dtype} {picture.shape}")
        except InputError as error:
            refused.append(error)
    said = [*map(str, refused), images.decoding.damage(path)]
    if any(name in one for name in NAMES for one in said):
        raise RuntimeError(f"quotes the patient: {said}")
    if len(refused) == 3:
        raise refused[0]


def picture_reader() -> Reader:
    """Mutations of the odd pictures."""
    from odd_pictures import odd_pictures

    return Reader(".picture", read_picture, mutated(*odd_pictures().values()))


def read_stack(path: Path) -> None:
    """One frame, and three in one go: they are the same, or refused in the same words."""
    named = [path.with_name(f"{path.name}#{number}") for number in (0, 1, 2)]

    def said(read: Callable) -> object:
        try:
            return [(picture.shape, picture.tobytes()) for picture, _ in read()]
        except InputError as error:
            return str(error).removeprefix(f"{named[0]}: ")

    images.decoding.damages(named)
    alone = said(lambda: [images.decoding.look(named[0])])
    if images.decoding.stacked(path) > 2 and (together := said(lambda: images.decoding.looks(named)))[:1] != alone[:1]:
        raise RuntimeError(f"alone {str(alone)[:200]}, together {str(together)[:200]}")
    if isinstance(alone, str):
        raise InputError(alone)


def stack_reader() -> Reader:
    """Mutations of whole stacks, headers of any values, and any bytes behind a sound header."""
    from odd_pictures import mha

    film = np.random.default_rng(0).integers(0, 8, (3, 6, 5), np.uint8)
    valid = [mha(film, packed) for packed in ("", "zlib", "gzip")]
    keys = st.sampled_from([*images.mha.KEYS, "Comment"])
    word = st.sampled_from(
        ["3", "-1", "0", "True", "5 6 3", "5 6 3 1", "9" * 30, "MET_FLOAT", "LIST", "a.raw", "", "=", "²"]
    )
    values = st.dictionaries(
        keys,
        word | st.text(max_size=8).map(lambda text: text.encode("latin-1", "replace").decode("latin-1")),
        max_size=3,
    )
    headers = st.builds(lambda said, packed: mha(film, packed, **said), values, st.sampled_from(["", "zlib", "gzip"]))
    bodies = st.builds(
        lambda body, packed: mha(film, packed, body), st.binary(max_size=200), st.sampled_from(["", "zlib"])
    )
    return Reader(".mha", read_stack, mutated(*valid) | headers | bodies)


READERS: dict[str, Callable[[], Reader]] = {
    "spain": lambda: label_reader(*label_files()[0]),
    "africa": lambda: label_reader(*label_files()[1]),
    "study": study_reader,
    "torch": torch_reader,
    "safetensors": safetensors_reader,
    "predictions": predictions_reader,
    "sidecar": sidecar_reader,
    "pictures": picture_reader,
    "stacks": stack_reader,
    **fuzz_tables.READERS,
    **fuzz_models.READERS,
    **fuzz_archives.READERS,
}


# ---- the campaign -----------------------------------------------------------------------------------------------------


def fuzz(name: str, keep: Path, seconds: float = 0, examples: int = ROUND, derandomize: bool = False) -> Counter:
    """Try rounds of examples until the time is over (0: one round); count tried, accepted, refused and crashes."""
    reader, count, stop = (
        READERS[name](),
        Counter(tried=0, accepted=0, refused=0, crashes=0),
        time.monotonic() + seconds,
    )
    found: dict[type, str] = {}
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Hang(f"no answer in {HANG} s")))
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{name}{reader.suffix}"

    def one(content) -> None:
        if seconds and time.monotonic() > stop:
            return
        reader.write(path, content)
        count["tried"] += 1
        signal.alarm(HANG)
        try:
            try:
                reader.read(path)
                count["accepted"] += 1
            except (InputError, MissingError) as error:
                count["refused"] += 1
                if not 20 < len(str(error)) < 4000:
                    raise ValueError(f"no message for people: {str(error)[:300]}") from None
        except BaseException as error:
            found[type(error)] = traceback.format_exc()
            for file in keep.glob(f"{name}.*"):
                shutil.copy(file, file.with_name(f"crash-{type(error).__name__}-{file.name}"))
            raise
        finally:
            signal.alarm(0)

    checks = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
    options = hypothesis.settings(max_examples=examples, derandomize=derandomize, print_blob=False, **checks)
    number = 0
    while not number or time.monotonic() < stop:
        try:
            hypothesis.seed(number)(options(hypothesis.given(reader.inputs)(one)))()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            found.setdefault(type(error), traceback.format_exc())
        number += 1
    for kind, text in found.items():
        (keep / f"crash-{kind.__name__}-{name}.txt").write_text(text)
    count["crashes"] = len(found)
    for file in () if found else keep.glob(f"{name}.*"):
        file.unlink()
    return count


def line(name: str, count: Counter) -> str:
    """What is printed of one reader."""
    return f"{name:<12}" + "".join(
        f"  {word} {count[word]:>7,}" for word in ("tried", "accepted", "refused", "crashes")
    )


def main(seconds: float = 600, *names: str) -> int:
    """Run every reader in a process of its own; return 1 if one crashed."""
    keep, names, bad = paths.results() / "fuzz", names or tuple(READERS), 0
    for name in names:
        command = [sys.executable, "-X", "faulthandler", __file__, "--one", name, str(seconds / len(names))]
        done = subprocess.run(command, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        if done.returncode not in (0, 1):
            print(f"{name:<12}  died with exit code {done.returncode}: see {keep / name}.*", flush=True)
        bad |= done.returncode != 0
    print(f"{'CRASHES: the inputs are in ' + str(keep) if bad else 'no crash but the declared errors'}")
    return int(bad)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        counted = fuzz(sys.argv[2], paths.results() / "fuzz", float(sys.argv[3]))
        print(line(sys.argv[2], counted), flush=True)
        raise SystemExit(int(counted["crashes"] > 0))
    raise SystemExit(main(*map(float, sys.argv[1:2]), *sys.argv[2:]))
