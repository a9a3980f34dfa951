"""Every configuration key of rs_d2, and the one function that adds them to a Detectron2 config."""

from rs_d2.config.architectures import is_dense, lookup, num_classes_key, score_thresh_key
from rs_d2.config.defaults import CHOICES, add_rs_config

__all__ = [
    "CHOICES",
    "add_rs_config",
    "is_dense",
    "lookup",
    "num_classes_key",
    "score_thresh_key",
]
