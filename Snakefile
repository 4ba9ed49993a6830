"""The grid as files: one rule per notebook. ``fpbench run STUDY`` calls this; so can you, with any Snakemake option.

A job is stale when its ``key`` changes: cohort files, weights, study fields, code versions, its notebook (``tools/grid.py``).
Modification times decide nothing. ``priority`` puts first what most jobs wait for (probing), then the chain to the
gap between the cohorts; the longest job that nothing but the report waits for runs beside its end.
"""

import os
import re
import shlex
import sys

from ipykernel.parentpoller import ParentPollerUnix

from fpbench import paths
from fpbench.cohorts import SOURCES
from fpbench.encoders.catalogue import CATALOGUE
from fpbench.study import extension, load_study

if os.getppid() == config.get("parent"):  # when `fpbench run` ends, so does this process, and its jobs
    ParentPollerUnix(os.getppid()).start()
STUDY = load_study(config["study"])
OUT = STUDY.folder
ENCODERS = [spec.name for spec in STUDY.encoders]
PLAN = extension("tools/grid.py").announce(STUDY)  # name of an executed notebook -> key, needs (files)
# `exec`: no shell stands between a job and a signal; it ends with this process, whose number it gets
RUN = f"exec {shlex.quote(sys.executable)} -P {shlex.quote(str(paths.REPOSITORY / 'tools' / 'forkserver.py'))} {os.getpid()} fpbench"

# What a job asks of a scheduler, from declared facts alone: generous, at most a day, since a job that is cut off goes on from its
# checkpoint in the next attempt. Override with Snakemake's own `--set-resources RULE:runtime=600` (minutes), `RULE:mem_mb=64000`.
GPU = int(STUDY.device != "cpu")
SPEED = 20e12 if GPU else 0.1e12  # multiplications and additions that we count on, per second
IMAGES = sum(SOURCES[spec.name].counts["total"]["images"] for spec in STUDY.cohorts)


def facts(name):
    """Return what a network computes (operations per image and pass), holds (millions of parameters) and sees (pixels)."""
    spec = STUDY.encoder_spec(name)
    if spec.model.endswith("-mini"):
        return 1e9, 1.0, 64**2
    entry = CATALOGUE.get(spec.model)
    said = re.match(r"[\d.]+", entry.gmacs) if entry else None
    usual = entry.geometry.size if entry else 224
    size = spec.geometry.get("size", usual)
    macs = float(said[0]) * (size / usual) ** 2 if said else 100.0  # of a network that we do not know: much
    return 2e9 * macs, entry.parameters if said else 300.0, size**2


def minutes(*names, passes):
    """Return the minutes of a job that looks at every image so many times."""
    return min(1440, 60 + int(sum(facts(name)[0] for name in names) * IMAGES * passes / SPEED / 60))


def megabytes(*names):
    """Return the memory of a job: the program, the pictures of the largest encoder twice, weights with gradients and moments."""
    found = [facts(name) for name in names]
    return 4000 + int(max(2 * IMAGES * pixels for *_, pixels in found) / 1e6 + sum(20 * held for _, held, _ in found))


def training(name, mode):
    """Return how often the images are seen, forwards and backwards, by all runs of a fine-tuning."""
    return 4 * STUDY.recipe.epochs * len(STUDY.recipe.grid(mode)) * STUDY.folds


rule all:
    input:
        OUT / "report.html",


rule cohorts:
    output:
        OUT / "cohorts.json",
    params:
        key=PLAN["01_cohorts"]["key"],
    log:
        notebook=OUT / "notebooks" / "01_cohorts.ipynb",
    threads: STUDY.threads
    resources:
        mem_mb=8000,
        runtime=120,
    shell:
        "{RUN} notebook 01_cohorts {log.notebook:q} -p study={config[study]:q}"


rule splits:
    input:
        rules.cohorts.output,
    output:
        OUT / "splits.csv",
        OUT / "splits.json",
    params:
        key=PLAN["02_splits"]["key"],
    log:
        notebook=OUT / "notebooks" / "02_splits.ipynb",
    threads: STUDY.threads
    resources:
        mem_mb=8000,
        runtime=120,
    shell:
        "{RUN} notebook 02_splits {log.notebook:q} -p study={config[study]:q}"


