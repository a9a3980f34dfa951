"""YOLACT's assignment of anchors: by IoU, and for each ground truth its single best anchor.

Shapes: ``G`` ground truths; ``A`` anchors of all levels, ``a`` of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2


def assign_yolact(
    anchors: Sequence[Tensor],
    gt_boxes: Tensor,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
) -> list[Tensor]:
    """Match every anchor with the ground truth that it overlaps most (of equal IoU the first).

    It is positive from ``positive_iou`` on, negative below ``negative_iou`` and ignored between.
    Besides, every ground truth claims the one anchor that it overlaps most (of equal IoU the
    first), whatever that anchor is otherwise; of several claims the later ground truth's wins. A
    claim needs an IoU above 0.

    Args:
        anchors: per level [H, W, a, 4], XYXY, finite; a level may be empty.
        gt_boxes: [G, 4], XYXY, finite.
        positive_iou: least IoU of a positive without a claim, in (0, 1].
        negative_iou: least IoU that is not negative, at most ``positive_iou``.

    Returns:
        Per level the index of the ground truth, int64 [H, W, a], -1 for negatives and -2 for
        ignored ones; all -1 for G = 0.

    Source: Bolya et al., YOLACT: Real-time Instance Segmentation, ICCV 2019.
    """
    shapes = [level.shape[:-1] for level in anchors]
    sizes = [shape.numel() for shape in shapes]
    matched = gt_boxes.new_full((sum(sizes),), BACKGROUND, dtype=torch.int64)
    if len(gt_boxes) > 0 and len(matched) > 0:
        boxes = torch.cat([level.reshape(-1, 4) for level in anchors])
        matched = _match(box_iou(gt_boxes, boxes), positive_iou, negative_iou)
    return [m.view(s) for m, s in zip(matched.split(sizes), shapes, strict=True)]


def _match(iou: Tensor, positive_iou: float, negative_iou: float) -> Tensor:
    """What each anchor is matched with, int64 [A]; ``iou`` is [G, A], neither of them 0."""
    highest, matched = iou.max(dim=0)
    matched = matched.masked_fill(highest < positive_iou, IGNORED)
    matched = matched.masked_fill(highest < negative_iou, BACKGROUND)
    own_highest, best_anchor = iou.max(dim=1)
    claimants = torch.arange(len(iou), device=iou.device).where(own_highest > 0, BACKGROUND)
    nobody = torch.full_like(matched, BACKGROUND)
    claimed = nobody.scatter_reduce(0, best_anchor, claimants, "amax")
    return claimed.where(claimed >= 0, matched)
