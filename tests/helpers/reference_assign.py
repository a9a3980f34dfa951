"""Literal loops of the assigners: what the fast code must equal.

``levels`` are nested lists ``levels[l][y][x][a]`` of XYXY boxes, ``objects`` a list of them; labels
come back in the same nesting, flattened per level.
"""

from __future__ import annotations

import math

import numpy as np


def iou(box, other) -> float:
    """Intersection over union, 0 of two boxes without area."""
    width = max(min(box[2], other[2]) - max(box[0], other[0]), 0.0)
    height = max(min(box[3], other[3]) - max(box[1], other[1]), 0.0)
    inter = width * height
    area = (box[2] - box[0]) * (box[3] - box[1])
    union = area + (other[2] - other[0]) * (other[3] - other[1]) - inter
    return inter / union if union > 0 else 0.0


def center(box) -> tuple[float, float]:
    """The point in the middle."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def cells_of(level):
    """(centre of the cell, boxes) in the order y, x."""
    return [(center(cell[0]), cell) for row in level for cell in row]


def atss(levels, objects, topk: int) -> list[list[int]]:
    """One object after the other, one anchor after the other."""
    taken = [{} for _ in levels]  # per level: anchor -> (IoU, object)
    for g, gt in enumerate(objects):
        gx, gy = center(gt)
        candidates = []
        for number, level in enumerate(levels):
            ranked = []
            for (x, y), boxes in cells_of(level):
                for box in boxes:
                    # Rounded to 24 bits, as the assigner says.
                    overlap = float(np.float32(iou(box, gt)))
                    distance = (x - gx) ** 2 + (y - gy) ** 2
                    ranked.append((distance, len(ranked), number, overlap, (x, y)))
            candidates += sorted(ranked)[:topk]
        if not candidates:
            continue
        overlaps = [c[3] for c in candidates]
        mean = math.fsum(overlaps) / len(overlaps)
        squares = math.fsum((v - mean) ** 2 for v in overlaps)
        threshold = mean + math.sqrt(squares / max(len(overlaps) - 1, 1))
        for _, anchor, number, overlap, (x, y) in candidates:
            inside = min(x - gt[0], y - gt[1], gt[2] - x, gt[3] - y) > 0.01
            best = taken[number].get(anchor, (-1.0, None))[0]
            if inside and overlap >= threshold and overlap > best:
                taken[number][anchor] = (overlap, g)
    return [
        [taken[i].get(anchor, (0, -1))[1] for anchor in range(_num_anchors(level))]
        for i, level in enumerate(levels)
    ]


def paa_candidates(levels, objects, min_iou: float) -> list[list[int]]:
    """The first pass: the best object of each anchor, then the anchors that objects claim."""
    boxes = [[box for _, cell in cells_of(level) for box in cell] for level in levels]
    overlaps = [[[iou(box, gt) for box in level] for level in boxes] for gt in objects]
    labels = []
    for i, level in enumerate(boxes):
        labels.append([])
        for a in range(len(level)):
            column = [table[i][a] for table in overlaps]
            best = max(column, default=0.0)
            labels[i].append(column.index(best) if column and best >= min_iou else -1)
    for g, table in enumerate(overlaps):
        highest = max((value for level in table for value in level), default=0.0)
        if highest > 0:
            for i, level in enumerate(table):
                for a, value in enumerate(level):
                    if value == highest:
                        labels[i][a] = g
    return labels


def paa_separation(losses, gt_index, levels, topk: int) -> list[bool]:
    """The second pass: one mixture of scikit-learn after the other."""
    stays = [False] * len(losses)
    for g in set(gt_index):
        pool = []
        for level in set(levels):
            of_level = [
                (loss, i)
                for i, loss in enumerate(losses)
                if gt_index[i] == g and levels[i] == level and math.isfinite(loss)
            ]
            pool += sorted(of_level)[:topk]
        pool.sort()
        if len(pool) < 2:
            continue
        shares, likelihood = _mixture([loss for loss, _ in pool])
        low = [k for k, share in enumerate(shares) if share[0] >= share[1] * math.exp(-1e-6)]
        if low:
            highest = max(likelihood[k] for k in low)
            last = next(k for k in low if likelihood[k] >= highest - 1e-6)  # first of equal ones
            for k in low:
                stays[pool[k][1]] = k <= last
    return stays


def _mixture(losses) -> tuple[list[list[float]], list[float]]:
    """Probabilities of the components and log-likelihood of each loss."""
    from sklearn.mixture import GaussianMixture

    column = np.asarray(losses, dtype=np.float64)[:, None]
    mixture = GaussianMixture(
        2,
        covariance_type="diag",
        weights_init=[0.5, 0.5],
        means_init=[column.min(0), column.max(0)],
        precisions_init=[[1.0], [1.0]],
        reg_covar=1e-5,
    ).fit(column)
    return mixture.predict_proba(column).tolist(), mixture.score_samples(column).tolist()


def _num_anchors(level) -> int:
    return sum(len(boxes) for _, boxes in cells_of(level))
