"""The cascade without samplers: three box heads, each with a ranking of its own.

Shapes: ``N`` images, ``Ri`` proposals of image i, ``K`` classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, build_box_head
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from rs_d2.criterion.criterion import LossOutput
from rs_d2.criterion.names import name_stage
from rs_d2.modeling.build import build_box_criterion
from rs_d2.modeling.inference import fast_rcnn_inference
from rs_d2.modeling.roi_heads.roi_heads import RSROIHeads, carry_verified
from rs_d2.targets.assign_iou import match_by_iou
from rs_d2.utils.errors import UserError

Predictions = tuple[Tensor, Tensor]


@ROI_HEADS_REGISTRY.register()
class RSCascadeROIHeads(RSROIHeads, CascadeROIHeads):
    """Cascade R-CNN whose stages each rank all of their regions.

    Every stage matches with its own IoU threshold, has its own criterion and counts fully: its
    gradient reaches the features unscaled. The ground-truth boxes join each stage anew. Detections
    take the last stage's boxes, scored by the sigmoid of the mean logits (with the cross-entropy
    criterion: by the mean probabilities, as in Detectron2). The mask head works on the first
    stage's regions, weighted and balanced by the first stage.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of both parents; the first stage's matcher is that of ``RSROIHeads``."""
        _check_stages(cfg)
        ret = super().from_config(cfg, input_shape)
        later = [
            partial(match_by_iou, thresholds=[iou], labels=[0, 1], low_quality_min_iou=1.0)
            for iou in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS[1:]
        ]
        ret["proposal_matchers"] = [ret.pop("proposal_matcher"), *later]
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # Not Detectron2's: that builds predictors of a class that it names itself.
        box_head = cfg.MODEL.ROI_BOX_HEAD
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        side = box_head.POOLER_RESOLUTION
        pooled = ShapeSpec(channels=input_shape[names[0]].channels, width=side, height=side)
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        weights = cascade.BBOX_REG_WEIGHTS
        heads = [build_box_head(cfg, pooled) for _ in weights]
        return {
            "box_in_features": names,
            "box_pooler": ROIPooler(
                output_size=side,
                scales=tuple(1.0 / input_shape[name].stride for name in names),
                sampling_ratio=box_head.POOLER_SAMPLING_RATIO,
                pooler_type=box_head.POOLER_TYPE,
            ),
            "box_heads": heads,
            "box_predictors": [
                cls.predictor_class(
                    cfg,
                    head.output_shape,
                    box2box_transform=Box2BoxTransform(weights=stage),
                    criterion=build_box_criterion(cfg, positive_iou=iou),
                )
                for head, stage, iou in zip(heads, weights, cascade.IOUS, strict=True)
            ],
        }

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> list[Instances]:
        levels = [features[name] for name in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        boxes, predictions = (), []
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions.append(self._run_stage(levels, proposals, stage))
            boxes = predictor.predict_boxes(predictions[-1], proposals)
        scores = self._mean_scores(predictions, proposals)
        limits = predictor.test_score_thresh, predictor.test_nms_thresh
        return fast_rcnn_inference(boxes, scores, sizes, *limits, predictor.test_topk_per_image)[0]

    def box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> tuple[dict[str, Tensor], LossOutput]:
        """Losses of all stages, named with ``_stage0`` and so on, and the first stage's output."""
        levels = [features[name] for name in self.box_in_features]
        boxes, losses, outputs = (), {}, []
        for stage, predictor in enumerate(self.box_predictor):
            with get_event_storage().name_scope(f"stage{stage}"):
                if stage > 0:
                    proposals = self._next_proposals(boxes, targets, stage)
                predictions = self._run_stage(levels, proposals, stage)
                outputs.append(predictor.loss_output(predictions, proposals))
            losses.update(name_stage(predictor.named_losses(outputs[-1]), stage))
            with torch.no_grad():
                boxes = predictor.predict_boxes(predictions, proposals)
        return losses, outputs[0]

    @torch.no_grad()
    def _next_proposals(
        self, boxes: tuple[Tensor, ...], targets: list[Instances], stage: int
    ) -> list[Instances]:
        """Labelled regions of a later stage from the boxes of the one before.

        Args:
            boxes: N tensors [Ri, 4], XYXY.
            targets: N instances with the ground truth.
            stage: 1 or above.
        """
        if self.sampler == "none" and self.proposal_append_gt:
            # The refined copies of the ground truths, at the end; the originals join anew.
            boxes = [b[: len(b) - len(t)] for b, t in zip(boxes, targets, strict=True)]
        proposals = self._create_proposals_from_boxes(boxes, [t.image_size for t in targets])
        carry_verified(targets, proposals)
        if self.sampler == "random":
            return self._match_and_label_boxes(proposals, stage, targets)
        for p in proposals:  # the ground truths that join them bring this field
            p.objectness_logits = p.proposal_boxes.tensor.new_zeros(len(p))
        return self.label_proposals(proposals, targets, self.proposal_matchers[stage])

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> Predictions:
        # Detectron2 divides the features' gradient by the number of stages.
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _mean_scores(
        self, predictions: list[Predictions], proposals: list[Instances]
    ) -> list[Tensor]:
        """Scores [Ri, K] of each image's regions over all stages."""
        last = self.box_predictor[-1]
        if last.criterion.num_columns == self.num_classes:
            logits = torch.stack([logits.float() for logits, _ in predictions]).mean(0)
            return last.predict_scores((logits, predictions[-1][1]), proposals)
        stages = zip(self.box_predictor, predictions, strict=True)
        scores = [predictor.predict_scores(p, proposals) for predictor, p in stages]
        return [torch.stack(image).mean(0) for image in zip(*scores, strict=True)]


def _check_stages(cfg: CfgNode) -> None:
    cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise UserError(
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True for RSCascadeROIHeads: a stage "
            "hands one box per region to the next"
        )
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise UserError(
            "MODEL.ROI_BOX_CASCADE_HEAD: IOUS and BBOX_REG_WEIGHTS must have one entry per stage, "
            f"got {len(cascade.IOUS)} and {len(cascade.BBOX_REG_WEIGHTS)}"
        )
    if cascade.IOUS[0] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]:
        raise UserError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS starts with {cascade.IOUS[0]}, but the first stage "
            f"uses MODEL.ROI_HEADS.IOU_THRESHOLDS, {list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)}"
        )
