"""The command line: ``fpbench init | init-cohort | fetch | audit | doctor | run | status | report | notebook``. Thin: every command calls one function of the library."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fpbench import extras
from fpbench.errors import InputError
from fpbench.files import paths

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Root = Annotated[Path | None, typer.Option(help="The folder of the cohort; default: <data>/<cohort>.")]


def _version(asked: bool) -> None:
    if asked:
        from fpbench.files.provenance import program

        print(program())
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version and commit.")
    ] = False,
) -> None:
    """Benchmark pretrained image encoders on fetal ultrasound views."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder to make: absent or empty.")],
    update: Annotated[bool, typer.Option("--update", help="Bring newer files into a folder made before.")] = False,
) -> None:
    """Lay notebooks, studies, Snakefile and profiles into a folder of yours; commands below it find them."""
    from fpbench.files import workspace

    if not update:
        print(f"{workspace.lay(folder)} is ready: go there and type `fpbench run demo`")
        return
    found = workspace.update(folder)
    print(f"{len(found.brought)} files brought: {', '.join(found.brought) or 'all are of this version'}")
    for names, words in (
        (found.changed, "changed by you, left alone"),
        (found.deleted, "deleted by you, not brought back"),
        (found.gone, "no longer part of fpbench, left alone"),
    ):
        if names:
            print(f"{words}: {', '.join(names)}")


@app.command()
def fetch(
    what: Annotated[list[str], typer.Argument(help="spain, africa, acouslic, or: weights NAME...")],
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
def audit(
    cohort: Annotated[str, typer.Argument(help="spain, africa, acouslic, or a YAML file that describes a cohort.")],
    root: Root = None,
    missing: str = "drop",
) -> None:
    """Print what a careful reader wants to know of a cohort: duplicates, groups, confounders, damage."""
    from fpbench.cohorts import audit as audits

    found = audits.audit(cohort, root, missing)
    print(f"{found.cohort.source.title}\n{found}")
    for title, table in found.tables().items():
        print(f"\n{title}\n{table.to_string()}")


@app.command()
def init_cohort(
    table: Annotated[Path, typer.Argument(help="CSV, TSV, Excel or parquet: a row per image, column names on top.")],
    images: Annotated[Path | None, typer.Option(help="The folder of its pictures; default: that of the table.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; default: beside the table.")] = None,
) -> None:
    """Look at a table of your own images and write a first description of the cohort, a YAML file to be corrected by you."""
    from fpbench.cohorts.sketch import sketch

    print(sketch(table, images, out))


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
    jobs: Annotated[
        int, typer.Option(help="Notebooks that run at once; 0: as many as have cores for their threads.")
    ] = 0,
    only: Annotated[str, typer.Option(help="Names of encoders, with commas: their jobs alone.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs and what they cost; do nothing.")] = False,
    why: Annotated[bool, typer.Option("--why", help="With --dry-run: why each job runs.")] = False,
    profile: Annotated[str, typer.Option(help="Where: local, gpubox or slurm (profiles/), or a folder.")] = "local",
    options: Annotated[list[str] | None, typer.Argument(help="After --: jobs, options for Snakemake.")] = None,
) -> None:
    """Run a whole study: every notebook, through Snakemake, resuming what is unfinished. Prints the command it runs."""
    extras.need("encoders", "notebooks", "grid")
    from fpbench.grid.run import run as run_study
    from fpbench.study import load_study

    names = [name.strip() for name in only.split(",") if name.strip()]
    extra = [*(options or []), "--profile", str(paths.home() / "profiles" / profile)]
    raise typer.Exit(run_study(load_study(study), study, jobs, names, dry_run or why, why, extra))


