"""The search behind :mod:`rs_d2.ops.nms` on a GPU: few large kernels, one answer read by the host.

Shapes: ``R`` regions, ``C`` classes, ``M`` candidates in a prefix of the canonical order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 12  # of the fixed point; chains of suppressions are seldom longer
_PREFIXES = (4, 16)  # lengths to try, in units of topk
_SHORTEST, _LONGEST = 1024, 8192  # candidates; the longest makes 64 M pairs


def search_on_device(
    scores: Tensor,
    boxes_at: Callable[[Tensor, Tensor], Tensor],
    score_thresh: float,
    iou_limit: float,
    topk: int,
) -> tuple[Tensor, Tensor] | None:
    """Rows and classes of the first ``topk`` survivors, or ``None`` if a prefix does not hold them.

    Args:
        scores: float32 [R, C] with at least one entry, -inf where a region takes no part.
        boxes_at: gives the float32 boxes [M, 4] of candidates by rows [M] and classes [M].
        score_thresh: candidates score higher.
        iou_limit: a float32 value; a box is dropped above it.
        topk: most survivors, at least 1.

    Returns:
        Two int64 tensors in canonical order.
    """
    candidates = scores.masked_fill(~(scores > score_thresh), -torch.inf).flatten()
    for multiple in _PREFIXES:
        length = min(max(multiple * topk, _SHORTEST), len(candidates))
        if length > _LONGEST:
            return None
        flat, certain, is_all = _prefix(candidates, length)
        rows, classes = flat // scores.shape[1], flat % scores.shape[1]
        kept, settled = _suppress(boxes_at(rows, classes), classes, iou_limit)
        kept = kept & certain
        count = kept.sum()
        done = settled & (is_all | (count >= topk))
        done, count = torch.stack([done.long(), count]).tolist()  # the one read by the host
        if done:
            first = _first(kept, min(count, topk))
            return rows[first], classes[first]
    return None


def _prefix(candidates: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``length`` entries in canonical order.

    Returns:
        Their positions [M]; which of them are candidates before which none is missing, bool [M];
        whether no candidate is missing at all, bool.
    """
    values, flat = candidates.topk(length, sorted=False)
    flat, by_position = flat.sort()
    values, by_score = values[by_position].sort(descending=True, stable=True)
    is_candidate = values > -torch.inf
    is_all = ~is_candidate[-1] | (length == len(candidates))
    # topk cuts through equal scores as it likes, so the last score of a prefix is not certain.
    return flat[by_score], is_candidate & (is_all | (values > values[-1])), is_all


def _suppress(boxes: Tensor, classes: Tensor, iou_limit: float) -> tuple[Tensor, Tensor]:
    """Greedy suppression [M] of boxes in canonical order, and whether it came to its end.

    Start with all; keep who is not dropped by an earlier kept one; repeat. What is left is the
    greedy result once nothing changes: each step settles one more link of every chain.
    """
    drops = (_pairwise_iou(boxes) > iou_limit) & (classes[:, None] == classes)
    drops = drops.triu(1)  # only by earlier ones
    kept = before = torch.ones_like(classes, dtype=torch.bool)
    for _ in range(_STEPS):
        before, kept = kept, ~(drops & kept[:, None]).any(0)
    return kept, (kept == before).all()


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """[M, M] IoU; one kernel per operation, so rounded as on the CPU."""
    x1, y1, x2, y2 = boxes.unbind(1)
    width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
    height = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
    inter = width.clamp(min=0) * height.clamp(min=0)
    area = (x2 - x1) * (y2 - y1)
    return inter / (area[:, None] + area - inter)


def _first(kept: Tensor, count: int) -> Tensor:
    """Indices of the first ``count`` true entries, of which there are that many; no host read."""
    place = kept.cumsum(0) - 1
    place = torch.where(kept & (place < count), place, count)  # the rest goes to a spare place
    index = torch.arange(len(kept), device=kept.device)
    return torch.zeros(count + 1, dtype=torch.long, device=kept.device).scatter_(0, place, index)[
        :count
    ]
