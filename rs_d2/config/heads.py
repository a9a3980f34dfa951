"""Which keys hold what every detector has, whatever its architecture."""

from __future__ import annotations

from typing import Any

# Dense detectors share Detectron2's node for RetinaNet where their settings mean the same.
DENSE_ARCHITECTURES = ("ATSS", "PAA", "RetinaNet")


def is_dense(cfg: Any) -> bool:
    """Whether the config describes a detector without proposals."""
    return cfg.MODEL.META_ARCHITECTURE in DENSE_ARCHITECTURES


def num_classes_key(cfg: Any) -> str:
    """Name of the key with the number of classes of a config's detector."""
    return f"MODEL.{_node(cfg)}.NUM_CLASSES"


def score_thresh_key(cfg: Any) -> str:
    """Name of the key with the score that detections exceed, before suppression."""
    return f"MODEL.{_node(cfg)}.SCORE_THRESH_TEST"


def lookup(cfg: Any, key: str) -> Any:
    """Value of a key given by its full name, such as ``MODEL.RPN.SAMPLER``."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _node(cfg: Any) -> str:
    return "RETINANET" if is_dense(cfg) else "ROI_HEADS"
