"""fpbench: benchmarking ultrasound foundation models for fetal plane classification (companion of arXiv:2605.27796).

Data flows one way: cohorts -> splits -> embeddings -> probing -> PREDICTIONS -> scores -> tables, figures. The names below
are loaded on first use, so that ``import fpbench`` stays fast and never imports torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "load_cohort": "fpbench.cohorts",
    "load_study": "fpbench.study",
    "load_encoder": "fpbench.encoders",
    "make_splits": "fpbench.splits",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fpbench' has no attribute {name!r}")