rule encoders:
    output:
        OUT / "encoders.csv",
    params:
        key=PLAN["03_encoders"]["key"],
    log:
        notebook=OUT / "notebooks" / "03_encoders.ipynb",
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=megabytes(*ENCODERS),
        runtime=minutes(*ENCODERS, passes=1),
    shell:
        "{RUN} notebook 03_encoders {log.notebook:q} -p study={config[study]:q}"


rule linear_probing:
    input:
        rules.splits.output,
    output:
        OUT / "predictions" / "{encoder}" / "probing.json",
    params:
        key=lambda wildcards: PLAN[f"04_linear_probing.{wildcards.encoder}"]["key"],
    log:
        notebook=OUT / "notebooks" / "04_linear_probing.{encoder}.ipynb",
    priority: 2
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=lambda wildcards: megabytes(wildcards.encoder),
        runtime=lambda wildcards: minutes(wildcards.encoder, passes=10),
    shell:
        "{RUN} notebook 04_linear_probing {log.notebook:q} -p study={config[study]:q} -p encoder={wildcards.encoder:q}"


rule finetuning:
    input:
        rules.linear_probing.output,  # notebook 05 compares with it
    output:
        OUT / "predictions" / "{encoder}" / "{mode,full|lora}.json",
    params:
        key=lambda wildcards: PLAN[f"05_fine_tuning.{wildcards.encoder}.{wildcards.mode}"]["key"],
    log:
        notebook=OUT / "notebooks" / "05_fine_tuning.{encoder}.{mode}.ipynb",
    priority: 1
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=lambda wildcards: megabytes(wildcards.encoder),
        runtime=lambda wildcards: minutes(wildcards.encoder, passes=training(*wildcards)),
    shell:
        "{RUN} notebook 05_fine_tuning {log.notebook:q} -p study={config[study]:q} -p encoder={wildcards.encoder:q} -p mode={wildcards.mode}"


rule benchmark:
    input:
        PLAN["06_benchmark"]["needs"],
    output:
        OUT / "tables" / "table1.csv",
    params:
        key=PLAN["06_benchmark"]["key"],
    log:
        notebook=OUT / "notebooks" / "06_benchmark.ipynb",
    priority: 1
    threads: STUDY.threads
    resources:
        mem_mb=8000,
        runtime=120,
    shell:
        "{RUN} notebook 06_benchmark {log.notebook:q} -p study={config[study]:q}"


rule cross_population:
    input:
        rules.benchmark.output,
    output:
        OUT / "tables" / "gap_steps.csv",
    params:
        key=lambda _: PLAN["07_cross_population"]["key"],  # a task with one population has no such job
    log:
        notebook=OUT / "notebooks" / "07_cross_population.ipynb",
    priority: 1
    threads: STUDY.threads
    resources:
        mem_mb=8000,
        runtime=120,
    shell:
        "{RUN} notebook 07_cross_population {log.notebook:q} -p study={config[study]:q}"


rule shortcuts:
    input:
        PLAN["08_shortcuts"]["needs"],
    output:
        OUT / "tables" / "conditions.csv",
    params:
        key=PLAN["08_shortcuts"]["key"],
    log:
        notebook=OUT / "notebooks" / "08_shortcuts.ipynb",
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=megabytes(*ENCODERS),
        runtime=minutes(*ENCODERS, passes=10),
    shell:
        "{RUN} notebook 08_shortcuts {log.notebook:q} -p study={config[study]:q}"


rule label_efficiency:
    input:
        PLAN["09_label_efficiency"]["needs"],
    output:
        OUT / "tables" / "label_efficiency.csv",
    params:
        key=PLAN["09_label_efficiency"]["key"],
    log:
        notebook=OUT / "notebooks" / "09_label_efficiency.ipynb",
    priority: 1
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=megabytes(*ENCODERS),
        runtime=minutes(*ENCODERS, passes=10),
    shell:
        "{RUN} notebook 09_label_efficiency {log.notebook:q} -p study={config[study]:q}"


rule report:
    input:
        PLAN["report"]["needs"],
    output:
        OUT / "report.html",
    params:
        key=PLAN["report"]["key"],
    resources:
        mem_mb=8000,
        runtime=60,
    shell:
        "{RUN} report {config[study]:q}"
