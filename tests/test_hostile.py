"""Hostile input where a user would meet it: a clear error, nothing executed, nothing written outside the results.

Archives are in test_download.py (members, links, bombs), pickles that run commands and truncated weights in
test_encoders_catalogue.py, damaged caches in test_artifacts.py: what stands here they do not hold.
"""

import io
import json
import os
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import fuzz
import fuzz_models
import fuzz_tables
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fpbench import cli, images, load_cohort, load_study, loading, predictions, submissions
from fpbench.cohorts import africa, spain
from fpbench.encoders import checkpoint
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, hashes, paths
from fpbench.grid import notebooks
from fpbench.training import export
from fpbench.training.pretraining import corpus

WORKSPACE = paths.home()
MARK = "executed"  # the file that a payload would make
GOOD = {"name": "x", "title": "X", "cohorts": [{"name": "spain"}], "encoders": [{"name": "a", "model": "usfm-mini", "weights": "random"}]}  # fmt: skip


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in sorted(root.rglob("*"))}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command line; hold it to exit code 1, one message without a traceback, and an unchanged surrounding."""
    around = tmp_path / "around"
    (around / "work").mkdir(parents=True)
    (around / "precious").write_text("precious")
    monkeypatch.chdir(around / "work")
    monkeypatch.setenv("HOME", str(around))
    monkeypatch.setenv("FPBENCH_HOME", str(WORKSPACE))

    def run(*arguments: str, says: str) -> str:
        before = tree(around), tree(paths.home() / "studies")
        monkeypatch.setattr(sys, "argv", ["fpbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        message = capsys.readouterr().err
        assert end.value.code == 1
        assert message.startswith("fpbench: ")
        assert says in message
        assert "Traceback" not in message
        assert 20 < len(message) < 2000
        assert (tree(around), tree(paths.home() / "studies")) == before
        assert not list(tmp_path.rglob(MARK))
        return message

    return run


# ---- label files ------------------------------------------------------------------------------------------------------


def cell(column: int, value: str):
    """Replace one cell of the first row."""

    def change(text: str) -> bytes:
        header, first, *rest = text.splitlines()
        cells = first.split(";")
        cells[column] = value
        return "\n".join([header, ";".join(cells), *rest]).encode()

    return change


LABELS = {
    "UTF-16": (lambda text: text.encode("utf-16"), "codec can't decode byte 0xff"),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), r"found I\x00m"),
    "bytes": (lambda text: b"\x89PNG" + bytes(range(256)), "codec can't decode"),
    "nothing": (lambda text: b"", "expected the columns"),
    "zero bytes": (lambda text: bytes(5000), r"found \x00\x00"),
    "a formula as a plane": (cell(2, '=HYPERLINK("http://x")'), "without =, +, - or @ in front, found Plane '=HYPERLINK"),
    "a formula as an image": (cell(0, "=cmd|' /C calc'!A0"), "found Image_name \"=cmd|' /C"),
    "a formula as a machine": (cell(5, "@SUM(1+9)*cmd"), "found US_Machine '@SUM(1+9)*cmd' in data row 1"),
    "a formula behind a space": (cell(4, "  =1+1"), "found Operator '=1+1'"),
    "a zero byte in a cell": (cell(5, "Al\0oka"), r"found US_Machine 'Al\x00oka'"),
    "a terminal's command": (cell(5, "\x1b[2JAloka"), r"found US_Machine '\x1b[2JAloka'"),
    "two lines in a cell": (cell(5, '"Alo\nka"'), r"found US_Machine 'Alo\nka'"),
    "10 MB in a cell": (cell(5, "A" * 10_000_000), "field larger than field limit"),
    "a long cell": (cell(5, "A" * 1_000), "found US_Machine 'AAAA"),
    "10 MB in the header": (lambda text: text.replace("Operator", "O" * 10_000_000, 1).encode(), "field larger"),
    "a million columns": (lambda text: b";".join([b"a"] * 1_000_000), "found a, a, a"),
    "an open quote": (cell(5, '"Aloka'), "unexpected end of data"),
    "a climbing name": (cell(0, "../../precious"), "the name '../../precious' does not fit patient"),
    "a header twice": (lambda text: text.replace("Operator", "Plane", 1).encode(), "found Image_name, Patient_num, Plane"),
    "a short row": (lambda text: (text + "Patient1;1\n").encode(), "expected 7 cells in data row 145, found others"),
    "a long row": (lambda text: (text + "a;" * 9 + "\n").encode(), "expected 7 cells in data row 145, found others"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_a_hostile_label_file(small, refused, kind):
    change, says = LABELS[kind]
    path = small["spain"] / spain.CSV
    path.write_bytes(change(path.read_text()))
    assert spain.CSV in refused("audit", "spain", "--root", small["spain"], says=says)


def test_a_byte_order_mark_a_quoted_cell_and_empty_lines_change_nothing(small):
    before, path = load_cohort("spain", small["spain"]).fingerprint(), small["spain"] / spain.CSV
    text = path.read_text().replace(";Aloka;", ';"Aloka";', 1).replace("\n", "\r\n\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_cohort("spain", small["spain"]).fingerprint() == before


def test_100_000_rows_are_read(tmp_path):
    rows = (f"{n},Fetal brain,1,Egypt,patient{n:03d}_EGY_plane1" for n in range(100_000))
    (tmp_path / africa.CSV).write_text("\n".join(["Patient_num,Plane,Train,Center,Filename", *rows]))
    assert len(africa.read(tmp_path / africa.CSV)) == 100_000


# ---- pictures ---------------------------------------------------------------------------------------------------------


def png(width: int, height: int, pixels: bytes, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    extra = chunk(b"zTXt", b"a\0\0" + zlib.compress(extra)) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


PICTURES = {
    "a text that unpacks to 100 MB": (png(5, 5, bytes(30), bytes(100_000_000)), "too large"),
    "more pixels than allowed": (png(7000, 7000, b""), "expected at most 40,000,000 pixels"),
    "nothing": (b"", "none of PNG, JPEG, BMP, TIFF, DICOM"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "none of PNG, JPEG, BMP, TIFF, DICOM",
    ),
    "a web page": (b"<!DOCTYPE html><html></html>", "none of PNG, JPEG, BMP, TIFF, DICOM"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_hostile_picture(small, refused, monkeypatch, kind):
    """PostScript: Pillow would give it to Ghostscript, a program, whatever the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: (small["spain"] / MARK).touch())
    content, says = PICTURES[kind]
    (small["spain"] / "Images" / "Patient00001_Plane2_1_of_3.png").write_bytes(content)
    study = small["spain"].parent / "x.yaml"
    study.write_text(yaml.safe_dump({**GOOD, "cohorts": [{"name": "spain", "root": str(small["spain"])}]}))
    with pytest.raises(InputError, match="spain/Patient00001_Plane2_1_of_3") as error:
        loading.load_cohorts(load_study(study))
    assert says in str(error.value)
    assert len(images.damaged([small["spain"] / "Images" / "Patient00001_Plane2_1_of_3.png"])) == 1
    assert not list(small["spain"].rglob(MARK))


