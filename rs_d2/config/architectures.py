"""What a detector is: one record per architecture, which everything else asks.

A record says which keys hold the number of classes and the score threshold, which stages are
trained, and what comes out. It is declared under the name of a class and holds for its subclasses,
so that a user's own detector needs one only where it differs from what it is built on. Detectors
that nobody declared are taken for Detectron2's R-CNN.

    register_architecture("MyDetector", replace(DENSE, has_masks=True))  # dataclasses.replace
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rs_d2.criterion.ranking import RANKINGS


@dataclass(frozen=True)
class Stage:
    """A part of a detector that is trained on positives against negatives.

    Attributes:
        name: of the stage in logged scalars, such as "rpn".
        title: of the stage for people, such as "RPN".
        positives: scalar with the number of its positives, a mean over the images of a batch.
        negatives: the same of its negatives.
        num_tasks: of a config, the binary tasks of an instance: the number of classes with
            class-wise sigmoids, 1 with a softmax or with one foreground class.
        sampler: of a config, the name of what chooses the instances; None where nothing does.
    """

    name: str
    title: str
    positives: str
    negatives: str
    num_tasks: Callable[[Any], int]
    sampler: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Architecture:
    """What a detector is, whatever its class is called.

    Attributes:
        title: of a config, the name of its detector for people, such as "RS-Mask R-CNN".
        num_classes_key: full name of the key with the number of classes.
        score_thresh_key: full name of the key with the score that detections exceed, before
            suppression; after it where suppression changes scores.
        stages: what is trained on positives against negatives, in the order of the data.
        has_proposals: a first stage proposes regions, a second one classifies them.
        has_boxes: it predicts boxes.
        boxes_from_masks: it predicts none, but its detections have the boxes around their masks.
        has_masks: it can predict masks; it does where ``MODEL.MASK_ON`` is set.
        has_keypoints: it can predict keypoints.
        has_test_augmentation: it can predict from several views of an image.
        checks_classes: the number of classes must be that of the data sets.
        is_exportable: ``rs_d2.export`` has a graph for it.
        is_sweepable: ``tools/sweep_thresholds.py`` can change its threshold and its search.
    """

    title: Callable[[Any], str]
    num_classes_key: str
    score_thresh_key: str
    stages: tuple[Stage, ...]
    has_proposals: bool
    has_boxes: bool = True
    boxes_from_masks: bool = False
    has_masks: bool = False
    has_keypoints: bool = False
    has_test_augmentation: bool = False
    checks_classes: bool = True
    is_exportable: bool = False
    is_sweepable: bool = False

    def tasks(self, cfg: Any) -> tuple[str, ...]:
        """What a config's detector is evaluated for: "bbox", "segm", or none of both."""
        masks = self.has_masks and cfg.MODEL.MASK_ON
        boxes = self.has_boxes or (masks and self.boxes_from_masks)
        return (("bbox",) if boxes else ()) + (("segm",) if masks else ())


# Rankings in a detector's title; a baseline has none.
_PREFIXES = {"rank_sort": "RS-", "alrp": "aLRP ", "ap": "AP "}


