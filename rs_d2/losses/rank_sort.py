"""Rank & Sort Loss (Oksuz et al., ICCV 2021), exact and without a loop over positives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rs_d2.losses import _ranking


class RankSortLoss(NamedTuple):
    """Mean ranking and mean sorting error of the positives; the loss is their sum."""

    ranking: Tensor
    sorting: Tensor


class _Terms(NamedTuple):
    """Both losses (float64 scalars) and their gradients; only positives have a sorting part."""

    ranking: Tensor
    sorting: Tensor
    ranking_gradient: Tensor  # [N]
    sorting_gradient: Tensor  # [P]
    positive_index: Tensor  # [P]


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
        empty input, both are 0 with zero gradients, attached to ``logits``. A NaN among the targets
        or the logits that take part makes both NaN, and the gradient with them.

    Raises:
        ValueError: shapes that differ or are not one-dimensional, integer logits, negative delta.
    """
    _check_inputs(logits, targets, delta)
    # Outside the function, so that autograd scales in float32 before it rounds to half precision.
    work = logits if logits.dtype == torch.float64 else logits.float()
    return RankSortLoss(*_RankSort.apply(work, targets, delta, eps))


class _RankSort(torch.autograd.Function):
    """Builds both gradients in the forward pass; the backward pass scales and adds them."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, delta: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        terms = _compute(logits.detach(), targets.detach(), delta, eps)
        ctx.save_for_backward(terms.ranking_gradient, terms.sorting_gradient, terms.positive_index)
        return terms.ranking.to(logits.dtype), terms.sorting.to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_ranking: Tensor, grad_sorting: Tensor) -> tuple[Tensor | None, ...]:
        ranking_gradient, sorting_gradient, positive_index = ctx.saved_tensors
        gradient = ranking_gradient * grad_ranking
        gradient[positive_index] += sorting_gradient * grad_sorting
        return gradient, None, None, None


def _compute(logits: Tensor, targets: Tensor, delta: float, eps: float) -> _Terms:
    positive_index = (targets > 0).nonzero().squeeze(1)
    if len(positive_index) == 0:
        return _without_positives(logits, targets, positive_index)
    limit = torch.finfo(torch.float32).max  # differences of float64 scores this large stay finite
    positives = logits[positive_index].double().clamp(-limit, limit)
    labels = targets[positive_index].double()
    num = len(positives)

    negative_index = _relevant_negatives(logits, targets, positives, delta)
    negatives = logits[negative_index]
    windows = _ranking.make_windows(positives, delta)
    sums = _ranking.sum_negatives(negatives, windows)
    false_positives = _ranking.count_false_positives(positives, windows, sums, delta)
    sorting = _ranking.compare_positives(positives, labels, delta, eps)

    rank = sorting.rank_among_positives + false_positives
    # ranking error / F(i) = 1 / rank(i): the weight that spreads the error over the negatives
    weights = (1 / rank).where(false_positives > eps, 0.0)
    share = _ranking.spread_over_negatives(negatives, positives, weights / num, windows, delta)

    ranking_gradient = torch.zeros_like(logits)
    ranking_gradient[negative_index] = share
    ranking_gradient[positive_index] = (-weights * false_positives / num).to(logits.dtype)
    poison = _nan_if_invalid(logits, targets)
    return _Terms(
        (false_positives / rank).mean() + poison,
        sorting.error.mean() + poison,
        ranking_gradient.add_(poison),
        sorting.gradient.to(logits.dtype).add_(poison),
        positive_index,
    )


def _without_positives(logits: Tensor, targets: Tensor, positive_index: Tensor) -> _Terms:
    zero = logits.new_zeros((), dtype=torch.float64) + _nan_if_invalid(logits, targets)
    gradient = torch.zeros_like(logits).add_(zero)
    return _Terms(zero, zero.clone(), gradient, logits.new_zeros(0), positive_index)


def _relevant_negatives(logits: Tensor, targets: Tensor, positives: Tensor, delta: float) -> Tensor:
    """Index of the negatives inside or above some positive's window; the others count H = 0."""
    floor = (positives.min() - delta).to(logits.dtype)
    # One representable number lower: rounding the floor up must not lose a negative.
    floor = torch.nextafter(floor, floor.new_tensor(-torch.inf))
    return ((targets == 0) & (logits >= floor)).nonzero().squeeze(1)


def _nan_if_invalid(logits: Tensor, targets: Tensor) -> Tensor:
    """NaN where a logit that takes part or a target is NaN, else 0, without a host read."""
    invalid = targets.isnan().any() | (logits.isnan() & (targets >= 0)).any()
    zero = torch.zeros((), dtype=torch.float64, device=logits.device)
    return zero.masked_fill(invalid, torch.nan)


def _check_inputs(logits: Tensor, targets: Tensor, delta: float) -> None:
    if logits.dim() != 1 or targets.shape != logits.shape:
        raise ValueError(
            "rank_sort_loss wants logits and targets of one shape [N], "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"rank_sort_loss wants floating-point logits, got {logits.dtype}")
    if not delta >= 0:
        raise ValueError(f"rank_sort_loss wants delta >= 0, got {delta}")
