"""Which keys hold what every detector has, whatever its architecture."""

from __future__ import annotations

from typing import Any


def is_dense(cfg: Any) -> bool:
    """Whether the config describes a dense detector: RetinaNet, ATSS, PAA or a user's own.

    They share Detectron2's node ``MODEL.RETINANET`` where their settings mean the same.
    """
    from detectron2.modeling import META_ARCH_REGISTRY
    from detectron2.modeling.meta_arch.dense_detector import DenseDetector

    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), DenseDetector)


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
