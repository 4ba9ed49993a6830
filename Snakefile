"""The grid as files: one rule per notebook. ``fpbench run STUDY`` calls this; so can you, with any Snakemake option.

A job is stale when its ``key`` changes: cohort files, weights, study fields, code versions. Modification times decide nothing.
"""

import os
import sys

from ipykernel.parentpoller import ParentPollerUnix

from fpbench.protocols import job_key
from fpbench.study import load_study

if os.getppid() == config.get("parent"):  # when `fpbench run` ends, so does this process, and its jobs
    ParentPollerUnix(os.getppid()).start()
STUDY = load_study(config["study"])
OUT = STUDY.folder
ENCODERS = [spec.name for spec in STUDY.encoders]
PROBED = expand(OUT / "predictions" / "{encoder}" / "probing.json", encoder=ENCODERS)
RUN = f"exec {sys.executable!r} -m fpbench.cli notebook --parent {os.getpid()}"  # a job ends with the driver


rule all:
    input:
        OUT / "report.html",


rule cohorts:
    output:
        OUT / "cohorts.json",
    params:
        key=job_key(STUDY),
    log:
        notebook=OUT / "notebooks" / "01_cohorts.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 01_cohorts {log.notebook:q} -p study={config[study]:q}"


rule splits:
    input:
        rules.cohorts.output,
    output:
        OUT / "splits.csv",
        OUT / "splits.json",
    params:
        key=job_key(STUDY),
    log:
        notebook=OUT / "notebooks" / "02_splits.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 02_splits {log.notebook:q} -p study={config[study]:q}"


rule encoders:
    input:
        rules.cohorts.output,
    output:
        OUT / "encoders.csv",
    params:
        key=job_key(STUDY, *ENCODERS),
    log:
        notebook=OUT / "notebooks" / "03_encoders.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 03_encoders {log.notebook:q} -p study={config[study]:q}"


rule linear_probing:
    input:
        rules.splits.output,
    output:
        OUT / "predictions" / "{encoder}" / "probing.json",
    params:
        key=lambda wildcards: job_key(STUDY, wildcards.encoder),
    log:
        notebook=OUT / "notebooks" / "04_linear_probing.{encoder}.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 04_linear_probing {log.notebook:q} -p study={config[study]:q} -p encoder={wildcards.encoder:q}"


rule finetuning:
    input:
        rules.linear_probing.output,  # notebook 05 compares with it
    output:
        OUT / "predictions" / "{encoder}" / "{mode,full|lora}.json",
    params:
        key=lambda wildcards: job_key(STUDY, wildcards.encoder, tuned=True),
    log:
        notebook=OUT / "notebooks" / "05_fine_tuning.{encoder}.{mode}.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 05_fine_tuning {log.notebook:q} -p study={config[study]:q} -p encoder={wildcards.encoder:q} -p mode={wildcards.mode}"


rule benchmark:
    input:
        PROBED,
        [OUT / "predictions" / encoder / f"{mode}.json" for encoder, mode in STUDY.tunings()],
    output:
        OUT / "tables" / "table1.csv",
    params:
        key=[job_key(STUDY, *ENCODERS, tuned=True), STUDY.tunings()],
    log:
        notebook=OUT / "notebooks" / "06_benchmark.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 06_benchmark {log.notebook:q} -p study={config[study]:q}"


rule cross_population:
    input:
        rules.benchmark.output,
    output:
        OUT / "tables" / "gap_steps.csv",
    params:
        key=rules.benchmark.params.key,
    log:
        notebook=OUT / "notebooks" / "07_cross_population.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 07_cross_population {log.notebook:q} -p study={config[study]:q}"


rule shortcuts:
    input:
        PROBED,
    output:
        OUT / "tables" / "conditions.csv",
    params:
        key=job_key(STUDY, *ENCODERS),
    log:
        notebook=OUT / "notebooks" / "08_shortcuts.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 08_shortcuts {log.notebook:q} -p study={config[study]:q}"


rule label_efficiency:
    input:
        PROBED,
    output:
        OUT / "tables" / "label_efficiency.csv",
    params:
        key=job_key(STUDY, *ENCODERS),
    log:
        notebook=OUT / "notebooks" / "09_label_efficiency.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 09_label_efficiency {log.notebook:q} -p study={config[study]:q}"


rule report:
    input:
        OUT / "tables" / "table1.csv",
        OUT / "encoders.csv",
        [OUT / "tables" / "gap_steps.csv"] if len(STUDY.the_task.tests) > 1 else [],
        OUT / "tables" / "conditions.csv",
        OUT / "tables" / "label_efficiency.csv",
    output:
        OUT / "report.html",
    params:
        key=rules.benchmark.params.key,
    shell:
        "{sys.executable:q} -m fpbench.cli report {config[study]:q}"
