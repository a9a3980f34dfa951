"""Data sets: the embedded digits, the user's own json files, COCO and LVIS where they belong.

Detectron2 is imported by the functions that need it, so reading and checking a file does without.
"""

from rs_d2.data.builtin import register_builtin
from rs_d2.data.checks import check_datasets, check_num_classes
from rs_d2.data.custom import CustomDataset, register_custom
from rs_d2.data.samplers import build_train_sampler

__all__ = [
    "CustomDataset",
    "build_train_sampler",
    "check_datasets",
    "check_num_classes",
    "register_builtin",
    "register_custom",
]
