"""The command line: ``fpbench fetch | audit | doctor | run | notebook``. Thin: every command calls one function of the library."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from filelock import Timeout

from fpbench import artifacts, paths
from fpbench.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Root = Annotated[Path | None, typer.Option(help="The folder of the cohort; default: <data>/<cohort>.")]


@app.command()
def fetch(
    what: Annotated[list[str], typer.Argument(help="spain, africa, or: weights NAME...")],
    root: Annotated[Path | None, typer.Option(help="Where a cohort goes; default: the data folder.")] = None,
) -> None:
    """Download a public cohort (checked, unpacked), or the weights of encoders (checked, pinned by hash)."""
    from fpbench.cohorts import fetch_cohort, load_cohort
    from fpbench.encoders.fetch import fetch as fetch_weights

    kind, *names = what
    if kind == "weights":
        for name in names:
            print(fetch_weights(name))
        return
    for name in what:
        print(load_cohort(name, fetch_cohort(name, root)).describe())


@app.command()
def audit(cohort: str, root: Root = None, missing: str = "drop") -> None:
    """Print what a careful reader wants to know of a cohort: duplicates, groups, confounders, damage."""
    from fpbench.cohorts import audit as audits

    found = audits.audit(cohort, root, missing)
    print(f"{found.cohort.source.title}\n{found}")
    for title, table in found.tables().items():
        print(f"\n{title}\n{table.to_string()}")


@app.command()
def doctor(
    study: Annotated[str, typer.Argument(help="Name of a file in studies/, or a path to one.")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Open every picture, hash every weights file anew.")] = False,
) -> None:
    """Say whether a study can run here, and what to do about what stands in its way. Changes nothing; exit code 1 if it cannot."""
    from fpbench.doctor import can_run, examine, render
    from fpbench.study import load_study

    plan = load_study(study)
    findings = examine(plan, full)
    content = {"study": plan.name, "can_run": can_run(findings), "findings": [asdict(one) for one in findings]}
    print(json.dumps(content, indent=1) if as_json else render(findings, plan.name))
    raise typer.Exit(0 if can_run(findings) else 1)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="Name of a file in studies/, or a path to one.")],
    jobs: Annotated[int, typer.Option(help="Notebooks that run at once.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs and why they run; do nothing.")] = False,
    more: Annotated[list[str] | None, typer.Argument(help="After --: what else Snakemake shall get.")] = None,
) -> None:
    """Run a whole study: every notebook, through Snakemake, resuming what is unfinished. Prints the command it runs."""
    from fpbench.protocols import job_key, unsound
    from fpbench.study import load_study

    plan = load_study(study)
    job_key(plan, *(spec.name for spec in plan.encoders))
    location = Path(study).resolve() if Path(study).suffix else study
    command = [sys.executable, "-m", "snakemake", *(more or []), "--snakefile", str(paths.REPOSITORY / "Snakefile")]
    command += ["--directory", str(plan.folder), "--cores", str(jobs * plan.threads)]
    command += ["--config", f"study={location}", f"parent={os.getpid()}"]
    command += ["--rerun-triggers", "params", "--rerun-incomplete", "--keep-going", "--nolock", "--quiet", "rules"]
    command += ["--dry-run"] if dry_run else []
    if again := [str(path) for path in unsound(plan)]:
        print("damaged, or resting on a damaged file; made again:", *again, sep="\n  ")
        command += ["--forcerun", *again]
    print(" ".join(command), flush=True)
    try:
        with artifacts.lock(plan.folder / "run", timeout=0):
            done = subprocess.run(command, check=False).returncode
    except Timeout:
        raise InputError(f"another run is at work in {plan.folder}: wait for its end, or stop it first") from None
    if dry_run and plan.tunings():
        from fpbench import make_splits
        from fpbench.protocols import costs

        home, _ = plan.begin().load_cohorts()
        table = costs(plan, home, make_splits(home, plan.the_task, plan.split, plan.folds, plan.seed))
        print(f"\nFine-tuning on this device, every epoch run:\n{table.round(3).to_string(index=False)}")
        print(f"together {table['PFLOP'].sum():,.3g} PFLOP, {table['hours'].sum():,.2f} hours")
    if done == 0 and not dry_run and not more:
        print(
            f"\n{(plan.folder / 'tables' / 'table1.md').read_text()}\nTables, figures and executed notebooks: {plan.folder}\n"
            f"Everything on one page: {plan.folder / 'report.html'}"
        )
    raise typer.Exit(done)


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="Name of a file in studies/, or a path to one.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; default: report.html in the study's results.")
    ] = None,
) -> None:
    """Put a study that was run on one self-contained HTML page."""
    from fpbench.report import build
    from fpbench.study import load_study

    print(build(load_study(study), out))


@app.command()
def notebook(
    name: Annotated[str, typer.Argument(help="Name of a notebook, e.g. 04_linear_probing.")],
    output: Annotated[Path, typer.Argument(help="Where the executed copy goes.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="NAME=VALUE, VALUE read as YAML.")] = None,
    parent: Annotated[int, typer.Option(help="A process; when it ends, so does this one.")] = 0,
) -> None:
    """Execute one notebook with papermill; unknown parameters are errors."""
    import yaml

    from fpbench.notebooks import execute

    pairs = [text.partition("=")[::2] for text in parameter or []]
    values = {key: yaml.safe_load(value) for key, value in pairs}
    execute(paths.REPOSITORY / "notebooks" / f"{name}.ipynb", output, values, parent)


def main() -> None:
    """Run the command line; an error that a user can act on is printed without a traceback."""
    try:
        app()
    except (InputError, OSError) as error:  # MissingError is an OSError; so is a folder that cannot be written
        print(f"fpbench: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
