"""From a config's nodes to the criterion that a head is handed."""

from __future__ import annotations

import math

from detectron2.config import CfgNode
from torch import nn

from rs_d2.criterion.balancing import BALANCERS, Balancer
from rs_d2.criterion.criterion import Criterion
from rs_d2.criterion.labels import LABELS
from rs_d2.criterion.negatives import NEGATIVES, Negatives
from rs_d2.criterion.ranking import RANKINGS, Ranking
from rs_d2.criterion.tasks import BOX_LOSSES, MASK_LOSSES, Task, quality_task
from rs_d2.criterion.weights import WEIGHTS


def build_rpn_criterion(cfg: CfgNode) -> Criterion:
    """The criterion described by ``MODEL.RPN.CRITERION``; objects are its only class."""
    return _build(cfg, cfg.MODEL.RPN.CRITERION, 1, positive_iou=cfg.MODEL.RPN.IOU_THRESHOLDS[-1])


def build_box_criterion(cfg: CfgNode, positive_iou: float | None = None) -> Criterion:
    """The criterion described by ``MODEL.ROI_BOX_HEAD.CRITERION``.

    Args:
        cfg: config.
        positive_iou: least IoU of a positive, of a cascade's stage; by default that of the only
            stage.
    """
    heads = cfg.MODEL.ROI_HEADS
    if positive_iou is None:
        positive_iou = heads.IOU_THRESHOLDS[-1]
    node = cfg.MODEL.ROI_BOX_HEAD.CRITERION
    return _build(
        cfg,
        node,
        heads.NUM_CLASSES,
        positive_iou=positive_iou,
        negatives=_negatives(node, heads.NUM_CLASSES),
    )


def build_dense_criterion(cfg: CfgNode) -> Criterion:
    """The criterion described by ``MODEL.DENSE_HEAD.CRITERION``, with boxes as its only task."""
    dense = cfg.MODEL.DENSE_HEAD
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    return _build(
        cfg,
        dense.CRITERION,
        num_classes,
        positive_iou=0.5,
        box_weight=dense.BOX_LOSS_WEIGHT,
        negatives=_negatives(dense.CRITERION, num_classes),
    )


def build_quality_task(cfg: CfgNode) -> Task:
    """The task that a dense head which predicts qualities adds to its criterion."""
    balancer = BALANCERS["constant"](weight=cfg.MODEL.DENSE_HEAD.QUALITY_LOSS_WEIGHT)
    return Task(quality_task, balancer, weighted=False)


def build_mask_task(cfg: CfgNode) -> Task:
    """The task that a dense head which predicts masks adds to its criterion."""
    dense = cfg.MODEL.DENSE_HEAD
    balancer = _balancer(RANKINGS[dense.CRITERION.LOSS], dense.CRITERION, dense.MASK_LOSS_WEIGHT)
    return Task(MASK_LOSSES[dense.MASK_LOSS], balancer, outputs="mask_logits")


def has_quality_branch(cfg: CfgNode) -> bool:
    """Whether a dense head predicts qualities, for a baseline that weights its boxes by them."""
    return RANKINGS[cfg.MODEL.DENSE_HEAD.CRITERION.LOSS].baseline_weights == "gt_quality"


def build_mask_balancer(cfg: CfgNode) -> Balancer:
    """The balancer described by ``MODEL.ROI_MASK_HEAD.CRITERION``."""
    node = cfg.MODEL.ROI_MASK_HEAD.CRITERION
    return BALANCERS[node.BALANCE](period=node.BALANCE_PERIOD)


def _build(
    cfg: CfgNode,
    node: CfgNode,
    num_classes: int,
    *,
    positive_iou: float,
    box_weight: float = 1.0,
    negatives: Negatives | None = None,
) -> Criterion:
    ranking_class = RANKINGS[node.LOSS]
    ranking = ranking_class(
        num_classes=num_classes,
        delta=node.DELTA,
        box_loss=BOX_LOSSES[node.BOX_LOSS],
        positive_iou=positive_iou,
        focal_alpha=cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
        focal_gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
    )
    box = Task(
        BOX_LOSSES[node.BOX_LOSS],
        _balancer(ranking_class, node, box_weight),
        outputs="pred_deltas",
    )
    weight = WEIGHTS[ranking_class.baseline_weights if ranking_class.is_baseline else node.WEIGHTS]
    if isinstance(weight, type):
        weight = weight(delta=ranking.delta, delta_loc=node.DELTA_LOC)
    return Criterion(
        ranking=ranking,
        label=LABELS[node.LABELS],
        weight=weight,
        tasks={"box": box},
        negatives=negatives,
        is_global=node.GLOBAL,
    )


def _negatives(node: CfgNode, num_classes: int) -> Negatives:
    choice = NEGATIVES[node.NEGATIVES]
    return choice(num_classes=num_classes, num_drawn=node.NEGATIVES_NUM_CLASSES)


def _balancer(ranking: type[Ranking], node: CfgNode, weight: float) -> Balancer:
    return BALANCERS[balance_of(ranking, node)](weight=weight, period=node.BALANCE_PERIOD)


def balance_of(ranking: type[Ranking], node: CfgNode) -> str:
    """Name of the balancer that a ``CRITERION`` node asks for."""
    if ranking.is_baseline or node.BALANCE is None:
        return ranking.default_balance
    return node.BALANCE


def bias_for_prior(layer: nn.Module, prior_prob: float) -> None:
    """Let every score of a classification layer start near ``prior_prob``, a sigmoid's value."""
    nn.init.constant_(layer.bias, -math.log((1 - prior_prob) / prior_prob))
