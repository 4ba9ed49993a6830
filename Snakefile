"""The grid as files: one rule per row of ``fpbench/grid/grid.yaml``. ``fpbench run STUDY`` calls this; so can you, with any Snakemake option.

A job is stale when its ``key`` changes: cohort files, weights, study fields, code versions, its notebook (``fpbench.grid.keys``).
Modification times decide nothing.
"""

import os
import shlex
import sys

from ipykernel.parentpoller import ParentPollerUnix

from fpbench import load_study
from fpbench.files import paths
from fpbench.grid import costs, jobs
from fpbench.protocols import tunings

os.environ.setdefault(paths.HOME, str(workflow.basedir))  # jobs run in the results, wherever those are
if os.getppid() == config.get("parent"):  # when `fpbench run` ends, so does this process, and its jobs
    ParentPollerUnix(os.getppid()).start()
STUDY = load_study(config["study"])
OUT = STUDY.folder
PLAN = jobs.announce(STUDY)  # name of a job -> key, needs (files)
# `exec`: no shell stands between a job and a signal; it ends with this process, whose number it gets
RUN = f"exec {shlex.quote(sys.executable)} -P -m fpbench.grid.forkserver {os.getpid()} fpbench"


rule all:
    input:
        OUT / "report.html",


for ROW in jobs.rows():

    rule:
        name:
            ROW["rule"]
        input:
            lambda wildcards, job=ROW["job"]: PLAN[job.format(**wildcards)]["needs"],
        output:
            OUT / ROW["output"],
        params:
            key=lambda wildcards, job=ROW["job"]: PLAN[job.format(**wildcards)]["key"],
            # it asks for `output`, so that Snakemake holds it to be derived: how a study is named, and where it lies, make no job stale
            call=lambda wildcards, output, row=ROW: shlex.join(jobs.call(row, OUT, config["study"], wildcards)),
        wildcard_constraints:
            encoder="[^/]+",
            pretraining="[^/]+",
            mode="|".join(tunings(ROW["rule"])) or "none",
        log:
            **({} if ROW["rule"] == "report" else {"notebook": OUT / "notebooks" / f"{ROW['job']}.ipynb"}),
        priority: ROW["priority"]
        threads: STUDY.threads
        resources:
            **costs.resources(STUDY, ROW["passes"]),
        shell:
            "{RUN} {params.call}"
