"""Classification losses of the baselines, one value per candidate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss


def cross_entropy_loss(
    logits: Tensor, gt_classes: Tensor, num_classes: int, ignored: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each candidate: softmax with a background column, sigmoids without one.

    Args:
        logits: [R, K + 1], the last column the background, or [R, K].
        gt_classes: [R], int64 in [0, K], K the background.
        num_classes: K.
        ignored: bool [R, K], classes that are left out of a candidate's softmax or sum, and whose
            logits get no gradient; never its own. None: none is.

    Returns:
        [R]; with class-wise sigmoids the sum over the classes. Empty for R = 0.
    """
    if logits.shape[1] == num_classes + 1:
        if ignored is not None:
            logits = logits.masked_fill(F.pad(ignored, (0, 1)), -torch.inf)
        return F.cross_entropy(logits, gt_classes, reduction="none")
    one_hot = F.one_hot(gt_classes, num_classes + 1)[:, :num_classes].to(logits.dtype)
    per_class = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return _sum_of_classes(per_class, ignored)


def hardest_negatives(losses: Tensor, negatives: Tensor, counts: Tensor) -> Tensor:
    """Sum of the largest losses of each image's negatives.

    Args:
        losses: [N, A], not negative.
        negatives: bool [N, A].
        counts: [N], how many of an image's negatives count, at most; all where there are fewer.

    Returns:
        [N]; 0 where nothing counts.
    """
    ordered = losses.masked_fill(~negatives, 0).sort(dim=1, descending=True).values
    places = torch.arange(ordered.shape[1], device=ordered.device)
    return (ordered * (places < counts[:, None])).sum(1)


def focal_loss(
    logits: Tensor,
    gt_classes: Tensor,
    alpha: float,
    gamma: float,
    ignored: Tensor | None = None,
) -> Tensor:
    """Focal loss ``-alpha_t (1 - p_t)^gamma log p_t`` of each candidate, summed over the classes.

    Args:
        logits: [R, K], class-wise sigmoids.
        gt_classes: [R], int64 in [0, K], K the background.
        alpha: weight of a positive class, 1 - alpha that of a negative one; below 0 neither.
        gamma: how much easy ones lose influence, >= 0.
        ignored: bool [R, K], classes that are left out of a candidate's sum, see
            :func:`cross_entropy_loss`.

    Returns:
        [R], float32 or wider; empty for R = 0.
    """
    work = logits.to(torch.promote_types(logits.dtype, torch.float32))
    positives = (gt_classes < logits.shape[1]).nonzero().squeeze(1)
    one_hot = torch.zeros_like(work)
    one_hot[positives, gt_classes[positives]] = 1.0
    per_class = sigmoid_focal_loss(work, one_hot, alpha, gamma, reduction="none")
    return _sum_of_classes(per_class, ignored)


def _sum_of_classes(per_class: Tensor, ignored: Tensor | None) -> Tensor:
    return (per_class if ignored is None else per_class.masked_fill(ignored, 0.0)).sum(dim=1)
