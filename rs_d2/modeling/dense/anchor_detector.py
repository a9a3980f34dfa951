"""What ATSS, PAA and YOLACT have in common: anchors, boxes, labels and detections.

Shapes: ``N`` images, ``A`` anchors of all levels (``a`` of them in a cell), ``K`` classes, ``P``
positives of the batch, ``G`` objects of an image, ``R`` regions of an image that are looked at.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.criterion import Criterion
from rs_d2.modeling.build import build_quality_task, has_quality_branch
from rs_d2.modeling.dense.detector import RSDenseDetector
from rs_d2.modeling.dense.head import DenseHead
from rs_d2.modeling.dense.predictions import HeadOutputs, Predictions
from rs_d2.modeling.inference import Search, detect
from rs_d2.ops.boxes import PAD_MULTIPLE, cells_within
from rs_d2.ops.nms import StoredBoxes, class_wise_nms
from rs_d2.utils.errors import UserError

# In place of an object's index.
BACKGROUND, IGNORED = -1, -2


class Regions(NamedTuple):
    """The best anchors of an image, before suppression.

    ``boxes``: [R, 4], XYXY, not clipped; ``scores``: [R, K]; ``outputs``: the head's other outputs
    for them, by name, [R, C].
    """

    boxes: Tensor
    scores: Tensor
    outputs: dict[str, Tensor]


class AnchorDenseDetector(RSDenseDetector):
    """A detector whose every anchor is scored for every class, with or without Rank & Sort Loss.

    With a ranking, all logits of the batch enter it and no further branch is needed. With focal
    loss, a branch predicts the quality of each box, and detections are scored by the geometric mean
    of both. Subclasses say which anchors are positives, and what quality is.
    """

    search: Search = staticmethod(class_wise_nms)

    @configurable
    def __init__(
        self,
        *,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        assign_topk: int,
        topk_candidates: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.assign_topk = assign_topk
        self.test_topk_candidates = topk_candidates

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of every dense detector, and those about anchors."""
        ret = super().from_config(cfg)
        shapes = ret["backbone"].output_shape()
        return {
            **ret,
            "anchor_generator": build_anchors(
                cfg, [shapes[name] for name in ret["head_in_features"]]
            ),
            "box2box_transform": Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS),
            "assign_topk": cfg.MODEL.DENSE_HEAD.ASSIGN_TOPK,
            "topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
        }

    @classmethod
    def build_criterion(cls, cfg: CfgNode) -> Criterion:
        """Boxes, and their quality where the head predicts it."""
        criterion = super().build_criterion(cfg)
        if has_quality_branch(cfg):
            criterion.tasks["quality"] = build_quality_task(cfg)
        return criterion

    @classmethod
    def build_head(cls, cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
        """Towers for classes and boxes; with focal loss one more output for the quality."""
        settings = cfg.MODEL.RETINANET
        return DenseHead(
            in_channels=shapes[0].channels,
            num_levels=len(shapes),
            num_convs=settings.NUM_CONVS,
            num_anchors=anchors_per_cell(build_anchors(cfg, shapes)),
            num_classes=settings.NUM_CLASSES,
            norm=settings.NORM,
            prior_prob=settings.PRIOR_PROB,
            with_quality=has_quality_branch(cfg),
        )

    def anchors(self, images: ImageList, features: list[Tensor]) -> list[Tensor]:
        """Anchors of every level, [A, 4] each; arguments as :meth:`candidates`."""
        return [boxes.tensor for boxes in self.anchor_generator(features)]

    @abstractmethod
    def assign(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> list[Tensor]:
        """Which object each anchor is assigned to: its index, -1 for none, -2 for ignored.

        Args:
            anchors: per level [H, W, a, 4], the cells inside the image.
            gt_boxes: [G, 4].

        Returns:
            Per level int64 [H, W, a].
        """

    def quality_targets(self, candidates: Candidates) -> Tensor:
        """What the quality branch is to predict for the positives, detached, [P] in [0, 1]."""
        raise NotImplementedError

    def chosen(self, candidates: Candidates, predictions: Predictions) -> Tensor | None:
        """Mask [P] of those that stay positive, given the predictions; None for all."""
        return None

    def refine(self, detections: Instances, rows: Tensor, regions: Regions) -> Instances:
        """Improve an image's detections by the regions around them; here they stay unchanged.

        Args:
            detections: n instances, best first.
            rows: int64 [n], the region that each comes from.
            regions: all that were looked at.
        """
        return detections

    def widths(self) -> dict[str, int]:
        """Numbers that the head predicts per anchor, by the name of the output."""
        return {"logits": self.criterion.num_columns, "deltas": 4, "quality": 1}

    def candidates(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: HeadOutputs,
        gt_instances: list[Instances],
    ) -> Candidates:
        """All anchors of the batch, image after image; see the base class."""
        gathered = self.gather(self.anchors(images, features), predictions)
        matched = self._match_batch(features, gathered, gt_instances)
        candidates = self._label(matched, gathered, gt_instances)
        chosen = self.chosen(candidates, gathered)
        if chosen is not None:
            candidates = candidates.keep(chosen, background=self.num_classes)
        if "quality" in gathered.outputs:
            candidates = replace(
                candidates,
                quality_logits=gathered.outputs["quality"].flatten()[candidates.positives],
                gt_quality=self.quality_targets(candidates),
            )
        return self.complete(candidates, images, predictions, gathered, gt_instances)

    def complete(
        self,
        candidates: Candidates,
        images: ImageList,
        predictions: HeadOutputs,
        gathered: Predictions,
        gt_instances: list[Instances],
    ) -> Candidates:
        """Add what else a detector predicts; arguments as :meth:`candidates`."""
        return candidates

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: HeadOutputs
    ) -> list[Instances]:
        """Detections of each image after class-wise suppression; see ``rs_d2.modeling.inference``.

        Arguments are those of :meth:`candidates`.
        """
        found = []
        regions_of_images = self.best_regions(self.anchors(images, features), predictions)
        for regions, size in zip(regions_of_images, images.image_sizes, strict=True):
            thresholds = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
            table = StoredBoxes(regions.boxes, size)
            detections, rows = detect(table, regions.scores, size, *thresholds, self.search)
            found.append(self.refine(detections, rows, regions))
        return found

    def best_regions(self, anchors: list[Tensor], predictions: HeadOutputs) -> list[Regions]:
        """The best anchors of every level, image by image; an anchor is as good as its best class.

        Args:
            anchors: per level [A, 4].
            predictions: as in :meth:`candidates`.
        """
        widths = self.widths()
        levels = [
            self._best_of_level(
                level, {name: predictions[name][i] for name in widths if name in predictions}
            )
            for i, level in enumerate(anchors)
        ]
        boxes, scores = (torch.cat([level[i] for level in levels], dim=1) for i in range(2))
        others = {name: torch.cat([o[name] for _, _, o in levels], dim=1) for name in levels[0][2]}
        return [
            Regions(boxes[i], scores[i], {name: value[i] for name, value in others.items()})
            for i in range(len(boxes))
        ]

    def _best_of_level(
        self, anchors: Tensor, outputs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Boxes [N, R, 4], scores [N, R, K] and other outputs of one level's best anchors.

        Scores are in float32: half precision has a thousand values between 0.5 and 1, and ties
        would decide. For the same reason anchors are chosen by logits where that is possible.
        """
        widths = self.widths()
        outputs = {name: permute_to_N_HWA_K(value, widths[name]) for name, value in outputs.items()}
        logits, deltas = outputs.pop("logits"), outputs.pop("deltas")
        quality = outputs.pop("quality", None)
        merit = self.scores(logits).amax(2) if self.has_background else logits.amax(2).float()
        if quality is not None:
            quality = quality.float().sigmoid()
            merit = merit.sigmoid() * quality[:, :, 0]
        merit = merit.where(merit.isfinite(), torch.full_like(merit, -torch.inf))
        best = merit.topk(_at_most(self.test_topk_candidates, merit.shape[1])).indices
        rows = best[:, :, None]
        scores = self.scores(logits.gather(1, rows.expand(-1, -1, widths["logits"])))
        if quality is not None:
            scores = (scores * quality.gather(1, rows)).sqrt()
        deltas = deltas.gather(1, rows.expand(-1, -1, 4))
        boxes = self.box2box_transform.apply_deltas(
            deltas.flatten(0, 1), anchors[best.flatten()]
        ).view(deltas.shape)
        others = {
            name: value.gather(1, rows.expand(-1, -1, widths[name]))
            for name, value in outputs.items()
        }
        return boxes, scores, others

    def scores(self, logits: Tensor) -> Tensor:
        """Float32 scores [..., K] of the classes."""
        logits = logits.float()
        return logits.softmax(-1)[..., :-1] if self.has_background else logits.sigmoid()

    def gather(self, anchors: list[Tensor], predictions: HeadOutputs) -> Predictions:
        """The head's outputs of all levels in one list, with their anchors."""
        return Predictions(
            anchors=torch.cat(anchors),
            outputs={
                name: torch.cat(
                    [permute_to_N_HWA_K(level, width) for level in predictions[name]], dim=1
                )
                for name, width in self.widths().items()
                if name in predictions
            },
            level_sizes=tuple(len(level) for level in anchors),
        )

    @torch.no_grad()
    def _match_batch(
        self, features: list[Tensor], predictions: Predictions, gt_instances: list[Instances]
    ) -> Tensor:
        """Index within its image of the object of each anchor, -1 none, -2 ignored: [N, A]."""
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
                value=IGNORED,
            )
            for level, grid in zip(matched, grids, strict=True)
        ]
        return torch.cat([level.flatten() for level in whole])

    def _label(
        self, matched: Tensor, predictions: Predictions, gt_instances: list[Instances]
    ) -> Candidates:
        """The record of all anchors of the batch; ``matched`` is [N, A]."""
        starts = [0, *accumulate(len(instances) for instances in gt_instances)][:-1]
        objects = (matched + matched.new_tensor(starts)[:, None]).flatten()
        matched = matched.flatten()
        positives = (matched >= 0).nonzero().squeeze(1)
        objects = objects[positives]
        gt_classes = torch.full_like(matched, self.num_classes)
        gt_classes.masked_fill_(matched == IGNORED, -1)
        gt_classes[positives] = torch.cat([x.gt_classes for x in gt_instances])[objects]
        anchors = predictions.anchors[positives % len(predictions.anchors)]
        deltas = predictions.outputs["deltas"].flatten(0, 1)[positives]
        return Candidates(
            logits=predictions.outputs["logits"].flatten(0, 1),
            gt_classes=gt_classes,
            positives=positives,
            pred_boxes=self.box2box_transform.apply_deltas(deltas, anchors),
            gt_boxes=torch.cat([x.gt_boxes.tensor for x in gt_instances])[objects],
            pred_deltas=deltas,
            anchors=anchors,
            encode=self.box2box_transform.get_deltas,
            objects=objects,
        )


def _at_most(limit: int, count: Any) -> Any:
    """The smaller of both; ``count`` is a tensor while the model is traced."""
    return count.clamp(max=limit) if isinstance(count, Tensor) else min(limit, count)


def build_anchors(cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
    """The anchor generator of ``MODEL.ANCHOR_GENERATOR`` for these levels.

    Raises:
        UserError: It has sizes for another number of levels.
    """
    sizes = len(cfg.MODEL.ANCHOR_GENERATOR.SIZES)
    if sizes not in (0, 1, len(shapes)):  # none: they follow the strides
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.SIZES: sizes for {sizes} levels, but"
            f" MODEL.RETINANET.IN_FEATURES has {len(shapes)}"
        )
    return build_anchor_generator(cfg, shapes)


def anchors_per_cell(anchor_generator: nn.Module) -> int:
    """Anchors of a location, as many on every level.

    Raises:
        UserError: Levels differ.
    """
    counts = anchor_generator.num_cell_anchors
    if len(set(counts)) != 1:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR: a head shared by all levels needs as many anchors on each,"
            f" not {', '.join(map(str, counts))}"
        )
    return counts[0]
