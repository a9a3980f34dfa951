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


def centerness(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """How near a box's centre is to that of the box it lies in.

    ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`` of the centre's distances to the four
    sides.

    Args:
        boxes: [P, 4], XYXY.
        gt_boxes: [P, 4], XYXY.

    Returns:
        [P], in [0, 1]; 0 where the centre lies outside; empty for P = 0.
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = torch.stack([center - gt_boxes[:, :2], gt_boxes[:, 2:] - center]).clamp(min=0)
    low, high = distances.amin(0), distances.amax(0)
    return (low / high.clamp(min=torch.finfo(high.dtype).tiny)).prod(1).sqrt()


# The published models pad each image to a multiple of this; anchors beyond lie in the padding that
# a larger image of the same batch brought along.
PAD_MULTIPLE = 32


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


def cells_within(
    image_size: tuple[int, int], grid_size: tuple[int, int], stride: int, divisor: int
) -> tuple[int, int]:
    """Rows and columns of a grid whose cells start inside an image, its sides rounded up.

    Args:
        image_size: height and width in pixels.
        grid_size: rows and columns of the grid, which starts in the image's corner.
        stride: pixels from cell to cell.
        divisor: the sides are rounded up to a multiple of it.
    """
    rows, columns = (
        min(cells, -(-(-(-side // divisor) * divisor) // stride))
        for side, cells in zip(image_size, grid_size, strict=True)
    )
    return rows, columns


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
