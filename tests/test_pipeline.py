"""From images to predictions: nothing leaks, nothing is computed twice, a killed run ends with the same bytes."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import kill_when, start_pipeline

from fpbench import load_study, loading, make_splits, predictions, results
from fpbench.analysis import scoring
from fpbench.cohorts import spain
from fpbench.errors import InputError
from fpbench.files import artifacts
from fpbench.training import embeddings, probing
from fpbench.training.bench import choices, open_bench
from fpbench.training.probes import logistic


def bench_of(study, change=lambda cohort: cohort):
    home, external = loading.load_cohorts(study)
    home = change(home)
    splits = make_splits(home, study.the_task, study.split, study.folds, study.seed)
    return open_bench(study, "tiny", home, external, splits)


def hashes(folder):
    return {
        str(path.relative_to(folder)): artifacts.file_sha256(path)
        for path in sorted(folder.rglob("predictions/**/*.parquet"))
    }


def test_each_image_passes_the_encoder_once_and_a_second_run_not_at_all(small_study, monkeypatch):
    from fpbench.encoders import Encoder

    seen = []
    original = Encoder.embed
    monkeypatch.setattr(
        Encoder,
        "embed",
        lambda self, pictures, bf16=False: seen.append(len(pictures)) or original(self, pictures, bf16),
    )
    study = load_study(small_study).begin()
    bench = bench_of(study)
    assert sum(seen) == 144 + 54 + 3  # not times the number of folds; and the fingerprint's: one alone, two in a batch
    for probe in study.probes:
        probing.run_probe(bench, probe)
    again = bench_of(study)
    assert sum(seen) == 144 + 54 + 6
    assert again.key == bench.key
    fitted = []
    monkeypatch.setattr(logistic, "fit", lambda bench, folds: fitted.append(folds) or [])
    probing.run_probe(again, "logistic")
    assert not fitted  # finished folds are skipped before anything is fitted


def test_the_embedding_key_covers_every_ingredient(small_study, small, monkeypatch):
    study = load_study(small_study).begin()
    home, (africa,) = loading.load_cohorts(study)
    encoder = loading.load_encoder(study, "tiny")

    def key(encoder=encoder, cohort=home, batch=8, bf16=False):
        return artifacts.digest(embeddings.embedding_key(encoder, cohort, batch, bf16))

    other = replace(encoder, geometry=replace(encoder.geometry, interpolation="bilinear"))
    weights = replace(encoder, weights=replace(encoder.weights, sha256="0"))
    keys = [key(), key(cohort=africa), key(batch=4), key(bf16=True), key(other), key(weights)]
    keys += [key(replace(encoder, pooling="max")), key(replace(encoder, mean=(0.0, 0.0, 0.0)))]
    import torch

    torch.set_num_threads(2)
    keys.append(key())
    torch.set_num_threads(1)
    monkeypatch.setattr(embeddings, "VERSION", 99)
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_embeddings_are_cached_in_shards_and_checked(small_study, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD", 2)
    study = load_study(small_study).begin()
    (africa,) = loading.load_cohorts(study)[1]
    encoder = loading.load_encoder(study, "tiny")
    whole = np.array(embeddings.embed_cohort(encoder, africa, 8))
    assert not list((tmp_path / "results").rglob("*.shards"))
    direct = np.concatenate([encoder.embed(africa.array(encoder.geometry)[i : i + 8]) for i in range(0, 54, 8)])
    assert np.array_equal(whole, direct)
    with pytest.raises(InputError, match="batch_size=0"):
        embeddings.embed_cohort(encoder, africa, 0)


def test_an_adapter_that_computes_something_else_is_noticed_and_embeds_anew(small_study, capsys):
    """Same weights, same settings, same versions: only the fingerprint can tell."""
    import torch

    class Double(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    study = load_study(small_study).begin()
    home, _ = loading.load_cohorts(study)
    first = loading.load_encoder(study, "tiny")
    before = embeddings.embed_cohort(first, home, 8)
    changed = replace(first, module=torch.nn.Sequential(first.module, Double()))
    assert changed.identity() == first.identity()
    after = embeddings.embed_cohort(changed, home, 8)
    assert np.array_equal(after, 2 * before)
    assert "the fingerprint is not the one on record" in capsys.readouterr().out
    slightly = {**first.fingerprint, "digest": "other", "values": [v * (1 + 1e-5) for v in first.fingerprint["values"]]}
    noisy = replace(first)
    noisy.__dict__["fingerprint"] = slightly
    keys = [embeddings.embedding_key(encoder, home, 8, False) for encoder in (first, noisy)]
    assert keys[0] == keys[1]
    assert capsys.readouterr().out == ""


def test_table_1_reads_what_the_study_calls_for_and_nothing_else_in_the_folder(small_study):
    study = load_study(small_study).begin()
    bench = bench_of(study)
    for probe in ("ridge", "knn"):
        probing.run_probe(bench, probe)
    fewer = replace(study, folds=3, probes=["ridge"])
    files = results.files(fewer)
    assert sorted(files) == [results.path(study, "tiny", "ridge", fold) for fold in range(3)]
    assert len(list(study.folder.rglob("fold*.parquet"))) == 8
    read = predictions.read(files, study.the_task)
    assert set(read["protocol"]) == {"ridge"}
    assert set(read["fold"]) == {0, 1, 2}


def test_an_embedding_that_is_not_finite_names_the_image(small_study):
    import torch

    study = load_study(small_study).begin()
    (africa,) = loading.load_cohorts(study)[1]
    encoder = loading.load_encoder(study, "tiny")
    with torch.no_grad():
        encoder.module.conv_head.weight.fill_(float("nan"))
    broken = replace(encoder, weights=replace(encoder.weights, sha256="broken"))
    with pytest.raises(InputError, match=r"africa/Algeria/patient001_DZA_plane0 is not finite"):
        embeddings.embed_cohort(broken, africa, 8)


def test_test_labels_have_no_say_in_any_choice(small_study):
    study = load_study(small_study).begin()
    chosen = {}
    for shuffled in (False, True):
        bench = bench_of(study)
        rng, frame = np.random.default_rng(1), bench.home.frame.copy()
        if shuffled:
            rows = bench.splits.fold(0).test
            frame.loc[rows, "plane"] = rng.permutation(frame.loc[rows, "plane"].to_numpy())
            bench = replace(bench, home=replace(bench.home, frame=frame), key="shuffled")
        assert bench.labels[bench.splits.fold(0).test].shape == (36,)
        fold = [bench.splits.fold(0)]
        chosen[shuffled] = {probe: probing.fit_of(probe)(bench, fold)[0][1] for probe in study.probes}
    assert chosen[True] == chosen[False]


@pytest.mark.parametrize("split", ["official", "crossval"])
def test_permuting_the_rows_of_the_label_file_changes_no_prediction(small_study, small, tmp_path, split, monkeypatch):
    small_study.write_text(
        small_study.read_text()
        .replace("split: crossval", f"split: {split}")
        .replace("[logistic, ridge, knn, sgd]", "[logistic, knn]")
    )
    found = []
    for turn in (1, -1):
        monkeypatch.setenv("FPBENCH_RESULTS", str(tmp_path / f"results{turn}"))
        path = small["spain"] / spain.CSV
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([header, *rows[::turn]]) + "\n")
        study = load_study(small_study).begin()
        bench = bench_of(study)
        for probe in study.probes:
            probing.run_probe(bench, probe)
        found.append(hashes(tmp_path / f"results{turn}"))
    assert len(found[0]) == 8
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("step", "pattern"),
    [
        ("image caching", "images/.*.part"),
        ("embedding", "embeddings/*.shards/*.npy"),
        ("probing", "predictions/tiny/logistic/fold1.parquet"),
    ],
)
def test_a_killed_run_is_finished_by_the_next_with_the_same_bytes(small_study, tmp_path, step, pattern):
    reference = start_pipeline(small_study, tmp_path / "whole")
    assert kill_when(start_pipeline(small_study, tmp_path / "killed"), pattern, _made(tmp_path / "killed"))
    out, err = reference.communicate(timeout=300)
    assert "done" in out, err
    out, err = start_pipeline(small_study, tmp_path / "killed").communicate(timeout=300)
    assert "done" in out, err
    assert len(hashes(tmp_path / "whole")) == 16
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def _made(folder):
    folder.mkdir()
    return folder


def test_two_runs_at_once_on_one_cache_both_succeed(small_study, tmp_path):
    runs = [start_pipeline(small_study, tmp_path / "results") for _ in range(2)]
    for run in runs:
        out, err = run.communicate(timeout=300)
        assert "done" in out, err
    assert len(hashes(tmp_path / "results")) == 16


def test_predictions_carry_their_provenance_and_scores_follow(small_study):
    study = load_study(small_study).begin()
    bench = bench_of(study)
    files = probing.run_probe(bench, "logistic")
    about = artifacts.checked(files[0])
    assert about["encoder"]["weights"]["source"] == "random"
    assert about["provenance"]["threads"] == 1
    assert about["provenance"]["peak_memory"] > 1e8
    assert about["chosen"]["certificate"] <= 1e-6
    assert about["study"]["name"] == "small"
    assert set(about["encoder"]["cohorts"]) == {"spain", "africa"}
    frame = predictions.read(files, study.the_task)
    assert frame.groupby(["fold", "split", "cohort"]).size().unstack().loc[(0, "test")].to_dict() == {
        "africa": 54,
        "spain": 36,
    }
    scores = scoring.summarise(scoring.evaluate(frame, study.the_task))
    assert scores["folds"].eq(4).all()
    assert choices(files)["fold"].tolist() == [0, 1, 2, 3]
    assert len(probing.curves(files)) == 4 * 45


def test_a_fold_that_is_damaged_is_made_again_and_only_that(small_study):
    study = load_study(small_study).begin()
    bench = bench_of(study)
    files = probing.run_probe(bench, "ridge")
    before = [(artifacts.file_sha256(path), path.stat().st_mtime_ns) for path in files]
    files[2].write_bytes(files[2].read_bytes()[:-5])
    probing.run_probe(bench, "ridge")
    after = [(artifacts.file_sha256(path), path.stat().st_mtime_ns) for path in files]
    assert [sha for sha, _ in after] == [sha for sha, _ in before]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
