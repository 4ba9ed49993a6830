"""The grid as files: one rule per notebook. ``fpbench run STUDY`` calls this; so can you, with any Snakemake option.

A job is stale when its ``key`` changes: cohort files, weights, study fields, code versions, its notebook (``fpbench.grid``).
Modification times decide nothing.
"""

import sys

from fpbench.grid import announce
from fpbench.study import load_study

STUDY = load_study(config["study"])
OUT = STUDY.folder
PLAN = announce(STUDY)  # name of an executed notebook -> key, needs (files)
RUN = f"{sys.executable!r} -m fpbench.cli notebook"


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
    shell:
        "{RUN} 01_cohorts {log.notebook:q} -p study={config[study]:q}"


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
    shell:
        "{RUN} 02_splits {log.notebook:q} -p study={config[study]:q}"


rule encoders:
    input:
        rules.cohorts.output,
    output:
        OUT / "encoders.csv",
    params:
        key=PLAN["03_encoders"]["key"],
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
        key=lambda wildcards: PLAN[f"04_linear_probing.{wildcards.encoder}"]["key"],
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
        key=lambda wildcards: PLAN[f"05_fine_tuning.{wildcards.encoder}.{wildcards.mode}"]["key"],
    log:
        notebook=OUT / "notebooks" / "05_fine_tuning.{encoder}.{mode}.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 05_fine_tuning {log.notebook:q} -p study={config[study]:q} -p encoder={wildcards.encoder:q} -p mode={wildcards.mode}"


rule benchmark:
    input:
        PLAN["06_benchmark"]["needs"],
    output:
        OUT / "tables" / "table1.csv",
    params:
        key=PLAN["06_benchmark"]["key"],
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
        key=lambda _: PLAN["07_cross_population"]["key"],  # a task with one population has no such job
    log:
        notebook=OUT / "notebooks" / "07_cross_population.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 07_cross_population {log.notebook:q} -p study={config[study]:q}"


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
    shell:
        "{RUN} 08_shortcuts {log.notebook:q} -p study={config[study]:q}"


rule label_efficiency:
    input:
        PLAN["09_label_efficiency"]["needs"],
    output:
        OUT / "tables" / "label_efficiency.csv",
    params:
        key=PLAN["09_label_efficiency"]["key"],
    log:
        notebook=OUT / "notebooks" / "09_label_efficiency.ipynb",
    threads: STUDY.threads
    shell:
        "{RUN} 09_label_efficiency {log.notebook:q} -p study={config[study]:q}"


rule report:
    input:
        PLAN["report"]["needs"],
    output:
        OUT / "report.html",
    params:
        key=PLAN["report"]["key"],
    shell:
        "{sys.executable:q} -m fpbench.cli report {config[study]:q}"
