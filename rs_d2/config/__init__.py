"""Every configuration key of rs_d2, the function that adds them, and what a detector is."""

from rs_d2.config.architectures import (
    Architecture,
    architecture_of,
    architecture_of_model,
    lookup,
    num_classes_key,
    register_architecture,
    score_thresh_key,
)
from rs_d2.config.defaults import CHOICES, add_rs_config

__all__ = [
    "CHOICES",
    "Architecture",
    "add_rs_config",
    "architecture_of",
    "architecture_of_model",
    "lookup",
    "num_classes_key",
    "register_architecture",
    "score_thresh_key",
]