# ---- studies ----------------------------------------------------------------------------------------------------------

STUDIES = {
    "another encoding": (b"label: \xe4\n", "not YAML of plain values"),
    "a program": (b"label: !!python/object/apply:os.system ['touch executed']\n", "could not determine a constructor"),
    "a name of Python": (b"label: !!python/name:os.system\n", "could not determine a constructor"),
    "no date": (b"label: 2026-99-99\n", "month must be in 1..12"),
    "no number": (b"folds: !!int x\n", "invalid literal"),
    "no truth": (b"folds: !!bool x\n", "not YAML of plain values"),
    "depth": (b"label: " + b"[" * 2_000, "recursion"),
    "a list in itself": (b"full: &a [*a]\n", "full[0]: expected str"),
    "laughter": (b"full: &a [x, x]\nlora: &b [*a, *a]\nlabel: [*b, *b]\n", "lora[0]: expected str"),
    "an endless number": (b"folds: " + b"9" * 5000 + b"\n", "not YAML of plain values"),
    "a large number": (b"recipe: {clip: " + b"9" * 400 + b"}\n", "recipe: clip: expected a number below 2^63"),
    "no finite rate": (b"recipe: {rates: [.nan]}\n", "recipe: rates[0]: expected a number below 2^63"),
    "a negative seed": (b"seed: -1\n", "a seed from 0 to 2^32 - 1, found 2, 5, -1"),
    "a zero byte": (b'label: "a\\0b"\n', "label: expected printable text"),
    "a long value": (b"folds: " + b"x" * 100_000 + b"\n", "folds: expected int, found 'xxxx"),
    "extensions that are none": (b"extensions: [3]\n", "extensions[0]: expected str, found 3"),
    "an extension of no Python": (b"extensions: [README.md]\n", "expected a Python file at"),
    "an extension with a zero byte": (b'extensions: ["a\\0b"]\n', "extensions[0]: expected printable text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STUDIES)
def test_a_hostile_study(refused, tmp_path, kind):
    content, says = STUDIES[kind]
    path = tmp_path / 'it\'s a $(touch executed) "study"; #1.yaml'
    path.write_bytes(yaml.safe_dump(GOOD).encode() + content)
    refused("doctor", path, says=says)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", "$(touch executed)", "a name becomes a file name"),
        ("name", "a\nb", "a name becomes a file name"),
        ("name", "..", "a name becomes a file name"),
        ("geometry", {"crop": "all"}, "crop in (0, 1], found"),
        ("mean", [0.5], "mean and std of three channels"),
        ("std", [0.0, 1.0, 1.0], "no std of 0"),
    ],
)
def test_a_hostile_encoder_of_a_study(refused, tmp_path, field, value, says):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "encoders": [{**GOOD["encoders"][0], field: value}]}))
    if field != "geometry":  # known by the catalogue alone
        refused("run", path, says=says)
        return
    with pytest.raises(InputError) as error:
        loading.load_encoder(load_study(path), "a")
    assert says in str(error.value)


