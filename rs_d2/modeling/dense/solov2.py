"""SOLOv2: an object is the cell that its centre lies in, and a mask by that cell's own kernel.

Shapes: ``N`` images, ``K`` classes, ``C`` cells of all grids, ``E`` channels of a kernel, ``H`` and
``W`` of the mask features, ``P`` positives of the batch, ``G`` objects of an image, ``n``
detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.criterion import Criterion
from rs_d2.modeling.build import build_dense_criterion, build_mask_task
from rs_d2.modeling.dense.detector import RSDenseDetector
from rs_d2.modeling.dense.image_masks import ImageMasks, gt_bitmaps
from rs_d2.modeling.dense.predictions import HeadOutputs
from rs_d2.modeling.dense.solo_head import SOLOv2Head
from rs_d2.ops.masks import MASK_STRIDE, assemble, boxes_of_masks, shrink_masks
from rs_d2.ops.matrix_nms import matrix_nms, points_nms
from rs_d2.ops.nms import clip
from rs_d2.ops.sorting import descending
from rs_d2.targets.assign_solo import assign_solo, centers_of_mass
from rs_d2.utils.errors import UserError

_PIXELS_AT_ONCE = 1 << 24  # of masks that are only looked at, 64 MB


@META_ARCH_REGISTRY.register()
class SOLOv2(RSDenseDetector):
    """Wang et al., SOLOv2: Dynamic and Fast Instance Segmentation (NeurIPS 2020).

    It predicts no boxes: those of its detections are the boxes around their masks.
    """

    has_image_masks = True
    mask_stride = MASK_STRIDE

    @configurable
    def __init__(
        self,
        *,
        grids: Sequence[int],
        scale_ranges: Sequence[Sequence[float]],
        center_size: float,
        topk_candidates: int,
        nms_kernel: str,
        nms_sigma: float,
        candidate_score_thresh: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.grids = tuple(grids)
        self.scale_ranges = tuple(map(tuple, scale_ranges))
        self.center_size = center_size
        self.test_topk_candidates = topk_candidates
        self.test_nms_kernel = nms_kernel
        self.test_nms_sigma = nms_sigma
        self.test_candidate_score_thresh = candidate_score_thresh

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of every dense detector, and those of ``MODEL.SOLO``."""
        solo, levels = cfg.MODEL.SOLO, len(cfg.MODEL.RETINANET.IN_FEATURES)
        if levels < 3:
            raise UserError(f"MODEL.RETINANET.IN_FEATURES: SOLOv2 needs 3 levels, not {levels}")
        for key in ("GRIDS", "SCALE_RANGES"):
            if len(solo[key]) != levels:
                raise UserError(
                    f"MODEL.SOLO.{key}: {len(solo[key])} entries, but MODEL.RETINANET.IN_FEATURES"
                    f" has {levels} levels"
                )
        return {
            **super().from_config(cfg),
            "grids": solo.GRIDS,
            "scale_ranges": solo.SCALE_RANGES,
            "center_size": solo.CENTER_SIZE,
            "topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
            "nms_kernel": solo.NMS_KERNEL,
            "nms_sigma": solo.NMS_SIGMA,
            "candidate_score_thresh": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
            "score_thresh": solo.DECAYED_SCORE_THRESH,
        }

    @classmethod
    def build_criterion(cls, cfg: CfgNode) -> Criterion:
        """As of other dense detectors, with the losses of masks in place of those of boxes."""
        criterion = build_dense_criterion(cfg)
        criterion.tasks = nn.ModuleDict({"mask": build_mask_task(cfg)})
        return criterion

    @classmethod
    def build_head(cls, cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
        """See :class:`SOLOv2Head`."""
        settings, solo = cfg.MODEL.RETINANET, cfg.MODEL.SOLO
        return SOLOv2Head(
            in_channels=shapes[0].channels,
            grids=solo.GRIDS,
            num_convs=settings.NUM_CONVS,
            conv_channels=solo.CONV_DIM,
            num_classes=settings.NUM_CLASSES,
            kernel_channels=solo.KERNEL_DIM,
            mask_channels=solo.MASK_DIM,
            norm=settings.NORM,
            prior_prob=settings.PRIOR_PROB,
        )

    def candidates(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: HeadOutputs,
        gt_instances: list[Instances],
    ) -> Candidates:
        """All cells of the batch, image after image; see the base class.

        Labels, weights and masks of the positives are in the order of the cells: a cell's Dice
        coefficient is that of its own mask.
        """
        logits, kernels = (self._cells(predictions[name]) for name in ("logits", "kernels"))
        (mask_features,) = predictions["mask_features"]
        gt_classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        cells, mask_logits, gt_masks = [], [], []
        for i, instances in enumerate(gt_instances):
            masks = gt_bitmaps(instances)
            owner = self._owners(instances, masks, tuple(images.tensor.shape[-2:]))
            cells.append((owner >= 0).nonzero().squeeze(1))
            objects = owner[cells[i]]
            gt_classes[i, cells[i]] = instances.gt_classes[objects]
            mask_logits.append(assemble(kernels[i, cells[i]], mask_features[i]))
            gt_masks.append(shrink_masks(masks, tuple(mask_features.shape[-2:]))[objects])
        return Candidates(
            logits=logits.flatten(0, 1),
            gt_classes=gt_classes.flatten(),
            positives=torch.cat([i * logits.shape[1] + own for i, own in enumerate(cells)]),
            mask_logits=torch.cat(mask_logits),
            gt_masks=torch.cat(gt_masks),
        )

    @torch.no_grad()
    def _owners(self, instances: Instances, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """The object of each cell of an image, int64 [C], -1 where there is none."""
        owners = assign_solo(
            instances.gt_boxes.tensor,
            centers_of_mass(masks),
            size,
            self.grids,
            self.scale_ranges,
            self.center_size,
        )
        return torch.cat([owner.flatten() for owner in owners])

    def _cells(self, grids: list[Tensor]) -> Tensor:
        """An output of all grids as [N, C, channels]."""
        return torch.cat([permute_to_N_HWA_K(grid, grid.shape[1]) for grid in grids], dim=1)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As Detectron2's; boxes are those around the masks at the size of the image."""
        outputs = super().forward(batched_inputs)
        if not self.training:
            outputs = [{"instances": with_boxes_of_masks(out["instances"])} for out in outputs]
        return outputs

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: HeadOutputs
    ) -> list[Instances]:
        """Detections of each image, with boxes around the cells of their masks.

        Arguments are those of :meth:`candidates`.
        """
        scores = self._cells([points_nms(grid.float().sigmoid()) for grid in predictions["logits"]])
        kernels = self._cells(predictions["kernels"])
        least_areas = torch.cat(
            [
                kernels.new_full((size**2,), feature_stride, dtype=torch.float32)
                for size, feature_stride in zip(self.grids, self._strides(), strict=True)
            ]
        )
        (mask_features,), extent = predictions["mask_features"], images.tensor.shape[-2:]
        return [
            self._detect(scores[i], kernels[i], mask_features[i], least_areas, extent, size)
            for i, size in enumerate(images.image_sizes)
        ]

    def _strides(self) -> list[int]:
        """Pixels per place of the levels that the grids are laid over."""
        shapes = self.backbone.output_shape()
        strides = [shapes[name].stride for name in self.head_in_features]
        return [strides[1], *strides[1:-1], strides[-2]]

    def _detect(
        self,
        scores: Tensor,
        kernels: Tensor,
        mask_features: Tensor,
        least_areas: Tensor,
        extent: Sequence[int],
        image_size: tuple[int, int],
    ) -> Instances:
        """One image's detections, best first.

        A candidate is as good as its class score times the mean probability inside its mask.

        Args:
            scores: [C, K].
            kernels: [C, E].
            mask_features: [E, H, W].
            least_areas: [C], pixels that a cell's mask must exceed.
            extent: height and width of the padded batch.
            image_size: without padding.
        """
        passes = scores > self.test_candidate_score_thresh
        cells = passes.any(1).nonzero().squeeze(1)
        quality = _mask_qualities(kernels[cells], mask_features, least_areas[cells])
        scores = torch.where(passes, scores, 0.0)[cells] * quality[:, None]
        rows, classes = (scores > 0).nonzero().unbind(1)
        scores, order = _best_first(scores[rows, classes], self.test_topk_candidates)
        rows, classes = rows[order], classes[order]
        masks = assemble(kernels[cells[rows]], mask_features) > 0
        scores = matrix_nms(scores, masks, classes, self.test_nms_kernel, self.test_nms_sigma)
        kept = (scores > self.test_score_thresh).nonzero().squeeze(1)
        scores, order = _best_first(scores[kept], self.test_topk_per_image)
        kept = kept[order]
        found = Instances(image_size)
        found.scores = scores
        found.pred_classes = classes[kept]
        masks = assemble(kernels[cells[rows[kept]]], mask_features).float().sigmoid()
        boxes = MASK_STRIDE * boxes_of_masks(masks > 0.5)
        found.pred_boxes = Boxes(clip(boxes, image_size))
        found.pred_masks = ImageMasks(masks, extent, image_size, via_extent=True)
        return found


def _mask_qualities(kernels: Tensor, mask_features: Tensor, least_areas: Tensor) -> Tensor:
    """Mean probability inside the mask of each kernel, [n]; 0 where the mask is too small.

    A few masks at a time, so that thousands of cells need no gigabytes; all at once in a graph,
    which cannot repeat.
    """
    parts: Sequence[Tensor] = [kernels]
    if not torch.jit.is_tracing():
        parts = kernels.split(max(1, _PIXELS_AT_ONCE // mask_features[0].numel()))
    sums = []
    for part in parts:
        logits = assemble(part, mask_features).flatten(1).float()
        inside = logits > 0
        sums.append(torch.stack([inside.sum(1), (logits.sigmoid() * inside).sum(1)]))
    area, total = torch.cat(sums, dim=1)
    return torch.where(area > least_areas, total / area.clamp(min=1), 0.0)


def _best_first(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Scores in descending order, of equal ones the earlier first, and where they were."""
    order = descending(scores)[1]
    order = order if limit < 0 else order[:limit]
    return scores[order], order


def with_boxes_of_masks(found: Instances) -> Instances:
    """Detections with the boxes around their ``pred_masks``, those without a pixel left out."""
    found.pred_boxes = Boxes(boxes_of_masks(found.pred_masks))
    return found[found.pred_boxes.nonempty()]
