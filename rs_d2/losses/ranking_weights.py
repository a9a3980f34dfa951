"""Weights of positives by their share in how the others are ranked, as aLRP Loss has them."""

from __future__ import annotations

import torch
from torch import Tensor

from rs_d2.losses.kernel.error_driven import open_batch, working_precision
from rs_d2.losses.kernel.inputs import check_arguments, survey
from rs_d2.losses.kernel.ranking import make_windows, sum_other_positives


@torch.no_grad()
def ranking_weights(
    logits: Tensor, targets: Tensor, delta: float = 0.5, delta_loc: float | None = None
) -> Tensor:
    """How much each positive's localisation error would count in aLRP Loss.

    With ``H`` the smoothed step and ``rank(k)`` the rank of positive k among all candidates, in
    which k itself counts 1::

        w_i = 1 / P  sum over the positives k of  H(s_i - s_k) / rank(k)

    so that a box counts more the higher it is ranked (supplement, S2.1 and Table S3).

    Args:
        logits: [N], any float dtype.
        targets: [N]; above 0 a positive, 0 a negative, below 0 ignored.
        delta: half width of the ramp of ``H`` in the ranks.
        delta_loc: half width of all ramps, those of the ranks included; None, the published
            default: a hard step in the numerator and ``delta`` in the ranks.

    Returns:
        [P], in the positives' order, above 0, float32 (float64 for float64 logits), detached. NaN
        where a logit that takes part is; empty for P = 0.

    Raises:
        ValueError: as ``rank_sort_loss``.
    """
    check_arguments("ranking_weights", logits, targets, delta)
    work, targets = working_precision(logits), working_precision(targets)
    found = survey("ranking_weights", work, targets)
    if found.is_trivial:
        value = torch.nan if found.has_nan else 0.0
        return work.new_full((found.num_positives,), value)
    batch = open_batch(work, targets, found, delta if delta_loc is None else delta_loc)
    ones = torch.ones_like(batch.scores)
    rank = 1 + sum_other_positives(batch.scores, ones, batch.windows) + batch.false_positives
    share = 1 / rank
    # Seen from above, H(s_i - s_k) is the step of the negated scores.
    windows = make_windows(-batch.scores, delta_loc or 0.0)
    weights = share + sum_other_positives(-batch.scores, share, windows)
    return (weights[batch.own] / len(share)).to(work.dtype)
