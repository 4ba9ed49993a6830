"""What pretraining asks of a student: to say of a view what the teacher says of another view of the same picture.

Shapes: V student views and G teacher views of B pictures, the first G student views are those of the teacher; K prototypes; M masked
patches of B crops with N patches each; D features. All logits are cosines, all losses float32 and per picture or crop.

Contents: ``dino`` (arXiv:2104.14294), ``ibot`` (arXiv:2111.07832), ``koleo`` (arXiv:1806.03198); targets by a centre (``centred``) or by
``sinkhorn`` (arXiv:2006.09882).
"""

import torch
from torch import Tensor
from torch.nn import functional


def dino(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy, mean over all pairs of a teacher's view and another view of the student.

    Parameters
    ----------
    student
        Logits (V, B, K).
    targets
        Probabilities (G, B, K).
    """
    told = functional.log_softmax(student.float() / temperature, -1)
    pairs = -torch.einsum("gbk,vbk->gv", targets, told) / student.shape[1]
    return (pairs.sum() - pairs.diagonal().sum()) / (pairs.numel() - len(pairs.diagonal()))


def ibot(student: Tensor, targets: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy on masked patches: mean over those of a crop, then over all crops, unmasked ones counting 0.

    Parameters
    ----------
    student, targets
        Logits and probabilities (M, K), in the order of the mask's true places.
    mask
        (B, N) bool.
    """
    entropy = -(targets * functional.log_softmax(student.float() / temperature, -1)).sum(-1)
    weight = (1 / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(mask)[mask]
    return (entropy * weight).sum() / len(mask)


def koleo(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Return minus the mean log distance to the nearest neighbour, of features (B, D) of different pictures."""
    with torch.autocast(features.device.type, enabled=False):
        x = functional.normalize(features.float(), eps=eps)
        with torch.no_grad():
            near = (x @ x.T).fill_diagonal_(-2).argmax(1)
        return -(functional.pairwise_distance(x, x[near], eps=eps) + eps).log().mean()


def centred(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Return the teacher's probabilities, the usual answer (``centre``, (K,)) taken off."""
    return torch.softmax((logits.float() - centre) / temperature, -1)


def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Return probabilities (n, K) that use all prototypes alike within these n rows.

    The maximum is taken off first: the result is the same, and no exponential overflows.
    """
    logits = logits.float() / temperature
    Q = torch.exp(logits - logits.max())
    for _ in range(rounds):
        Q = Q / Q.sum(0, keepdim=True).clamp(min=1e-30) / Q.shape[1]
        Q = Q / Q.sum(1, keepdim=True).clamp(min=1e-30) / Q.shape[0]
    return Q * Q.shape[0]
