from dataclasses import replace

import pytest
import yaml

from fpbench import load_study, loading, results
from fpbench.errors import InputError, MissingError
from fpbench.files import artifacts, paths
from fpbench.grid import costs
from fpbench.grid import jobs as grid
from fpbench.training import bench

GOOD = {
    "name": "x", "title": "X", "cohorts": [{"name": "spain"}], "encoders": [{"name": "a", "model": "timm:resnet18", "weights": "random"}],
}  # fmt: skip


def write(tmp_path, **changes):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_every_shipped_study_loads():
    names = sorted(file.stem for file in (paths.home() / "studies").glob("*.yaml"))
    assert {"sample", "sample-brain", "sample-adapt", "sample-adapt-smoke", "paper", "brain"} <= set(names)
    for name in names:
        study = load_study(name)
        assert study.name == name
        assert study.the_task.train in ("spain", "acouslic")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fold": 5}, "unknown key 'fold': did you mean 'folds'"),
        (
            {"encoders": [{"name": "a", "model": "timm:x", "wieghts": "hub"}]},
            r"encoders\[0\]: unknown key 'wieghts': did you mean 'weights'",
        ),
        ({"encoders": [{"name": "a"}]}, "missing model"),
        ({"folds": "five"}, "folds: expected int, found 'five'"),
        ({"folds": True}, "expected int"),
        ({"cohorts": "spain"}, "expected a list"),
        ({"cohorts": ["spain"]}, r"cohorts\[0\]: expected a table"),
        ({"task": "eyes"}, "unknown task"),
        ({"probes": ["magic"]}, "unknown probes"),
        ({"name": "../evil"}, "file name"),
        ({"encoders": [GOOD["encoders"][0]] * 2}, "different names"),
        ({"threads": 0}, "threads >= 1"),
        ({"seeds": [0, 0]}, r"seeds: expected different numbers from 0 to 2\^32 - 1, found \[0, 0\]"),
        ({"seeds": [0, -1]}, r"seeds: expected different numbers from 0 to 2\^32 - 1, found \[0, -1\]"),
        ({"seeds": 3}, "seeds: expected a list"),
        ({"encoders": [{**GOOD["encoders"][0], "batch_size": 0}]}, "batch_size >= 1"),
        ({"full": ["nobody"]}, r"fine-tuning of \['nobody'\]: expected encoders of the study"),
        ({"recipe": {"batch": 0}}, "whole numbers above 0"),
        ({"recipe": {"epoch": 3}}, "unknown key 'epoch': did you mean 'epochs'"),
        ({"recipe": {"augmentation": {"flipp": 1.0}}}, "recipe: augmentation: unknown key 'flipp'"),
        ({"recipe": {"rates": ["fast"]}}, r"recipe: rates\[0\]: expected float, found 'fast'"),
    ],
)
def test_a_wrong_study_is_refused_by_key(tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        load_study(write(tmp_path, **changes))


def test_a_recipe_is_read_from_the_study(tmp_path):
    study = load_study(write(tmp_path, recipe={"epochs": 3, "rates": [1, 0.5], "augmentation": {"flip": 0.0}}))
    assert study.recipe.rates == [1.0, 0.5]
    assert study.recipe.augmentation.flip == 0
    assert study.recipe.grid("lora") == study.recipe.lora_rates
    assert study.tunings() == []


def test_yaml_tags_run_nothing(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    with pytest.raises(InputError, match="plain values"):
        load_study(path)
    assert not (tmp_path / "ran").exists()
    path.write_text("- a\n- b\n")
    with pytest.raises(InputError, match="expected a table"):
        load_study(path)
    with pytest.raises(MissingError, match="the studies are"):
        load_study("nothing")


def parts(study):
    return artifacts.digest(grid.jobs(study)["04_linear_probing.tiny"].parts)


def test_the_key_changes_with_everything_a_job_depends_on(small_study, small, monkeypatch):
    study = load_study(small_study)
    keys = [parts(study)]
    text = small_study.read_text()
    for old, new in (
        ("threads: 1", "threads: 2"),
        ("folds: 4", "folds: 3"),
        ("size: 32", "size: 48"),
        ("batch_size: 8", "batch_size: 4"),
    ):
        small_study.write_text(text.replace(old, new))
        keys.append(parts(load_study(small_study)))
    label_file = small["spain"] / "FETAL_PLANES_DB_data.csv"
    label_file.write_text(label_file.read_text().replace("Op. 1", "Op. 2", 1))
    keys.append(parts(study))
    (small["africa"] / "Ghana" / "patient001_GHA_plane0.png").unlink()
    keys.append(parts(study))
    monkeypatch.setattr(bench, "VERSION", 99)
    keys.append(parts(study))
    assert len(set(keys)) == len(keys)
    assert parts(study) == keys[-1]


def test_the_title_and_label_change_no_key(small_study):
    before = parts(load_study(small_study))
    small_study.write_text(
        small_study.read_text().replace("A small study", "Another title").replace("made by a test", "another label")
    )
    assert parts(load_study(small_study)) == before


def test_several_seeds_change_what_is_tuned_and_what_reads_it(small_study):
    """One seed, named or not, changes no key."""
    text, found = small_study.read_text() + "full: [tiny]\n", []
    for more in ("", "seeds: [0]\n", "seeds: [0, 1]\n"):
        small_study.write_text(text + more)
        study = load_study(small_study)
        found.append({name: artifacts.digest(job.parts) for name, job in grid.jobs(study).items()})
    absent, one, several = found
    assert absent == one
    changed = {name for name in absent if absent[name] != several[name]}
    assert changed == {"05_fine_tuning.tiny.full", "06_benchmark", "07_cross_population", "report"}
    paths_of = {path.name for path in results.files(study) if path.parent.name == "full"}
    assert paths_of == {f"fold{k}{end}.parquet" for k in range(study.folds) for end in ("", ".seed1")}
    assert {results.run_of(path) for path in results.files(study)} == {
        (k, s) for k in range(study.folds) for s in (0, 1)
    }
    assert not [path for path in results.files(study) if "seed" in path.name and path.parent.name != "full"]


class Wildcards(dict):
    """As Snakemake's: by name and by attribute."""

    __getattr__ = dict.__getitem__


def test_a_scheduler_is_asked_for_the_time_of_all_seeds():
    """Over the hour that every job has: all rates on every fold, then one run of it for each further seed."""
    study, job = load_study("paper"), Wildcards(encoder="resnet50", mode="full")
    rates = len(study.recipe.grid("full"))
    one, three = (
        costs.resources(replace(study, seeds=seeds), "training")["runtime"](job) - 60 for seeds in ([], [0, 1, 2])
    )
    assert three == pytest.approx(one * (rates + 2) / rates, abs=2)


def test_paths_take_variables_and_defaults(monkeypatch, tmp_path):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    assert paths.expand("${SOMEWHERE}/a b") == tmp_path / "a b"
    assert paths.expand("${NOWHERE_SET:-data}/x") == paths.home() / "data" / "x"
    with pytest.raises(InputError, match="NOWHERE_SET, which is not set"):
        paths.expand("${NOWHERE_SET}/x")


def test_a_device_that_is_not_there_and_a_missing_weights_file(small_study, tmp_path):
    small_study.write_text(small_study.read_text().replace("threads: 1", "threads: 1\ndevice: cuda"))
    with pytest.raises(InputError, match="no GPU"):
        loading.load_encoder(load_study(small_study), "tiny")
    small_study.write_text(small_study.read_text().replace("weights: random", f"weights: {tmp_path}/none.safetensors"))
    study = load_study(small_study)
    with pytest.raises(MissingError, match="weights file"):
        loading.load_encoder(study, "tiny")
    with pytest.raises(InputError, match="no encoder 'other'"):
        study.encoder_spec("other")
    before = parts(study)  # a file that is not there is the matter of its own encoder's jobs, and noticed when it comes
    (tmp_path / "none.safetensors").write_text("there")
    assert parts(study) != before
