"""Executing the numbered notebooks with papermill, each in a process of its own, without network ports."""

import sys
import tempfile
from pathlib import Path

from fpbench import paths
from fpbench.errors import InputError, MissingError
from fpbench.study import plain_yaml


def execute(source: Path, output: Path, parameters: dict) -> None:
    """Execute a notebook and keep the executed copy, also when it fails.

    Raises
    ------
    InputError
        A parameter that the notebook does not have (papermill alone would ignore it).
    papermill.PapermillExecutionError
        A cell failed; the copy holds the traceback.
    """
    sys.modules.setdefault(
        "rfc3987_syntax", None
    )  # jsonschema would compile a grammar of web addresses: 2 s for nothing
    import papermill
    from traitlets.config import Config

    if not source.is_file():
        raise MissingError(f"expected a notebook at {source}, found nothing")
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(parameters) - set(known)):
        raise InputError(f"{source.name}: unknown parameters {', '.join(unknown)}: expected some of {', '.join(known)}")
    for name, value in parameters.items():
        if isinstance(value, str) and known[name]["default"][:1] not in ("'", '"'):  # a text for a text stays as it is
            parameters = {**parameters, name: plain_yaml(value, f"{source.name}: {name}")}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="fpbench"
    ) as folder:  # a folder of its own: kernels that share one take each other's sockets
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (source, output)),  # papermill formats them
            parameters,
            cwd=str(paths.REPOSITORY),
            config=Config({"KernelManager": sockets, "ConnectionFileMixin": sockets}),
            progress_bar=False,
            start_timeout=300,
        )
