"""Exact sums of the smoothed step over positives and negatives: the core of the ranking losses.

Shapes: ``P`` positives, ``N`` candidates, ``E`` edges. Everything of size P or E is float64.

The smoothed step is ``H(x) = clamp(x / (2 delta) + 1/2, 0, 1)``; at ``delta = 0`` it is 1 where
``x >= 0``. Seen from a positive with logit ``s_i``, ``H(x - s_i)`` is 0 below its window
``[s_i - delta, s_i + delta]``, 1 above it and linear inside. A sum over the negatives is therefore
piecewise linear between the 2P window ends: the number of negatives and the sum of their places in
each of the 2P + 1 buckets give it exactly, without a loop over positives and without a P x N table.

Sums use places instead of logits: the same axis with every stretch that no window covers cut to a
width of 2 delta. Differences inside a window stay what they are, and no logit, however large, can
drown the sums of the others in rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rs_d2.losses.kernel.device_dispatch import takes_cpu_path


class Windows(NamedTuple):
    """The ends of the positives' windows, and where each positive's own window lies among them.

    ``edges``: [E], ascending, ``s_i - delta`` and ``s_i + delta`` of every positive (just ``s_i``
    at delta 0). A logit lies in bucket ``b`` = number of edges not above it; bucket 0 is below
    every window and matters to nobody. ``places``: [E], the edges' places on the shortened axis.
    ``low``, ``high``: int64 [P], number of edges up to and including the own lower and upper end.
    ``widths``: [E], in places, of the bucket above each edge; 0 for the last. ``origin``: [P], the
    place of the own lower end. ``delta``: half width, in logits.
    """

    edges: Tensor
    places: Tensor
    widths: Tensor
    low: Tensor
    high: Tensor
    origin: Tensor
    delta: float


class BucketSums(NamedTuple):
    """Per bucket, cumulated from the top: total weight, and total of weight times place.

    Cumulating from the top keeps the sums of the highest positives, where little counts, free of
    cancellation and exactly 0 where there is nothing. Both [..., E + 2]; the last entry is 0.
    """

    weight: Tensor
    moment: Tensor


class Line(NamedTuple):
    """A piecewise linear function of the logit: ``slope[b] * x + intercept[b]``, both [E + 1]."""

    slope: Tensor
    intercept: Tensor


def smoothed_step(x: Tensor, delta: float) -> Tensor:
    """``H(x)``: 0 below ``-delta``, 1 above ``delta``, linear between; delta 0: 1 where x >= 0."""
    if delta == 0:
        return (x >= 0).to(x.dtype)
    return (x / (2 * delta)).add_(0.5).clamp_(0, 1)


def make_windows(positives: Tensor, delta: float) -> Windows:
    """Sort the ends of the positives' windows (``positives``: finite logits [P], P >= 1)."""
    ends = positives[None] if delta == 0 else torch.stack([positives - delta, positives + delta])
    edges = ends.flatten().sort().values
    upto = torch.searchsorted(edges, ends, right=True)
    gaps = torch.nn.functional.pad(edges.diff(), (1, 1)).clamp_(max=2 * delta)
    places = scan(gaps[:-1])
    return Windows(edges, places, gaps[1:], upto[0], upto[-1], places[upto[0] - 1], delta)


def sum_other_positives(scores: Tensor, weights: Tensor, windows: Windows) -> Tensor:
    """``sum of w_j H(s_j - s_i)`` over the positives j other than i, at least 0.

    Args:
        scores: the positives' logits [P], finite.
        weights: [P] or, for several sums at once, [W, P]; not negative.
        windows: of the same positives.

    Returns:
        The weights' shape.
    """
    edge = torch.searchsorted(windows.edges, scores, right=True) - 1
    place = windows.places[edge] + (scores - windows.edges[edge])
    per_bucket = weights.new_zeros(2, *weights.shape[:-1], len(windows.edges) + 1)
    per_bucket.index_add_(-1, edge + 1, torch.stack([weights, weights * place]))
    # A window without width (delta 0, or logits too large for delta to show) counts its own as 1.
    own = torch.where(windows.low == windows.high, 1.0, 0.5) * weights
    return (sum_steps(cumulate_from_top(per_bucket), windows) - own).clamp_(min=0)


def cumulate_from_top(per_bucket: Tensor) -> BucketSums:
    """Weights and moments of the buckets, [2, ..., E + 1], summed from the highest bucket down."""
    from_top = scan_(per_bucket.flip(-1), -1).flip(-1)
    return BucketSums(*torch.nn.functional.pad(from_top, (0, 1)))


def sum_steps(sums: BucketSums, windows: Windows) -> Tensor:
    """``sum_n w_n H(s_n - s_i)`` over what was summed, for every positive i, [..., P]; >= 0."""
    above = sums.weight[..., windows.high]
    if windows.delta == 0:
        return above
    inside = sums.weight[..., windows.low] - above
    moment = sums.moment[..., windows.low] - sums.moment[..., windows.high]
    moment -= inside * windows.origin
    # The exact ramp lies in [0, inside]; rounding must not push it out.
    return above + (moment / (2 * windows.delta)).clamp_(min=0).minimum(inside)


def spread_line(weights: Tensor, windows: Windows) -> Line:
    """``g(x) = sum over positives i of w_i H(x - s_i)`` as a function of a negative's logit x.

    Args:
        weights: ``w_i`` [P], not negative.
        windows: of the same positives.

    Returns:
        Slope and intercept per bucket. Clamp the logits to the edges' range and the result to be
        at least 0.
    """
    buckets = len(windows.edges) + 1
    steps = weights.new_zeros(3, buckets)
    if windows.delta == 0:
        steps[1].index_add_(0, windows.low, weights)
        return Line(*scan_(steps, -1)[:2])
    rise = weights / (2 * windows.delta)
    drop = rise * windows.origin
    open_window = torch.ones_like(rise)
    steps.index_add_(1, windows.low, torch.stack([rise, -drop, open_window]))
    steps.index_add_(1, windows.high, torch.stack([-rise, weights + drop, -open_window]))
    slope, intercept, open_windows = scan_(steps, -1)
    slope = slope * (open_windows > 0.5)  # rounding leaves no slope outside the windows
    start = windows.places - windows.edges  # places = logits + start, within the bucket above
    intercept[1:] += slope[1:] * start
    return Line(slope, intercept)


def scan(values: Tensor) -> Tensor:
    """Cumulated sums along the last dimension; repeatable to the bit where that is asked for."""
    return scan_(values.clone(), -1)


def scan_(values: Tensor, dim: int) -> Tensor:
    """:func:`scan` in place, along ``dim``."""
    if torch.are_deterministic_algorithms_enabled() and not takes_cpu_path(values):
        return values.copy_(fixed_point_scan(values, dim))
    return values.cumsum_(dim)


def fixed_point_scan(values: Tensor, dim: int = -1) -> Tensor:
    """Cumulated sums in 64-bit integers, which have one result in any order of summation.

    The values are scaled, row by row, by the largest power of two at which no sum can overflow. A
    row with a value that is not finite becomes NaN.
    """
    bound = values.abs().amax(dim, keepdim=True) * values.shape[dim]
    exponent = torch.frexp(bound).exponent.clamp(min=-900)  # a row of zeros must not overflow
    scale = torch.ldexp(torch.ones_like(bound), 62 - exponent)
    sums = (values * scale).round_().long().cumsum(dim).double() / scale
    return sums + 0 * bound