# ---- parameters of notebooks ------------------------------------------------------------------------------------------

ECHO = """{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {"tags": ["parameters"]},
"outputs": [], "source": "study = \\"demo\\"\\nfolds = []"}, {"cell_type": "code", "execution_count": null, "id": "b",
"metadata": {}, "outputs": [], "source": "import json, os; json.dump([study, folds], open(os.environ['ECHO'], 'w'))"}],
"metadata": {"kernelspec": {"display_name": "p", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}"""
TEXTS = {
    "quotes": "x\"; open('{mark}', 'w'); '",
    "lines": "x\n__import__('os').system('touch {mark}')\n#\\\\\"\n",
    "shell": "$(touch {mark}) `touch {mark}`",
    "a path": "/a b/{{c}}: d #1/*.yaml",
    "no truth value": "no",
}


def test_a_parameter_reaches_the_notebook_as_it_was_written(tmp_path, monkeypatch):
    """One notebook for all texts, as a list: what papermill writes into the cell must be data."""
    mark, echo = tmp_path / MARK, tmp_path / "echo.json"
    monkeypatch.setenv("ECHO", str(echo))
    (tmp_path / "echo.ipynb").write_text(ECHO)
    texts = [text.format(mark=mark) for text in TEXTS.values()]
    output = tmp_path / "{study.__class__}" / "out.ipynb"
    notebooks.execute(tmp_path / "echo.ipynb", output, {"study": "\n".join(texts), "folds": json.dumps(texts)})
    assert json.loads(echo.read_text()) == ["\n".join(texts), texts]
    assert output.is_file()
    assert not mark.exists()


@pytest.mark.parametrize("value", ["[", "!!python/name:os.system", "&a [*a, {a: 1}", "2026-99-99"])
def test_a_parameter_that_is_no_yaml_is_refused(refused, tmp_path, value):
    output = tmp_path / "out.ipynb"
    refused("notebook", "05_fine_tuning", output, "-p", f"folds={value}", says="05_fine_tuning.ipynb: folds: not YAML")
    assert not output.exists()


