"""What positives are trained for beside the ranking: their boxes, masks and qualities.

A task loss is ``(candidates) -> [P]``, one value per positive. Add one of your own with
``@BOX_LOSSES.register("name")`` or ``@MASK_LOSSES.register("name")``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.criterion.balancing import Balancer
from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.weights import weighted_mean
from rs_d2.losses.boxes import giou_loss, iou_loss, smooth_l1_loss
from rs_d2.losses.masks import dice_loss, mask_cross_entropy, semantic_cross_entropy
from rs_d2.utils.registry import Registry

TaskLoss = Callable[[Candidates], Tensor]
BOX_LOSSES: Registry[TaskLoss] = Registry("box loss")
MASK_LOSSES: Registry[TaskLoss] = Registry("mask loss")


@BOX_LOSSES.register("giou")
def giou_task(candidates: Candidates) -> Tensor:
    """``1 - GIoU`` of decoded boxes and ground truths, [P] in [0, 2]."""
    return giou_loss(candidates.pred_boxes, candidates.gt_boxes)


@BOX_LOSSES.register("iou")
def iou_task(candidates: Candidates) -> Tensor:
    """``1 - IoU`` of decoded boxes and ground truths, [P] in [0, 1]."""
    return iou_loss(candidates.pred_boxes, candidates.gt_boxes)


@BOX_LOSSES.register("smooth_l1")
def smooth_l1_task(candidates: Candidates) -> Tensor:
    """Smooth L1 loss of the raw outputs, [P]; see :func:`rs_d2.losses.boxes.smooth_l1_loss`."""
    gt_deltas = candidates.encode(candidates.anchors, candidates.gt_boxes)
    return smooth_l1_loss(candidates.pred_deltas, gt_deltas)


@MASK_LOSSES.register("dice")
def dice_task(candidates: Candidates) -> Tensor:
    """Dice loss of masks, [P] in [0, 1]; see :func:`rs_d2.losses.masks.dice_loss`."""
    return dice_loss(candidates.mask_logits, candidates.gt_masks)


@MASK_LOSSES.register("cross_entropy")
def mask_cross_entropy_task(candidates: Candidates) -> Tensor:
    """Mean binary cross-entropy of a mask's pixels, those that were not cropped away, [P]."""
    return mask_cross_entropy(candidates.mask_logits, candidates.gt_masks, candidates.mask_areas)


def quality_task(candidates: Candidates) -> Tensor:
    """Binary cross-entropy of the branch that predicts qualities, [P]."""
    return F.binary_cross_entropy_with_logits(
        candidates.quality_logits.float(), candidates.gt_quality, reduction="none"
    )


def semantic_task(candidates: Candidates) -> Tensor:
    """Loss of the branch that predicts the classes of pixels, one value per image, [N]."""
    return semantic_cross_entropy(candidates.semantic_logits, candidates.gt_semantic)


class Task(nn.Module):
    """A task's loss, its mean over the positives, and what balances it to the ranking loss.

    Args:
        loss: one value per positive.
        balancer: scales the mean.
        weighted: average with the criterion's weights, ``sum_i w_i L_i / sum_i w_i``; else plainly.
        outputs: name of the raw outputs in the record, for balancers that ask for gradients.
    """

    def __init__(
        self, loss: TaskLoss, balancer: Balancer, *, weighted: bool = True, outputs: str = ""
    ) -> None:
        super().__init__()
        self.loss = loss
        self.balancer = balancer
        self.weighted = weighted
        self.outputs = outputs

    def mean(self, candidates: Candidates, weights: Tensor, divisor: int | None) -> Tensor:
        """The loss before it is balanced, a scalar; a zero attached to the graph where P = 0.

        Args:
            candidates: the record.
            weights: [P].
            divisor: what the sum over the positives is divided by in place of their weights' sum.
        """
        values = self.loss(candidates)
        if not self.weighted:
            return values.sum() / max(len(values), 1)
        if divisor is not None:
            return (weights * values).sum() / divisor
        return weighted_mean(values, weights)
