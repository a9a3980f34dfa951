"""Test-time augmentation whose detections are merged by the exact search."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import DatasetMapperTTA
from detectron2.modeling import GeneralizedRCNNWithTTA as _GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from rs_d2.modeling.inference import select_detections
from rs_d2.ops.nms import clip
from rs_d2.utils.d2_compat import our_resizing

_SCORE_THRESH = 1e-8  # Detectron2's: the model has applied MODEL.ROI_HEADS.SCORE_THRESH_TEST


class Views(DatasetMapperTTA):
    """Detectron2's views of an image, each size and its mirror image; all have at least a pixel."""

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """The views of a model's input, each with the ``transforms`` that lead to it."""
        image = dataset_dict["image"].permute(1, 2, 0).numpy()
        stated = dataset_dict["height"], dataset_dict["width"]
        before = T.ResizeTransform(*stated, *image.shape[:2])
        views = []
        for size in self.min_sizes:
            resize = our_resizing(T.ResizeShortestEdge(size, self.max_size))
            for flips in [[], [T.RandomFlip(prob=1.0)]] if self.flip else [[]]:
                pixels, transforms = T.apply_augmentations([resize, *flips], np.copy(image))
                view = copy.deepcopy(dataset_dict)
                view["transforms"] = before + transforms
                view["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
                views.append(view)
        return views


class GeneralizedRCNNWithTTA(_GeneralizedRCNNWithTTA):
    """Detectron2's model of this name; the boxes of all views are merged as a list.

    Detectron2 spreads them over a matrix of boxes times classes first. Views are ``Views``.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, tta_mapper: Any = None, batch_size: int = 3
    ) -> None:
        super().__init__(cfg, model, tta_mapper or Views(cfg), batch_size)

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
