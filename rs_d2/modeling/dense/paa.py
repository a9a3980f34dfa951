"""PAA: anchors are positive by a mixture model of what they cost, object by object.

Shapes: ``P`` positives, ``D`` detections, ``R`` candidates, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.tasks import BOX_LOSSES, TaskLoss
from rs_d2.losses.classification import focal_loss
from rs_d2.modeling.dense.anchor_detector import AnchorDenseDetector, Regions
from rs_d2.modeling.dense.predictions import Predictions
from rs_d2.ops.boxes import aligned_iou
from rs_d2.ops.nms import clip
from rs_d2.targets.assign_paa import assign_by_iou, separate_by_loss

_VOTING_MIN_IOU = 0.01
_VOTING_VARIANCE = 0.025


@META_ARCH_REGISTRY.register()
class PAA(AnchorDenseDetector):
    """Kim and Lee, Probabilistic Anchor Assignment with IoU Prediction (ECCV 2020).

    With focal loss the quality of a box is its IoU with its object.
    """

    @configurable
    def __init__(
        self,
        *,
        candidate_min_iou: float,
        separation_box_loss: TaskLoss,
        separation_box_weight: float,
        focal_alpha: float,
        focal_gamma: float,
        score_voting: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.candidate_min_iou = candidate_min_iou
        self.separation_box_loss = separation_box_loss
        self.separation_box_weight = separation_box_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.score_voting = score_voting

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of every dense detector, and PAA's own."""
        dense = cfg.MODEL.DENSE_HEAD
        weight = dense.SEPARATION_BOX_WEIGHT
        return {
            **super().from_config(cfg),
            "candidate_min_iou": dense.CANDIDATE_MIN_IOU,
            "separation_box_loss": BOX_LOSSES[dense.CRITERION.BOX_LOSS],
            "separation_box_weight": dense.BOX_LOSS_WEIGHT if weight is None else weight,
            "focal_alpha": cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
            "focal_gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
            "score_voting": dense.SCORE_VOTING,
        }

    def assign(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> list[Tensor]:
        """See :func:`rs_d2.targets.assign_paa.assign_by_iou`."""
        return assign_by_iou(anchors, gt_boxes, self.candidate_min_iou)

    @torch.no_grad()
    def chosen(self, candidates: Candidates, predictions: Predictions) -> Tensor:
        """Those of the cheaper component of their object's mixture; the others are negatives."""
        cost = focal_loss(
            candidates.positive_logits,
            candidates.positive_classes,
            self.focal_alpha,
            self.focal_gamma,
        )
        cost = cost + self.separation_box_weight * self.separation_box_loss(candidates)
        levels = predictions.level_of(candidates.positives % len(predictions.anchors))
        kept = separate_by_loss(cost, candidates.objects, levels, self.assign_topk)
        return kept | ~cost.isfinite()  # a diverged model must show in the losses

    def quality_targets(self, candidates: Candidates) -> Tensor:
        """IoU of the positives' decoded boxes with their objects', [P]."""
        return aligned_iou(candidates.pred_boxes.detach(), candidates.gt_boxes)

    def refine(self, detections: Instances, rows: Tensor, regions: Regions) -> Instances:
        """Replace each box by the mean of the regions around it; scores and order stay."""
        if not self.score_voting:
            return detections
        kept = regions.boxes.isfinite().all(1) & regions.scores.isfinite().all(1)
        voted = score_voting(
            detections.pred_boxes.tensor,
            detections.pred_classes,
            clip(regions.boxes[kept], detections.image_size),
            regions.scores[kept],
            self.test_score_thresh,
        )
        detections.pred_boxes = Boxes(voted)
        return detections


def score_voting(
    detected_boxes: Tensor,
    classes: Tensor,
    boxes: Tensor,
    scores: Tensor,
    score_thresh: float,
) -> Tensor:
    """Mean of the boxes around each detection, ``sum_r w_r b_r / sum_r w_r``.

    ``w_r = s_r exp(-(1 - IoU)^2 / 0.025)`` for the candidates whose score ``s_r`` for the
    detection's class exceeds the threshold and whose IoU with it exceeds 0.01, else 0.

    Args:
        detected_boxes: [D, 4], XYXY, each one of the candidates.
        classes: int64 [D].
        boxes: [R, 4], XYXY, finite.
        scores: [R, K].
        score_thresh: in [0, 1].

    Returns:
        [D, 4]; a detection without any such candidate keeps its box; empty for D = 0.
    """
    iou = pairwise_iou(Boxes(detected_boxes), Boxes(boxes))
    scores = scores.t()[classes]
    weights = scores * torch.exp(-((1 - iou) ** 2) / _VOTING_VARIANCE)
    weights = weights.masked_fill((scores <= score_thresh) | (iou <= _VOTING_MIN_IOU), 0.0)
    total = weights.sum(dim=1, keepdim=True)
    # In float64, which autocast and fast matrix modes leave alone: boxes need their digits.
    voted = weights.double() @ boxes.double() / total.masked_fill(total == 0, 1.0)
    return voted.to(detected_boxes.dtype).where(total > 0, detected_boxes)
