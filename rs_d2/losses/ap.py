"""AP Loss (Chen et al., CVPR 2019), interpolated, exact and without a loop over positives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rs_d2.losses.kernel.error_driven import (
    blank_terms,
    error_driven,
    open_batch,
    place_gradient,
    working_precision,
)
from rs_d2.losses.kernel.inputs import check_arguments, survey
from rs_d2.losses.kernel.ranking import sum_other_positives


def average_precision_loss(logits: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """One minus the interpolated average precision of the ranking.

    With ``H`` the step smoothed over ``[-delta, delta]``, ``R(i) = 1 + sum of H(s_j - s_i)`` over
    the other positives ``j`` and ``F(i)`` the same sum over the negatives::

        error(i) = F(i) / (R(i) + F(i))
        loss = mean_i min { error(k) : s_k <= s_i }

    The gradient is the paper's error-driven update, not the derivative of the value.

    Args:
        logits: [N], any float dtype; precision and infinite values as in ``rank_sort_loss``.
        targets: [N]; above 0 a positive (whatever its value), 0 a negative, below 0 ignored.
        delta: half width of the ramp of ``H``, in logits, at least 0; 0 is the hard step.

    Returns:
        A scalar in [0, 1], float32 (float64 for float64 logits). Without positives, and for empty
        input, 0 with zero gradients, attached to ``logits``. NaN where a logit that takes part is.

    Raises:
        ValueError: as ``rank_sort_loss``.
    """
    check_arguments("average_precision_loss", logits, targets, delta)
    work, targets = working_precision(logits), working_precision(targets.detach())
    loss, gradient = average_precision_terms(work.detach(), targets, float(delta))
    return error_driven(work, (loss,), (gradient,))[0]


@torch.library.custom_op(
    "rs_d2::average_precision",
    mutates_args=(),
    schema="(Tensor logits, Tensor targets, float delta) -> (Tensor, Tensor)",
)
def average_precision_terms(logits: Tensor, targets: Tensor, delta: float) -> tuple[Tensor, ...]:
    """The loss (scalar, float64) and its gradient ([N], the logits' dtype)."""
    found = survey("average_precision_loss", logits, targets)
    if found.is_trivial:
        return blank_terms(logits, 1, math.nan if found.has_nan else 0.0)
    batch = open_batch(logits, targets, found, delta)
    ones = torch.ones_like(batch.scores)
    rank = 1 + sum_other_positives(batch.scores, ones, batch.windows) + batch.false_positives
    error = batch.false_positives / rank
    best = _running_minimum(error, batch.scores)
    # A positive whose error was lowered to the best below it spreads that much less.
    weights = torch.where(best < error, best / batch.false_positives, 1 / rank) / len(error)
    gradient = place_gradient(batch, -best / len(error), weights)
    return best.mean(), gradient


@average_precision_terms.register_fake
def _(logits: Tensor, targets: Tensor, delta: float) -> tuple[Tensor, ...]:
    return blank_terms(logits, 1)


def _running_minimum(error: Tensor, scores: Tensor) -> Tensor:
    """The smallest error among the positives of lower or equal score (ties: earlier ones)."""
    order = scores.argsort(stable=True)
    best = torch.empty_like(error)
    best[order] = error[order].cummin(0).values
    return best
