"""From an image to a graph's input, and from its outputs back to the image's pixels.

Neither needs Detectron2. What it does in evaluation is done here again, pixel by pixel the same.
"""

from __future__ import annotations

from os import PathLike

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rs_d2.coco.pixels import open_image

ImageLike = str | PathLike | Image.Image | np.ndarray

_MASK_THRESH = 0.5


def read(image: ImageLike, pixel_format: str) -> np.ndarray:
    """Pixels in a graph's order of channels, uint8 [H, W, 3].

    Args:
        image: path or PIL image, turned as its EXIF entry says; or a uint8 array [H, W, 3] in BGR.
        pixel_format: "BGR" or "RGB".

    Raises:
        ValueError: The array has another shape or type.
        OSError: The file is not an image that can be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"an image is uint8 [H, W, 3] in BGR, not {image.dtype} {list(image.shape)}"
            )
        return image if pixel_format == "BGR" else image[:, :, ::-1]
    pixels = np.asarray(open_image(image).convert("RGB"))
    return pixels[:, :, ::-1] if pixel_format == "BGR" else pixels


def resize(pixels: np.ndarray, min_size: int, max_size: int, square: bool = False) -> Tensor:
    """A graph's input, float32 [3, h, w] in [0, 255].

    Args:
        pixels: uint8 [H, W, 3].
        min_size: of the short side; 0 does not change the image.
        max_size: most pixels of the long side.
        square: both sides become ``min_size``.
    """
    height, width = size_of_test(pixels.shape[:2], min_size, max_size)
    if square and min_size:
        height = width = min_size
    resized = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).astype(np.float32))


def size_of_test(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width of an image after the resizing of a test."""
    if min_size == 0:
        return size
    scale = min_size / min(size)
    height, width = (side * scale for side in size)
    if max(height, width) > max_size:
        scale = max_size / max(height, width)
        height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def scale_boxes(boxes: Tensor, found_in: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] of an image of one height and width, in pixels of another, clipped to it."""
    height, width = size
    factors = boxes.new_tensor([width / found_in[1], height / found_in[0]] * 2)
    return torch.minimum(boxes * factors, boxes.new_tensor([width, height] * 2)).clamp(min=0)


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Masks of a whole image from those inside boxes.

    A pixel belongs to an object where the probability at its centre, interpolated bilinearly, is at
    least 0.5; outside the box it is 0.

    Args:
        probabilities: [n, S, S].
        boxes: [n, 4], XYXY, pixels.
        size: height and width of the image.

    Returns:
        bool [n, H, W]; empty for n = 0.
    """
    pasted = np.zeros((len(boxes), *size), dtype=bool)
    for mask, probability, box in zip(pasted, probabilities, boxes, strict=True):
        left, top = (max(int(corner) - 1, 0) for corner in box[:2].floor().tolist())
        right, bottom = (
            min(int(corner) + 1, side)
            for corner, side in zip(box[2:].ceil().tolist(), (size[1], size[0]), strict=True)
        )
        if right <= left or bottom <= top:
            continue
        x = (torch.arange(left, right) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        values = F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0]
        mask[top:bottom, left:right] = (values >= _MASK_THRESH).numpy()
    return pasted
