"""Every configuration key of rs_d2, and the one function that adds them to a Detectron2 config."""

from rs_d2.config.defaults import CHOICES, add_rs_config, check_choices
from rs_d2.config.heads import is_dense, lookup, num_classes_key, score_thresh_key

__all__ = [
    "CHOICES",
    "add_rs_config",
    "check_choices",
    "is_dense",
    "lookup",
    "num_classes_key",
    "score_thresh_key",
]
