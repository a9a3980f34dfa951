"""The box head's predictor: K class-wise sigmoids, no background column.

Shapes: ``N`` images, ``R`` regions of the batch, ``K`` classes, ``P`` positives.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.criterion.candidates import Candidates, find_positives
from rs_d2.criterion.criterion import Criterion, LossOutput
from rs_d2.criterion.names import name_losses
from rs_d2.criterion.negatives import VERIFIED_FIELD, verified_negatives
from rs_d2.modeling.build import bias_for_prior, build_box_criterion
from rs_d2.modeling.inference import DecodedBoxes, detect
from rs_d2.ops.nms import BoxTable, StoredBoxes


class RSFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Class logits and box deltas whose losses come from a detection criterion.

    With a criterion that has no background column, the class layer has exactly K outputs, with
    weights from N(0, 0.01) and bias 0: the ranking needs no prior. With the cross-entropy criterion
    this is Detectron2's predictor.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, criterion: Criterion, num_classes: int, **kwargs: Any
    ) -> None:
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.criterion = criterion
        if criterion.num_columns == num_classes:
            self.cls_score = nn.Linear(self.cls_score.in_features, num_classes)
            nn.init.normal_(self.cls_score.weight, std=0.01)
            nn.init.zeros_(self.cls_score.bias)
            if criterion.ranking.prior_prob is not None:
                bias_for_prior(self.cls_score, criterion.ranking.prior_prob)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Detectron2's arguments and the criterion."""
        ret = super().from_config(cfg, input_shape)
        ret["criterion"] = build_box_criterion(cfg)
        return ret

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """The named losses of :meth:`loss_output`, as Detectron2's ROI heads ask for them."""
        return self.named_losses(self.loss_output(predictions, proposals))

    def named_losses(self, output: LossOutput) -> dict[str, Tensor]:
        """``loss_rank``, ``loss_box_reg`` and so on, times Detectron2's weights of those names."""
        named = name_losses(output.losses)
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in named.items()}

    def loss_output(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> LossOutput:
        """Losses of all regions of the batch, all their logits ranked in one list.

        Args:
            predictions: logits [R, K] and deltas [R, 4K], or [R, 4] for class-agnostic boxes.
            proposals: N instances with ``proposal_boxes``, ``gt_classes`` and, where the image has
                objects, ``gt_boxes``; with ``gt_verified`` where the data set says so.
        """
        logits, deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals])
        positives = find_positives(gt_classes, self.num_classes)
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])[positives]
        # An image without objects has no gt_boxes, and no positive that would read them.
        gt_boxes = cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        deltas = self._deltas_of_class(deltas[positives], gt_classes[positives])
        verified = [p.get_fields().get(VERIFIED_FIELD) for p in proposals]
        return self.criterion(
            Candidates(
                logits=logits,
                gt_classes=gt_classes,
                positives=positives,
                pred_boxes=self.box2box_transform.apply_deltas(deltas, proposal_boxes),
                gt_boxes=gt_boxes[positives],
                pred_deltas=deltas,
                anchors=proposal_boxes,
                **verified_negatives(verified, [len(p) for p in proposals], self.num_classes),
                encode=self.box2box_transform.get_deltas,
            )
        )

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image and the rows they come from; see ``rs_d2.modeling.inference``.

        Args:
            predictions: logits [R, K] or [R, K + 1], and deltas [R, 4K] or [R, 4].
            proposals: N instances with ``proposal_boxes``.
        """
        scores = self.predict_scores(predictions, proposals)
        deltas = predictions[1].split([len(p) for p in proposals])
        found = [
            detect(
                self._box_table(*image),
                image_scores,
                image[1].image_size,
                self.test_score_thresh,
                self.test_nms_thresh,
                self.test_topk_per_image,
            )
            for image, image_scores in zip(zip(deltas, proposals, strict=True), scores, strict=True)
        ]
        return [instances for instances, _ in found], [rows for _, rows in found]

    def predict_scores(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """Scores [Ri, K] of each image's regions, without a background column, in float32."""
        if self.criterion.num_columns != self.num_classes:
            return [probs[:, :-1] for probs in self.predict_probs(predictions, proposals)]
        # Half precision has a thousand values between 0.5 and 1: ties would decide.
        return list(predictions[0].float().sigmoid().split([len(p) for p in proposals]))

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """Scores [Ri, K + 1] for code of Detectron2's that drops the last column, the background's.

        With class-wise sigmoids that column is zero. ``predict_scores`` goes without it.
        """
        if self.criterion.num_columns != self.num_classes:
            return super().predict_probs(predictions, proposals)
        return [F.pad(scores, (0, 1)) for scores in self.predict_scores(predictions, proposals)]

    def _box_table(self, deltas: Tensor, proposals: Instances) -> BoxTable:
        boxes, size = proposals.proposal_boxes.tensor, proposals.image_size
        if deltas.shape[1] > 4:
            return DecodedBoxes(self.box2box_transform, deltas, boxes, size)
        return StoredBoxes(self.box2box_transform.apply_deltas(deltas, boxes), size)

    @staticmethod
    def _deltas_of_class(deltas: Tensor, classes: Tensor) -> Tensor:
        """[P, 4]: the deltas of each positive's own class, from [P, 4K] or [P, 4]."""
        if deltas.shape[1] == 4:
            return deltas
        return deltas.unflatten(1, (-1, 4))[
            torch.arange(len(classes), device=classes.device), classes
        ]
