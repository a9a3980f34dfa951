"""Average LRP Loss (Oksuz et al., NeurIPS 2020), exact and without a loop over positives."""

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
from rs_d2.losses.kernel.processes import total
from rs_d2.losses.kernel.ranking import scan, sum_other_positives


class ALRPLoss(NamedTuple):
    """Mean classification and mean localisation error of the positives; the loss is their sum."""

    classification: Tensor
    localization: Tensor


def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    delta: float = 1.0,
    eps: float = 1e-5,
) -> ALRPLoss:
    """Rank positives above negatives, the well localised ones first.

    With ``H`` the step smoothed over ``[-delta, delta]``, ``R(i) = 1 + sum of H(s_j - s_i)`` over
    the other positives ``j``, ``F(i)`` the same sum over the negatives, ``e_j`` the localisation
    errors and ``rank(i) = R(i) + F(i)``::

        classification = mean_i F(i) / rank(i)
        localization = mean_i (sum of e_j over the positives with s_j >= s_i) / rank(i)

    The logits' gradient is the paper's error-driven update for both terms together: positive i
    receives ``-(F(i) + Q(i)) / rank(i)``, ``Q(i) = sum of H(s_j - s_i) e_j`` over the other
    positives, and the negatives ``H``'s share of it. It belongs to ``classification``.
    ``localization`` is an ordinary function of the errors, and of nothing else.

    Args:
        logits: [N], any float dtype; precision and infinite values as in ``rank_sort_loss``.
        targets: [N]; above 0 a positive (whatever its value), 0 a negative, below 0 ignored.
        localization_errors: [P], one per positive in the order of ``logits``, at least 0; a GIoU
            loss divided by ``2 (1 - tau)``, ``tau`` the IoU above which a box is a positive.
        delta: half width of the ramp of ``H``, in logits, at least 0; 0 is the hard step.
        eps: a positive whose negatives sum to no more has no error.

    Returns:
        Two scalars at least 0, float32 (float64 for float64 logits). Without positives both are 0
        with zero gradients, attached to ``logits`` and ``localization_errors``. A NaN among the
        logits that take part makes both NaN; one among the errors, or an infinite one, makes
        ``localization`` and the logits' gradient so.

    Raises:
        ValueError: as ``rank_sort_loss``; or there is not one localisation error per positive.
    """
    check_arguments("alrp_loss", logits, targets, delta)
    _check_errors(localization_errors, logits)
    work, targets = working_precision(logits), working_precision(targets.detach())
    errors = localization_errors.to(work.dtype)
    classification, gradient, influence = alrp_terms(
        work.detach(), targets, errors.detach(), float(delta), float(eps)
    )
    (classification,) = error_driven(work, (classification,), (gradient,))
    localization = total((influence * errors).sum())
    if len(errors) == 0:
        localization = localization + 0 * classification  # nothing else ties it to the logits
    return ALRPLoss(classification, localization)


@torch.library.custom_op(
    "rs_d2::alrp",
    mutates_args=(),
    schema="(Tensor logits, Tensor targets, Tensor errors, float delta, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
def alrp_terms(
    logits: Tensor, targets: Tensor, errors: Tensor, delta: float, eps: float
) -> tuple[Tensor, ...]:
    """Classification loss (scalar, float64), logits' gradient [N], and each error's influence [P].

    The influence of an error is the mean over all positives i of its share ``1 / rank(i)`` in i.
    """
    found = survey("alrp_loss", logits, targets)
    if len(errors) != found.num_positives:
        raise ValueError(
            f"alrp_loss: localization_errors must hold one value for each of the "
            f"{found.num_positives} positives, got {len(errors)}"
        )
    if found.is_trivial:
        value = math.nan if found.has_nan else 0.0
        return *blank_terms(logits, 1, value), torch.full_like(errors, value)
    batch = open_batch(logits, targets, found, delta, errors)
    num = len(batch.scores)
    ones = torch.ones_like(batch.scores)
    rank = 1 + sum_other_positives(batch.scores, ones, batch.windows) + batch.false_positives
    not_negative = batch.extras[0].clamp(min=0)  # rounding may have left one below 0
    others = sum_other_positives(batch.scores, not_negative, batch.windows)
    has_error = batch.false_positives > eps
    error = ((others + batch.false_positives) / rank).where(has_error, 0.0) / num
    weights = error / batch.false_positives.where(has_error, 1.0)
    influence = _influence(1 / rank, batch.scores) / num
    return (
        (batch.false_positives / rank).mean(),
        place_gradient(batch, -error, weights),
        influence[batch.own].to(errors.dtype),
    )


@alrp_terms.register_fake
def _(
    logits: Tensor, targets: Tensor, errors: Tensor, delta: float, eps: float
) -> tuple[Tensor, ...]:
    return *blank_terms(logits, 1), torch.empty_like(errors)


def _influence(share: Tensor, scores: Tensor) -> Tensor:
    """Sum of the shares of the positives at or below each one in falling order of score."""
    order = scores.argsort(stable=True)
    influence = torch.empty_like(share)
    influence[order] = scan(share[order])
    return influence


def _check_errors(errors: Tensor, logits: Tensor) -> None:
    if errors.dim() != 1 or not errors.is_floating_point():
        raise ValueError(
            "alrp_loss: localization_errors must be floating-point of shape [P], "
            f"got {errors.dtype} of shape {tuple(errors.shape)}"
        )
    if errors.device != logits.device:
        raise ValueError(
            "alrp_loss: localization_errors must be on the logits' device, "
            f"got {errors.device} and {logits.device}"
        )