@app.command()
def embed(
    encoder: Annotated[
        str, typer.Argument(help="A name of the study; without one a model, e.g. fetalclip, timm:NAME.")
    ],
    pictures: Annotated[list[str], typer.Argument(help="Folders, files, quoted patterns, cohort files or names.")],
    out: Annotated[Path, typer.Option(help="A .parquet (image_id, path, e0, ...) or .npz file.")],
    study: Annotated[str, typer.Option(help="Take encoder, cohorts, batch size and threads of this study.")] = "",
    weights: Annotated[str, typer.Option(help="Without a study: hub, random, or a file.")] = "hub",
    batch_size: Annotated[int, typer.Option(help="Images per forward pass; 0: the study's, else 32.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    bits: Annotated[int, typer.Option(help="Of pictures that hold more than 8.")] = 0,
) -> None:
    """Write the embeddings of pictures for other programs; interrupted, it goes on where it stopped."""
    extras.need("encoders")
    from fpbench import encoders, loading
    from fpbench.study import load_study
    from fpbench.training.export import export, find

    plan = load_study(study).begin() if study else None
    spec, known = None, {}
    if plan:
        spec, model = plan.encoder_spec(encoder), loading.load_encoder(plan, encoder)
        known = {spec.title: (*loading.where(plan, spec), spec.missing) for spec in plan.cohorts}
    else:
        model = encoders.load_encoder(encoder, weights).to(loading.best_device())
    found = [find(one, known, bits) for one in pictures]
    for one in found:
        print(*[f"{one.name}: {note}" for note in one.notes], sep="\n", end="\n" * bool(one.notes))
    export(model, found, out, batch_size or (spec.batch_size if spec else 32), bf16 or bool(spec and spec.bf16))
    print(
        f"{out}: {sum(len(one.paths) for one in found):,} pictures, {model.dim} numbers each, {model.name}, {model.weights.label}"
    )


@app.command()
def import_answers(
    study: Annotated[str, typer.Argument(help="Name of a file in studies/, or a path to one.")],
    name: Annotated[str, typer.Argument(help="What the model is called in tables.")],
    file: Annotated[Path, typer.Argument(help="CSV, TSV, Excel, JSON or parquet.")],
    image: Annotated[str, typer.Option(help="Column that names the picture: id, path or file name.")] = "",
    in_order: Annotated[
        bool,
        typer.Option("--in-order", help="Rows are those of the label file with a class of the task, in its order."),
    ] = False,
    cohort: Annotated[str, typer.Option(help="With --in-order: whose label file.")] = "",
    answer: Annotated[str, typer.Option(help="Column of answers; default: a column of numbers per class.")] = "",
    kind: Annotated[
        str, typer.Option(help="What these numbers are: logits or probabilities; default: looked at.")
    ] = "",
    fold: Annotated[str, typer.Option(help="Column of fold numbers, from 0; default: one model.")] = "",
    label: Annotated[str, typer.Option(help="Column of true classes, to be held against ours.")] = "",
    words: Annotated[
        list[str] | None, typer.Option("--words", "-w", help="THEIRS=OURS: a class, as it is called there.")
    ] = None,
) -> None:
    """Put somebody else's answers into the tables of a study, under the protocol `submitted`."""
    from fpbench.study import load_study
    from fpbench.submissions import Form, submit

    pairs = dict(text.rpartition("=")[::2] for text in words or [])
    form = Form(image, answer, kind, fold, label, pairs, in_order, cohort)
    print(*submit(load_study(study), name, file, form), sep="\n")
    print(f"now `fpbench run {study}` brings them into Table 1")


@app.command()
def status(
    study: Annotated[str, typer.Argument(help="Name of a file in studies/, or a path to one.")],
) -> None:
    """Say how far a run is, from any terminal or node that sees the results."""
    from fpbench.grid.status import status as status_of
    from fpbench.study import load_study

    print(status_of(load_study(study)))


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="Name of a file in studies/, or a path to one.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; default: report.html in the study's results.")
    ] = None,
) -> None:
    """Put a study that was run on one self-contained HTML page."""
    from fpbench.grid.jobs import noted
    from fpbench.reporting.page import build
    from fpbench.study import load_study

    with noted("report"):
        print(build(load_study(study), out))


@app.command()
def notebook(
    name: Annotated[str, typer.Argument(help="Name of a notebook, e.g. 04_linear_probing.")],
    output: Annotated[Path, typer.Argument(help="Where the executed copy goes.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="NAME=VALUE, YAML unless it is a text.")] = None,
) -> None:
    """Execute one notebook with papermill; unknown parameters are errors."""
    from fpbench.grid.jobs import noted
    from fpbench.grid.notebooks import execute

    pairs = dict(text.partition("=")[::2] for text in parameter or [])
    with noted(output.stem):
        execute(paths.home() / "notebooks" / f"{name}.ipynb", output, pairs)


def main() -> None:
    """Run the command line; an error that a user can act on is printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a sign that a terminal does not know is worth no run
    paths.settle()
    try:
        app()
    except ModuleNotFoundError as error:
        if not (told := extras.explain(error)):
            raise
        print(f"fpbench: {told}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:  # MissingError is an OSError, as a folder that cannot be written
        from fpbench.files.transfer import explain

        way = explain(error)  # of a library that found no way to its server
        if not way and not isinstance(error, InputError | OSError | extras.MissingExtra):
            raise
        print(f"fpbench: {error}", *[way] * (way not in str(error)), sep="\n", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
