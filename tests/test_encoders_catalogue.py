"""The encoders' protocol, and weights that do not fit: miniatures in the authors' layouts, each damaged in one way."""

import builtins
import os
import re
import runpy
import subprocess
import tracemalloc
import weakref
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from fpbench import load_study, loading
from fpbench.encoders import catalogue, checkpoint, load_encoder, register_encoder
from fpbench.encoders.fingerprint import fingerprint, picture
from fpbench.errors import InputError, MissingError
from fpbench.files.fingerprints import difference, same
from fpbench.grid import jobs as grid
from fpbench.images import Geometry
from fpbench.recipe import Recipe
from fpbench.training.adaptation import add_lora, is_transformer

ROOT = Path(__file__).parent.parent
SEVEN = ("fetalclip", "usfm", "mofo", "ultrasam", "dinov3", "resnet50", "efficientnetv2_s")


def authors_tensors(name: str) -> tuple[dict, torch.nn.Module]:
    """The tensors of a random miniature under the names of the authors' file, and the miniature's module."""
    module = load_encoder(f"{name}-mini", "random").module
    entry = catalogue.CATALOGUE[name]
    _, layouts = catalogue.builder(entry)(name=name, size=entry.mini, pooling=next(iter(entry.poolings)), mini=True)
    layout = layouts[1 if name == "dinov3" else 0]
    content = {}
    for key, tensor in module.state_dict().items():
        source = layout.source(key)
        if checkpoint.matches(key, layout.fresh):
            continue
        tensor = tensor.T if source == "visual.proj" else tensor
        tensor = tensor.reshape(tensor.shape[-1:]) if source == "visual.class_embedding" else tensor
        content[source] = (tensor[0] if source == "visual.positional_embedding" else tensor).clone()
    return content, module


def write(content: dict, path: Path) -> Path:
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in content.items()}}, path)
    return path


@pytest.fixture(scope="module")
def authors():
    """Miniature files of all seven."""
    return {name: authors_tensors(name)[0] for name in SEVEN}


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120), np.uint8)


@pytest.mark.parametrize("name", SEVEN)
def test_a_file_in_the_authors_layout_gives_the_same_module(name, tmp_path):
    content, module = authors_tensors(name)
    encoder = load_encoder(f"{name}-mini", write(content, tmp_path / "w.pth"), seed=1)
    assert encoder.weights.sha256 == checkpoint.tensors_sha256(module)
    assert encoder.weights.source == "file"
    assert len(encoder.weights.file_sha256) == 64


@pytest.mark.parametrize("name", SEVEN)
def test_one_tensor_missing_renamed_transposed_or_added_is_named(name, authors, tmp_path):
    content = authors[name]
    first = next(key for key, tensor in content.items() if tensor.ndim >= 2 and tensor.shape[0] != tensor.shape[1])
    last = [key for key in content if key.endswith(("weight", "bias", "proj"))][-1]
    prefix = last.split(".")[0]
    rest = {key: tensor for key, tensor in content.items() if key != last}
    damaged = {
        "missing from the file": (rest, last),
        "missing": ({**rest, f"{prefix}.renamed": content[last]}, last),
        "not in the model": ({**rest, f"{prefix}.renamed": content[last]}, f"{prefix}.renamed"),
        "another shape": ({**content, first: content[first].transpose(0, 1).contiguous()}, first),
        "not in the model (1)": ({**content, f"{prefix}.added": torch.zeros(3)}, f"{prefix}.added"),
    }
    for words, (tensors, culprit) in damaged.items():
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            load_encoder(f"{name}-mini", write(tensors, tmp_path / "w.pth"))
        assert culprit in str(caught.value)


def test_another_clip_model_is_not_taken_for_fetalclip(authors, tmp_path):
    for length, fits in ((117, True), (77, False)):
        content = {**authors["fetalclip"], "positional_embedding": torch.zeros(length, 768)}
        path = write(content, tmp_path / "w.pth")
        if fits:
            load_encoder("fetalclip-mini", path)
        else:
            with pytest.raises(InputError, match=r"positional_embedding \(77, 768\) where this model's file has \(117"):
                load_encoder("fetalclip-mini", path)


