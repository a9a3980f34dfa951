"""The mask head: Detectron2's layers with a weighted Dice loss.

Shapes: ``P`` positives of the batch, ``K`` classes, ``S`` side of the mask in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from rs_d2.criterion.criterion import MaskCriterion
from rs_d2.modeling.build import build_mask_criterion
from rs_d2.utils.errors import UserError


@ROI_MASK_HEAD_REGISTRY.register()
class RSMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head whose loss weights each positive by the box head's ``loss_weight``.

    The loss comes out unbalanced: the ROI heads, which see the ranking loss, balance it.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, criterion: MaskCriterion, **kwargs: Any) -> None:
        super().__init__(input_shape, **kwargs)
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Detectron2's arguments and the criterion."""
        ret = super().from_config(cfg, input_shape)
        ret["criterion"] = build_mask_criterion(cfg.MODEL.ROI_MASK_HEAD.CRITERION)
        return ret

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """``{"loss_mask": ...}`` in training, the instances with ``pred_masks`` otherwise."""
        if not self.training:
            return super().forward(x, instances)
        if not all(i.has("loss_weight") for i in instances):
            raise UserError(
                "MODEL.ROI_MASK_HEAD.NAME: RSMaskRCNNConvUpsampleHead needs the weights that "
                "MODEL.ROI_HEADS.NAME RSROIHeads gives to its positives"
            )
        mask_logits = self.layers(x)
        logits = _own_class(mask_logits, cat([i.gt_classes for i in instances]))
        gt_masks = _gt_masks(instances, mask_logits.shape[-1]).to(logits.device)
        weights = cat([i.loss_weight for i in instances])
        return {"loss_mask": self.criterion(logits, gt_masks, weights) * self.loss_weight}


class MaskRows:
    """Rows of an image's ground-truth masks, by index, copied only when they are cropped.

    Without a sampler every proposal keeps its object, and a bitmap each would fill the memory: a
    gigabyte for an image of 800 x 1333 pixels.
    """

    def __init__(self, masks: BitMasks | PolygonMasks, index: Tensor) -> None:
        self._masks = masks
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: Any) -> MaskRows:
        return MaskRows(self._masks, self._index[item])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Each row's mask inside its box (XYXY, pixels): bool [P, S, S], S = ``mask_size``."""
        return self._masks[self._index].crop_and_resize(boxes, mask_size)


def _own_class(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """[P, S, S]: the mask of each positive's class, from [P, K, S, S] or [P, 1, S, S]."""
    if mask_logits.shape[1] == 1:
        return mask_logits[:, 0]
    return mask_logits[torch.arange(len(classes), device=classes.device), classes]


def _gt_masks(instances: list[Instances], side: int) -> Tensor:
    """[P, S, S] bool: ground-truth masks cropped to the proposals, image after image."""
    crops = [
        i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, side) for i in instances if len(i) > 0
    ]
    return cat(crops) if crops else torch.zeros(0, side, side, dtype=torch.bool)
