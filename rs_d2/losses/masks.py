"""Losses of instance masks, one value per instance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_coefficient(mask_logits: Tensor, gt_masks: Tensor, eps: float = 1e-5) -> Tensor:
    """Dice coefficient ``2 sum(p t) / (sum(p^2) + sum(t^2) + eps)`` with ``p = sigmoid(logits)``.

    Args:
        mask_logits: [P, H, W].
        gt_masks: [P, H, W], values in {0, 1}.
        eps: keeps the quotient finite where prediction and target are empty.

    Returns:
        [P], in [0, 1]; empty for P = 0.
    """
    # Sums of squares over a mask leave half precision too few digits.
    work_dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    probs = mask_logits.to(work_dtype).sigmoid().flatten(1)
    target = gt_masks.to(probs.dtype).flatten(1)
    overlap = (probs * target).sum(1)
    return 2 * overlap / (probs.square().sum(1) + target.square().sum(1) + eps)


def dice_loss(mask_logits: Tensor, gt_masks: Tensor, eps: float = 1e-5) -> Tensor:
    """``1 - dice_coefficient``, [P] in [0, 1]; arguments as there."""
    return 1 - dice_coefficient(mask_logits, gt_masks, eps)


def mask_cross_entropy(
    mask_logits: Tensor, gt_masks: Tensor, areas: Tensor | None = None
) -> Tensor:
    """Mean binary cross-entropy of an instance's pixels, [P]; shapes as in :func:`dice_loss`.

    Args:
        mask_logits: [P, H, W].
        gt_masks: [P, H, W], values in {0, 1}.
        areas: [P], what the sum over the pixels is divided by; all pixels unless it is given.
    """
    target = gt_masks.to(mask_logits.dtype)
    pixels = F.binary_cross_entropy_with_logits(mask_logits, target, reduction="none").flatten(1)
    return pixels.mean(1) if areas is None else pixels.sum(1) / areas.clamp(min=1)


def semantic_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each image's pixels, summed over the classes, mean over the pixels.

    Args:
        logits: [N, K, H, W], class-wise sigmoids: a pixel may belong to objects of several classes.
        targets: [N, K, H, W], values in {0, 1}.

    Returns:
        [N]; empty for N = 0.
    """
    target = targets.to(logits.dtype)
    pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return pixels.sum(1).flatten(1).mean(1)