def test_the_name_of_a_notebook_and_unknown_parameters_are_refused(refused, tmp_path):
    refused("notebook", "../../" + "x" * 10, tmp_path / "o.ipynb", says="expected a notebook at")
    refused(
        "notebook", "01_cohorts", tmp_path / "o.ipynb", "-p", "x;touch executed=1", says="unknown parameters x;touch"
    )


# ---- weights and checkpoints ------------------------------------------------------------------------------------------


def saved(content) -> bytes:
    torch.save(content, stream := io.BytesIO())
    return stream.getvalue()


class Bomb:
    def __reduce__(self):
        return bytearray, (1 << 40,)


def header(content, size: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(16)


FILES = {
    "a list.pth": (saved([torch.ones(2)]), "an object of type list"),
    "a table in itself.pth": (saved({"model": {"model": {"a": 1}}}), "found other things too"),
    "a terabyte.pth": (saved({"a": Bomb()}), "nothing of it was executed"),
    "a deep pickle.pth": (b"\x80\x02" + b"(" * 100_000 + b".", "nothing of it was executed"),
    "a header of no bytes.safetensors": (header(b"{}", 1 << 60), "not a whole safetensors file"),
    "a header of no JSON.safetensors": (header(b"[" * 1000), "not a whole safetensors file"),
    "a shape below zero.safetensors": (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "not a whole"),
    "a shape without end.safetensors": (header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}), "not a whole"),
    "one place for two.safetensors": (header({k: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for k in "ab"}), "not a whole"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_weights_file(tmp_path, name):
    content, says = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        checkpoint.read(tmp_path / name)


CONFIGS = {
    "no number": {"embed_dim": {}},
    "no model of timm": {"vision_cfg": {"timm_model_name": "nobody", "image_size": 32}},
    "no table": {"vision_cfg": [1]},
    "heads that do not fit": {"vision_cfg": {"image_size": 32, "layers": 1, "width": 22, "patch_size": 16, "head_width": 7}},
    "no means": {"preprocess_cfg": {"mean": "x", "std": None}},
    "no facts": {"preprocess_cfg": [1]},
    "no third mean": {"preprocess_cfg": {"mean": [0.5, 0.5], "std": [0.5, 0.5]}},
    "a resize of its own": {"preprocess_cfg": {"resize_mode": "x"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_hostile_config_of_open_clip(tmp_path, kind):
    from fpbench.encoders import load_encoder

    said = dict(CONFIGS[kind])
    facts = {"preprocess_cfg": said.pop("preprocess_cfg")} if "preprocess_cfg" in said else {}
    (path := tmp_path / "config.json").write_text(json.dumps({"model_cfg": {**fuzz_models.CONFIG, **said}, **facts}))
    with pytest.raises(
        InputError, match=r"open_clip:.*config\.json: expected (a config that open_clip [\d.]+ can build|mean and std)"
    ):
        load_encoder(f"open_clip:{path}", "random")


class Command:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (saved({"key": Command()}), "nothing of it was executed"),
        (saved({"key": "k", "model": {}})[:-200], "truncated"),
        (saved([1]), "of another configuration"),
        (saved({"model": {}}), "of another configuration"),
        (b"", "nothing of it was executed"),
    ],
)
def test_a_hostile_checkpoint_of_fine_tuning(tmp_path, monkeypatch, content, says):
    from fpbench.training.finetuning import Trainer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(content)
    artifacts.seal(tmp_path / "last.pt")  # as one who means harm would
    trainer = Trainer.__new__(Trainer)
    trainer.folder, trainer.key = tmp_path, "k"
    with pytest.raises(InputError, match=says):
        trainer.resume()
    assert not (tmp_path / MARK).exists()


# ---- predictions ------------------------------------------------------------------------------------------------------

KINDS = {
    "encoder": ("=HYPERLINK(1)", "without =, \\+, - or @ in front, found encoder"),
    "image_id": (None, "expected string values in the column image_id, found"),
    "group": ([1], "expected string values in the column group, found"),
    "fold": ("0", "expected integer values in the column fold, found string"),
    "distinct": ("yes", "expected boolean values in the column distinct, found string"),
    "y_true": ("x", "expected integer values in the column y_true, found string"),
    "logit_brain": ("1.0", "expected floating values in the column logit_brain, found string"),
}


@pytest.mark.parametrize("column", KINDS)
def test_a_predictions_file_of_wrong_kinds(tmp_path, column):
    value, says = KINDS[column]
    frame, about = fuzz.table()
    frame.assign(**{column: [value] * len(frame)}).to_parquet(tmp_path / "a.parquet", index=False)
    artifacts.commit(tmp_path / "a.parquet", about)
    with pytest.raises(InputError, match=says):
        predictions.read([tmp_path / "a.parquet"], fuzz.TASK)


@pytest.mark.parametrize("about", [{}, {"encoder": "e"}, {"encoder": {"name": ["e"], "fingerprint": {}}}, {"encoder": {"name": "e", "fingerprint": None}}])  # fmt: skip
def test_a_sidecar_of_wrong_kinds(tmp_path, about):
    frame, _ = fuzz.table()
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    artifacts.commit(tmp_path / "a.parquet", about)
    with pytest.raises(InputError, match="no predictions file and its sidecar"):
        predictions.read([tmp_path / "a.parquet"], fuzz.TASK)


def test_bytes_under_a_right_hash_and_a_sidecar_without_one(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more PAR1")
    artifacts.commit(path, fuzz.table()[1])
    with pytest.raises(InputError, match="no predictions file and its sidecar"):
        predictions.read([path], fuzz.TASK)
    artifacts.write_json(path.with_suffix(".json"), {"a": 1})
    with pytest.raises(InputError, match="does not match the SHA-256"):
        predictions.read([path], fuzz.TASK)
    path.with_suffix(".json").write_text("[" * 50_000)
    with pytest.raises(InputError, match="not a file written by fpbench"):
        predictions.read([path], fuzz.TASK)


# ---- tables of answers, of hashes, and names that no file can have -----------------------------------------------------


def test_an_answer_that_names_no_picture_is_not_joined(tmp_path):
    """A missing cell, as JSON and parquet have it."""
    ours = fuzz_tables.opened(tmp_path)
    rows = [
        {"image": "a.png", "answer": "brain", "label": "abdomen"},
        {"image": None, "answer": "brain", "label": None},
    ]
    (path := tmp_path / "theirs.json").write_text(json.dumps(rows))
    form = submissions.Form(image="image", answer="answer", label="label")
    joined = submissions.join(submissions.read(path), [ours], fuzz.TASK, form, path)
    assert joined.table["image_id"].tolist() == ["kampala/a"]
    assert joined.lines[:2] == ["joined by image: 1 of 2 rows", "not joined: 1 rows, the first is ''"]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.drop(columns="size"),
        lambda frame: frame.drop(columns="sha256"),
        lambda frame: frame.assign(inode=[[]] * len(frame)),
        lambda frame: frame.assign(changed="x"),
        lambda frame: frame.assign(hashed=None),
    ],
)
def test_a_remembered_table_of_hashes_of_another_kind_is_made_anew(tmp_path, monkeypatch, change):
    monkeypatch.setenv("FPBENCH_CACHE", str(tmp_path / "cache"))
    files = [tmp_path / f"{number}" for number in range(hashes.FEWEST)]
    for file in files:
        file.write_text(file.name)

    def compute(some):
        return [artifacts.file_sha256(file) for file in some]

    expected = hashes.sha256s(files, compute)
    (place,) = (tmp_path / "cache").rglob("*.parquet")
    change(pd.read_parquet(place)).to_parquet(place, index=False)
    artifacts.commit(place, {})
    assert hashes.sha256s(files, compute) == expected


LONG = "A" * 300  # the system refuses to look for a file of such a name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "resnet50-mini", LONG, "--weights", "random", "--out", "o.npz"], "with pictures, found none"),
        (["audit", f"{LONG}.yaml"], "expected a file that describes a cohort"),
        (["init-cohort", f"{LONG}.csv"], "expected a table at"),
        (["doctor", f"{LONG}.yaml"], "expected a study file at"),
        (["embed", f"open_clip:{LONG}.json", ".", "--weights", "random", "--out", "o.npz"], "a config file of open_clip"),
        (["embed", "resnet50-mini", ".", "--weights", f"{LONG}.pth", "--out", "o.npz"], "expected a weights file at"),
    ],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_one_of_a_file_that_is_not_there(refused, arguments, says):
    refused(*arguments, says=says)


