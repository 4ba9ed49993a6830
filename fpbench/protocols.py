"""What can be done with an encoder: the registry of protocols, in the order of tables.

A new protocol is one file and one line here. A probe works on embeddings: the file is ``training/probes/<name>.py`` with a
function ``fit`` (as of ``training.probing.register_probe``), studies call it by name under ``probes``, and one job per encoder
computes all of them. Any other protocol names the job (of ``grid/grid.yaml``) that computes it for one encoder, and studies
list encoders under its own name (``full: [usfm]``). SUBMITTED has no job: its answers come from somebody else's model, by
``fpbench import-answers``. Here are facts alone: analysis and tables import this, and no code of training.
"""

from collections.abc import Callable
from dataclasses import dataclass

PROBING, FINETUNING, SEGMENTATION = "linear_probing", "finetuning", "segmentation"  # jobs
TRAINING = (FINETUNING, SEGMENTATION)  # jobs that run with every seed of the study
SUBMITTED = "submitted"


@dataclass(frozen=True)
class Protocol:
    """One way of making predictions with an encoder."""

    name: str  # in a study, in predictions and in file names
    title: str  # in tables
    job: str = PROBING  # the job that computes it; empty: none does
    fit: Callable | None = None  # of a probe that was registered from outside

    @property
    def part(self) -> str:
        """Return what its job is called among those of an encoder: a record, or a missing result."""
        return "probing" if self.job == PROBING else self.name


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("logistic", "linear probing"),
        Protocol("full", "full fine-tuning", FINETUNING),
        Protocol("lora", "LoRA", FINETUNING),
        Protocol("lora_mlp", "LoRA, MLP alone", FINETUNING),
        Protocol("segmentation", "segmentation, mask area", SEGMENTATION),
        Protocol("ridge", "ridge probe"),
        Protocol("knn", "k nearest neighbours"),
        Protocol("sgd", "SGD probe, FetalCLIP-like"),
        Protocol(SUBMITTED, "submitted answers", ""),
    )
}


def probes() -> list[str]:
    """Return the names of the probes."""
    return [name for name, protocol in PROTOCOLS.items() if protocol.job == PROBING]


def tunings(job: str = "") -> list[str]:
    """Return the names of the protocols that a study calls for encoder by encoder; ``job``: those of one job."""
    return [one.name for one in PROTOCOLS.values() if one.job not in ("", PROBING) and job in ("", one.job)]


def titles() -> dict[str, str]:
    """Return the title of every protocol by name."""
    return {name: protocol.title for name, protocol in PROTOCOLS.items()}
