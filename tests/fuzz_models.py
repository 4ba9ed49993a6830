"""For the fuzzer: what is named on the command line and in studies, weights as people have them, and configs of models."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from fuzz_inputs import NASTY, Reader, mutated, plain
from hypothesis import strategies as st
from PIL import Image

from fpbench import loading, results
from fpbench.errors import InputError
from fpbench.files import artifacts, paths
from fpbench.files.records import plain_yaml
from fpbench.grid import run
from fpbench.recipe import CorpusSpec, Pretraining
from fpbench.study import CohortSpec, EncoderSpec, Study

ODD = st.text(max_size=12) | st.sampled_from(NASTY).map(lambda b: b.decode("latin-1"))
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}  # of a vision transformer


# ---- parameters of notebooks ------------------------------------------------------------------------------------------


def read_parameter(path: Path) -> None:
    """What ``-p NAME=VALUE`` says, through papermill's cell: the same value arrives, and nothing else runs."""
    from papermill.translators import PythonTranslator

    value = plain_yaml(path.read_bytes().decode("utf-8", "replace"), "05_fine_tuning.ipynb: folds")
    cell = PythonTranslator.codify({"folds": value}, "Parameters")
    found: dict = {}
    exec(compile(cell, "cell", "exec"), {"__builtins__": {"float": float}}, found)
    if list(found) != ["folds"] or not _alike(found["folds"], value):
        raise ValueError(f"{value!r} became {found!r}")


def _alike(found: object, value: object) -> bool:
    if isinstance(value, dict) and isinstance(found, dict):
        return len(found) == len(value) and all(_alike(found.get(str(key)), one) for key, one in value.items())
    if isinstance(value, list) and isinstance(found, list):
        return len(found) == len(value) and all(map(_alike, found, value))
    if isinstance(value, float):
        return isinstance(found, float) and (found == value or (found != found and value != value))
    return found == value and type(found) is type(value)


def parameter_reader() -> Reader:
    """YAML of any value, mutations, and soup."""
    import papermill.translators  # noqa: F401  # before the clock runs
    import yaml

    import fpbench.grid.notebooks  # noqa: F401  # it spares papermill the import of a grammar

    dumped = plain().map(lambda one: yaml.safe_dump(one, allow_unicode=True).encode("utf-8", "replace"))
    soup = st.lists(st.sampled_from(NASTY) | st.sampled_from([b"name", b"\n", b"  ", b"[1, 2]"]), max_size=8).map(b"".join)  # fmt: skip
    return Reader(".value", read_parameter, mutated(b"[0, 1, 2]", b"{a: [x, 1.5]}", b"null") | dumped | soup, refuses=1)


# ---- pictures that are named to be embedded ---------------------------------------------------------------------------


def read_named(path: Path) -> None:
    """A word of ``fpbench embed``: found, written to both kinds of file, and there as it was found."""
    from fpbench.training import export

    top = path.with_name("pictures")
    for name in (
        "a.png",
        "b [1].png",
        "ü/c.png",
        ".hidden/d.png",
        "e.txt",
        "../no/no picture.png",
        "../latin/\udcff.png",
    ):
        (file := top / name).parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_bytes(b"no") if name[:4] in ("../n", "e.tx") else Image.new("L", (9, 9), 7).save(file)
    word = (
        path.read_bytes().decode("utf-8", "replace").replace("..", ".").lstrip("/")
    )  # the rest of the disk is not ours
    with contextlib.chdir(top):
        for key, folder in {"TOP": top, "NO": top.with_name("no"), "LATIN": top.with_name("latin")}.items():
            word = word.replace(key, str(folder))
        found = export.find(word)
    vectors = np.arange(2.0 * len(found.paths), dtype=np.float32).reshape(-1, 2)
    own = export.Pictures(found.name, found.image_ids, found.paths, lambda *_: vectors, found.notes)
    for suffix in export.FORMATS:
        written = export.export(_encoder(), [own], path.with_name(f"out{suffix}"))
        table = np.load(written) if suffix == ".npz" else pd.read_parquet(written)
        if list(table["image_id"]) != found.image_ids or list(table["path"]) != list(map(str, found.paths)):
            raise ValueError(f"{found.image_ids} became {list(table['image_id'])}")


