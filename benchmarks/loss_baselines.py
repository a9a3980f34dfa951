"""Other ways to compute Rank & Sort Loss, and other losses on the same logits, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from rs_d2.losses import rank_sort_loss

DELTA, EPS = 0.5, 1e-10


def ours(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of ``rank_sort_loss``."""
    logits = logits.detach().requires_grad_()
    sum(rank_sort_loss(logits, targets, DELTA)).backward()
    return logits.grad


def loop(logits: Tensor, targets: Tensor) -> Tensor:
    """The definition with one turn per positive, over the negatives that matter, in float32."""
    positive = targets > 0
    scores, labels = logits[positive], targets[positive]
    relevant = (targets == 0) & (logits >= scores.min() - DELTA)
    negatives = logits[relevant]
    of_negatives, of_positives = torch.zeros_like(negatives), torch.zeros_like(scores)
    for i in range(len(scores)):
        to_positives, to_negatives = _step(scores - scores[i]), _step(negatives - scores[i])
        rank, false_positives = to_positives.sum(), to_negatives.sum()
        ranking_error = false_positives / (rank + false_positives)
        better = to_positives * (labels >= labels[i])
        current = (to_positives * (1 - labels)).sum() / rank
        sorting_error = current - (better * (1 - labels)).sum() / better.sum()
        if false_positives > EPS:
            of_positives[i] -= ranking_error
            of_negatives += to_negatives * (ranking_error / false_positives)
        missorted = to_positives * (labels < labels[i])
        if missorted.sum() > EPS:
            of_positives[i] -= sorting_error
            of_positives += missorted * (sorting_error / missorted.sum())
    return _place(logits, positive, relevant, of_positives, of_negatives)


def dense(logits: Tensor, targets: Tensor) -> Tensor:
    """The definition with tables of all pairs (P x N and P x P), in float32."""
    positive = targets > 0
    scores, labels = logits[positive], targets[positive]
    relevant = (targets == 0) & (logits >= scores.min() - DELTA)
    to_negatives = _step(logits[relevant] - scores[:, None])
    to_positives = _step(scores - scores[:, None])
    rank, false_positives = to_positives.sum(1), to_negatives.sum(1)
    weights = (false_positives > EPS) / (rank + false_positives)
    missorted = to_positives * (labels < labels[:, None])
    better = to_positives - missorted
    current = to_positives @ (1 - labels) / rank
    sorting_error = current - better @ (1 - labels) / better.sum(1)
    mass = missorted.sum(1)
    share = torch.where(mass > EPS, sorting_error / mass, 0.0)
    of_positives = share @ missorted - share * mass - weights * false_positives
    return _place(logits, positive, relevant, of_positives, weights @ to_negatives)


def sort(logits: Tensor, targets: Tensor) -> Tensor:
    """One sort of the logits, values and indices: the yardstick."""
    return logits.sort().indices


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of binary cross-entropy with the same targets."""
    logits = logits.detach().requires_grad_()
    F.binary_cross_entropy_with_logits(logits, targets).backward()
    return logits.grad


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of focal loss with the positives as targets."""
    logits = logits.detach().requires_grad_()
    sigmoid_focal_loss(logits, (targets > 0).to(logits.dtype), reduction="sum").backward()
    return logits.grad


def _step(difference: Tensor) -> Tensor:
    return (difference / (2 * DELTA) + 0.5).clamp(0, 1)


def _place(
    logits: Tensor, positive: Tensor, relevant: Tensor, of_positives: Tensor, of_negatives: Tensor
) -> Tensor:
    gradient = torch.zeros_like(logits)
    gradient[positive] = of_positives
    gradient[relevant] = of_negatives
    return gradient / len(of_positives)
