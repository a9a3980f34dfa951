"""The cross-entropy baseline, for comparisons with Detectron2's own heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_loss(logits: Tensor, gt_classes: Tensor, num_classes: int) -> Tensor:
    """Cross-entropy of each candidate: softmax with a background column, sigmoids without one.

    Args:
        logits: [R, K + 1], the last column the background, or [R, K].
        gt_classes: [R], int64 in [0, K], K the background.
        num_classes: K.

    Returns:
        [R]; with class-wise sigmoids the sum over the classes. Empty for R = 0.
    """
    if logits.shape[1] == num_classes + 1:
        return F.cross_entropy(logits, gt_classes, reduction="none")
    one_hot = F.one_hot(gt_classes, num_classes + 1)[:, :num_classes].to(logits.dtype)
    per_class = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return torch.sum(per_class, dim=1)
