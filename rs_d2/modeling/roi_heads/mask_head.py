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

from rs_d2.criterion.candidates import only_positives
from rs_d2.criterion.tasks import MASK_LOSSES, TaskLoss
from rs_d2.criterion.weights import weighted_mean
from rs_d2.utils.errors import UserError


@ROI_MASK_HEAD_REGISTRY.register()
class RSMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head whose loss weights each positive by the box head's ``loss_weight``.

    The loss comes out unbalanced: the ROI heads, which see the ranking loss, balance it.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, task_loss: TaskLoss, weighted: bool, **kwargs: Any
    ) -> None:
        super().__init__(input_shape, **kwargs)
        # Functions and no modules: this head is a sequence, which would run them as its layers.
        self.task_loss = task_loss
        self.weighted = weighted

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Detectron2's arguments, the loss and whether it is weighted."""
        node = cfg.MODEL.ROI_MASK_HEAD.CRITERION
        return {
            **super().from_config(cfg, input_shape),
            "task_loss": MASK_LOSSES[node.LOSS],
            "weighted": node.WEIGHTS == "box_head",
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """``{"loss_mask": ...}`` in training, the instances with ``pred_masks`` otherwise."""
        if not self.training:
            return super().forward(x, instances)
        return {"loss_mask": self.mean_loss(x, instances)[0]}

    def mean_loss(self, x: Tensor, instances: list[Instances]) -> tuple[Tensor, Tensor]:
        """The weighted mean of the masks' losses, and the logits [P, S, S] that they come from.

        Args:
            x: features [P, C, H, W].
            instances: N instances, P in all, with ``proposal_boxes``, ``gt_classes``, ``gt_masks``
                and ``loss_weight``.

        Returns:
            The loss is a zero attached to the graph where P = 0.
        """
        if not all(i.has("loss_weight") for i in instances):
            raise UserError(
                "MODEL.ROI_MASK_HEAD.NAME: RSMaskRCNNConvUpsampleHead needs the weights that "
                "MODEL.ROI_HEADS.NAME RSROIHeads gives to its positives"
            )
        all_logits = self.layers(x)
        gt_classes = cat([i.gt_classes for i in instances])
        mask_logits = _own_class(all_logits, gt_classes)
        gt_masks = _gt_masks(instances, all_logits.shape[-1]).to(mask_logits.device)
        values = self.task_loss(only_positives(gt_classes, mask_logits, gt_masks))
        weights = cat([i.loss_weight for i in instances])
        if not self.weighted:
            weights = torch.ones_like(weights)
        return weighted_mean(values, weights) * self.loss_weight, mask_logits


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