@cache
def _encoder():
    from fpbench.encoders import load_encoder

    return load_encoder("resnet50-mini", "random")


def named_reader() -> Reader:
    """Folders, files, frames, patterns, and any text."""
    _encoder().fingerprint  # noqa: B018  # once, before the clock runs
    piece = st.sampled_from(["TOP", "LATIN", "/", "a.png", "b [1].png", "b [[]1].png", "*", "**", "?", "[", "]", "ü", "#0", "#1", ".", "..", "NO", "no picture.png", "e.txt", "spain"])  # fmt: skip
    built = st.lists(piece, min_size=1, max_size=5).map("".join) | ODD | st.builds("TOP/{}".format, ODD)
    return Reader(".word", read_named, built.map(lambda one: one.encode("utf-8", "replace")))


# ---- weights as people have them --------------------------------------------------------------------------------------


@cache
def _sound() -> dict:
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL).state_dict()


def read_weights(path: Path) -> None:
    """A wrapped file of a small vision transformer, its position table perhaps of another size, put into the model."""
    from fpbench.encoders import load_encoder

    asked = json.loads(path.with_suffix(".asked").read_text("utf-8"))
    with warnings.catch_warnings(action="ignore"):
        one = load_encoder("timm:vit_tiny_patch16_224", path, prefix=asked["prefix"], options={**SMALL, "img_size": asked["side"]})  # fmt: skip
        if not np.isfinite(one.embed(np.full((1, asked["side"], asked["side"]), 7, np.uint8))).all():
            raise InputError(f"{path}: expected finite numbers")


def weights_reader() -> Reader:
    """Tables of any shape, tensors of other types and none, wrappers and prefixes of any name."""
    import torch

    shape = st.lists(st.integers(0, 40), max_size=4) | st.integers(0, 12).map(lambda side: [1, side * side + 1, 16])
    kind = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
    tensor = st.builds(lambda sizes, dtype: torch.ones(sizes, dtype=dtype) if np.prod(sizes) < 1e5 else None, shape, kind)  # fmt: skip
    sound = st.sampled_from(sorted(_sound()))
    name = sound | st.sampled_from(["head.weight", "fc_norm.weight", "pos_embed", "reg_token"]) | ODD
    changed = st.dictionaries(st.just("pos_embed") | name, tensor | plain(), max_size=2)
    word = st.sampled_from(["teacher", "student", "state_dict", "model", "ema", "module", "backbone", "x"])
    prefix = st.sampled_from(["", "", "module.", "_orig_mod.", "image_encoder.", "visual.trunk.", "a.b."])
    asked = st.sampled_from(["", "", "image_encoder.", "visual.trunk", "teacher.", "student.image_encoder.", ".", "x"])

    def built(changes: dict, wrappers: list[str], head: str, others: dict, prefix: str, side: int) -> tuple[dict, dict]:
        content: dict = {f"{head}{key}": value for key, value in {**_sound(), **changes}.items()}
        for wrapper in wrappers:
            content = {wrapper: content, **others}
        return content, {"prefix": prefix, "side": side}

    inputs = st.builds(built, changed, st.lists(word, max_size=3), prefix, st.dictionaries(word, plain() | tensor, max_size=2), asked, st.sampled_from([32, 32, 64, 48]))  # fmt: skip

    def write(path: Path, content: tuple[dict, dict]) -> None:
        torch.save(content[0], path)
        path.with_suffix(".asked").write_text(json.dumps(content[1]), encoding="utf-8")

    return Reader(".pth", read_weights, inputs, write)


# ---- weights that a pretraining made, and their card ------------------------------------------------------------------


def read_card(path: Path) -> None:
    """An encoder of a study that one of its pretrainings made, with what its card says of it."""
    first = EncoderSpec("a", "timm:vit_tiny_patch16_224", "random", options=SMALL)
    second = replace(first, name="b", weights="pretraining/p")
    plan = Pretraining("a", [CorpusSpec("spain")])
    study = Study("card", "X", [CohortSpec("spain")], [first, second], pretraining={"p": plan}, device="cpu")
    with mock.patch.dict("os.environ", FPBENCH_RESULTS=str(path.parent)), warnings.catch_warnings(action="ignore"):
        (there := results.pretrained(study, "p")).parent.mkdir(parents=True, exist_ok=True)
        for file in (path, artifacts.sidecar(path)):
            shutil.copy(file, there.with_name(f"p{file.suffix}"))
        json.dumps(asdict(loading.load_encoder(study, "b").weights))


