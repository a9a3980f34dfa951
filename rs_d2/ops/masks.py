"""Masks of whole images on a coarse grid: assembled, cropped to boxes, brought to pixels and back.

A grid of ``h x w`` cells spans an image of some height and width, its *extent*, which may be larger
than an image inside it: smaller images of a batch are padded at the right and bottom.

Shapes: ``n`` masks, ``M`` prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Logit of what lies outside of a mask's box: its sigmoid is 0, and the cross-entropy of a pixel is
# bounded by 100.
OUTSIDE = -100.0
MASK_STRIDE = 4  # pixels of a padded image per pixel of SOLO's masks
_PIXELS_AT_ONCE = 1 << 24  # of masks that are being resized


def assemble(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Mask logits ``sum_m c_im Q_m``, one product of two matrices.

    Args:
        coefficients: [n, M].
        prototypes: [M, h, w].

    Returns:
        [n, h, w]; empty for n = 0.
    """
    return torch.einsum("im,mhw->ihw", coefficients, prototypes)


def inside_boxes(boxes: Tensor, extent: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Cells of a grid inside each box, with one cell more on every side.

    Args:
        boxes: [n, 4], XYXY, pixels.
        extent: height and width of what the grid spans.
        grid: h and w.

    Returns:
        bool [n, h, w].
    """
    left, top, right, bottom = boxes.unbind(1)
    y, x = (
        _between(low / side * cells, high / side * cells, cells)
        for low, high, side, cells in (
            (top, bottom, extent[0], grid[0]),
            (left, right, extent[1], grid[1]),
        )
    )
    return y[:, :, None] & x[:, None]


def _between(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Whether a cell's number lies in ``[low - 1, high + 1)``, in cells: bool [n, cells]."""
    numbers = torch.arange(cells, device=low.device)
    return (numbers >= (low - 1)[:, None]) & (numbers < (high + 1)[:, None])


def to_grid(masks: Tensor, extent: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Masks of an image on a grid: bilinear at the cells' centres, above one half.

    Args:
        masks: bool [n, H, W] of an image that is no larger than the extent.
        extent: height and width of what the grid spans.
        grid: h and w.

    Returns:
        bool [n, h, w].
    """
    height, width = masks.shape[1:]
    padding = (0, extent[1] - width, 0, extent[0] - height)
    chunks = masks.split(max(_PIXELS_AT_ONCE // max(extent[0] * extent[1], 1), 1))
    return torch.cat([_resize(F.pad(chunk, padding).float(), grid) > 0.5 for chunk in chunks])


def shrink_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks at a quarter of the resolution, by bilinear interpolation: a half counts.

    What lies between the centres of four pixels in a row is the mean of the middle two, so that a
    pixel of the result is set where at least two of the four in the middle of its 4 x 4 are.

    Args:
        masks: bool [G, H, W]; beyond their borders there is nothing.
        size: rows and columns of the result, at least a quarter of H and W.

    Returns:
        bool [G, *size].
    """
    shrunk = torch.zeros(len(masks), *size, dtype=torch.uint8, device=masks.device)
    for row in (1, 2):
        for column in (1, 2):
            pixels = masks[:, row::MASK_STRIDE, column::MASK_STRIDE]
            shrunk[:, : pixels.shape[1], : pixels.shape[2]] += pixels
    return shrunk >= 2


def to_pixels(
    probabilities: Tensor,
    extent: Sequence[int],
    image_size: Sequence[int],
    size: Sequence[int],
    *,
    via_extent: bool = False,
) -> Tensor:
    """Masks of an image of any size from probabilities on a grid: bilinear, above one half.

    Args:
        probabilities: [n, h, w].
        extent: height and width of what the grid spans.
        image_size: height and width of the image inside it.
        size: height and width to bring that image to.
        via_extent: go by the pixels of the extent, where the padding is cut off, as SOLOv2 does;
            else in one step, as YOLACT does.

    Returns:
        bool [n, *size].
    """
    height, width = size
    if 0 in (height, width):
        return probabilities.new_zeros(len(probabilities), height, width, dtype=torch.bool)
    whole = list(extent)
    if not via_extent:
        whole = [
            max(round(wanted * around / inner), wanted)
            for wanted, around, inner in zip(size, extent, image_size, strict=True)
        ]
    most = max(whole[0] * whole[1], height * width)
    found = []
    for part in probabilities.split(max(_PIXELS_AT_ONCE // most, 1)):
        part = _resize(part, whole)
        if via_extent:
            part = _resize(part[:, : image_size[0], : image_size[1]], size)
        found.append(part[:, :height, :width] > 0.5)
    return torch.cat(found)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """The smallest boxes around masks, XYXY in pixels, a pixel reaching to the next one.

    Args:
        masks: bool [n, H, W].

    Returns:
        float32 [n, 4]; all 0 for a mask without pixels; empty for n = 0.
    """
    (left, right), (top, bottom) = (_ends(masks.any(across)) for across in (1, 2))
    return torch.stack([left, top, right, bottom], dim=1)


def _ends(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first true value of each line [n, L] starts and the last one ends."""
    after = torch.ones_like(lines, dtype=torch.float32).cumsum(1)
    last = (after * lines).amax(1)
    first = after[:, -1] - (after.flip(1) * lines).amax(1)
    return torch.minimum(first, last), last


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    if len(values) == 0:
        return values.new_zeros(0, *size)
    return F.interpolate(values[None], size=list(size), mode="bilinear", align_corners=False)[0]