def test_the_printed_ignore_overrules_and_is_recorded(authors, tmp_path):
    content = {**authors["usfm"], "head.weight": torch.zeros(6, 48)}
    del content["blocks.1.attn.q_bias"]
    path = write(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="fine-tuned model with its classifier") as caught:
        load_encoder("usfm-mini", path)
    ignore = eval(re.search(r"ignore=(\[.*\])", str(caught.value))[1])
    assert ignore == ["blocks.1.attn.q_bias", "head.weight"]
    assert "head.weight" in load_encoder("usfm-mini", path, ignore=ignore).weights.ignored


class Draws(TorchDispatchMode):
    """Counts how often random numbers are drawn."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        self.count += function.overloadpacket in (torch.ops.aten.uniform_, torch.ops.aten.normal_)
        return function(*arguments, **(more or {}))


@pytest.mark.parametrize("name", SEVEN)
def test_random_numbers_are_drawn_only_where_they_may_stay(name, authors, tmp_path):
    path = write(authors[name], tmp_path / "w.pth")
    before = load_encoder(f"{name}-mini", "random").weights.sha256
    for weights, ignore, drawn in ((path, (), False), (path, ("nothing",), True), ("random", (), True)):
        with Draws() as draws:
            encoder = load_encoder(f"{name}-mini", weights, ignore=ignore)
        assert (draws.count > 0) is drawn
    assert encoder.weights.sha256 == before


def test_a_tensor_that_the_file_may_lack_follows_the_seed(authors, tmp_path):
    missing = "blocks.1.attn.qkv.weight"
    path = write({name: tensor for name, tensor in authors["usfm"].items() if name != missing}, tmp_path / "w.pth")
    one, same, other = (load_encoder("usfm-mini", path, ignore=[missing], seed=seed).weights for seed in (1, 1, 2))
    assert one.sha256 == same.sha256 != other.sha256


def test_a_bias_that_the_model_does_not_have_must_be_zero(authors, tmp_path):
    content = dict(authors["dinov3"])
    content["blocks.0.attn.qkv.bias"] = torch.zeros(144)
    load_encoder("dinov3-mini", write(content, tmp_path / "w.pth"))
    content["blocks.0.attn.qkv.bias"] = torch.ones(144)
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv\.bias"):
        load_encoder("dinov3-mini", write(content, tmp_path / "w.pth"))


def test_a_table_given_to_every_block_is_not_shared_between_them(authors, tmp_path):
    path = write(authors["usfm"], tmp_path / "w.pth")
    blocks = load_encoder("usfm-mini", path, options={"per_block_bias": True}).module.trunk.blocks
    tables = [block.attn.relative_position_bias_table for block in blocks]
    assert torch.equal(tables[0], tables[1])
    assert tables[0].data_ptr() != tables[1].data_ptr()


def test_filling_never_writes_to_the_file(authors, tmp_path):
    path = write(authors["usfm"], tmp_path / "w.pth")
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_encoder("usfm-mini", path).module.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


BROKEN = {
    "w.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "page.pth": (b"<!DOCTYPE html><html><body>Quota exceeded</body></html>", "web page"),
    "empty.pth": (b"", "empty"),
    "empty.safetensors": (b"", "empty"),
    "page.safetensors": (b"<html></html>", "web page"),
    "noise.pth": (b"\x00\x01" * 999, "refused"),
}


@pytest.mark.parametrize("file", BROKEN)
def test_what_is_no_weights_file_is_called_by_its_name(file, tmp_path):
    content, words = BROKEN[file]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_encoder("usfm-mini", tmp_path / file)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_called_truncated(authors, suffix, share, tmp_path):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        write(authors["usfm"], path)
    else:
        save_file(authors["usfm"], path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="truncated"):
        load_encoder("usfm-mini", path)


def test_a_file_that_is_not_there_and_one_without_tensors(tmp_path):
    with pytest.raises(MissingError, match=r"nothing\.pth"):
        load_encoder("usfm-mini", tmp_path / "nothing.pth")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="epoch, optimizer"):
        load_encoder("usfm-mini", tmp_path / "w.pth")


class Runs:
    """A pickle that calls a function when it is read."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("function", [os.system, subprocess.getoutput, builtins.eval, builtins.exec])
