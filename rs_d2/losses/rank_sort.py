"""Rank & Sort Loss (Oksuz et al., ICCV 2021), exact and without a loop over positives."""

from __future__ import annotations

import math
from typing import NamedTuple

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
from rs_d2.losses.kernel.sorting import sorting_error


class RankSortLoss(NamedTuple):
    """Mean ranking and mean sorting error of the positives; the loss is their sum."""

    ranking: Tensor
    sorting: Tensor


def rank_sort_loss(
    logits: Tensor, targets: Tensor, delta: float = 0.5, eps: float = 1e-10
) -> RankSortLoss:
    """Rank positives above negatives, and sort positives by localisation quality.

    With ``H`` the step smoothed over ``[-delta, delta]``, ``R(i)`` and ``F(i)`` the sums of
    ``H(s_j - s_i)`` over the positives ``j`` (``i`` itself counts ``H(0)``) and the negatives::

        ranking = mean_i F(i) / (R(i) + F(i))
        sorting = mean_i [ mean of (1 - y_j) weighted by H(s_j - s_i) over all positives j
                           - the same over the positives with y_j >= y_i ]

    The gradient is the paper's error-driven update (its Eq. 10 and 11), not the derivative of the
    value. Each output scales its own share of it only; their sum has the published gradient.

    Args:
        logits: [N], any float dtype. Computed in float32 elements and float64 sums; the gradient
            comes back in the logits' dtype. Infinite values are fine.
        targets: [N]; above 0 a positive, its value the quality in (0, 1]; 0 a negative; below 0
            ignored (gradient 0).
        delta: half width of the ramp of ``H``, in logits, at least 0; 0 is the hard step.
        eps: a positive whose negatives (or missorted positives) sum to no more has no error.

    Returns:
        Two scalars in [0, 1], float32 (float64 for float64 logits). Without positives, and for
        empty input, both are 0 with zero gradients, attached to ``logits``. A NaN among the logits
        that take part makes both NaN, and the gradient with them.

    Raises:
        ValueError: shapes that differ or are not one-dimensional, integer logits, negative delta,
            a target that is NaN or above 1.
    """
    check_arguments("rank_sort_loss", logits, targets, delta)
    work, targets = working_precision(logits), working_precision(targets.detach())
    terms = rank_sort_terms(work.detach(), targets, float(delta), float(eps))
    return RankSortLoss(*error_driven(work, terms[:2], terms[2:]))


@torch.library.custom_op(
    "rs_d2::rank_sort",
    mutates_args=(),
    schema="(Tensor logits, Tensor targets, float delta, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def rank_sort_terms(
    logits: Tensor, targets: Tensor, delta: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses (scalars, float64) and their gradients ([N], the logits' dtype).

    An operator of its own, so that ``torch.compile`` calls it as it is.
    """
    found = survey("rank_sort_loss", logits, targets)
    if found.is_trivial:
        return blank_terms(logits, 2, math.nan if found.has_nan else 0.0)
    batch = open_batch(logits, targets, found, delta)
    labels = batch.labels.clamp(max=1)
    false_positives, num = batch.false_positives, len(labels)
    own = 0.5 if delta > 0 else 1.0  # H(0): unlike in the other losses, a positive's own place
    of_labels = torch.stack([torch.ones_like(labels), 1 - labels])
    sums = own * of_labels + sum_other_positives(batch.scores, of_labels, batch.windows)
    rank = sums[0] + false_positives
    # ranking error / F(i) = 1 / rank(i): the weight that spreads the error over the negatives
    weights = (false_positives > eps) / rank / num
    sorting = sorting_error(batch.scores, labels, of_labels, sums, delta, eps)
    return (
        (false_positives / rank).mean(),
        sorting.error.mean(),
        place_gradient(batch, -weights * false_positives, weights),
        place_gradient(batch, sorting.gradient),
    )


@rank_sort_terms.register_fake
def _(logits: Tensor, targets: Tensor, delta: float, eps: float) -> tuple[Tensor, ...]:
    return blank_terms(logits, 2)