def test_a_frame_of_a_picture_without_a_name(tmp_path):
    fuzz_tables.opened(tmp_path)
    (tmp_path / "labels.csv").write_text("file,mrn,view,site,part\n.#0,1,Bauch,M,test\n")
    with pytest.raises(MissingError, match="1 of 1 images of kampala are not in"):
        load_cohort(tmp_path / "ours.yaml")
    with pytest.raises(MissingError, match="with pictures, found none"):
        export.find(f"{tmp_path}/.#0")


def test_a_picture_whose_name_is_not_utf8_is_refused(tmp_path):
    """As an old disk has them; a table of embeddings or of a corpus cannot hold such a name."""
    Image.new("L", (9, 9), 7).save(tmp_path / "M\udcfcller.png", "png")
    for read in (lambda: export.find(str(tmp_path)), lambda: corpus.listed(tmp_path)):
        with pytest.raises(InputError, match=r"names of pictures in UTF-8, found b'.*M\\xfcller.png': rename it"):
            read()


def test_a_corpus_folder_of_a_name_too_long(tmp_path):
    with pytest.raises(MissingError, match="expected a folder with pictures"):
        corpus.listed(tmp_path / LONG)


def test_a_cohort_whose_pictures_lie_in_a_folder_of_such_a_name(tmp_path):
    fuzz_tables.opened(tmp_path)
    about = yaml.safe_load((tmp_path / "ours.yaml").read_text()) | {"images": LONG}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(MissingError, match="3 of 3 images of kampala are not in"):
        load_cohort(tmp_path / "ours.yaml")


