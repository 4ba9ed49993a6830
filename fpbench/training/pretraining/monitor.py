"""Is the teacher getting better, or collapsing? Two looks at it after every epoch, and before the first step.

*Better* is k-NN on embeddings of whole pictures: the bank are corpus pictures that carry the task's label, the queries patients that
are not in the corpus. The loss says nothing of it. *Collapsing* is told from embeddings and answers of pictures of the corpus.

Shapes: n pictures, D features, K prototypes.
"""

import math
from dataclasses import dataclass

import numpy as np

from fpbench.errors import InputError
from fpbench.training.probes.knn import knn_scores

FEWEST = 20  # pictures of a class in the bank
K, TEMPERATURE = 20, 0.07
SAMPLE = 1024  # pictures of the corpus that signs of collapse are looked for in


class Collapsed(InputError):
    """The teacher gives the same answer to everything."""


@dataclass(frozen=True)
class Monitor:
    """Rows of the pictures, and their classes."""

    bank: np.ndarray
    bank_labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a bank or queries that say nothing."""
        counts = np.bincount(self.bank_labels, minlength=len(self.classes))
        if few := [f"{name} {count}" for name, count in zip(self.classes, counts, strict=True) if count < FEWEST]:
            wanted = f"expected {FEWEST} labelled pictures of every class in the corpus, found {', '.join(few)}"
            raise InputError(f"monitor: {wanted}: the corpus must hold training patients of the task")
        if lacking := [name for code, name in enumerate(self.classes) if code not in self.query_labels]:
            raise InputError(f"monitor: expected every class among the validation patients of fold 0, no {lacking[0]}")
        if both := np.intersect1d(self.bank, self.queries).size:
            raise InputError(
                f"monitor: expected other pictures in the bank than among the queries, found {both} in both"
            )

    def score(self, bank: np.ndarray, queries: np.ndarray) -> float:
        """Return balanced accuracy of the vote of the nearest pictures, from embeddings (n, D) of both."""
        from sklearn.metrics import recall_score

        votes = knn_scores(bank, self.bank_labels, queries, len(self.classes), K, TEMPERATURE)
        return float(recall_score(self.query_labels, votes.argmax(1), average="macro"))


def measures(features: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return what tells a collapse, of embeddings (n, D) and the teacher's probabilities (n, K).

    ``feature SD``: of embeddings of length 1 over the pictures, 1 where they point anywhere, 0 where all are alike. ``RankMe``: how many
    directions they vary in, at most n (arXiv:2210.02885; the mean is taken off). ``entropy``: of an answer, share of ln K: 0 one
    prototype, 1 all alike. ``spread``: the same of the mean answer. ``in use``: prototypes that are anybody's first, of min(n, K).
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    values = np.linalg.svd((unit - unit.mean(0)).astype(float), compute_uv=False)
    used = len(np.unique(probabilities.argmax(1))) / min(probabilities.shape)
    largest = math.log(probabilities.shape[1])
    return {
        "feature SD": float(unit.std(0).mean() * math.sqrt(unit.shape[1])),
        "RankMe": math.exp(_entropy(values / max(values.sum(), 1e-12))),
        "entropy": float(np.mean([_entropy(row) for row in probabilities])) / largest,
        "spread": _entropy(probabilities.mean(0)) / largest,
        "in use": used,
    }


def _entropy(shares: np.ndarray) -> float:
    found = shares[shares > 0].astype(float)
    return float(-(found * np.log(found)).sum())


def collapse(now: dict[str, float], first: dict[str, float], late: bool = True) -> str:
    """Return the sign of collapse that ``measures`` show beside those of step 0; empty: none. Uniform answers are one if it is ``late``."""
    if not all(map(math.isfinite, now.values())):
        return "a measure that is not finite"
    if now["feature SD"] < max(1e-3, 0.1 * first["feature SD"]):
        return f"all embeddings are alike: feature SD {now['feature SD']:.2g}, at first {first['feature SD']:.2g}"
    if now["RankMe"] < min(2.0, 0.5 * first["RankMe"]):
        return f"embeddings vary in one direction: RankMe {now['RankMe']:.2g}, at first {first['RankMe']:.2g}"
    if now["spread"] < 0.1:
        return f"all pictures go to one prototype: the mean answer has an entropy of {now['spread']:.2g} ln K"
    if late and now["entropy"] > 0.995:
        return f"the teacher says the same of everything: its answers have an entropy of {now['entropy']:.3f} ln K"
    return ""
