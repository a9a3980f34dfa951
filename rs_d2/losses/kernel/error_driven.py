"""What the error-driven losses share: opening a batch, and gradients that are not derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rs_d2.losses.kernel.inputs import Survey, index_positives
from rs_d2.losses.kernel.negatives import Negatives, find_negatives
from rs_d2.losses.kernel.processes import are_joined, gather_columns, num_joined, reduce_
from rs_d2.losses.kernel.ranking import (
    BucketSums,
    Windows,
    make_windows,
    spread_line,
    sum_steps,
)

# Scores are float64; so large, their differences stay finite, and infinite ones stay the extremes.
_LIMITS = {torch.float32: torch.finfo(torch.float32).max, torch.float64: 1e307}


class Batch(NamedTuple):
    """A batch with at least one positive, as every ranking loss sees it.

    ``logits``: [N]; ``index``: int64, ascending positions of this process's positives. All else is
    of the positives of all processes that share the ranking, [P] in float64: ``scores``, their
    logits; ``labels``, their targets; ``extras``: further numbers [C, P]; ``false_positives``:
    ``F(i) = sum over negatives n of H(s_n - s_i)``. ``own``: where this process's positives lie.
    """

    logits: Tensor
    index: Tensor
    own: slice
    scores: Tensor
    labels: Tensor
    extras: Tensor
    windows: Windows
    negatives: Negatives
    false_positives: Tensor


def open_batch(
    logits: Tensor, targets: Tensor, found: Survey, delta: float, *extras: Tensor
) -> Batch:
    """Find positives and negatives and let them meet.

    Args:
        logits: [N], without NaN.
        targets: [N].
        found: the survey of both; at least one positive in all.
        delta: half width of the ramp.
        extras: further numbers of this process's positives, each of their number.
    """
    index = index_positives(targets, found.num_positives)
    limit = _LIMITS[logits.dtype]
    rows = (logits[index], targets[index], *extras)
    columns = torch.stack([row.double() for row in rows])
    start = 0
    if are_joined():
        columns = gather_columns(columns, found.counts)
        start = sum(found.counts[: dist.get_rank()])
    scores = columns[0].clamp_(-limit, limit)
    windows = make_windows(scores, delta)
    negatives = find_negatives(logits, targets, windows)
    sums = negatives.sums()
    if are_joined():
        sums = BucketSums(*reduce_(torch.stack([*sums])))
    return Batch(
        logits=logits,
        index=index,
        own=slice(start, start + found.num_positives),
        scores=scores,
        labels=columns[1],
        extras=columns[2:],
        windows=windows,
        negatives=negatives,
        false_positives=sum_steps(sums, windows),
    )


def working_precision(values: Tensor) -> Tensor:
    """The values in float32, or in float64 where they are.

    Cast where autograd sees it, the gradient is scaled in float32 before half precision rounds it.
    """
    return values if values.dtype == torch.float64 else values.float()


def place_gradient(batch: Batch, of_positives: Tensor, weights: Tensor | None = None) -> Tensor:
    """A gradient [N] in the logits' dtype from what positives receive and spread.

    Args:
        batch: the batch.
        of_positives: what each positive receives, [P].
        weights: ``w_i`` [P], not negative; a negative at x receives ``sum_i w_i H(x - s_i)``. None
            for a gradient that concerns the positives only.
    """
    if weights is None:
        gradient = torch.zeros_like(batch.logits)
    else:
        gradient = batch.negatives.spread(spread_line(weights, batch.windows))
    # One value per place, so the order of writing does not matter.
    gradient.index_copy_(0, batch.index, of_positives[batch.own].to(gradient.dtype))
    return gradient.mul_(num_joined()) if are_joined() else gradient


def blank_terms(logits: Tensor, num_losses: int, value: float = 0.0) -> tuple[Tensor, ...]:
    """``num_losses`` scalars (float64) and as many gradients ([N]), all ``value``."""
    scalar = torch.full((), value, dtype=torch.float64, device=logits.device)
    gradient = torch.full_like(logits, value)
    return tuple(part.clone() for part in [scalar] * num_losses + [gradient] * num_losses)


def error_driven(
    logits: Tensor, values: tuple[Tensor, ...], gradients: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The values, scalars, each with the gradient in ``logits`` ([N]) given for it.

    That is what an error-driven update asks for; it is not the values' derivative.
    """
    return _ErrorDriven.apply(logits, len(values), *values, *gradients)


class _ErrorDriven(torch.autograd.Function):
    """Backward scales the gradients that came with the values, and adds them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, num: int, *rest: Tensor) -> tuple[Tensor, ...]:
        values, gradients = rest[:num], rest[num:]
        ctx.save_for_backward(*gradients)
        return tuple(value.to(logits.dtype, copy=True) for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_values: Tensor) -> tuple[Tensor | None, ...]:
        first, *others = zip(ctx.saved_tensors, grad_values, strict=True)
        total = first[0] * first[1]
        for gradient, grad_value in others:
            total.addcmul_(gradient, grad_value)
        return total, *[None] * (1 + 2 * len(grad_values))
