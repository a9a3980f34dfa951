"""Test-time augmentation whose detections are merged by the exact search."""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNNWithTTA as _GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor

from rs_d2.modeling.inference import select_detections
from rs_d2.ops.nms import clip

_SCORE_THRESH = 1e-8  # Detectron2's: the model has applied MODEL.ROI_HEADS.SCORE_THRESH_TEST


class GeneralizedRCNNWithTTA(_GeneralizedRCNNWithTTA):
    """Detectron2's model of this name; the boxes of all views are merged as a list.

    Detectron2 spreads them over a matrix of boxes times classes first.
    """

    def _merge_detections(
        self,
        all_boxes: Tensor,
        all_scores: list[Tensor],
        all_classes: list[Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        scores, classes = (
            torch.stack(values) if values else all_boxes.new_empty(0)
            for values in (all_scores, all_classes)
        )
        candidates = Instances(
            shape_hw, pred_boxes=Boxes(all_boxes), scores=scores, pred_classes=classes.long()
        )
        finite = all_boxes.isfinite().all(1)
        candidates = candidates[(scores > _SCORE_THRESH) & finite]
        candidates.pred_boxes = Boxes(clip(candidates.pred_boxes.tensor, shape_hw))
        return select_detections(
            candidates, self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, self.cfg.TEST.DETECTIONS_PER_IMAGE
        )
