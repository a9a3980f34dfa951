"""From a config node to the criterion that a head is handed."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn

from rs_d2.criterion.balancing import BALANCERS
from rs_d2.criterion.criterion import (
    CrossEntropyCriterion,
    FocalCriterion,
    MaskCriterion,
    RankSortCriterion,
)
from rs_d2.criterion.labels import LABELS
from rs_d2.criterion.weights import WEIGHTS
from rs_d2.losses.boxes import BOX_LOSSES
from rs_d2.losses.masks import MASK_LOSSES

# Detectron2's names of a criterion's losses, where a model has one box head or none.
_LOSS_NAMES = {"rank": "loss_rank", "sort": "loss_sort", "cls": "loss_cls", "box": "loss_box_reg"}


def named_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """A criterion's losses under the names that Detectron2 logs and weights them by."""
    return {_LOSS_NAMES[key]: loss for key, loss in losses.items()}


def build_detection_criterion(node: CfgNode, num_classes: int) -> nn.Module:
    """The criterion described by ``MODEL.RPN.CRITERION`` or another head's node of that name."""
    if node.LOSS == "cross_entropy":
        return CrossEntropyCriterion(num_classes=num_classes, box_loss=BOX_LOSSES[node.BOX_LOSS])
    return RankSortCriterion(
        num_classes=num_classes,
        delta=node.DELTA,
        label_function=LABELS[node.LABELS],
        weight_function=WEIGHTS[node.WEIGHTS],
        box_loss=BOX_LOSSES[node.BOX_LOSS],
        balancer=BALANCERS[node.BALANCE](),
    )


def build_dense_criterion(cfg: CfgNode) -> nn.Module:
    """The criterion described by ``MODEL.DENSE_HEAD.CRITERION``."""
    head, retinanet = cfg.MODEL.DENSE_HEAD, cfg.MODEL.RETINANET
    if head.CRITERION.LOSS != "focal":
        return build_detection_criterion(head.CRITERION, retinanet.NUM_CLASSES)
    return FocalCriterion(
        num_classes=retinanet.NUM_CLASSES,
        alpha=retinanet.FOCAL_LOSS_ALPHA,
        gamma=retinanet.FOCAL_LOSS_GAMMA,
        box_loss=BOX_LOSSES[head.CRITERION.BOX_LOSS],
        box_weight=head.BOX_LOSS_WEIGHT,
    )


def build_mask_criterion(node: CfgNode) -> MaskCriterion:
    """The criterion described by ``MODEL.ROI_MASK_HEAD.CRITERION``."""
    return MaskCriterion(MASK_LOSSES[node.LOSS], use_weights=node.WEIGHTS == "box_head")
