"""Values of a config that would otherwise fail late or with a long trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from fvcore.common.registry import Registry

from rs_d2.config.architectures import architecture_of, lookup
from rs_d2.config.defaults import CHOICES, OPEN_KEYS, add_rs_config
from rs_d2.criterion.ranking import RANKINGS
from rs_d2.utils.errors import UserError, did_you_mean

_KINDS = {  # types that a value may have, by that of its default
    str: str,
    bool: (bool, int),
    int: (int, float),
    float: (int, float),
    list: (list, tuple),
    tuple: (list, tuple),
    CfgNode: CfgNode,
}
_HEADS = ("RPN", "ROI_BOX_HEAD", "DENSE_HEAD")  # each with a CRITERION node
_LEAST = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.NONFINITE_LIMIT": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "VIS_PERIOD": 0,
    "INPUT.MIN_OBJECT_SIZE": 0,
    "MODEL.YOLACT.NMS_TOPK": 1,
    "MODEL.YOLACT.NUM_PROTOTYPES": 1,
    "MODEL.ROI_MASK_HEAD.MAX_POSITIVES": 1,
    "MODEL.DENSE_HEAD.ASSIGN_TOPK": 1,
    "MODEL.ROI_BOX_HEAD.CRITERION.NEGATIVES_NUM_CLASSES": 1,
    "MODEL.DENSE_HEAD.CRITERION.NEGATIVES_NUM_CLASSES": 1,
    **{f"MODEL.{head}.CRITERION.BALANCE_PERIOD": 0 for head in _HEADS},
}
_MASK_LABELS = ("dice", "iou_dice")
# What a detector without boxes of its own cannot give.
_OF_BOXES = {"LABELS": ("iou", "iou_dice"), "WEIGHTS": ("iou", "centerness"), "LOSS": ("alrp",)}
_CLIP_TYPES = ("value", "norm", "full_model")


def check_config(cfg: CfgNode) -> None:
    """Check the values that would otherwise fail late or with a long trace.

    Raises:
        UserError: The first key with a value that is not allowed.
    """
    defaults = get_cfg()
    add_rs_config(defaults)
    _check_types(cfg, defaults)
    check_choices(cfg)
    check_clip_type(cfg)
    _check_abilities(cfg)
    _check_ssd_augmentation(cfg)
    for key, name, registry in _registered_names(cfg):
        if name not in registry:
            known = [entry for entry, _ in registry]
            raise UserError(f"{key}: '{name}' is not registered{did_you_mean(name, known)}")


def _check_types(cfg: CfgNode, defaults: CfgNode, prefix: str = "") -> None:
    """Yacs takes None for any key, and then anything in its place: what reads it would fail."""
    for name, default in defaults.items():
        key, value = f"{prefix}{name}", cfg[name]
        if isinstance(default, CfgNode) and isinstance(value, CfgNode):
            _check_types(value, default, f"{key}.")
        elif not isinstance(value, _KINDS.get(type(default), object)):
            raise UserError(f"{key}: {value!r} is not of the type of its default, {default!r}")


def _check_abilities(cfg: CfgNode) -> None:
    """What a detector has no part for would fail after the whole training."""
    architecture, name = architecture_of(cfg), cfg.MODEL.META_ARCHITECTURE
    for key, is_able, what in (
        ("MODEL.MASK_ON", architecture.has_masks, "masks"),
        ("MODEL.KEYPOINT_ON", architecture.has_keypoints, "keypoints"),
        ("TEST.AUG.ENABLED", architecture.has_test_augmentation, "prediction from several views"),
    ):
        if lookup(cfg, key) and not is_able:
            raise UserError(f"{key}: {name} has no {what}")
    if architecture.has_masks and not architecture.has_boxes and not cfg.MODEL.MASK_ON:
        raise UserError(f"MODEL.MASK_ON: {name} predicts nothing but masks")
    if architecture.boxes_from_masks:
        for key, values in _OF_BOXES.items():
            key = f"MODEL.DENSE_HEAD.CRITERION.{key}"
            if lookup(cfg, key) in values:
                raise UserError(f"{key}: {lookup(cfg, key)} needs boxes, which {name} lacks")
    one_stage_with_masks = not architecture.has_proposals and "segm" in architecture.tasks(cfg)
    for head in _HEADS:
        key = f"MODEL.{head}.CRITERION.LABELS"
        if lookup(cfg, key) in _MASK_LABELS and not (head == "DENSE_HEAD" and one_stage_with_masks):
            raise UserError(f"{key}: {lookup(cfg, key)} needs masks, which MODEL.{head} lacks")


def _check_ssd_augmentation(cfg: CfgNode) -> None:
    if cfg.INPUT.AUGMENTATION != "ssd":
        return
    sides = cfg.INPUT.MIN_SIZE_TRAIN
    if len(sides) != 1 or sides[0] < 1:
        raise UserError(f"INPUT.MIN_SIZE_TRAIN: INPUT.AUGMENTATION ssd needs one side, not {sides}")
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise UserError(f"INPUT.FORMAT: INPUT.AUGMENTATION ssd does not know {cfg.INPUT.FORMAT}")
    if cfg.INPUT.CROP.ENABLED:
        raise UserError("INPUT.CROP.ENABLED: INPUT.AUGMENTATION ssd has a crop of its own")


def _registered_names(cfg: CfgNode) -> Iterator[tuple[str, str, Registry]]:
    model = cfg.MODEL
    yield "MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY
    yield "MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY
    yield "MODEL.ANCHOR_GENERATOR.NAME", model.ANCHOR_GENERATOR.NAME, ANCHOR_GENERATOR_REGISTRY
    if model.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":  # Detectron2's word for none
        name = model.PROPOSAL_GENERATOR.NAME
        yield "MODEL.PROPOSAL_GENERATOR.NAME", name, PROPOSAL_GENERATOR_REGISTRY
    yield "MODEL.RPN.HEAD_NAME", model.RPN.HEAD_NAME, RPN_HEAD_REGISTRY
    yield "MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY
    if model.ROI_BOX_HEAD.NAME:  # empty: the ROI heads bring their own
        yield "MODEL.ROI_BOX_HEAD.NAME", model.ROI_BOX_HEAD.NAME, ROI_BOX_HEAD_REGISTRY
    if model.MASK_ON:
        yield "MODEL.ROI_MASK_HEAD.NAME", model.ROI_MASK_HEAD.NAME, ROI_MASK_HEAD_REGISTRY


def check_choices(cfg: Any) -> None:
    """Check every closed-list key and every bounded number of rs_d2.

    Raises:
        UserError: the first key with a value that is not allowed, and the values that are.
    """
    for key, allowed in CHOICES.items():
        value = lookup(cfg, key)
        if value not in allowed and not (value is None and key in OPEN_KEYS):
            raise UserError(f"{key}: '{value}' is not one of {', '.join(allowed)}")
    for key in (
        "MODEL.RPN.LOW_QUALITY_MIN_IOU",
        "MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU",
        "MODEL.DENSE_HEAD.CANDIDATE_MIN_IOU",
        "MODEL.SOLO.CENTER_SIZE",
    ):
        if not 0 < lookup(cfg, key) <= 1:
            raise UserError(f"{key}: {lookup(cfg, key)} is not in (0, 1]")
    for head in _HEADS:
        for name in ("DELTA", "DELTA_LOC"):
            key = f"MODEL.{head}.CRITERION.{name}"
            delta = lookup(cfg, key)
            if delta is not None and not (_is_number(delta) and 0 <= delta < float("inf")):
                raise UserError(f"{key}: {delta} is not a number >= 0")
        loss = lookup(cfg, f"MODEL.{head}.CRITERION.LOSS")
        for name, needs_ranking in (("GLOBAL", True), ("WEIGHTS", "ranking")):
            key = f"MODEL.{head}.CRITERION.{name}"
            if lookup(cfg, key) == needs_ranking and RANKINGS[loss].is_baseline:
                raise UserError(f"{key}: MODEL.{head}.CRITERION.LOSS {loss} ranks nothing")
    weight = cfg.MODEL.DENSE_HEAD.SEPARATION_BOX_WEIGHT
    if weight is not None and not (_is_number(weight) and weight >= 0):
        raise UserError(f"MODEL.DENSE_HEAD.SEPARATION_BOX_WEIGHT: {weight} is not a number >= 0")
    if not 0 < cfg.MODEL.RETINANET.PRIOR_PROB < 1:
        value = cfg.MODEL.RETINANET.PRIOR_PROB
        raise UserError(f"MODEL.RETINANET.PRIOR_PROB: {value} is not in (0, 1)")
    for key, least in _LEAST.items():
        if lookup(cfg, key) < least:
            raise UserError(f"{key}: {lookup(cfg, key)} is not at least {least}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_clip_type(cfg: CfgNode) -> None:
    """Check ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``.

    Raises:
        UserError: It is none of the three types.
    """
    kind = cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE
    if kind not in _CLIP_TYPES:
        allowed = ", ".join(_CLIP_TYPES)
        raise UserError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: '{kind}' is not one of {allowed}")
