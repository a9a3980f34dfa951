"""YOLACT: masks are sums of an image's prototypes, with coefficients from each anchor.

Shapes: ``N`` images, ``K`` classes, ``M`` prototypes of ``h x w`` cells, ``P`` positives, ``G``
objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from rs_d2.criterion.balancing import BALANCERS
from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.criterion import Criterion
from rs_d2.criterion.ranking import RANKINGS
from rs_d2.criterion.tasks import Task, semantic_task
from rs_d2.modeling.anchor_generator import SpanningAnchorGenerator
from rs_d2.modeling.build import build_dense_criterion, build_mask_task
from rs_d2.modeling.dense.anchor_detector import (
    AnchorDenseDetector,
    Regions,
    anchors_per_cell,
    build_anchors,
)
from rs_d2.modeling.dense.image_masks import ImageMasks, gt_bitmaps
from rs_d2.modeling.dense.predictions import HeadOutputs, Predictions
from rs_d2.modeling.dense.yolact_head import YOLACTHead
from rs_d2.ops.fast_nms import fast_nms
from rs_d2.ops.masks import OUTSIDE, assemble, inside_boxes, to_grid
from rs_d2.targets.assign_yolact import assign_yolact
from rs_d2.utils.errors import UserError


@META_ARCH_REGISTRY.register()
class YOLACT(AnchorDenseDetector):
    """Bolya et al., YOLACT: Real-time Instance Segmentation (ICCV 2019).

    Masks are cropped to the boxes, in training to those of the ground truths. With a ranking there
    is no column for the background, no choice of negatives and no semantic branch; the baseline
    has them. Without ``MODEL.MASK_ON`` boxes are all that it learns.
    """

    may_have_background: ClassVar[bool] = True

    @configurable
    def __init__(self, *, nms: str, nms_topk: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if nms == "fast":
            self.search = partial(fast_nms, topk_per_class=nms_topk)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of every dense detector, and YOLACT's own."""
        ret = super().from_config(cfg)
        if not isinstance(ret["anchor_generator"], SpanningAnchorGenerator):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.NAME: {cfg.MODEL.ANCHOR_GENERATOR.NAME} is no"
                " SpanningAnchorGenerator, which YOLACT needs"
            )
        return {**ret, "nms": cfg.MODEL.YOLACT.NMS, "nms_topk": cfg.MODEL.YOLACT.NMS_TOPK}

    @classmethod
    def build_criterion(cls, cfg: CfgNode) -> Criterion:
        """Boxes, masks where they are on, and the classes of pixels where there is the branch."""
        criterion = build_dense_criterion(cfg)
        if cfg.MODEL.MASK_ON:
            criterion.tasks["mask"] = build_mask_task(cfg)
        if _has_semantic_branch(cfg):
            balancer = BALANCERS["constant"]()
            criterion.tasks["semantic"] = Task(semantic_task, balancer, weighted=False)
        return criterion

    @classmethod
    def build_head(cls, cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
        """One convolution for all that is predicted, and prototypes where there are masks."""
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
        ranking = RANKINGS[cfg.MODEL.DENSE_HEAD.CRITERION.LOSS]
        return YOLACTHead(
            in_channels=shapes[0].channels,
            num_anchors=anchors_per_cell(build_anchors(cfg, shapes)),
            num_columns=ranking(num_classes=num_classes).num_columns,
            num_prototypes=cfg.MODEL.YOLACT.NUM_PROTOTYPES if cfg.MODEL.MASK_ON else 0,
            num_semantic_classes=num_classes if _has_semantic_branch(cfg) else 0,
            prior_prob=ranking.prior_prob,
        )

    @property
    def has_image_masks(self) -> bool:
        """Whether detections have masks that span the image."""
        return self.head.protonet is not None

    def anchors(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """Anchors of every level, on grids that span the batch's images."""
        spanning = self.anchor_generator.spanning(features, _extent(images))
        return [boxes.tensor for boxes in spanning]

    def assign(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> list[Tensor]:
        """See :func:`rs_d2.targets.assign_yolact.assign_yolact`."""
        return assign_yolact(anchors, gt_boxes)

    def widths(self) -> dict[str, int]:
        """Also the mask coefficients."""
        protonet = self.head.protonet
        if protonet is None:
            return super().widths()
        return {**super().widths(), "coefficients": protonet[-2].out_channels}

    def complete(
        self,
        candidates: Candidates,
        images: ImageList,
        predictions: HeadOutputs,
        gathered: Predictions,
        gt_instances: list[Instances],
    ) -> Candidates:
        """Add the positives' masks on the prototypes' grid, and the classes of pixels."""
        if "prototypes" not in predictions:
            return candidates
        (prototypes,), extent = predictions["prototypes"], _extent(images)
        grid = prototypes.shape[-2:]
        coefficients = gathered.outputs["coefficients"].flatten(0, 1)[candidates.positives]
        image_of = candidates.positives // len(gathered.anchors)
        counts = image_of.bincount(minlength=len(prototypes)).tolist()
        logits = torch.cat([*map(assemble, coefficients.split(counts), prototypes)])
        inside = inside_boxes(candidates.gt_boxes, extent, grid)
        bitmaps = [*map(gt_bitmaps, gt_instances)]
        gt_masks = torch.cat([to_grid(masks, extent, grid) for masks in bitmaps])
        candidates = replace(
            candidates,
            mask_logits=logits.masked_fill(~inside, OUTSIDE),
            gt_masks=gt_masks[candidates.objects],
            mask_areas=inside.sum((1, 2)),
        )
        if "semantic" not in predictions:
            return candidates
        (semantic,) = predictions["semantic"]
        gt_semantic = [
            _gt_semantic(each.gt_classes, masks, extent, semantic)
            for each, masks in zip(gt_instances, bitmaps, strict=True)
        ]
        return replace(candidates, semantic_logits=semantic, gt_semantic=torch.stack(gt_semantic))

    def refine(self, detections: Instances, rows: Tensor, regions: Regions) -> Instances:
        """Keep the coefficients for :meth:`forward_inference`."""
        if "coefficients" in regions.outputs:
            detections.coefficients = regions.outputs["coefficients"][rows]
        return detections

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: HeadOutputs
    ) -> list[Instances]:
        """Detections of each image, with masks that are cropped to their boxes."""
        found = super().forward_inference(images, features, predictions)
        if "prototypes" in predictions:
            (prototypes,), extent = predictions["prototypes"], _extent(images)
            for detections, own in zip(found, prototypes, strict=True):
                logits = assemble(detections.coefficients, own)
                inside = inside_boxes(detections.pred_boxes.tensor, extent, own.shape[-2:])
                masks = logits.float().sigmoid() * inside
                detections.pred_masks = ImageMasks(masks, extent, detections.image_size)
                detections.remove("coefficients")
        return found


def _has_semantic_branch(cfg: CfgNode) -> bool:
    return cfg.MODEL.YOLACT.SEMANTIC and cfg.MODEL.MASK_ON


def _extent(images: ImageList) -> Sequence[int]:
    """Height and width of the batch's tensor, which the grids span."""
    return images.tensor.shape[-2:]


def _gt_semantic(
    gt_classes: Tensor, masks: Tensor, extent: Sequence[int], logits: Tensor
) -> Tensor:
    """[K, H, W] bool: the classes of an image's pixels on the grid of the logits [N, K, H, W]."""
    _, num_classes, *grid = logits.shape
    masks = to_grid(masks, extent, grid)
    counts = torch.zeros(num_classes, *grid, dtype=torch.int32, device=logits.device)
    return counts.index_add_(0, gt_classes, masks.int()) > 0