# ---- weights that a pretraining made ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"card": None}, {"card": {"licence": "x", "note": "y", "saw": "z"}}])
def test_weights_of_a_pretraining_with_another_sidecar_than_their_card(tmp_path, more):
    path = tmp_path / "a.safetensors"
    save_file(fuzz_models._sound(), path)
    artifacts.commit(path, {"key": "k", **more})
    with pytest.raises(
        InputError, match=r"expected the model card of a pretraining in p.json, found none: .*notebook 10"
    ):
        fuzz_models.read_card(path)


# ---- everything else --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_few_examples_of_the_fuzzer(tmp_path, name):
    """The same ones every time; `make fuzz` tries new ones for ten minutes."""
    count = fuzz.fuzz(name, tmp_path, examples=25, derandomize=True)
    assert count["crashes"] == 0, [path.read_text() for path in tmp_path.glob("crash-*.txt")]
    assert count["refused"] >= fuzz.READERS[name]().refuses
    assert count["tried"] == count["refused"] + count["accepted"]


def test_the_fuzzer_notices_a_crash_and_keeps_the_input(tmp_path, monkeypatch):
    """A reader that forgets an error: the fuzzer must find it, shrink it and say where it is."""
    reader = replace(fuzz.READERS["spain"](), read=lambda path: path.read_text("utf-8"))
    monkeypatch.setitem(fuzz.READERS, "spain", lambda: reader)
    assert fuzz.fuzz("spain", tmp_path, examples=60, derandomize=True)["crashes"] == 1
    with pytest.raises(UnicodeDecodeError):
        (tmp_path / "crash-UnicodeDecodeError-spain.csv").read_text("utf-8")
    assert "UnicodeDecodeError" in (tmp_path / "crash-UnicodeDecodeError-spain.txt").read_text()
