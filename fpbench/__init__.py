"""fpbench: which pretrained image encoder, adapted how, tells fetal ultrasound views apart, and does it hold elsewhere?

Data flows one way: cohorts -> splits -> embeddings -> probing, fine-tuning -> PREDICTIONS -> scores -> tables, figures. The names
below are loaded on first use, so that ``import fpbench`` stays fast and never imports torch.
"""

import os
from importlib import import_module
from typing import Any

# torch reads it when it starts: large arrays lie on huge pages, where Linux has them on request, and cost fewer page faults
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.2.0"

_HOMES = {
    "load_study": "fpbench.study",
    "load_cohort": "fpbench.cohorts",
    "load_encoder": "fpbench.encoders",
    "register_cohort": "fpbench.cohorts",
    "register_encoder": "fpbench.encoders",
    "register_probe": "fpbench.training.probing",
    "make_splits": "fpbench.splits",
    "prove_disjoint": "fpbench.splits",
    "embed_cohort": "fpbench.training.embeddings",
    "embed_images": "fpbench.training.embeddings",
    "read_predictions": "fpbench.predictions",
    "evaluate": "fpbench.analysis.scoring",
    "bootstraps": "fpbench.analysis.statistics",
    "table1": "fpbench.reporting.tables",
}
__all__ = sorted(_HOMES)
_CALLED = {"read_predictions": "read"}  # there


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), _CALLED.get(name, name))
    raise AttributeError(f"module 'fpbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
