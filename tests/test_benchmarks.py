"""The benchmark's table follows from its JSON, its goals are those of the rows, and UltraSAM's folded attention is exact."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from timm.models.vision_transformer_sam import Attention
from transformers import SamVisionConfig

from fpbench import load_encoder
from fpbench.encoders.adapters.ultrasam import FoldedAttention
from fpbench.files import paths

FOLDER = paths.home() / "benchmarks"
ROWS = yaml.safe_load((FOLDER / "rows.yaml").read_text())


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import report as module

    return module


def test_the_committed_table_follows_from_the_committed_figures(report):
    assert report.build() == (FOLDER / "RESULTS.md").read_text()
    assert report.UNKNOWN not in report.build()


def test_every_goal_has_a_figure_or_says_that_it_was_not_measured(report):
    text = (FOLDER / "RESULTS.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ")]
    for name, row in ROWS.items():
        for goal in row["goals"]:
            (line,) = [line for line in table if f"| `{goal['key']}` | {report.words(goal)} |" in line]
            assert line.rstrip(" |").rsplit("| ", 1)[1] in ("reached", "**missed**", report.missing(goal["key"])), name
        for script in row["run"]:
            assert (FOLDER / script.split()[0]).is_file()


def test_a_missed_goal_says_so_and_why(report, tmp_path, monkeypatch):
    one = {
        "key": "epoch",
        "case": "slow",
        "unit": "x",
        "ours": 1.0,
        "alternative": 2.0,
        "value": 0.5,
        "date": "2026-01-01",
    }
    one |= {"machine": {"cpu": "c", "cores": 1, "gpu": None, "load": [0, 1.0, 2]}, "versions": {"python": "3"}}
    (tmp_path / "epoch.json").write_text(json.dumps({"row": "epoch", "entries": [one]}))
    monkeypatch.setattr(report, "UNKNOWN", "why epoch was slow")
    text = report.build(tmp_path)
    assert "| slow | x | 1 | 2 | 0.5 | >= 1,000 | **missed** |" in text
    assert "- Missed, `epoch`: why epoch was slow" in text
    assert text.count("not measured on a GPU") >= 6
    one["value"] = 1500
    (tmp_path / "epoch.json").write_text(json.dumps({"row": "epoch", "entries": [one]}))
    assert "- Missed" not in report.build(tmp_path)


def test_compare_prints_the_change_per_case(tmp_path):
    both = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, ours in zip(both, (2.0, 1.0), strict=True):
        entries = [{"key": "k", "case": "c", "unit": "s", "ours": ours, "value": 8 / ours}]
        entries += [{"key": path.stem, "case": "c", "unit": "s", "ours": 1.0, "value": None}]
        path.write_text(json.dumps({"entries": entries}))
    command = [sys.executable, str(FOLDER / "compare.py"), *map(str, both)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "k: c (s): ours 2 -> 1 (-50.0%), value 4 -> 8 (+100.0%)" in done.stdout
    assert f"old: c: only in {both[0]}" in done.stdout


def test_an_unknown_row_is_refused():
    command = [sys.executable, str(FOLDER / "run.py"), "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found nonsense" in done.stderr


def test_folded_attention_equals_the_materialised_bias_with_all_gradients():
    torch.manual_seed(0)
    theirs = Attention(48, 4, True, use_rel_pos=True, input_size=(6, 6))
    torch.nn.init.normal_(theirs.rel_pos_h, std=0.5)
    torch.nn.init.normal_(theirs.rel_pos_w, std=0.5)
    ours = FoldedAttention(SamVisionConfig(image_size=96, hidden_size=48, num_attention_heads=4), 0)
    ours.load_state_dict(theirs.state_dict())
    x, found = torch.randn(2, 6, 6, 48), []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        y = module(given)
        y = y[0] if isinstance(y, tuple) else y
        y.pow(3).sum().backward()
        found.append([y, given.grad, *(dict(module.named_parameters())[name].grad for name in theirs.state_dict())])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()


def test_only_large_grids_are_folded():
    small, large = (load_encoder("ultrasam-mini", "random", geometry={"size": size}) for size in (64, 512))
    assert not [m for m in small.module.modules() if isinstance(m, FoldedAttention)]
    layers = large.module.trunk.layers
    assert [isinstance(layer.attn, FoldedAttention) for layer in layers] == [layer.window_size == 0 for layer in layers]
    picture = torch.randn(1, 3, 512, 512)
    with torch.inference_mode():
        ours = large.module(picture)
        for layer in layers:
            if isinstance(layer.attn, FoldedAttention):
                layer.attn.__class__ = FoldedAttention.__base__
        assert (ours - large.module(picture)).abs().max() <= 1e-5 * ours.abs().max()
