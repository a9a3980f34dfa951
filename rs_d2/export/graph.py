"""A detector as one traceable function of an image tensor.

Shapes: ``H`` and ``W`` of the resized image, ``n`` detections, ``S`` side of the predicted masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from rs_d2.config import Architecture, architecture_of_model
from rs_d2.export.about import IMAGE_MASKS
from rs_d2.export.operators import deform_conv2d
from rs_d2.export.suppression import traceable_batched_nms, traceable_search
from rs_d2.modeling.inference import Search, fast_rcnn_inference, searching_with
from rs_d2.ops.nms import class_wise_nms
from rs_d2.utils.errors import UserError

OUTPUTS = ("boxes", "scores", "classes", "masks")
# Detectron2's names for its search, where its own heads look it up.
_STOCK_SEARCHES = (
    "detectron2.modeling.roi_heads.fast_rcnn.fast_rcnn_inference",
    "detectron2.modeling.roi_heads.cascade_rcnn.fast_rcnn_inference",
)
_SCALE_GRADIENT = "detectron2.modeling.roi_heads.cascade_rcnn._ScaleGradient"
_DEFORM_CONV = "rs_d2.ops.deform_conv.deform_conv2d"
_RPN_SUPPRESSION = "detectron2.modeling.proposal_generator.proposal_utils.batched_nms"


class ExportableDetector(nn.Module):
    """One image in, tensors out, from the parts of a detector in evaluation mode.

    Args:
        model: whose architecture says that it can be exported; may have a mask head.

    Attributes:
        boxes_from_masks: boxes are those around the masks, here around their coarse pixels.
        mask_stride: pixels of the padded image per pixel of its masks; 0: they span the image.

    Raises:
        UserError: It is no such architecture, or has heads or keypoints without a graph.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        architecture = _checked_architecture(model)
        self._has_proposals = architecture.has_proposals
        self.boxes_from_masks = architecture.boxes_from_masks
        self.mask_stride = getattr(model, "mask_stride", 0)
        self.model = model
        self.eval()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        if not self._has_proposals:
            return (*OUTPUTS[:3], IMAGE_MASKS) if self.model.has_image_masks else OUTPUTS[:3]
        return OUTPUTS if self.model.roi_heads.mask_on else OUTPUTS[:3]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detections, best first.

        Args:
            image: [3, H, W], values in [0, 255], channels in the order of ``INPUT.FORMAT``,
                resized as for a test.

        Returns:
            Boxes [n, 4] (XYXY, pixels of the resized image), scores [n], classes int64 [n] and,
            with a mask head, probabilities [n, S, S] inside the boxes; of a one-stage detector,
            probabilities [n, h, w] on a grid that spans the padded image.
        """
        images = self.model.preprocess_image([{"image": image}])
        features = self.model.backbone(images.tensor)
        if not self._has_proposals:
            levels = [features[name] for name in self.model.head_in_features]
            (found,) = self.model.forward_inference(images, levels, self.model.head(levels))
            masks = (found.pred_masks.tensor,) if self.model.has_image_masks else ()
            return (*_tensors(found), *masks)
        heads = self.model.roi_heads
        proposals, _ = self.model.proposal_generator(images, features, None)
        (found,) = heads._forward_box(features, proposals)
        return (
            (*_tensors(found), *self._masks(features, found)) if heads.mask_on else _tensors(found)
        )

    def _masks(self, features: dict[str, Tensor], found: Instances) -> tuple[Tensor]:
        heads = self.model.roi_heads
        levels = [features[name] for name in heads.mask_in_features]
        logits = heads.mask_head.layers(heads.mask_pooler(levels, [found.pred_boxes]))
        if logits.shape[1] == 1:
            return (logits[:, 0].sigmoid(),)
        own_class = found.pred_classes[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return (logits.gather(1, own_class)[:, 0].sigmoid(),)


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let a model be traced inside the ``with`` block: all that depends on data becomes tensors."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(searching_with(_traceable))
        stack.enter_context(patch_builtin_len(["rs_d2.modeling.roi_heads.fast_rcnn"]))
        stack.enter_context(mock.patch(_DEFORM_CONV, deform_conv2d))
        stack.enter_context(mock.patch(_SCALE_GRADIENT, _NoGradient))
        for name in _STOCK_SEARCHES:
            stack.enter_context(mock.patch(name, _search_of_stock_heads))
        generator = getattr(model, "proposal_generator", None)
        if generator is not None:
            suppression = traceable_batched_nms(len(generator.in_features))
            stack.enter_context(mock.patch(_RPN_SUPPRESSION, suppression))
        yield


def _traceable(search: Search) -> Search:
    """The exact search in a form for graphs; others have that form already."""
    return traceable_search if search is class_wise_nms else search


class _NoGradient:
    """In place of Detectron2's function that scales gradients, which a graph cannot hold."""

    @staticmethod
    def apply(features: Tensor, scale: float) -> Tensor:
        """The features themselves."""
        return features


def _search_of_stock_heads(boxes: Sequence[Tensor], scores: Sequence[Tensor], *args: Any) -> Any:
    """Detectron2's ``fast_rcnn_inference``: its scores end with a column for the background."""
    return fast_rcnn_inference(boxes, [image[:, :-1] for image in scores], *args)


def _tensors(found: Instances) -> tuple[Tensor, Tensor, Tensor]:
    return found.pred_boxes.tensor, found.scores, found.pred_classes


def _checked_architecture(model: nn.Module) -> Architecture:
    architecture = architecture_of_model(model)
    if not architecture.is_exportable:
        raise UserError(f"{type(model).__name__} cannot be exported (docs/export.md)")
    if architecture.has_proposals:
        heads = model.roi_heads
        if model.proposal_generator is None or not isinstance(heads, StandardROIHeads):
            raise UserError(f"{type(heads).__name__} cannot be exported (docs/export.md)")
        if heads.keypoint_on:
            raise UserError("MODEL.KEYPOINT_ON: keypoints cannot be exported (docs/export.md)")
    return architecture
