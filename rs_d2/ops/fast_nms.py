"""Fast NMS: a box is dropped by any better one of its class, also by one that is dropped itself.

Bolya et al., YOLACT: Real-time Instance Segmentation, ICCV 2019, section 3.3. It drops more than
exact suppression (``rs_d2.ops.nms``), and has no loop and no question to the host.

Shapes: ``R`` regions, ``C`` classes, ``n`` candidates of a class. Boxes are XYXY corners in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rs_d2.ops.nms import BoxTable, without_bad_rows
from rs_d2.ops.sorting import descending


def fast_nms(
    table: BoxTable,
    scores: Tensor,
    score_thresh: float,
    nms_thresh: float,
    topk: int,
    *,
    topk_per_class: int = 200,
) -> tuple[Tensor, Tensor]:
    """Regions and classes of the ``topk`` best boxes that no better box of their class overlaps.

    Only the ``topk_per_class`` best regions of every class are looked at. The order is that of
    ``rs_d2.ops.nms``: score, then row, then class. Tracing can follow it.

    Args:
        table: the boxes.
        scores: [R, C]; compared in float32. Regions with a score or box that is not finite take no
            part.
        score_thresh: candidates score higher.
        nms_thresh: IoU in [0, 1] above which the later box is dropped.
        topk: most survivors; below 0 all of them.
        topk_per_class: at least 1.

    Returns:
        int64 rows in [0, R) and classes in [0, C); empty where nothing passes.
    """
    scores = scores.detach().float()
    num_regions, num_classes = scores.shape
    if num_regions == 0:
        nothing = torch.empty(0, dtype=torch.long, device=scores.device)
        return nothing, nothing
    if not torch.jit.is_tracing():  # a graph cannot look before it goes on
        scores = without_bad_rows(scores, table)
    best, rows = descending(scores.t())
    best, rows = best[:, :topk_per_class], rows[:, :topk_per_class]
    classes = torch.arange(num_classes, device=scores.device)[:, None].expand_as(rows)
    boxes = table.at(rows.flatten(), classes.flatten()).view(rows.shape[0], rows.shape[1], 4)
    # The best of a class stays, and the IoU of others with all that come before them decides.
    overlap = _pairwise_iou(boxes).triu(diagonal=1).amax(dim=1)
    kept = (overlap <= nms_thresh) & (best > score_thresh)
    rows, classes = rows[kept], classes[kept]
    position = (rows * num_classes + classes).argsort()
    rows, classes = rows[position], classes[position]
    order = descending(scores[rows, classes])[1]
    order = order if topk < 0 else order[:topk]
    return rows[order], classes[order]


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """[C, n, n] from [C, n, 4]; 0 where both boxes have no area."""
    area = (boxes[..., 2:] - boxes[..., :2]).prod(2)
    top_left = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    bottom_right = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(3)
    union = area[:, :, None] + area[:, None] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)