def card_reader() -> Reader:
    """Damaged weights under a right hash, and made-up cards under a right digest."""
    from safetensors.torch import save

    card = {"name": "p", "note": "pretrained here", "licence": "x", "saw": {"spain": "yes"}}
    sound, about = save(_sound()), {"key": "k", "best": 1, "history": [], "card": card}
    cards = st.builds(lambda key, one: {**card, key: one}, st.sampled_from(list(card)), plain())
    less = st.sampled_from(list(card)).map(lambda key: {name: one for name, one in card.items() if name != key})
    told = (cards | less | plain()).map(lambda one: {**about, "card": one}) | st.just({"key": "k"})

    def write(path: Path, content: tuple[bytes, dict]) -> None:
        path.write_bytes(content[0])
        artifacts.commit(path, content[1])

    return Reader(".safetensors", read_card, st.tuples(mutated(sound), st.just(about)) | st.tuples(st.just(sound), told), write)  # fmt: skip


# ---- profiles of Snakemake --------------------------------------------------------------------------------------------


def read_profile(path: Path) -> None:
    """As ``fpbench run STUDY --profile FOLDER`` asks where jobs run."""
    (folder := path.with_suffix("")).mkdir(exist_ok=True)
    shutil.copy(path, folder / "config.yaml")
    run._profile(["--profile", str(folder)]).get("executor")


def profile_reader() -> Reader:
    """Mutations of the shipped ones, and YAML of any value."""
    import yaml

    shipped = [file.read_bytes() for file in sorted((paths.home() / "profiles").glob("*/config.yaml"))]
    dumped = plain().map(lambda one: yaml.safe_dump(one, allow_unicode=True).encode("utf-8", "replace"))
    return Reader(".yaml", read_profile, mutated(*shipped) | dumped, refuses=5)


# ---- config files of open_clip ----------------------------------------------------------------------------------------

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
SAID = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def read_config(path: Path) -> None:
    """A model of a config file, with random weights."""
    from fpbench.encoders import load_encoder

    with warnings.catch_warnings(action="ignore"):
        load_encoder(f"open_clip:{path}", "random").embed([np.full((9, 9), 7, np.uint8)])


def config_reader() -> Reader:
    """Mutations of a config, one of its values replaced by any other, and any JSON."""
    import open_clip  # noqa: F401  # before the clock runs

    whole = {"model_cfg": CONFIG, "preprocess_cfg": SAID}
    value = plain(st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=5) | st.just("squash"))  # fmt: skip
    more = ["quick_gelu", "timm_model_name", "hf_model_name", "custom_text", "multimodal_cfg", "text_cfg", "embed_dim"]
    vision = [*CONFIG["vision_cfg"], "timm_model_name", "attentional_pool", "global_average_pool", "pool_type", "mlp_ratio", "ls_init_value"]  # fmt: skip

    def put(key: str, one: object) -> dict:
        where, _, inner = key.partition(".")
        if where == "preprocess_cfg":
            return {**whole, where: {**SAID, inner: one}}
        return {**CONFIG, where: {**CONFIG[where], inner: one} if inner else one}

    keys = [*CONFIG, *more, *(f"vision_cfg.{key}" for key in vision), *(f"preprocess_cfg.{key}" for key in (*SAID, "size", "mode", "fill_color"))]  # fmt: skip
    keys += [f"text_cfg.{key}" for key in CONFIG["text_cfg"]]
    changed = st.builds(put, st.sampled_from(keys), value)
    files = [json.dumps(one).encode() for one in (CONFIG, whole)]
    return Reader(".json", read_config, mutated(*files) | (changed | plain()).map(lambda one: json.dumps(one).encode()))


READERS: dict[str, Callable[[], Reader]] = {
    "parameter": parameter_reader,
    "named": named_reader,
    "weights": weights_reader,
    "card": card_reader,
    "profile": profile_reader,
    "config": config_reader,
}
