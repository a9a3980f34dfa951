"""What ATSS and PAA have in common: anchors, towers, losses and detections.

Shapes: ``N`` images, ``A`` anchors of all levels (``a`` of them in a cell), ``K`` classes, ``P``
positives of the batch, ``G`` objects of an image, ``R`` candidates of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.modeling.build import build_dense_criterion, named_losses
from rs_d2.modeling.dense.head import DenseHead
from rs_d2.modeling.dense.predictions import Positives, Predictions
from rs_d2.modeling.inference import detect
from rs_d2.ops.boxes import PAD_MULTIPLE, cells_within
from rs_d2.ops.nms import StoredBoxes
from rs_d2.utils.d2_compat import put_scalar
from rs_d2.utils.errors import UserError

_IGNORED = -2  # beside -1, which is nobody's, among the numbers of objects


class AnchorDenseDetector(DenseDetector, ABC):
    """A detector whose every anchor is scored for every class, with or without Rank & Sort Loss.

    With it, all logits of the batch enter one ranking and no further branch is needed. With focal
    loss, a branch predicts the quality of each box, and detections are scored by the geometric mean
    of both. Subclasses say which anchors are positives, and what quality is.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        criterion: nn.Module,
        num_classes: int,
        assign_topk: int,
        quality_loss_weight: float,
        score_thresh: float,
        topk_candidates: int,
        nms_thresh: float,
        topk_per_image: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.criterion = criterion
        self.num_classes = num_classes
        self.assign_topk = assign_topk
        self.quality_loss_weight = quality_loss_weight
        self.test_score_thresh = score_thresh
        self.test_topk_candidates = topk_candidates
        self.test_nms_thresh = nms_thresh
        self.test_topk_per_image = topk_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.RETINANET`` and ``MODEL.DENSE_HEAD``."""
        settings, dense = cfg.MODEL.RETINANET, cfg.MODEL.DENSE_HEAD
        backbone = build_backbone(cfg)
        shapes = _shapes_of_levels(cfg, backbone.output_shape())
        anchor_generator = build_anchor_generator(cfg, shapes)
        head = DenseHead(
            in_channels=shapes[0].channels,
            num_levels=len(shapes),
            num_convs=settings.NUM_CONVS,
            num_anchors=_anchors_per_cell(anchor_generator),
            num_classes=settings.NUM_CLASSES,
            norm=settings.NORM,
            prior_prob=settings.PRIOR_PROB,
            with_quality=dense.CRITERION.LOSS == "focal",
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": settings.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=settings.BBOX_REG_WEIGHTS),
            "criterion": build_dense_criterion(cfg),
            "num_classes": settings.NUM_CLASSES,
            "assign_topk": dense.ASSIGN_TOPK,
            "quality_loss_weight": dense.QUALITY_LOSS_WEIGHT,
            "score_thresh": settings.SCORE_THRESH_TEST,
            "topk_candidates": settings.TOPK_CANDIDATES_TEST,
            "nms_thresh": settings.NMS_THRESH_TEST,
            "topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @abstractmethod
    def assign(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> list[Tensor]:
        """Which object each anchor is assigned to, -1 for none.

        Args:
            anchors: per level [H, W, a, 4], the cells inside the image.
            gt_boxes: [G, 4].

        Returns:
            Per level int64 [H, W, a].
        """

    @abstractmethod
    def quality_targets(self, positives: Positives) -> Tensor:
        """What the quality branch is to predict, detached, [P] in [0, 1]."""

    def chosen(self, positives: Positives, predictions: Predictions) -> Tensor | None:
        """Mask [P] of those that stay positive, seen the predictions; None for all."""
        return None

    def refine(self, detections: Instances, boxes: Tensor, scores: Tensor) -> Instances:
        """Improve detections by the candidates [R, 4] and [R, K] around them: as they are."""
        return detections

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of all anchors of the batch.

        Args:
            images: the batch.
            features: per level [N, C, H, W].
            predictions: of the head.
            gt_instances: N instances with ``gt_boxes`` and ``gt_classes``.

        Returns:
            ``loss_rank``, ``loss_sort`` and ``loss_box_reg``; with focal loss ``loss_cls``,
            ``loss_box_reg`` and ``loss_quality``.
        """
        gathered = self.gather(features, predictions)
        matched = self._match_batch(features, gathered, gt_instances)
        positives, gt_classes = self._label(matched, gathered, gt_instances)
        put_scalar("dense/num_pos_anchors", len(positives.rows) / len(gt_instances))
        put_scalar(
            "dense/num_neg_anchors",
            (gt_classes == self.num_classes).float().sum() / len(gt_instances),
        )
        inputs = gathered.logits.flatten(0, 1), gt_classes, positives.pred_boxes, positives.gt_boxes
        if gathered.quality is None:
            return named_losses(self.criterion(*inputs).losses)
        target = self.quality_targets(positives)
        losses = named_losses(self.criterion(*inputs, target).losses)
        logits = gathered.quality.flatten()[positives.rows].float()
        quality = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        losses["loss_quality"] = quality / max(len(target), 1) * self.quality_loss_weight
        return losses

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
    ) -> list[Instances]:
        """Detections of each image after class-wise suppression; see ``rs_d2.modeling.inference``.

        Arguments are those of :meth:`forward_training`.
        """
        found = []
        candidates = self.candidates(features, predictions)
        for (boxes, scores), size in zip(candidates, images.image_sizes, strict=True):
            thresholds = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
            detections, _ = detect(StoredBoxes(boxes, size), scores, size, *thresholds)
            found.append(self.refine(detections, boxes, scores))
        return found

    def candidates(
        self, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each image, boxes [R, 4] and scores [R, K] of the best anchors of every level.

        An anchor is as good as its best class. Boxes are not clipped.
        """
        anchors = self.anchor_generator(features)
        levels = [
            self._best_of_level(boxes.tensor, *level)
            for boxes, *level in zip(anchors, *predictions, strict=True)
        ]
        boxes, scores = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return list(zip(boxes, scores, strict=True))

    def _best_of_level(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, quality: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Boxes [N, R, 4] and scores [N, R, K] of one level's best anchors.

        Scores are in float32: half precision has a thousand values between 0.5 and 1, and ties
        would decide. For the same reason anchors are chosen by logits where that is possible.
        """
        logits = permute_to_N_HWA_K(logits, self.num_classes)
        merit = logits.amax(2).float()
        if quality is not None:
            quality = permute_to_N_HWA_K(quality, 1).float().sigmoid()
            merit = merit.sigmoid() * quality[:, :, 0]
        merit = merit.where(merit.isfinite(), torch.full_like(merit, -torch.inf))
        best = merit.topk(_at_most(self.test_topk_candidates, merit.shape[1])).indices
        rows = best[:, :, None]
        scores = logits.gather(1, rows.expand(-1, -1, self.num_classes)).float().sigmoid()
        if quality is not None:
            scores = (scores * quality.gather(1, rows)).sqrt()
        deltas = permute_to_N_HWA_K(deltas, 4).gather(1, rows.expand(-1, -1, 4))
        boxes = self.box2box_transform.apply_deltas(
            deltas.flatten(0, 1), anchors[best.flatten()]
        ).view(deltas.shape)
        return boxes, scores

    def gather(self, features: list[Tensor], predictions: tuple[list[Tensor], ...]) -> Predictions:
        """The head's predictions of all levels in one list, with their anchors."""
        widths = (self.num_classes, 4, 1)[: len(predictions)]
        joined = [
            torch.cat([permute_to_N_HWA_K(level, width) for level in levels], dim=1)
            for levels, width in zip(predictions, widths, strict=True)
        ]
        anchors = [boxes.tensor for boxes in self.anchor_generator(features)]
        return Predictions(
            anchors=torch.cat(anchors),
            logits=joined[0],
            deltas=joined[1],
            quality=joined[2].squeeze(2) if len(joined) > 2 else None,
            level_sizes=tuple(len(level) for level in anchors),
        )

    @torch.no_grad()
    def _match_batch(
        self, features: list[Tensor], predictions: Predictions, gt_instances: list[Instances]
    ) -> Tensor:
        """Number within its image of the object of each anchor, -1 none, -2 ignored: [N, A]."""
        sizes = [tuple(feature.shape[-2:]) for feature in features]
        grids = [
            level.view(*size, -1, 4)
            for level, size in zip(
                predictions.anchors.split(predictions.level_sizes), sizes, strict=True
            )
        ]
        return torch.stack([self._match(grids, instances) for instances in gt_instances])

    def _match(self, grids: list[Tensor], instances: Instances) -> Tensor:
        """One image's row of :meth:`_match_batch`: cells in the batch's padding are ignored."""
        inside = [
            cells_within(instances.image_size, grid.shape[:2], stride, PAD_MULTIPLE)
            for grid, stride in zip(grids, self.anchor_generator.strides, strict=True)
        ]
        cut = [grid[:rows, :columns] for grid, (rows, columns) in zip(grids, inside, strict=True)]
        matched = self.assign(cut, instances.gt_boxes.tensor)
        whole = [
            F.pad(
                level,
                (0, 0, 0, grid.shape[1] - level.shape[1], 0, grid.shape[0] - level.shape[0]),
                value=_IGNORED,
            )
            for level, grid in zip(matched, grids, strict=True)
        ]
        return torch.cat([level.flatten() for level in whole])

    def _label(
        self, matched: Tensor, predictions: Predictions, gt_instances: list[Instances]
    ) -> tuple[Positives, Tensor]:
        """The positives, and the class of every anchor of the batch: int64 [N A]."""
        background = self.num_classes
        starts = [0, *accumulate(len(instances) for instances in gt_instances)][:-1]
        objects = (matched + matched.new_tensor(starts)[:, None]).flatten()
        gt_classes = torch.full_like(objects, background)
        gt_classes.masked_fill_(matched.flatten() == _IGNORED, -1)
        rows = (matched.flatten() >= 0).nonzero().squeeze(1)
        anchors = predictions.anchors[rows % len(predictions.anchors)]
        deltas = predictions.deltas.flatten(0, 1)[rows]
        positives = Positives(
            rows=rows,
            objects=objects[rows],
            gt_classes=torch.cat([x.gt_classes for x in gt_instances])[objects[rows]],
            gt_boxes=torch.cat([x.gt_boxes.tensor for x in gt_instances])[objects[rows]],
            pred_boxes=self.box2box_transform.apply_deltas(deltas, anchors),
            anchors=anchors,
        )
        chosen = self.chosen(positives, predictions)
        if chosen is not None:
            positives = positives.keep(chosen)
        gt_classes[positives.rows] = positives.gt_classes
        return positives, gt_classes


def _at_most(limit: int, count: Any) -> Any:
    """The smaller of both; ``count`` is a tensor while the model is traced."""
    return count.clamp(max=limit) if isinstance(count, Tensor) else min(limit, count)


def _shapes_of_levels(cfg: CfgNode, levels: dict[str, ShapeSpec]) -> list[ShapeSpec]:
    names = cfg.MODEL.RETINANET.IN_FEATURES
    missing = [name for name in names if name not in levels]
    if missing:
        raise UserError(
            f"MODEL.RETINANET.IN_FEATURES: {missing[0]} is not a level of the backbone, which has"
            f" {', '.join(levels)}"
        )
    channels = [levels[name].channels for name in names]
    if len(set(channels)) != 1:
        raise UserError(
            "MODEL.RETINANET.IN_FEATURES: a head shared by all levels needs as many channels on"
            f" each, not {', '.join(map(str, channels))}"
        )
    sizes = len(cfg.MODEL.ANCHOR_GENERATOR.SIZES)
    if sizes not in (0, 1, len(names)):  # none: they follow the strides
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.SIZES: sizes for {sizes} levels, but"
            f" MODEL.RETINANET.IN_FEATURES has {len(names)}"
        )
    return [levels[name] for name in names]


def _anchors_per_cell(anchor_generator: nn.Module) -> int:
    counts = anchor_generator.num_cell_anchors
    if len(set(counts)) != 1:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR: a head shared by all levels needs as many anchors on each,"
            f" not {', '.join(map(str, counts))}"
        )
    return counts[0]
