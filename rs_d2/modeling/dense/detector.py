"""What all detectors without proposals have in common; it assumes neither anchors nor boxes.

Shapes: ``N`` images, ``K`` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.criterion import Criterion
from rs_d2.criterion.names import name_losses
from rs_d2.criterion.negatives import VERIFIED_FIELD, verified_negatives
from rs_d2.modeling.build import build_dense_criterion
from rs_d2.modeling.dense.predictions import HeadOutputs
from rs_d2.utils.d2_compat import put_scalar
from rs_d2.utils.errors import UserError


class RSDenseDetector(DenseDetector, ABC):
    """A detector whose every location is scored for every class, trained by a criterion.

    Subclasses say what the head is, which candidates it gives in training and what is detected.

    Attributes:
        may_have_background: logits may have a column for the background, of a softmax.
        has_image_masks: detections have masks that span the image.
        mask_stride: pixels of the padded image per pixel of these; 0 if there is no such number.
    """

    may_have_background: ClassVar[bool] = False
    has_image_masks = False
    mask_stride: ClassVar[int] = 0

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: list[str],
        criterion: Criterion,
        num_classes: int,
        score_thresh: float,
        nms_thresh: float,
        topk_per_image: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.criterion = criterion
        self.num_classes = num_classes
        self.has_background = criterion.num_columns != num_classes
        self.test_score_thresh = score_thresh
        self.test_nms_thresh = nms_thresh
        self.test_topk_per_image = topk_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.RETINANET``, whose keys mean the same here, and ``DENSE_HEAD``."""
        settings = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        criterion = cls.build_criterion(cfg)
        if criterion.num_columns != settings.NUM_CLASSES and not cls.may_have_background:
            raise UserError(
                f"MODEL.DENSE_HEAD.CRITERION.LOSS: {cfg.MODEL.DENSE_HEAD.CRITERION.LOSS} needs a "
                f"column for the background, which {cfg.MODEL.META_ARCHITECTURE} lacks; take "
                "sigmoid_cross_entropy"
            )
        return {
            "backbone": backbone,
            "head": cls.build_head(cfg, _shapes_of_levels(cfg, backbone.output_shape())),
            "head_in_features": settings.IN_FEATURES,
            "criterion": criterion,
            "num_classes": settings.NUM_CLASSES,
            "score_thresh": settings.SCORE_THRESH_TEST,
            "nms_thresh": settings.NMS_THRESH_TEST,
            "topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @classmethod
    def build_criterion(cls, cfg: CfgNode) -> Criterion:
        """The criterion; here that of a detector that predicts boxes."""
        return build_dense_criterion(cfg)

    @classmethod
    @abstractmethod
    def build_head(cls, cfg: CfgNode, shapes: list[ShapeSpec]) -> nn.Module:
        """The head: from the features of every level to its outputs by name.

        Args:
            cfg: config.
            shapes: of the levels.
        """

    @abstractmethod
    def candidates(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: HeadOutputs,
        gt_instances: list[Instances],
    ) -> Candidates:
        """All that the head scored in a batch, which of it are positives, and what these predict.

        Image after image, as many of each; :meth:`forward_training` adds what follows from that.

        Args:
            images: the batch.
            features: per level [N, C, H, W].
            predictions: the head's outputs by name.
            gt_instances: N instances with ``gt_classes`` and ``gt_boxes`` or ``gt_masks``.
        """

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: HeadOutputs,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of the batch under their final names; arguments as :meth:`candidates`."""
        candidates = self.candidates(images, features, predictions, gt_instances)
        num_images = len(gt_instances)
        verified = [each.get_fields().get(VERIFIED_FIELD) for each in gt_instances]
        counts = [len(candidates.gt_classes) // num_images] * num_images
        candidates = replace(
            candidates,
            num_images=num_images,
            **verified_negatives(verified, counts, self.num_classes),
        )
        put_scalar("dense/num_pos_anchors", len(candidates.positives) / num_images)
        put_scalar(
            "dense/num_neg_anchors",
            (candidates.gt_classes == self.num_classes).float().sum() / num_images,
        )
        return name_losses(self.criterion(candidates).losses)


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
    return [levels[name] for name in names]
