"""Detectron2's RetinaNet with Rank & Sort Loss in place of focal loss, for the benchmark."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes
from torch import Tensor

from rs_d2.criterion import (
    BALANCERS,
    BOX_LOSSES,
    LABELS,
    RANKINGS,
    WEIGHTS,
    Candidates,
    Criterion,
    Task,
    find_positives,
)


@META_ARCH_REGISTRY.register()
class RankSortRetinaNet(RetinaNet):
    """All anchors of the batch in one ranking; everything but the losses is RetinaNet's."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = Criterion(
            ranking=RANKINGS["rank_sort"](num_classes=self.num_classes),
            label=LABELS["iou"],
            weight=WEIGHTS["score"],
            tasks={"box": Task(BOX_LOSSES["giou"], BALANCERS["value"]())},
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
        positives = find_positives(labels, self.num_classes)
        all_anchors = Boxes.cat(anchors).tensor.repeat(len(gt_labels), 1)
        deltas = torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)[positives]
        candidates = Candidates(
            logits=torch.cat(pred_logits, dim=1).flatten(0, 1),
            gt_classes=labels,
            positives=positives,
            pred_boxes=self.box2box_transform.apply_deltas(deltas, all_anchors[positives]),
            gt_boxes=torch.cat(gt_boxes)[positives],
        )
        return self.criterion(candidates).losses
