"""Rewrite the committed notebooks after a run of the demo: ``make notebooks``.

Each is executed as it is, with outputs and counts, without timings and paths. The predictions of the run become the reference
that the notebooks compare themselves with.
"""

import sys

import nbformat

from fpbench import load_study, predictions, results
from fpbench.files import artifacts, paths
from fpbench.grid import reference
from fpbench.grid.notebooks import execute


def write_reference(study: str) -> None:
    """Make the predictions and fingerprints of a study that was run its committed reference."""
    plan = load_study(study)
    files = results.files(plan)
    reference.write(study, predictions.read(files, plan.the_task), plan.the_task)
    encoders = [artifacts.checked(path)["encoder"] for path in files]
    reference.write_encoders(study, {about["name"]: about["fingerprint"] for about in encoders})


def rewrite(study: str, names: list[str]) -> None:
    """Execute notebooks (default: all) and put them in the place of the committed ones."""
    for source in sorted((paths.home() / "notebooks").glob("*.ipynb")):
        if names and source.stem not in names:
            continue
        executed = load_study(study).folder / "refreshed" / source.name
        execute(source, executed, {})
        notebook = nbformat.read(executed, 4)
        for part in (notebook, *notebook.cells):
            for noise in ("papermill", "execution"):
                part.metadata.pop(noise, None)
        for cell in notebook.cells:
            if cell.metadata.get("tags") == []:
                del cell.metadata["tags"]
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, source)


if __name__ == "__main__":
    write_reference("demo")
    rewrite("demo", sys.argv[1:])
