"""Executing the numbered notebooks with papermill, each in a process of its own, without network ports."""

import tempfile
from pathlib import Path

from fpbench import paths
from fpbench.errors import InputError, MissingError


def execute(source: Path, output: Path, parameters: dict) -> None:
    """Execute a notebook and keep the executed copy, also when it fails.

    Raises
    ------
    InputError
        A parameter that the notebook does not have (papermill alone would ignore it).
    papermill.PapermillExecutionError
        A cell failed; the copy holds the traceback.
    """
    import papermill
    from traitlets.config import Config

    if not source.is_file():
        raise MissingError(f"expected a notebook at {source}, found nothing")
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(parameters) - set(known)):
        raise InputError(f"{source.name}: unknown parameters {', '.join(unknown)}: expected some of {', '.join(known)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="fpbench"
    ) as folder:  # a folder of its own: kernels that share one take each other's sockets
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        papermill.execute_notebook(
            str(source),
            str(output),
            parameters,
            cwd=str(paths.REPOSITORY),
            config=Config({"KernelManager": sockets, "ConnectionFileMixin": sockets}),
            progress_bar=False,
            start_timeout=300,
        )


def refresh(study: str = "demo") -> None:
    """Rewrite the committed notebooks: each executed as it is, with outputs and counts, without timings and paths.

    The study must have been run; its predictions become the reference that the notebooks compare themselves with.
    """
    import nbformat

    from fpbench import artifacts, load_study, predictions, reference

    plan = load_study(study)
    files = plan.all_predictions()
    reference.write(study, predictions.read(files, plan.the_task), plan.the_task)
    encoders = [artifacts.checked(path)["encoder"] for path in files]
    reference.write_encoders(study, {about["name"]: about["fingerprint"] for about in encoders})
    for source in sorted((paths.REPOSITORY / "notebooks").glob("*.ipynb")):
        executed = plan.folder / "refreshed" / source.name
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
    refresh()
