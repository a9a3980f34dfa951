"""Exact sums of the smoothed step over positives and negatives, shared by the ranking losses.

Shapes: ``P`` positives, ``N`` negatives. Scores are logits; everything of size P is float64.

The smoothed step is ``H(x) = clamp(x / (2 delta) + 1/2, 0, 1)``; at ``delta = 0`` it is 1 where
``x >= 0``. Seen from a positive with logit ``s_i``, ``H(x - s_i)`` is 0 below its window
``[s_i - delta, s_i + delta]``, 1 above it and linear inside. A sum over the negatives is therefore
piecewise linear between the 2P window ends: the number of negatives and the sum of their logits in
each of the 2P + 1 buckets give it exactly, without a loop over positives and without a P x N table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_NEGATIVES_PER_CHUNK = 1 << 16  # keeps the float64 temporaries of a chunk in the CPU's cache
_RELATIONS_PER_CHUNK = 1 << 20  # elements of one block of the P x P relations: 8 MB in float64


class Windows(NamedTuple):
    """The 2P ends of the positives' windows and where each positive's own ends lie among them.

    ``edges`` (float64, ascending) holds ``s_i - delta`` and ``s_i + delta`` of every positive (just
    ``s_i`` at ``delta = 0``). A negative lies in bucket ``b`` = number of edges not above it;
    bucket 0 is below every window and matters to nobody. ``low`` and ``high`` (int64, [P]) are the
    numbers of edges up to and including each positive's own lower and upper end.
    """

    edges: Tensor
    low: Tensor
    high: Tensor


class NegativeSums(NamedTuple):
    """Per bucket, cumulated from the top: how many negatives, and the sum of their logits.

    Cumulating from the top keeps the sums of the highest positives, where few negatives count,
    free of cancellation and exactly 0 where there are none. Both float64, [len(edges) + 2]; the
    last entry is 0.
    """

    count: Tensor
    total: Tensor


class SortingTerms(NamedTuple):
    """Positive-against-positive quantities, all float64 [P] (paper's symbols in brackets).

    ``rank_among_positives``: ``sum_k H(s_k - s_i)``, itself included;
    ``error``: current minus target sorting error (``l_S(i) - l*_S(i)``); ``gradient``: of the mean
    sorting error in the positives' logits.
    """

    rank_among_positives: Tensor
    error: Tensor
    gradient: Tensor


def smoothed_step(x: Tensor, delta: float) -> Tensor:
    """``H(x)``: 0 below ``-delta``, 1 above ``delta``, linear between; delta 0: 1 where x >= 0."""
    if delta == 0:
        return (x >= 0).to(x.dtype)
    return (x / (2 * delta) + 0.5).clamp_(0, 1)


def make_windows(positives: Tensor, delta: float) -> Windows:
    """Sort the ends of the positives' windows (``positives``: float64 [P], P >= 1)."""
    lower, upper = positives - delta, positives + delta
    edges = positives if delta == 0 else torch.cat([lower, upper])
    edges = edges.sort().values
    return Windows(
        edges,
        torch.searchsorted(edges, lower, right=True),
        torch.searchsorted(edges, upper, right=True),
    )


def sum_negatives(negatives: Tensor, windows: Windows) -> NegativeSums:
    """Count and sum the negatives per bucket.

    Logits are clamped to the range of the edges before they are summed: nothing changes, since
    every window ends there, and one logit at 1e38 cannot wipe out the sums of the others.
    """
    edges = windows.edges
    buckets = len(edges) + 1
    count = edges.new_zeros(buckets)
    total = edges.new_zeros(buckets)
    for chunk in _chunks(negatives):
        clamped, bucket = _locate(chunk, edges)
        count += torch.bincount(bucket, minlength=buckets)
        total += torch.bincount(bucket, weights=clamped, minlength=buckets)
    return NegativeSums(_cumulate_from_top(count), _cumulate_from_top(total))


def count_false_positives(
    positives: Tensor, windows: Windows, sums: NegativeSums, delta: float
) -> Tensor:
    """``F(i) = sum over negatives n of H(s_n - s_i)``, float64 [P], at least 0."""
    low, high = windows.low, windows.high
    above = sums.count[high]
    if delta == 0:
        return sums.count[low]
    inside = sums.count[low] - above
    ramp = sums.total[low] - sums.total[high] - inside * (positives - delta)
    # The exact ramp lies in [0, inside]; rounding must not push it out.
    return above + (ramp / (2 * delta)).clamp_(min=0).minimum(inside)


def spread_over_negatives(
    negatives: Tensor, positives: Tensor, weights: Tensor, windows: Windows, delta: float
) -> Tensor:
    """``g(x) = sum over positives i of w_i H(x - s_i)`` for every negative logit ``x``.

    Args:
        negatives: logits [N], any float dtype.
        positives: logits [P], float64.
        weights: ``w_i`` [P], float64, not negative.
        windows: of the same positives.
        delta: half width of the ramp, in logits.

    Returns:
        float64 chunks joined in the negatives' dtype, [N], not negative.
    """
    slope, intercept = _piecewise_line(positives, weights, windows, delta)
    parts = []
    for chunk in _chunks(negatives):
        clamped, bucket = _locate(chunk, windows.edges)
        line = torch.addcmul(intercept[bucket], slope[bucket], clamped)
        parts.append(line.clamp_(min=0).to(negatives.dtype))
    return torch.cat(parts) if parts else torch.zeros_like(negatives)


def compare_positives(positives: Tensor, labels: Tensor, delta: float, eps: float) -> SortingTerms:
    """Everything that positives owe each other: their ranks and the sorting error.

    With ``M_i, B_i`` the sums of ``H(s_j - s_i)`` and ``H(s_j - s_i)(1 - y_j)`` over the positives
    of lower label, ``A_i`` the second over all positives and ``R_i`` the rank, the sorting error is
    ``v_i M_i`` with ``v_i = (B_i / M_i - (A_i - B_i) / (R_i - M_i)) / R_i``: the current minus the
    target error without the difference of two nearly equal means.

    Args:
        positives: logits [P], float64.
        labels: localisation quality [P], float64, in (0, 1].
        delta: half width of the ramp, in logits.
        eps: a positive whose ``M_i`` is not above it has no sorting error.
    """
    num = len(positives)
    rank, error, gradient = (torch.zeros_like(positives) for _ in range(3))
    shortfall = 1 - labels
    rows_per_chunk = max(1, _RELATIONS_PER_CHUNK // num)
    for start in range(0, num, rows_per_chunk):
        rows = slice(start, start + rows_per_chunk)
        relation = smoothed_step(positives - positives[rows, None], delta)  # [rows, P]
        r, a = relation.sum(1), relation @ shortfall
        missorted = relation * (labels < labels[rows, None])
        m, b = missorted.sum(1), missorted @ shortfall
        has_error = m > eps
        v = (b / m.where(has_error, 1.0) - (a - b) / (r - m)) / r
        v = v.where(has_error, 0.0)
        rank[rows], error[rows] = r, v * m
        gradient += v @ missorted
    return SortingTerms(rank, error, (gradient - error) / num)


def _chunks(negatives: Tensor) -> tuple[Tensor, ...]:
    if len(negatives) == 0:
        return ()
    return negatives.split(_NEGATIVES_PER_CHUNK if negatives.is_cpu else len(negatives))


def _locate(chunk: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The chunk in float64, clamped to the edges' range, and the bucket of each element."""
    exact = chunk.double()
    return exact.clamp(edges[0], edges[-1]), torch.bucketize(exact, edges, right=True)


def _cumulate_from_top(per_bucket: Tensor) -> Tensor:
    from_top = per_bucket.flip(0).cumsum(0).flip(0)
    return torch.cat([from_top, from_top.new_zeros(1)])


def _piecewise_line(
    positives: Tensor, weights: Tensor, windows: Windows, delta: float
) -> tuple[Tensor, Tensor]:
    """Slope and intercept of ``sum_i w_i H(x - s_i)`` in each bucket."""
    slope_step = torch.zeros(len(windows.edges) + 1, dtype=torch.float64, device=positives.device)
    intercept_step = torch.zeros_like(slope_step)
    if delta == 0:
        intercept_step.index_add_(0, windows.low, weights)
        return slope_step, intercept_step.cumsum(0)
    rise = weights / (2 * delta)
    offset = rise * (delta - positives)
    slope_step.index_add_(0, windows.low, rise).index_add_(0, windows.high, -rise)
    intercept_step.index_add_(0, windows.low, offset)
    intercept_step.index_add_(0, windows.high, weights - offset)
    return slope_step.cumsum(0), intercept_step.cumsum(0)
