"""Functions of boxes given as XYXY corners in absolute pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def aligned_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each box with the other box of the same row.

    Args:
        boxes: [P, 4], XYXY.
        others: [P, 4], XYXY.

    Returns:
        [P], in [0, 1]; 0 where both boxes have no area, NaN where a coordinate is NaN; empty for
        empty input.
    """
    top_left = torch.maximum(boxes[:, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(1)
    union = _area(boxes) + _area(others) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def centers_beyond(boxes: Tensor, image_size: tuple[int, int], divisor: int) -> Tensor:
    """Which boxes are centred right of or below an image whose sides are rounded up.

    Args:
        boxes: [A, 4], XYXY.
        image_size: height and width in pixels.
        divisor: the sides are rounded up to a multiple of it.

    Returns:
        bool [A].
    """
    height, width = (-(-side // divisor) * divisor for side in image_size)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (center[:, 0] >= width) | (center[:, 1] >= height)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
