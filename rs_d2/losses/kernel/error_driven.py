"""What the error-driven losses share: opening a batch, and gradients that are not derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rs_d2.losses.kernel.inputs import index_positives
from rs_d2.losses.kernel.negatives import Negatives, find_negatives
from rs_d2.losses.kernel.ranking import Windows, make_windows, spread_line, sum_steps

# Scores are float64; so large, their differences stay finite, and infinite ones stay the extremes.
_LIMITS = {torch.float32: torch.finfo(torch.float32).max, torch.float64: 1e307}


class Batch(NamedTuple):
    """A batch with at least one positive, as every ranking loss sees it.

    ``logits``: [N]; ``index``: int64 [P], ascending positions of the positives; ``scores``: their
    logits; ``false_positives``: ``F(i) = sum over negatives n of H(s_n - s_i)``; both float64 [P].
    """

    logits: Tensor
    index: Tensor
    scores: Tensor
    windows: Windows
    negatives: Negatives
    false_positives: Tensor


def open_batch(logits: Tensor, targets: Tensor, num_positives: int, delta: float) -> Batch:
    """Find positives and negatives and let them meet; ``logits`` without NaN, P >= 1."""
    index = index_positives(targets, num_positives)
    limit = _LIMITS[logits.dtype]
    scores = logits[index].double().clamp_(-limit, limit)
    windows = make_windows(scores, delta)
    negatives = find_negatives(logits, targets, windows)
    false_positives = sum_steps(negatives.sums(), windows)
    return Batch(logits, index, scores, windows, negatives, false_positives)


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
    return gradient.index_copy_(0, batch.index, of_positives.to(gradient.dtype))


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
