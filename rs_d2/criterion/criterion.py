"""The one place that turns logits, classes and boxes into losses; every head calls it.

Shapes: ``R`` candidates, ``K`` classes, ``P`` positives (candidates with a class in [0, K)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rs_d2.criterion.labels import LabelFunction
from rs_d2.criterion.weights import WeightFunction, uniform_weights, weighted_mean
from rs_d2.losses import rank_sort_loss
from rs_d2.losses.boxes import BoxLoss
from rs_d2.losses.classification import cross_entropy_loss, focal_loss
from rs_d2.losses.masks import MaskLoss
from rs_d2.targets.assign_iou import foreground_index


class LossOutput(NamedTuple):
    """What a detection criterion returns.

    ``losses``: named scalars, each attached to the graph; their sum is the head's loss.
    ``weights``: [P], detached instance weights, in the order of the positives; the mask head
    uses them again. ``reference``: detached scalar, the value other tasks are balanced to.
    """

    losses: dict[str, Tensor]
    weights: Tensor
    reference: Tensor


class RankSortCriterion(nn.Module):
    """Rank & Sort Loss over class-wise sigmoid logits with a box loss balanced to it.

    ``rank`` and ``sort`` rank all R x K logits of the batch in one list; the positive entry of a
    candidate is labelled with its localisation quality. ``box = balance(sum_i w_i L_i / sum_i
    w_i)`` over the positives. Nothing is sampled, no column stands for the background.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        delta: float,
        label_function: LabelFunction,
        weight_function: WeightFunction,
        box_loss: BoxLoss,
        balancer: nn.Module,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_columns = num_classes
        self.delta = delta
        self.label_function = label_function
        self.weight_function = weight_function
        self.box_loss = box_loss
        self.balancer = balancer

    def forward(
        self, logits: Tensor, gt_classes: Tensor, pred_boxes: Tensor, gt_boxes: Tensor
    ) -> LossOutput:
        """The losses ``rank``, ``sort`` and ``box`` of one batch.

        Args:
            logits: [R, K].
            gt_classes: [R], int64: the class, K for the background, below 0 for ignored.
            pred_boxes: [P, 4], XYXY, decoded boxes of the positives in the order of their rows.
            gt_boxes: [P, 4], XYXY, their ground truths.

        Returns:
            Losses, weights and reference; all losses are zeros attached to the graph where P = 0.
        """
        positives = foreground_index(gt_classes, self.num_classes)
        quality = self.label_function(pred_boxes, gt_boxes)
        # A diverged box has no quality: the losses become NaN, which training reports by name.
        poison = 0 * quality.sum()
        targets = self._targets(logits, gt_classes, positives, quality.nan_to_num(1.0))
        losses = rank_sort_loss(logits.flatten(), targets.flatten(), self.delta)
        ranking, sorting = (loss + poison for loss in losses)
        reference = (ranking + sorting).detach()
        weights = self.weight_function(logits[positives], pred_boxes, gt_boxes)
        box = weighted_mean(self.box_loss(pred_boxes, gt_boxes), weights)
        losses = {"rank": ranking, "sort": sorting, "box": self.balancer(box, reference)}
        return LossOutput(losses, weights, reference)

    def _targets(
        self,
        logits: Tensor,
        gt_classes: Tensor,
        positives: Tensor,
        quality: Tensor,
    ) -> Tensor:
        """[R, K]: quality at a positive's class, 0 elsewhere, -1 in the rows that are ignored."""
        targets = torch.zeros_like(logits, dtype=torch.float32)
        targets.masked_fill_((gt_classes < 0)[:, None], -1.0)
        targets[positives, gt_classes[positives]] = quality.to(targets.dtype)
        return targets


class CrossEntropyCriterion(nn.Module):
    """Detectron2's baseline: cross-entropy, and the box loss summed over positives.

    Both are divided by the number of candidates that are not ignored, so that every positive has
    the same influence however many there are.
    """

    def __init__(self, *, num_classes: int, box_loss: BoxLoss) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_columns = num_classes + 1
        self.box_loss = box_loss

    def forward(
        self, logits: Tensor, gt_classes: Tensor, pred_boxes: Tensor, gt_boxes: Tensor
    ) -> LossOutput:
        """The losses ``cls`` and ``box``; arguments as :class:`RankSortCriterion`'s.

        ``logits`` may have K columns (class-wise sigmoid) or K + 1 (softmax, last the background).
        """
        used = (gt_classes >= 0).nonzero().squeeze(1)
        count = max(len(used), 1)
        cls = cross_entropy_loss(logits[used], gt_classes[used], self.num_classes).sum() / count
        box = self.box_loss(pred_boxes, gt_boxes).sum() / count
        weights = uniform_weights(logits, pred_boxes, gt_boxes)
        return LossOutput({"cls": cls, "box": box}, weights, cls.detach())


class FocalCriterion(nn.Module):
    """The dense detectors' baseline: focal loss, and a box loss weighted by the boxes' quality.

    ``cls = sum of focal losses / P`` and ``box = weight * sum_i q_i L_i / sum_i q_i``.
    """

    def __init__(
        self, *, num_classes: int, alpha: float, gamma: float, box_loss: BoxLoss, box_weight: float
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_columns = num_classes
        self.alpha = alpha
        self.gamma = gamma
        self.box_loss = box_loss
        self.box_weight = box_weight

    def forward(
        self,
        logits: Tensor,
        gt_classes: Tensor,
        pred_boxes: Tensor,
        gt_boxes: Tensor,
        quality: Tensor,
    ) -> LossOutput:
        """The losses ``cls`` and ``box``; further arguments as :class:`RankSortCriterion`'s.

        Args:
            logits: [R, K].
            gt_classes: [R].
            pred_boxes: [P, 4].
            gt_boxes: [P, 4].
            quality: [P], in [0, 1], detached: what the detector's quality branch is to predict.
        """
        used = (gt_classes >= 0).nonzero().squeeze(1)
        count = max(len(pred_boxes), 1)
        cls = focal_loss(logits[used], gt_classes[used], self.alpha, self.gamma).sum() / count
        box = weighted_mean(self.box_loss(pred_boxes, gt_boxes), quality) * self.box_weight
        return LossOutput({"cls": cls, "box": box}, quality, cls.detach())


class MaskCriterion(NamedTuple):
    """Mask loss of the positives, weighted like their boxes; the ROI heads balance it.

    Not a module: Detectron2's mask head is a sequence that would run it as one of its layers.
    """

    mask_loss: MaskLoss
    use_weights: bool

    def __call__(self, mask_logits: Tensor, gt_masks: Tensor, weights: Tensor) -> Tensor:
        """``sum_i w_i L_i / sum_i w_i``.

        Args:
            mask_logits: [P, H, W], the logits of each positive's own class.
            gt_masks: [P, H, W], values in {0, 1}.
            weights: [P], from the box head's :class:`LossOutput`.

        Returns:
            A scalar; a zero attached to the graph where P = 0.
        """
        if not self.use_weights:
            weights = torch.ones_like(weights)
        return weighted_mean(self.mask_loss(mask_logits, gt_masks), weights)
