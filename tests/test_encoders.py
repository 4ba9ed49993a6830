import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fpbench import loading
from fpbench.encoders import facts, load_encoder
from fpbench.encoders.checkpoint import tensors_sha256
from fpbench.errors import InputError, MissingError
from fpbench.images import Geometry

MODEL = "timm:mobilenetv3_small_050"


@pytest.fixture(scope="module")
def random_encoder():
    return load_encoder(MODEL, "random", geometry=Geometry("squash", 32))


@pytest.fixture
def checkpoint(random_encoder, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({**random_encoder.module.state_dict(), "classifier.weight": torch.zeros(3, 3)}, path)
    return path


def pictures(n, colour=False):
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32) + ((3,) if colour else ()), np.uint8)


def test_the_protocol(random_encoder):
    vectors = random_encoder.embed(pictures(5))
    assert vectors.shape == (5, random_encoder.dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    one_by_one = np.concatenate([random_encoder.embed(picture[None]) for picture in pictures(5)])
    assert np.allclose(vectors, one_by_one, atol=1e-4 * np.abs(vectors).max())
    assert random_encoder.embed(pictures(2, colour=True)).shape == (2, random_encoder.dim)
    assert random_encoder.weights.label == "random weights"
    assert facts([random_encoder])["weights"].tolist() == ["random weights"]
    with pytest.raises(InputError, match="expected uint8"):
        random_encoder.embed(pictures(1).astype(np.float32))
    with pytest.raises(InputError, match="32"):
        random_encoder.embed(pictures(1)[:, :16])


def test_embedding_leaves_the_weights_and_the_statistics_alone(random_encoder):
    before = tensors_sha256(random_encoder.module)
    random_encoder.embed(pictures(4))
    assert tensors_sha256(random_encoder.module) == before == random_encoder.weights.sha256
    assert not random_encoder.module.training


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    sums = [load_encoder(MODEL, "random", seed=seed).weights.sha256 for seed in (0, 0, 1)]
    assert sums[0] == sums[1] != sums[2]
    assert torch.rand(1) == expected


def test_a_file_gives_the_same_numbers_in_every_format(random_encoder, checkpoint, tmp_path):
    tensors = load_file(checkpoint)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "w.pth")
    for path in (checkpoint, tmp_path / "w.pth"):
        encoder = load_encoder(MODEL, str(path), geometry={"kind": "squash", "size": 32})
        assert encoder.weights.sha256 == random_encoder.weights.sha256
        assert encoder.weights.ignored == ("classifier.weight",)
        assert np.allclose(encoder.embed(pictures(2)), random_encoder.embed(pictures(2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["drop", "rename", "add", "transpose"])
def test_a_checkpoint_that_fits_only_half_is_refused_by_name(checkpoint, change):
    tensors = load_file(checkpoint)
    name = "conv_head.weight"
    if change in ("drop", "rename"):
        tensor = tensors.pop(name)
    if change == "rename":
        tensors["head.conv.weight"] = tensor
    if change == "add":
        tensors["surprise.weight"] = torch.zeros(2)
    if change == "transpose":
        tensors[name] = tensors[name].transpose(0, 1).contiguous()
    save_file(tensors, checkpoint)
    with pytest.raises(InputError, match="nothing was loaded") as error:
        load_encoder(MODEL, str(checkpoint))
    expected = {"drop": [name], "rename": [name, "head.conv.weight"], "add": ["surprise.weight"], "transpose": [name]}[
        change
    ]
    assert all(word in str(error.value) for word in expected)
    if change != "transpose":
        ignore = str(error.value).split("ignore=")[1]
        encoder = load_encoder(MODEL, str(checkpoint), ignore=eval(ignore))
        assert set(encoder.weights.ignored) >= set(expected) - {name}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>quota</html>", "web page"),
        (b"", "complete"),
        (b"\x80\x02}q", "complete|unpickled"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path, content, says, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_encoder(MODEL, str(path))
    with pytest.raises(MissingError, match="nothing"):
        load_encoder(MODEL, str(tmp_path / "none.pth"))


def test_a_hostile_pickle_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"x": Hostile()}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="not unpickled"):
        load_encoder(MODEL, str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_unknown_names_are_errors():
    with pytest.raises(InputError, match="unknown encoder"):
        load_encoder("resnet51", "random")
    with pytest.raises(InputError, match="timm has no model 'resnet5000'"):
        load_encoder("timm:resnet5000", "random")


def test_timm_says_geometry_pooling_and_normalisation_unless_the_study_does():
    encoder = load_encoder("timm:resnet18.a1_in1k", "random")
    assert encoder.geometry == Geometry("resize_crop", 224, "bicubic", 0.95)
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert (encoder.pooling, encoder.dim) == ("avg", 512)
    vit = load_encoder("timm:vit_tiny_patch16_224", "random", pooling="avg", options={"img_size": 32}, mean=[0.5] * 3)
    assert (vit.pooling, vit.mean) == ("avg", (0.5, 0.5, 0.5))


def test_the_real_weights_reproduce_the_reference_scores(shared, session_cache, monkeypatch):
    """Trained on the 150 Spanish images at C = 0.01: macro F1 in Africa 0.467 open, 0.567 shared (naive over six: 0.311)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from fpbench import load_study, metrics
    from fpbench.training.embeddings import embed_cohort

    monkeypatch.setenv("FPBENCH_CACHE", str(session_cache))
    study = load_study("sample").begin()
    home, (africa,) = loading.load_cohorts(study)
    encoder = loading.load_encoder(study, "mobilenetv2")
    X, A = embed_cohort(encoder, home), embed_cohort(encoder, africa)
    y, y_africa = (np.array(study.the_task.codes(cohort.frame["plane"])) for cohort in (home, africa))
    scale = StandardScaler().fit(X)
    logits = LogisticRegression(C=0.01, max_iter=2000).fit(scale.transform(X), y).decision_function(scale.transform(A))
    assert metrics.scores(y_africa, logits, range(4))["macro F1"] == pytest.approx(0.467, abs=0.01)
    assert metrics.scores(y_africa, logits, range(4), "shared")["macro F1"] == pytest.approx(0.567, abs=0.01)
