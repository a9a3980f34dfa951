"""Literal float64 loops, written from the equations: what the fast code must equal."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class RankSortReference(NamedTuple):
    """Losses, and each loss's own share of the published gradient."""

    ranking: float
    sorting: float
    ranking_gradient: np.ndarray
    sorting_gradient: np.ndarray


def step(x: float, delta: float) -> float:
    """The smoothed step H(x)."""
    if delta == 0:
        return float(x >= 0)
    return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)


def rank_sort(logits, targets, delta: float, eps: float = 1e-10) -> RankSortReference:
    """Rank & Sort Loss: one loop turn per positive, one per pair."""
    s = [float(v) for v in logits]
    y = [float(v) for v in targets]
    positives = [i for i, v in enumerate(y) if v > 0]
    negatives = [i for i, v in enumerate(y) if v == 0]
    ranking_gradient, sorting_gradient = np.zeros(len(s)), np.zeros(len(s))
    ranking = sorting = 0.0
    num = len(positives)
    for i in positives:
        h_pos = {j: step(s[j] - s[i], delta) for j in positives}
        h_neg = {n: step(s[n] - s[i], delta) for n in negatives}
        rank_pos, false_pos = math.fsum(h_pos.values()), math.fsum(h_neg.values())
        rank_error = false_pos / (rank_pos + false_pos)
        ranking += rank_error / num
        if false_pos > eps:
            ranking_gradient[i] -= rank_error / num
            for n in negatives:
                ranking_gradient[n] += rank_error * h_neg[n] / false_pos / num

        current = math.fsum(h_pos[j] * (1 - y[j]) for j in positives) / rank_pos
        better = [j for j in positives if y[j] >= y[i]]
        target = math.fsum(h_pos[j] * (1 - y[j]) for j in better) / math.fsum(
            h_pos[j] for j in better
        )
        missorted = math.fsum(h_pos[j] for j in positives if y[j] < y[i])
        error = current - target
        sorting += error / num
        if missorted > eps:
            sorting_gradient[i] -= error / num
            for j in positives:
                if y[j] < y[i]:
                    sorting_gradient[j] += error * h_pos[j] / missorted / num
    return RankSortReference(ranking, sorting, ranking_gradient, sorting_gradient)
