"""What is installed only where it is asked for: `pip install "fpbench[encoders]"` and the like.

The core reads predictions: scores, intervals, tables. Modules of an extra are imported where they are used; where one is not
there, one line names the extra.
"""

from collections.abc import Sequence
from importlib.util import find_spec

EXTRAS = {  # extra -> the modules that it brings, as they are imported
    "encoders": (
        "torch", "torchvision", "timm", "open_clip", "transformers", "peft", "safetensors", "huggingface_hub", "cv2",
    ),
    "notebooks": (
        "papermill", "nbclient", "nbformat", "ipykernel", "IPython", "ipywidgets", "jupyterlab", "jupyter_client", "traitlets",
        "matplotlib", "seaborn", "psutil",
    ),
    "dicom": ("pydicom",),
    "excel": ("openpyxl",),
    "grid": ("snakemake", "snakemake_executor_plugin_slurm", "psutil"),
}  # fmt: skip


class MissingExtra(ImportError):
    """A part of fpbench that is not installed."""


def need(*extras: str) -> None:
    """Raise MissingExtra unless all modules of some extras are installed; nothing is imported."""
    if lacking := [extra for extra in extras if any(find_spec(module) is None for module in EXTRAS[extra])]:
        raise MissingExtra(_say(lacking))


def explain(error: ModuleNotFoundError) -> str:
    """Return one line that names the extra of a module that is not there; empty if it belongs to none."""
    module = (error.name or "").partition(".")[0]
    return next((_say([extra]) for extra, modules in EXTRAS.items() if module in modules), "")


def _say(extras: Sequence[str]) -> str:
    names = ",".join(extras)
    return f'this needs what is not installed here: pip install "fpbench[{names}]"'
