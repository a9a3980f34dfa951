"""The region proposal network without a sampler, trained by a detection criterion.

Shapes: ``N`` images, ``A`` anchors of an image over all levels, ``P`` positives of the batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor

from rs_d2.criterion.candidates import Candidates, find_positives
from rs_d2.criterion.criterion import Criterion
from rs_d2.criterion.names import name_losses
from rs_d2.modeling.build import bias_for_prior, build_rpn_criterion
from rs_d2.ops.boxes import PAD_MULTIPLE, centers_beyond
from rs_d2.targets.assign_iou import match_by_iou
from rs_d2.utils.d2_compat import put_scalar


@PROPOSAL_GENERATOR_REGISTRY.register()
class RSRPN(RPN):
    """RPN whose every anchor that is not ignored enters the ranking of the whole batch.

    Anchors are positive from the upper IoU threshold on, or where a ground truth overlaps them most
    and by at least ``MODEL.RPN.LOW_QUALITY_MIN_IOU``. Anchors centred in batch padding are ignored,
    and with ``MODEL.RPN.BOUNDARY_THRESH`` of 0 or more those that cross the border by more pixels.
    All loss terms are multiplied by ``MODEL.RPN.LOSS_WEIGHT`` (published: 0.20).
    """

    @configurable
    def __init__(self, *, criterion: Criterion, sampler: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = criterion
        self.sampler = sampler
        if criterion.ranking.prior_prob is not None:
            bias_for_prior(self.rpn_head.objectness_logits, criterion.ranking.prior_prob)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's arguments, with our matcher, criterion and sampler."""
        ret = super().from_config(cfg, input_shape)
        rpn = cfg.MODEL.RPN
        ret["anchor_matcher"] = partial(
            match_by_iou,
            thresholds=rpn.IOU_THRESHOLDS,
            labels=rpn.IOU_LABELS,
            low_quality_min_iou=rpn.LOW_QUALITY_MIN_IOU,
        )
        ret["criterion"] = build_rpn_criterion(cfg)
        ret["sampler"] = rpn.SAMPLER
        return ret

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label each image's anchors 1, 0 or -1 (ignored), and give each its ground-truth box.

        Without a sampler, ignored anchors are left out before matching, so that a ground truth
        claims the best of the others.

        Returns:
            N label tensors [A] and N tensors [A, 4] of boxes, XYXY, absolute pixels.
        """
        if self.sampler == "random":
            return super().label_and_sample_anchors(anchors, gt_instances)
        all_anchors = Boxes.cat(anchors)
        gt_labels, gt_boxes = [], []
        for instances in gt_instances:
            ignored = self._ignored(all_anchors, instances.image_size)
            iou = retry_if_cuda_oom(pairwise_iou)(instances.gt_boxes, all_anchors)
            iou.masked_fill_(ignored.to(iou.device), 0)  # too little for any claim
            index, labels = retry_if_cuda_oom(self.anchor_matcher)(iou)
            gt_labels.append(labels.to(ignored.device).masked_fill_(ignored, -1))
            if len(instances) > 0:
                gt_boxes.append(instances.gt_boxes.tensor[index])
            else:
                gt_boxes.append(torch.zeros_like(all_anchors.tensor))
        return gt_labels, gt_boxes

    def _ignored(self, anchors: Boxes, image_size: tuple[int, int]) -> Tensor:
        """Anchors centred in batch padding or, with ``BOUNDARY_THRESH``, across the border."""
        ignored = centers_beyond(anchors.tensor, image_size, PAD_MULTIPLE)
        if self.anchor_boundary_thresh >= 0:
            ignored |= ~anchors.inside_box(image_size, self.anchor_boundary_thresh)
        return ignored

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of all anchors of the batch, ranked in one list.

        Args:
            anchors: per level [Hi*Wi*Ai, 4].
            pred_objectness_logits: per level [N, Hi*Wi*Ai].
            gt_labels: per image [A].
            pred_anchor_deltas: per level [N, Hi*Wi*Ai, 4].
            gt_boxes: per image [A, 4], XYXY.

        Returns:
            ``loss_rpn_rank``, ``loss_rpn_sort`` (or ``loss_rpn_cls``) and ``loss_rpn_loc``.
        """
        labels = torch.stack(gt_labels).flatten()
        self._log_counts(labels, num_images=len(gt_labels))
        # One foreground class: 0 is an object, 1 the background.
        gt_classes = torch.where(labels >= 0, 1 - labels, labels).long()
        positives = find_positives(gt_classes, num_classes=1)
        deltas = cat(pred_anchor_deltas, dim=1).flatten(0, 1)[positives]
        all_anchors = Boxes.cat(anchors).tensor
        positive_anchors = all_anchors[positives % len(all_anchors)]
        candidates = Candidates(
            logits=cat(pred_objectness_logits, dim=1).flatten()[:, None],
            gt_classes=gt_classes,
            positives=positives,
            pred_boxes=self.box2box_transform.apply_deltas(deltas, positive_anchors),
            gt_boxes=torch.stack(gt_boxes).flatten(0, 1)[positives],
            pred_deltas=deltas,
            anchors=positive_anchors,
            encode=self.box2box_transform.get_deltas,
        )
        named = name_losses(self.criterion(candidates).losses, "rpn")
        # The ranking terms share the weight that Detectron2 gives to objectness.
        common = self.loss_weight["loss_rpn_cls"]
        return {name: loss * self.loss_weight.get(name, common) for name, loss in named.items()}

    @staticmethod
    def _log_counts(labels: Tensor, num_images: int) -> None:
        put_scalar("rpn/num_pos_anchors", (labels == 1).sum() / num_images)
        put_scalar("rpn/num_neg_anchors", (labels == 0).sum() / num_images)
