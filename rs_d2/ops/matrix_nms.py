"""Suppression of masks without a loop: scores decay by the overlap with better masks.

X. Wang et al., SOLOv2: Dynamic and Fast Instance Segmentation, NeurIPS 2020, equations 3 to 5.

Shapes: ``n`` masks, ``N`` images, ``K`` classes, ``S`` rows and columns of a grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

DECAYS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "gaussian": lambda iou, sigma: torch.exp(-sigma * iou.square()),
    "linear": lambda iou, sigma: 1 - iou,
}


def matrix_nms(
    scores: Tensor, masks: Tensor, classes: Tensor, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Decayed scores ``s_j min_{i < j} f(IoU_ij) / f(max_{k < i} IoU_ki)``.

    IoUs are those of masks of the same class, 0 between classes; ``f(x) = exp(-sigma x^2)``
    (gaussian) or ``1 - x`` (linear). A mask that equals a better one has ``f = 0`` in the linear
    form: what decays by it decays by that better one alone.

    Args:
        scores: [n], descending.
        masks: bool [n, ...].
        classes: int64 [n].
        kernel: "gaussian" or "linear".
        sigma: of the gaussian.

    Returns:
        [n], each at most its score; empty for n = 0.
    """
    pixels = masks.flatten(1).to(scores.dtype)
    area = pixels.sum(1)
    overlap = pixels @ pixels.t()  # whole numbers, exact in float32 up to 2^24 pixels
    iou = overlap / (area[:, None] + area - overlap).clamp(min=1)
    iou = iou.triu(1) * (classes[:, None] == classes)  # with the better ones of its class
    decay = DECAYS[kernel](iou, sigma)
    suppressed = DECAYS[kernel](F.pad(iou, (0, 0, 1, 0)).amax(0), sigma)[:, None]
    ratio = (decay / suppressed).masked_fill(suppressed == 0, torch.inf)
    # The first row is 1 at most: nothing suppresses the best mask. A row of ones for n = 0.
    return scores * F.pad(ratio, (0, 0, 1, 0), value=1.0).amin(0)


def points_nms(scores: Tensor) -> Tensor:
    """Scores, 0 where one of the cells left, above, or above left of a cell has a higher one.

    Args:
        scores: [N, K, S, S], not negative.

    Returns:
        As ``scores``.
    """
    highest = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)
