"""Weights of positives in the box and mask losses, all detached."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rs_d2.ops.boxes import aligned_iou

WeightFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def score_weights(logits: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Largest class-wise sigmoid score of each positive, whatever its own class.

    Args:
        logits: [P, K].
        pred_boxes: [P, 4], unused.
        gt_boxes: [P, 4], unused.

    Returns:
        [P], in (0, 1); empty for P = 0.
    """
    return logits.detach().float().amax(dim=1).sigmoid()


def iou_weights(logits: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """IoU of each positive's decoded box (XYXY) with its ground truth, [P] in [0, 1]."""
    return aligned_iou(pred_boxes.detach(), gt_boxes)


def uniform_weights(logits: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 for every positive, [P]."""
    return torch.ones_like(pred_boxes[:, 0])


WEIGHTS: dict[str, WeightFunction] = {
    "score": score_weights,
    "iou": iou_weights,
    "none": uniform_weights,
}


def weighted_mean(values: Tensor, weights: Tensor, eps: float = 1e-10) -> Tensor:
    """``sum(w_i v_i) / sum(w_i)``; the divisor is 1 where the weights sum to less than ``eps``.

    Args:
        values: [P].
        weights: [P], not negative.
        eps: smallest sum of weights that is divided by.

    Returns:
        A scalar; a zero attached to ``values`` for P = 0.
    """
    total = weights.sum()
    return (weights * values).sum() / total.where(total >= eps, torch.ones_like(total))