def test_a_pickle_that_runs_a_command_is_refused(authors, function, inside, tmp_path):
    mark = tmp_path / "executed"
    command = f"__import__('pathlib').Path({str(mark)!r}).touch()" if function in (eval, exec) else f"touch {mark}"
    tensors = {**authors["usfm"], **({"norm.bias": Runs(function, command)} if inside else {})}
    torch.save({"state_dict": tensors, "meta": None if inside else Runs(function, command)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="nothing of it was executed"):
        load_encoder("usfm-mini", tmp_path / "w.pth")
    assert not mark.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the test's own check: elsewhere it does run
    assert mark.exists()


def test_a_pickle_that_numbers_its_memo_high_takes_no_memory(tmp_path):
    """Four bytes name a place in the memo: the unpickler in C makes room for all before it, up to 64 GiB (found by the fuzzer)."""
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "w.pth")
    numbered = tmp_path / "numbered.pth"
    with zipfile.ZipFile(tmp_path / "w.pth") as whole, zipfile.ZipFile(numbered, "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("data.pkl"):
                content = b"\x80\x02cframework\nThing\n0" + b"K\x01r\xff\xff\xff\x00" + b"0" + content[2:]
            changed.writestr(name, content)
    tracemalloc.start()
    try:
        found = checkpoint.load(numbered)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert found["state_dict"]["w"].tolist() == [1, 1]


def test_objects_of_a_framework_are_stubs_and_never_built(authors, tmp_path):
    import fractions

    content = {"state_dict": authors["usfm"], "lr": fractions.Fraction(1, 3), "log": np.arange(3.0), "path": Path("x")}
    fractions.Fraction.__module__ = "mmengine"
    import sys

    sys.modules["mmengine"] = fractions
    try:
        torch.save(content, tmp_path / "w.pth")
    finally:
        del sys.modules["mmengine"]
        fractions.Fraction.__module__ = "fractions"
    assert load_encoder("usfm-mini", tmp_path / "w.pth").weights.source == "file"


@pytest.mark.parametrize("name", SEVEN)
def test_pictures_in_every_form_give_the_same_embedding(name, grey):
    encoder = load_encoder(f"{name}-mini", "random")
    colour = np.stack([grey, grey[::-1], 255 - grey], -1)
    images = [Image.fromarray(grey), Image.fromarray(colour)]
    both = encoder.embed(images)
    assert both.shape == (2, encoder.dim)
    assert both.dtype == np.float32
    assert np.isfinite(both).all()
    scale = np.abs(both).max()
    for row, image in enumerate(images):
        assert encoder.embed(image).shape == (encoder.dim,)
        assert np.abs(encoder.embed(image) - both[row]).max() < 1e-5 * scale
    assert np.abs(encoder.embed(encoder.prepare(images)) - both).max() == 0
    assert np.abs(encoder.embed(encoder.prepare(images[:1])) - both[:1]).max() < 1e-5 * scale
    assert encoder.embed([]).shape == (0, encoder.dim)
    with pytest.raises(InputError, match="expected uint8"):
        encoder.embed(grey)


@pytest.mark.parametrize("name", SEVEN)
def test_a_frozen_encoder_stays_as_it_is(name):
    encoder = load_encoder(f"{name}-mini", "random")
    before = checkpoint.tensors_sha256(encoder.module)
    encoder.embed([picture(), picture()[::-1]])
    assert checkpoint.tensors_sha256(encoder.module) == before == encoder.weights.sha256
    assert not any(module.training for module in encoder.module.modules())


def test_random_weights_follow_the_seed_and_leave_the_global_one_alone():
    state = torch.random.get_rng_state()
    one, again, other = (load_encoder("mofo-mini", "random", seed=seed) for seed in (0, 0, 1))
    assert one.weights.sha256 == again.weights.sha256 != other.weights.sha256
    assert one.weights.label == "random weights"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_settings_that_cannot_be_are_refused():
    for settings, words in (
        ({"pooling": "max"}, "expected one of patch_mean, cls"),
        ({"geometry": {"size": 96}}, "expected an input side of 64, fixed"),
        ({"geometry": {"sides": 64}}, "unknown geometry fields"),
    ):
        with pytest.raises(InputError, match=words):
            load_encoder("usfm-mini", "random", **settings)
    with pytest.raises(InputError, match="multiples of 16"):
        load_encoder("dinov3-mini", "random", geometry={"size": 72})
    with pytest.raises(InputError, match="unknown encoder 'usmf'"):
        load_encoder("usmf")


@pytest.mark.parametrize("model", ["timm:resnet18", "usfm-mini", "dinov3-mini", "resnet50-mini", "open_clip:ViT-B-32"])
def test_an_option_that_the_architecture_does_not_take_is_named(model):
    with pytest.raises(InputError, match=r"expected what the architecture takes, found options .*wings"):
        load_encoder(model, "random", options={"wings": 2})


def test_everything_an_embedding_depends_on_is_in_its_identity():
    plain = load_encoder("dinov3-mini", "random")
    changed = (
        {"options": {"bf16_periods": True}},
        {"pooling": "patch_mean"},
        {"seed": 1},
        {"geometry": {"size": 80}},
        {"geometry": {"interpolation": "bilinear"}},
        {"mean": (0.0, 0.0, 0.0)},
    )
    for settings in changed:
        assert load_encoder("dinov3-mini", "random", **settings).identity() != plain.identity(), settings


def test_the_same_long_side_as_mmdetection():
    """Its float scale cuts 784 * (1024 / 784) to 1023: the last column is padding."""
    white = np.full((100, 784), 255, np.uint8)
    prepared = Geometry("fit_pad", 1024, "opencv-bilinear")(white)
    assert prepared[:130, 1022].min() == 255
    assert prepared[:, 1023].max() == 0


@pytest.mark.parametrize("name", SEVEN)
def test_a_fingerprint_knows_its_encoder(name):
    one = fingerprint(load_encoder(f"{name}-mini", "random"))
    again = fingerprint(load_encoder(f"{name}-mini", "random"))
    assert one == again
    assert same(one, again)
    assert not same(one, fingerprint(load_encoder(f"{name}-mini", "random", seed=1)))
    moved = {**one, "digest": "", "values": [value * (1 + 1e-4) for value in one["values"]]}
    assert 0 < difference(moved, one) < 2e-3
    assert difference({**one, "dim": 1}, one) == float("inf")


def test_a_fingerprint_notices_a_changed_adapter():
    one = fingerprint(load_encoder("usfm-mini", "random"))
    for settings in ({"pooling": "patch_mean_raw"}, {"mean": (0.5, 0.5, 0.5)}, {"geometry": {"kind": "pad_square"}}):
        assert not same(one, fingerprint(load_encoder("usfm-mini", "random", **settings))), settings


def test_models_md_is_current():
    text = (ROOT / "MODELS.md").read_text()
    assert text == runpy.run_path(str(ROOT / "tools" / "models.py"))["text"](), "write it again: python tools/models.py"


def test_a_fact_that_yaml_misread_is_refused():
    for misread in ({"saw_spain": False}, {"gmacs": 4.1}):
        with pytest.raises(InputError, match=f"usfm: {next(iter(misread))}: expected text"):
            replace(catalogue.CATALOGUE["usfm"], **misread)


def test_an_encoder_of_ones_own_in_ten_lines(monkeypatch, tmp_path, small_study):
    """The README's lines, saved as the README says, named in a study, filled from a file."""
    monkeypatch.setattr(catalogue, "CATALOGUE", dict(catalogue.CATALOGUE))
    code = re.search(r"## Your own encoder\n+```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "mine.py").write_text(code)
    text = re.sub(r"extensions: .*\n|, sgd", "", small_study.read_text().partition("encoders:")[0])
    small_study.write_text(
        text + f'extensions: ["{tmp_path}/mine.py"]\nencoders: [{{name: tiny, model: tiny, weights: random}}]\n'
    )
    study = load_study(small_study)
    encoder = loading.load_encoder(study, "tiny")
    assert encoder.embed([picture()]).shape == (1, 8)
    torch.save(encoder.module.state_dict(), tmp_path / "w.pt")
    assert load_encoder("tiny", tmp_path / "w.pt", seed=5).weights.sha256 == encoder.weights.sha256
    with pytest.raises(InputError, match="'tiny'"):
        register_encoder("tiny", torch.nn.Flatten, Geometry("squash", 64), dim=8)
    register_encoder("wrong", torch.nn.Flatten, Geometry("squash", 8), dim=8)
    with pytest.raises(InputError, match=r"expected embeddings \(1, 8\), found \(1, 192\)"):
        load_encoder("wrong", "random").embed([picture()])
    before = grid.jobs(study)["04_linear_probing.tiny"].parts
    (tmp_path / "mine.py").write_text(code.replace("Flatten()", "Flatten(), torch.nn.Tanh()"))
    after = grid.jobs(study)["04_linear_probing.tiny"].parts
    assert grid.changes(before, after) == [f"file {tmp_path / 'mine.py'} changed"]
    small_study.write_text(text + "extensions: [none.py]\nencoders: [{name: tiny, model: tiny}]\n")
    with pytest.raises(MissingError, match=r"none\.py"):
        load_study(small_study)


def test_a_timm_model_by_its_name(tmp_path):
    encoder = load_encoder("timm:resnet10t", "random", geometry={"kind": "squash", "size": 64})
    assert encoder.geometry == Geometry("squash", 64, "bicubic")
    assert encoder.embed([picture()]).shape == (1, encoder.dim)
    torch.save(encoder.module.state_dict(), tmp_path / "w.pt")
    again = load_encoder("timm:resnet10t", tmp_path / "w.pt", seed=3)
    assert again.weights.sha256 == encoder.weights.sha256
    with pytest.raises(InputError, match="did you mean"):
        load_encoder("timm:resnet51", "random")


def test_an_open_clip_model_by_its_name():
    with pytest.raises(InputError, match="no model 'nothing'"):
        load_encoder("open_clip:nothing", "random")
    with pytest.raises(InputError, match="with a TAG of"):
        load_encoder("open_clip:ViT-B-32", "hub")


@pytest.fixture
def hf_folder(tmp_path) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


def test_a_transformers_model_by_its_folder(hf_folder):
    hub, file = (load_encoder(f"hf:{hf_folder}", weights) for weights in ("hub", hf_folder / "model.safetensors"))
    assert hub.geometry == Geometry("squash", 32, "bilinear")
    assert hub.mean == (0.5, 0.5, 0.5)
    assert hub.weights.sha256 == file.weights.sha256
    assert np.array_equal(hub.embed([picture()]), file.embed([picture()]))
    assert load_encoder(f"hf:{hf_folder}", "random", pooling="mean").embed([picture()]).shape == (1, 32)


def test_a_transformers_file_that_loads_half_is_refused(hf_folder):
    from safetensors.torch import load_file

    tensors = load_file(hf_folder / "model.safetensors")
    del tensors["encoder.layer.0.attention.output.dense.bias"]
    save_file(tensors, hf_folder / "half.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="missing from the file"):
        load_encoder(f"hf:{hf_folder}", hf_folder / "half.safetensors")


def test_repeated_numbers_fill_a_network_that_is_timed():
    plain, timed = torch.nn.Linear(300, 700), None
    for context in (nullcontext(), checkpoint.repeated()):
        torch.manual_seed(0)
        with context:
            plain, timed = timed, torch.nn.Linear(300, 700)
            torch.nn.init.trunc_normal_(timed.weight, std=0.02)
    count, (one, other) = checkpoint.DRAWN, (layer.weight.detach().flatten() for layer in (plain, timed))
    assert torch.equal(other[:count], other[count : 2 * count])
    assert float(other.std()) == pytest.approx(float(one.std()), rel=0.02)
    assert float(other.abs().max()) < 0.2
    assert len(timed.weight.detach().unique(dim=0)) == 700
    assert timed.weight.requires_grad


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, at most; on the meta device, where nothing is computed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and (store := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(store._cdata)
                self.now += store.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(store, self.freed, store._cdata, store.nbytes())
        return made

    def freed(self, which, size):
        self.known.discard(which)
        self.now -= size


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEVEN, *catalogue.FURTHER])
def test_what_a_network_holds_of_a_picture_is_as_the_catalogue_says(name):
    """MB in float32: the tensors that a backward pass needs, and the most that is alive in a forward pass."""
    entry = catalogue.CATALOGUE[name]
    kept, size = {}, entry.geometry.size
    with torch.device("meta"):
        build, pooling = catalogue.builder(entry), next(iter(entry.poolings))
        body = build(name=name, size=size, pooling=pooling, mini=False)[0].eval()
        peaks = []
        for count in (1, 3):
            with Alive() as alive, torch.no_grad():
                body(torch.empty(count, 3, size, size))
            peaks.append(alive.peak)
        if is_transformer(body):
            add_lora(body, Recipe())
        for module in body.train().modules():
            module.train(not isinstance(module, torch.nn.BatchNorm2d))
        own = {tensor.untyped_storage()._cdata for tensor in body.parameters()}

        def keep(tensor):
            store = tensor.untyped_storage()
            kept[store._cdata] = store  # held, so that no other takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            body(torch.empty(2, 3, size, size))
    found = sum(store.nbytes() for which, store in kept.items() if which not in own) / 2e6
    assert (found, (peaks[1] - peaks[0]) / 2e6) == (
        pytest.approx(entry.held[0], rel=0.1),
        pytest.approx(entry.held[1], abs=1, rel=0.1),
    )
