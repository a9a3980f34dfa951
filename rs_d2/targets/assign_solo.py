"""Cells of SOLO's grids: which object each of them predicts.

X. Wang et al., SOLO: Segmenting Objects by Locations, ECCV 2020; SOLOv2: Dynamic and Fast Instance
Segmentation, NeurIPS 2020.

Shapes: ``G`` objects of an image; ``H``, ``W`` of the padded image; ``S`` rows and columns of a
grid, which divides the padded image evenly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PIXELS_AT_ONCE = 1 << 22  # that are turned into numbers, 16 MB


def assign_solo(
    gt_boxes: Tensor,
    centers: Tensor,
    image_size: tuple[int, int],
    grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    sigma: float,
) -> list[Tensor]:
    """Let every object claim the cells around its centre on the grids of its size.

    An object takes part on the grids whose range holds ``sqrt(w h)`` of its box, both ends
    included. There it claims the cells that its centre region touches: the box of ``sigma w`` times
    ``sigma h`` around its centre of mass, cut to the 3 x 3 cells around the cell of the centre. A
    cell that several objects claim is the first one's.

    At most nine cells per object and grid are looked at, whatever the size of the grid.

    Args:
        gt_boxes: [G, 4], XYXY, pixels.
        centers: [G, 2], x and y of the masks' centres of mass; an object with NaN claims nothing.
        image_size: H and W of the padded image.
        grids: S of each grid.
        scale_ranges: smallest and largest object of each grid, in pixels.
        sigma: size of the centre region relative to the box, in (0, 1].

    Returns:
        Per grid the index of the object, int64 [S, S], -1 where there is none; all -1 for G = 0.
    """
    boxes, centers = gt_boxes.double(), centers.double()
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = sides.clamp(min=0).prod(1).sqrt()
    has_center = centers.isfinite().all(1)
    extent = boxes.new_tensor([image_size[1], image_size[0]])
    corners = torch.stack([centers - sigma * sides / 2, centers, centers + sigma * sides / 2])
    corners = corners.nan_to_num(0.0) / extent  # [3, G, 2]: first, middle, last; x and y
    return [
        _claimed(corners, has_center & (scale >= low) & (scale <= high), size)
        for size, (low, high) in zip(grids, scale_ranges, strict=True)
    ]


def _claimed(corners: Tensor, takes_part: Tensor, size: int) -> Tensor:
    """The first claimant of each cell of one grid, int64 [S, S].

    Args:
        corners: [3, G, 2], of the centre regions, relative to the image's sides.
        takes_part: bool [G].
        size: S.
    """
    first, middle, last = (corners * size).floor().long().unbind()
    offset = torch.arange(-1, 2, device=middle.device)
    cells = middle[:, :, None] + offset  # [G, 2, 3]
    claimed = (cells >= first[:, :, None]) & (cells <= last[:, :, None])
    claimed &= (cells >= 0) & (cells < size)
    claimed = claimed[:, 1, :, None] & claimed[:, 0, None, :] & takes_part[:, None, None]
    index = (cells[:, 1, :, None] * size + cells[:, 0, None, :]).clamp(0, size * size - 1)
    nobody = len(takes_part)
    claimant = torch.arange(nobody, device=middle.device)[:, None, None].where(claimed, nobody)
    owner = torch.full((size * size,), nobody, device=middle.device)
    owner = owner.scatter_reduce(0, index.flatten(), claimant.flatten(), "amin")
    return owner.where(owner < nobody, -1).view(size, size)


def centers_of_mass(masks: Tensor) -> Tensor:
    """Mean x and y of the pixels of each mask, a pixel's own coordinates being whole numbers.

    Args:
        masks: bool [G, H, W].

    Returns:
        float64 [G, 2]; NaN for a mask without pixels; empty for G = 0.
    """
    if len(masks) == 0:
        return masks.new_zeros(0, 2, dtype=torch.float64)
    at_once = max(1, _PIXELS_AT_ONCE // max(1, masks[0].numel()))
    return torch.cat([_centers_of_mass(part.float()) for part in masks.split(at_once)])


def _centers_of_mass(masks: Tensor) -> Tensor:
    columns, rows = masks.sum(1).double(), masks.sum(2).double()
    sums = [line @ torch.arange(line.shape[1]).to(line) for line in (columns, rows)]
    return torch.stack(sums, dim=1) / columns.sum(1, keepdim=True)
