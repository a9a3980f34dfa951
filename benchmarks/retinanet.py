"""Detectron2's RetinaNet with Rank & Sort Loss in place of focal loss, for the benchmark."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes
from torch import Tensor

from rs_d2.criterion.balancing import ValueBalancer
from rs_d2.criterion.criterion import RankSortCriterion
from rs_d2.criterion.labels import iou_labels
from rs_d2.criterion.weights import WEIGHTS
from rs_d2.losses.boxes import giou_loss


@META_ARCH_REGISTRY.register()
class RankSortRetinaNet(RetinaNet):
    """All anchors of the batch in one ranking; everything but the losses is RetinaNet's."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = RankSortCriterion(
            num_classes=self.num_classes,
            delta=0.5,
            label_function=iou_labels,
            weight_function=WEIGHTS["score"],
            box_loss=giou_loss,
            balancer=ValueBalancer(),
        )

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Any]:
        """Arguments as in the base class."""
        labels = torch.stack(gt_labels).flatten()
        positive = ((labels >= 0) & (labels < self.num_classes)).nonzero().squeeze(1)
        all_anchors = Boxes.cat(anchors).tensor.repeat(len(gt_labels), 1)
        deltas = torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)[positive]
        pred_boxes = self.box2box_transform.apply_deltas(deltas, all_anchors[positive])
        logits = torch.cat(pred_logits, dim=1).flatten(0, 1)
        target_boxes = torch.cat(gt_boxes)[positive]
        return self.criterion(logits, labels, pred_boxes, target_boxes).losses