def lookup(cfg: Any, key: str) -> Any:
    """Value of a key given by its full name, such as ``MODEL.RPN.SAMPLER``."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _rcnn_title(cfg: Any) -> str:
    ours = _has_our_box_head(cfg)
    prefix = _PREFIXES.get(cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS, "") if ours else ""
    return f"{prefix}{'Mask' if cfg.MODEL.MASK_ON else 'Faster'} R-CNN"


def _dense_title(cfg: Any) -> str:
    return cfg.MODEL.META_ARCHITECTURE


def _our_dense_title(cfg: Any) -> str:
    prefix = _PREFIXES.get(cfg.MODEL.DENSE_HEAD.CRITERION.LOSS, "")
    return f"{prefix}{cfg.MODEL.META_ARCHITECTURE}"


def _num_tasks(loss: str, num_classes: int) -> int:
    """One for each class; one in all where a softmax has a column for the background."""
    num_columns = RANKINGS[loss](num_classes=num_classes).num_columns
    return num_classes if num_columns == num_classes else 1


def _box_head_tasks(cfg: Any) -> int:
    if not _has_our_box_head(cfg):
        return 1
    return _num_tasks(cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def _dense_head_tasks(cfg: Any) -> int:
    return _num_tasks(cfg.MODEL.DENSE_HEAD.CRITERION.LOSS, cfg.MODEL.RETINANET.NUM_CLASSES)


# Detectron2's own heads do not read our keys: they sample at random and end in a softmax.
def _rpn_sampler(cfg: Any) -> str:
    from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY

    names = _lineage(PROPOSAL_GENERATOR_REGISTRY, cfg.MODEL.PROPOSAL_GENERATOR.NAME)
    return cfg.MODEL.RPN.SAMPLER if "RSRPN" in names else "random"


def _box_head_sampler(cfg: Any) -> str:
    return cfg.MODEL.ROI_HEADS.SAMPLER if _has_our_box_head(cfg) else "random"


def _has_our_box_head(cfg: Any) -> bool:
    from detectron2.modeling import ROI_HEADS_REGISTRY

    return "RSROIHeads" in _lineage(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME)


_RPN = Stage(
    "rpn", "RPN", "rpn/num_pos_anchors", "rpn/num_neg_anchors", lambda cfg: 1, _rpn_sampler
)
_BOX_HEAD = Stage(
    "rcnn",
    "R-CNN",
    "roi_head/num_fg_samples",
    "roi_head/num_bg_samples",
    _box_head_tasks,
    _box_head_sampler,
)
_DENSE_HEAD = Stage(
    "dense",
    "dense head",
    "dense/num_pos_anchors",
    "dense/num_neg_anchors",
    _dense_head_tasks,
)

R_CNN = Architecture(
    title=_rcnn_title,
    num_classes_key="MODEL.ROI_HEADS.NUM_CLASSES",
    score_thresh_key="MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    stages=(_RPN, _BOX_HEAD),
    has_proposals=True,
    has_masks=True,
    has_keypoints=True,
    has_test_augmentation=True,
    is_exportable=True,
    is_sweepable=True,
)
# Dense detectors share Detectron2's node MODEL.RETINANET where their settings mean the same.
DENSE = Architecture(
    title=_dense_title,
    num_classes_key="MODEL.RETINANET.NUM_CLASSES",
    score_thresh_key="MODEL.RETINANET.SCORE_THRESH_TEST",
    stages=(_DENSE_HEAD,),
    has_proposals=False,
)
# Nobody knows which keys it reads, so that nothing is held against them.
UNDECLARED = replace(R_CNN, title=_dense_title, checks_classes=False, is_exportable=False)

_ARCHITECTURES: dict[str, Architecture] = {
    "GeneralizedRCNN": R_CNN,
    "ProposalNetwork": replace(
        R_CNN,
        title=lambda cfg: "proposals",
        stages=(_RPN,),
        has_boxes=False,
        has_masks=False,
        has_keypoints=False,
        has_test_augmentation=False,
        checks_classes=False,
        is_exportable=False,
        is_sweepable=False,
    ),
    "DenseDetector": DENSE,
    "AnchorDenseDetector": replace(
        DENSE, title=_our_dense_title, is_exportable=True, is_sweepable=True
    ),
    "YOLACT": replace(
        DENSE, title=_our_dense_title, has_masks=True, is_exportable=True, is_sweepable=True
    ),
    "SOLOv2": replace(
        DENSE,
        title=_our_dense_title,
        score_thresh_key="MODEL.SOLO.DECAYED_SCORE_THRESH",
        has_boxes=False,
        boxes_from_masks=True,
        has_masks=True,
        is_exportable=True,
        is_sweepable=True,
    ),
}


def register_architecture(name: str, architecture: Architecture) -> None:
    """Declare what the detectors of a class, and of its subclasses, are.

    Args:
        name: of the class, as ``MODEL.META_ARCHITECTURE`` gives it. A later record replaces an
            earlier one.
        architecture: the record.
    """
    _ARCHITECTURES[name] = architecture


def architecture_of(cfg: Any) -> Architecture:
    """The record of a config's detector; :data:`UNDECLARED` if there is none."""
    from detectron2.modeling import META_ARCH_REGISTRY

    return _nearest(_lineage(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE))


def architecture_of_model(model: Any) -> Architecture:
    """The record of a model that was built; :data:`UNDECLARED` if there is none."""
    return _nearest(base.__name__ for base in type(model).__mro__)


def num_classes_key(cfg: Any) -> str:
    """Name of the key with the number of classes of a config's detector."""
    return architecture_of(cfg).num_classes_key


def score_thresh_key(cfg: Any) -> str:
    """Name of the key with the score that detections exceed, before suppression."""
    return architecture_of(cfg).score_thresh_key


def _nearest(names: Iterator[str]) -> Architecture:
    return next((_ARCHITECTURES[name] for name in names if name in _ARCHITECTURES), UNDECLARED)


def _lineage(registry: Any, name: str) -> Iterator[str]:
    """A registered name, and the names of its class and of those that it is built on."""
    yield name
    found = registry.get(name) if name in registry else None
    if isinstance(found, type):
        yield from (base.__name__ for base in found.__mro__)
