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


def average_precision(logits, targets, delta: float) -> tuple[float, np.ndarray]:
    """AP Loss with interpolation and its gradient: one loop turn per positive, ascending scores."""
    s, y = [float(v) for v in logits], [float(v) for v in targets]
    positives = sorted((i for i, v in enumerate(y) if v > 0), key=lambda i: s[i])
    negatives = [i for i, v in enumerate(y) if v == 0]
    gradient, best, loss = np.zeros(len(s)), 0.0, 0.0
    for i in positives:
        rank_pos = 1 + math.fsum(step(s[j] - s[i], delta) for j in positives if j != i)
        h_neg = {n: step(s[n] - s[i], delta) for n in negatives}
        rank = rank_pos + math.fsum(h_neg.values())
        precision = rank_pos / rank
        share = 1.0
        if best <= precision:
            best = precision
        else:
            share = (1 - best) / (1 - precision)
        loss += (1 - best) / len(positives)
        gradient[i] -= (1 - best) / len(positives)
        for n in negatives:
            gradient[n] += share * h_neg[n] / rank / len(positives)
    return loss, gradient


class ALRPReference(NamedTuple):
    """Losses, the gradient in the logits, and that of the localisation loss in the errors."""

    classification: float
    localization: float
    gradient: np.ndarray
    errors_gradient: np.ndarray


def alrp(logits, targets, errors, delta: float, eps: float = 1e-5) -> ALRPReference:
    """Average LRP Loss: one loop turn per positive, one per pair."""
    s, y = [float(v) for v in logits], [float(v) for v in targets]
    positives = [i for i, v in enumerate(y) if v > 0]
    negatives = [i for i, v in enumerate(y) if v == 0]
    error_of = dict(zip(positives, (float(v) for v in errors), strict=True))
    num = len(positives)
    gradient, errors_gradient = np.zeros(len(s)), np.zeros(num)
    classification = localization = 0.0
    falling = sorted(positives, key=lambda i: (-s[i], -i))
    for place, i in enumerate(falling):
        others = {j: step(s[j] - s[i], delta) for j in positives if j != i}
        h_neg = {n: step(s[n] - s[i], delta) for n in negatives}
        false_pos = math.fsum(h_neg.values())
        rank = 1 + math.fsum(others.values()) + false_pos
        classification += false_pos / rank / num
        for j in falling[: place + 1]:
            localization += error_of[j] / rank / num
            errors_gradient[positives.index(j)] += 1 / rank / num
        if false_pos > eps:
            error = (false_pos + math.fsum(h * error_of[j] for j, h in others.items())) / rank
            gradient[i] -= error / num
            for n in negatives:
                gradient[n] += error * h_neg[n] / false_pos / num
    return ALRPReference(classification, localization, gradient, errors_gradient)
