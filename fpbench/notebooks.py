"""Executing the numbered notebooks with papermill, each in a process of its own, without network ports."""

import tempfile
from pathlib import Path

from fpbench import artifacts, paths
from fpbench.errors import InputError, MissingError


def execute(source: Path, output: Path, parameters: dict, parent: int = 0) -> None:
    """Execute a notebook and keep the executed copy, also when it fails.

    Given the process id of a ``parent``, this process ends when that one does, as the kernel does when this one ends: after a
    kill nothing goes on computing.

    Raises
    ------
    InputError
        A parameter that the notebook does not have (papermill alone would ignore it).
    papermill.PapermillExecutionError
        A cell failed; the copy holds the traceback.
    """
    import papermill
    from ipykernel.parentpoller import ParentPollerUnix
    from traitlets.config import Config

    class Whole(papermill.iorw.LocalHandler):
        """Papermill saves after every cell: so that what is seen meanwhile, or left by a kill, is a whole notebook."""

        def write(self, buf: str, path: str) -> None:
            with artifacts.atomic(Path(path)) as temporary:
                temporary.write_text(buf, encoding="utf-8")

    if not source.is_file():
        raise MissingError(f"expected a notebook at {source}, found nothing")
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(parameters) - set(known)):
        raise InputError(f"{source.name}: unknown parameters {', '.join(unknown)}: expected some of {', '.join(known)}")
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.iorw.papermill_io.register("/", Whole())
    if parent:
        ParentPollerUnix(parent).start()
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
