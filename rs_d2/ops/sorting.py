"""Sorting that looks the same in an exported graph."""

from __future__ import annotations

import torch
from torch import Tensor


def descending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices along the last dimension, best first, of equal values the earlier one."""
    if torch.onnx.is_in_onnx_export():  # its operator is stable, and takes no word about it
        return values.sort(dim=-1, descending=True)
    return values.sort(dim=-1, descending=True, stable=True)
