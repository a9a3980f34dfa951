"""Functions of masks that cover a whole image.

Shapes: ``n`` masks, ``h`` and ``w`` of the maps that they are predicted on, ``H`` and ``W`` of the
image that they are wanted for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_PIXELS_AT_ONCE = 1 << 24  # of enlarged maps, 64 MB


def enlarge_masks(
    probs: Tensor, stride: int, inner_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Masks of an image from maps of the padded and resized image that the model saw.

    Both steps are bilinear: to the model's input, whose padding is cut off, and on to the image. A
    few masks at a time, so that a hundred large ones need no gigabytes.

    Args:
        probs: [n, h, w], in [0, 1].
        stride: pixels of the model's input per pixel of the maps.
        inner_size: height and width of the model's input without padding.
        size: H and W.

    Returns:
        bool [n, H, W]: above 0.5.
    """
    most = max(stride**2 * probs[:1].numel(), size[0] * size[1], 1)
    parts = probs[:, None].split(max(1, _PIXELS_AT_ONCE // most))
    found = [_resize(unpad(part, stride, inner_size), size)[:, 0] > 0.5 for part in parts]
    return torch.cat(found)


def unpad(probs: Tensor, stride: int, inner_size: tuple[int, int]) -> Tensor:
    """Maps [n, 1, h, w] at the model's input: ``stride`` times as large, without its padding."""
    larger = F.interpolate(probs, scale_factor=float(stride), mode="bilinear", align_corners=False)
    return larger[:, :, : inner_size[0], : inner_size[1]]


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


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
