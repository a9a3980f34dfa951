"""ROI heads without a sampler: every proposal and every ground-truth box takes part.

Shapes: ``N`` images, ``Ri`` proposals of image i, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn

from rs_d2.criterion.criterion import LossOutput
from rs_d2.criterion.negatives import VERIFIED_FIELD, VerifiedClasses
from rs_d2.losses import across_processes
from rs_d2.modeling.build import build_mask_balancer
from rs_d2.modeling.roi_heads.fast_rcnn import RSFastRCNNOutputLayers
from rs_d2.modeling.roi_heads.mask_head import MaskRows, RSMaskRCNNConvUpsampleHead
from rs_d2.targets.assign_iou import match_by_iou
from rs_d2.utils.d2_compat import put_scalar
from rs_d2.utils.errors import UserError

# From the IoU of objects and regions to each region's object and label (1, 0 or -1).
Matcher = Callable[[Tensor], tuple[Tensor, Tensor]]


@ROI_HEADS_REGISTRY.register()
class RSROIHeads(StandardROIHeads):
    """Box and mask heads whose mask loss is weighted and balanced by the box head's ranking.

    Keypoint heads work as in Detectron2, unbalanced.
    """

    predictor_class: type[nn.Module] = RSFastRCNNOutputLayers

    @configurable
    def __init__(
        self, *, sampler: str, mask_balancer: nn.Module, max_mask_positives: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler
        self.mask_balancer = mask_balancer
        self.max_mask_positives = max_mask_positives

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's arguments, with our matcher, sampler, predictor and mask balancer."""
        ret = super().from_config(cfg, input_shape)
        roi_heads, mask_head = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_MASK_HEAD
        ret["proposal_matcher"] = partial(
            match_by_iou,
            thresholds=roi_heads.IOU_THRESHOLDS,
            labels=roi_heads.IOU_LABELS,
            low_quality_min_iou=roi_heads.LOW_QUALITY_MIN_IOU,
        )
        ret["sampler"] = roi_heads.SAMPLER
        ret["mask_balancer"] = build_mask_balancer(cfg)
        is_ours = isinstance(ret.get("mask_head"), RSMaskRCNNConvUpsampleHead)
        if cfg.MODEL.MASK_ON and mask_head.CRITERION.BALANCE == "magnitude" and not is_ours:
            raise UserError(
                "MODEL.ROI_MASK_HEAD.CRITERION.BALANCE: magnitude needs the raw outputs behind the"
                f" loss, which MODEL.ROI_MASK_HEAD.NAME {mask_head.NAME} does not give"
            )
        ret["max_mask_positives"] = mask_head.MAX_POSITIVES
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # Detectron2 names its predictor inside this method, so it is built and then replaced.
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = cls.predictor_class(cfg, ret["box_head"].output_shape)
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Losses in training, detections otherwise; see Detectron2's ``ROIHeads.forward``."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses, box = self.box_losses(features, proposals, targets)
        if self.mask_on:
            losses["loss_mask"] = self.mask_loss(features, proposals, box)
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> tuple[dict[str, Tensor], LossOutput]:
        """Named losses of the box head, and the output that other heads are balanced to.

        Args:
            features: by level.
            proposals: N labelled instances.
            targets: N instances with the ground truth, which a cascade labels anew with.
        """
        levels = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(levels, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        output = self.box_predictor.loss_output(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
                for instances, predicted in zip(proposals, boxes, strict=True):
                    instances.proposal_boxes = Boxes(predicted)
        return self.box_predictor.named_losses(output), output

    def mask_loss(
        self, features: dict[str, Tensor], proposals: list[Instances], box: LossOutput
    ) -> Tensor:
        """The mask head's loss over the box head's positives, balanced to its ranking.

        Args:
            features: by level.
            proposals: N instances that ``box`` was computed from.
            box: its positives and their weights.
        """
        instances = choose_positives(proposals, box, self.max_mask_positives)
        if self.mask_pooler is None:
            x = {name: features[name] for name in self.mask_in_features}
        else:
            levels = [features[name] for name in self.mask_in_features]
            x = self.mask_pooler(levels, [i.proposal_boxes for i in instances])
        if isinstance(self.mask_head, RSMaskRCNNConvUpsampleHead):
            with across_processes(box.is_global):
                loss, outputs = self.mask_head.mean_loss(x, instances)
        else:  # one of Detectron2's
            loss, outputs = self.mask_head(x, instances)["loss_mask"], None
        return box.balance(self.mask_balancer, loss, outputs)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Label all proposals, and add the ground-truth boxes as positives of their own.

        Args:
            proposals: N instances with ``proposal_boxes``.
            targets: N instances with ``gt_boxes``, ``gt_classes`` and further ``gt_*`` fields.

        Returns:
            N instances with ``gt_classes`` (K is the background) and, for images with objects,
            every ``gt_*`` field of the object that each proposal belongs to.
        """
        carry_verified(targets, proposals)
        if self.sampler == "random":
            return super().label_and_sample_proposals(proposals, targets)
        return self.label_proposals(proposals, targets, self.proposal_matcher)

    def label_proposals(
        self, proposals: list[Instances], targets: list[Instances], matcher: Matcher
    ) -> list[Instances]:
        """:meth:`label_and_sample_proposals` with a matcher of the caller's, and no sampler."""
        labelled = [self._label(p, t, matcher) for p, t in zip(proposals, targets, strict=True)]
        background = sum((i.gt_classes == self.num_classes).sum() for i in labelled)
        everything = sum(len(i) for i in labelled)
        put_scalar("roi_head/num_fg_samples", (everything - background) / len(labelled))
        put_scalar("roi_head/num_bg_samples", background / len(labelled))
        return labelled

    def _label(self, proposals: Instances, targets: Instances, matcher: Matcher) -> Instances:
        # Matched before the ground truths join: each would overlap its own copy most, and a
        # claim on the best proposal (LOW_QUALITY_MIN_IOU) could not be made.
        iou = pairwise_iou(targets.gt_boxes, proposals.proposal_boxes)
        index, label = matcher(iou)
        if self.proposal_append_gt:
            (proposals,) = add_ground_truth_to_proposals([targets], [proposals])
            own = torch.arange(len(targets), device=index.device)
            index, label = torch.cat([index, own]), torch.cat([label, label.new_ones(len(own))])
        if len(targets) == 0:
            proposals.gt_classes = torch.full_like(index, self.num_classes)
            return proposals
        classes = targets.gt_classes[index].masked_fill(label == 0, self.num_classes)
        proposals.gt_classes = classes.masked_fill(label == -1, -1)
        for name, value in targets.get_fields().items():
            if name == "gt_masks":
                proposals.gt_masks = MaskRows(value, index)
            elif name.startswith("gt_") and name != "gt_classes":
                proposals.set(name, value[index])
        return proposals


def carry_verified(targets: list[Instances], proposals: list[Instances]) -> None:
    """Give the proposals of each image what its ground truth says about the verified classes.

    The fields of objects reach proposals by the object of each, which an image may have none of.
    """
    for of_image, regions in zip(targets, proposals, strict=True):
        if of_image.has(VERIFIED_FIELD):
            classes = of_image.get(VERIFIED_FIELD).classes
            regions.set(VERIFIED_FIELD, VerifiedClasses.of(classes, len(regions)))


def choose_positives(proposals: list[Instances], box: LossOutput, maximum: int) -> list[Instances]:
    """At most ``maximum`` positives of the batch, drawn at random over all images.

    Args:
        proposals: N instances, those that ``box`` was computed from.
        box: its positives and their weights.
        maximum: number of positives to keep.

    Returns:
        N instances, the positives of each image in their original order, with a further field
        ``loss_weight``: the box head's weight of each.
    """
    positives, weights = box.candidates.positives, box.weights
    if len(positives) > maximum:
        drawn = torch.randperm(len(positives), device=positives.device)[:maximum].sort().values
        positives, weights = positives[drawn], weights[drawn]
    counts = [len(p) for p in proposals]
    ends = torch.tensor([*accumulate(counts)], device=positives.device)
    images = torch.bucketize(positives, ends, right=True)
    sizes = torch.bincount(images, minlength=len(proposals)).tolist()
    chosen = []
    starts = accumulate(counts, initial=0)
    for instances, start, rows, weight in zip(
        proposals, starts, positives.split(sizes), weights.split(sizes), strict=False
    ):
        kept = instances[rows - start]
        kept.loss_weight = weight
        chosen.append(kept)
    return chosen
