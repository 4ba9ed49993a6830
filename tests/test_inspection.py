"""What notebook 03 measures: held to cases whose answer is known."""

import numpy as np
import pytest
import torch

from fpbench.encoders import inspection, load_encoder
from fpbench.encoders.adapters.tower import grid

SEVEN = ("fetalclip", "usfm", "mofo", "ultrasam", "dinov3", "resnet50", "efficientnetv2_s")


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (60 + 7 * i, 120), np.uint8) for i in range(6)]


@pytest.mark.parametrize("name", SEVEN)
def test_the_grid_of_an_encoder_pools_to_its_embedding(name):
    """Not merely some features: the mean over the grid, through what follows, is what the encoder returns."""
    pooling = {"fetalclip": "patch_mean", "dinov3": "patch_mean", "usfm": "patch_mean_raw"}.get(name, "")
    module = load_encoder(f"{name}-mini", "random", pooling=pooling).module
    x = torch.randn(2, 3, *(2 * [56 if name == "fetalclip" else 64]))
    with torch.inference_mode():
        found = grid(module, x)
        assert found.shape[1] == found.shape[2] > 1
        torch.testing.assert_close(found.mean((1, 2)), module(x), rtol=1e-4, atol=1e-5)


def test_feature_maps_are_colours_and_none_where_nothing_is_shown(pictures):
    encoder = load_encoder("usfm-mini", "random")
    maps = inspection.feature_maps(encoder, pictures)
    assert maps.shape == (6, 4, 4, 3)
    assert 0 <= maps.min() < maps.max() <= 1
    assert grid(torch.nn.Flatten(), torch.zeros(1, 3, 8, 8)) is None


def test_alignment_is_one_under_rotation_and_scale_and_near_zero_for_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    assert inspection.alignment(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    wide = [inspection.alignment(rng.normal(size=(40, 400)), rng.normal(size=(40, 400))) for _ in range(20)]
    assert abs(np.mean(wide)) < 0.02  # the plain estimate gives 0.9 here
    assert np.isnan(inspection.alignment(x[:3], x[:3]))
    table = inspection.alignments({"a": x, "b": -x})
    assert np.allclose(table, 1)


def test_sensitivity_is_zero_where_the_geometry_changes_nothing_and_counts_in_spreads(pictures):
    encoder = load_encoder("usfm-mini", "random")
    found = inspection.sensitivity(encoder, pictures)
    assert list(found) == ["squash", "resize_crop", "pad_square"]
    assert found["squash"] == pytest.approx(0, abs=1e-9)
    assert found["pad_square"] > 0.05
    square = [picture[:60, :60] for picture in pictures]
    assert max(inspection.sensitivity(encoder, square).values()) == pytest.approx(0, abs=1e-9)


def test_cost_is_measured_on_real_calls(monkeypatch):
    encoder, seen = load_encoder("resnet50-mini", "random"), []
    monkeypatch.setattr(type(encoder), "embed", lambda self, batch, bf16=False: seen.append(batch.shape))
    found = inspection.cost(encoder, 5, seconds=0)
    assert seen == [(1, 64, 64)] + 3 * [(5, 64, 64)]
    inspection.cost(encoder, 5, seconds=0, least=1)
    assert seen[4:] == [(1, 64, 64), (5, 64, 64)]
    assert found["images/s"] > 0


def test_memory_that_is_used_anew_counts_though_the_process_held_as_much_before():
    encoder = load_encoder("usfm-mini", "random")
    pieces = [bytearray(2000) for _ in range(50_000)]
    last = pieces.pop()  # keeps the heap from shrinking by itself
    pieces.clear()
    inspection.reset_peak(encoder)
    before = inspection.peak(encoder)
    pieces = [bytearray(2000) for _ in range(50_000)]
    if not np.isnan(before):  # NaN where the system does not tell
        assert inspection.peak(encoder) - before > 0.8 * sum(map(len, pieces))
    assert len(last) == 2000
