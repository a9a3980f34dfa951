"""Labels of positives: how good the localisation behind a score is, in (0, 1] and detached.

A label is ``(candidates) -> [P]``. Add one of your own with ``@LABELS.register("name")``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rs_d2.criterion.candidates import Candidates
from rs_d2.losses.masks import dice_coefficient
from rs_d2.ops.boxes import aligned_iou
from rs_d2.utils.registry import Registry

# A positive stays one when its box misses its object: with label 0 it would turn into a negative,
# and a batch in which all boxes miss would have nothing to rank.
MIN_QUALITY = 1e-6

Label = Callable[[Candidates], Tensor]
LABELS: Registry[Label] = Registry("label")


@LABELS.register("iou")
def iou_label(candidates: Candidates) -> Tensor:
    """IoU of the decoded box with its ground truth, [P] in [1e-6, 1].

    NaN where a box is NaN, so that a diverged model is noticed; empty for P = 0.
    """
    iou = aligned_iou(candidates.pred_boxes.detach(), candidates.gt_boxes)
    return iou.clamp(min=MIN_QUALITY)


@LABELS.register("binary")
def binary_label(candidates: Candidates) -> Tensor:
    """1 for every positive, [P]: nothing to sort."""
    return torch.ones_like(candidates.positives, dtype=torch.float32)


@LABELS.register("dice")
def dice_label(candidates: Candidates) -> Tensor:
    """Dice coefficient ``2 sum(p t) / (sum(p^2) + sum(t^2))`` of mask and target, [P] in [1e-6, 1].

    NaN where a mask is; empty for P = 0.
    """
    dice = dice_coefficient(candidates.mask_logits.detach(), candidates.gt_masks)
    return dice.clamp(min=MIN_QUALITY)


@LABELS.register("iou_dice")
def iou_dice_label(candidates: Candidates) -> Tensor:
    """Mean of the box's IoU and the mask's Dice coefficient, [P] in [1e-6, 1]."""
    return (iou_label(candidates) + dice_label(candidates)) / 2
