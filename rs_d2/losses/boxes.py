"""Losses of decoded boxes (XYXY, absolute pixels), one value per box."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from rs_d2.ops.boxes import aligned_iou


def giou_loss(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """``1 - GIoU`` of each predicted box with its ground truth, [P] in [0, 2]; empty for P = 0."""
    return generalized_box_iou_loss(pred_boxes, gt_boxes, reduction="none")


def iou_loss(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """``1 - IoU`` of each predicted box with its ground truth, [P] in [0, 1]; empty for P = 0."""
    return 1 - aligned_iou(pred_boxes, gt_boxes)


def smooth_l1_loss(pred_deltas: Tensor, gt_deltas: Tensor) -> Tensor:
    """Sum over the four deltas of ``d^2 / 2`` for ``d = |pred - gt| < 1``, else ``d - 1/2``.

    Args:
        pred_deltas: [P, 4].
        gt_deltas: [P, 4].

    Returns:
        [P], not negative; empty for P = 0.
    """
    return F.smooth_l1_loss(pred_deltas, gt_deltas, reduction="none").sum(1)
