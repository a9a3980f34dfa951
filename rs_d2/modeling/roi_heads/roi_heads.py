"""ROI heads without a sampler: every proposal and every ground-truth box takes part.

Shapes: ``N`` images, ``Ri`` proposals of image i, ``K`` classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from rs_d2.balancing import BALANCERS
from rs_d2.modeling.roi_heads.fast_rcnn import RSFastRCNNOutputLayers
from rs_d2.targets.matching import match_by_iou

_CLASSIFICATION_LOSSES = ("loss_rank", "loss_sort", "loss_cls")


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
        ret["mask_balancer"] = BALANCERS[mask_head.CRITERION.BALANCE]()
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
        instances, losses = super().forward(images, features, proposals, targets)
        if "loss_mask" in losses:
            reference = sum(losses[name] for name in _CLASSIFICATION_LOSSES if name in losses)
            losses["loss_mask"] = self.mask_balancer(losses["loss_mask"], reference)
        return instances, losses

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.sampler == "random":
            return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)
        everything = torch.arange(len(matched_idxs), device=matched_idxs.device)
        if len(gt_classes) == 0:
            return everything, torch.full_like(everything, self.num_classes)
        classes = gt_classes[matched_idxs].masked_fill(matched_labels == 0, self.num_classes)
        return everything, classes.masked_fill(matched_labels == -1, -1)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training and self.mask_on:
            instances = limit_foreground(instances, self.num_classes, self.max_mask_positives)
        return super()._forward_mask(features, instances)


def limit_foreground(instances: list[Instances], num_classes: int, maximum: int) -> list[Instances]:
    """Keep at most ``maximum`` positives of the batch, drawn at random over all images.

    Every field stays with its instance, so weights and masks remain aligned.

    Args:
        instances: N instances with ``gt_classes``.
        num_classes: K; classes in [0, K) are positive.
        maximum: number of positives to keep.

    Returns:
        The input where it has no more positives; otherwise the drawn positives of each image in
        their original order.
    """
    foreground = [(i.gt_classes >= 0) & (i.gt_classes < num_classes) for i in instances]
    positives = torch.cat(foreground).nonzero().squeeze(1)
    if len(positives) <= maximum:
        return instances
    chosen = positives[torch.randperm(len(positives), device=positives.device)[:maximum]]
    keep = torch.zeros_like(torch.cat(foreground)).index_fill_(0, chosen, True)
    parts = keep.split([len(i) for i in instances])
    return [i[part] for i, part in zip(instances, parts, strict=True)]
