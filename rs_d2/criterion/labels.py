"""Labels of positives: how good the localisation behind a score is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rs_d2.ops.boxes import aligned_iou

# A positive stays one when its box misses its object: with label 0 it would turn into a negative,
# and a batch in which all boxes miss would have nothing to rank.
MIN_QUALITY = 1e-6

LabelFunction = Callable[[Tensor, Tensor], Tensor]


def iou_labels(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """IoU of the decoded box with its ground truth, detached, in [1e-6, 1].

    Args:
        pred_boxes: [P, 4], XYXY.
        gt_boxes: [P, 4], XYXY.

    Returns:
        [P]; NaN where a box is NaN, so that a diverged model is noticed; empty for P = 0.
    """
    return aligned_iou(pred_boxes.detach(), gt_boxes).clamp(min=MIN_QUALITY)


def binary_labels(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 for every positive, [P]: nothing to sort."""
    return torch.ones_like(pred_boxes[:, 0])


LABELS: dict[str, LabelFunction] = {"iou": iou_labels, "binary": binary_labels}
