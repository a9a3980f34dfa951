"""The augmentation of SSD (Liu et al., ECCV 2016): distorted colours, a window, a square.

The window is the image on a larger canvas ("expand"), then a part of that which overlaps the
objects ("IoU crop"). Both, and the resizing, are one transform, so that the canvas, up to 16 times
the image, is never in memory. All draws come from NumPy's random numbers.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image
from torchvision.ops import box_iou

_BRIGHTNESS = 32  # of 255
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = 18  # degrees
_LARGEST_CANVAS = 4.0  # sides of the image
_LEAST_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # 1: no crop
_SMALLEST_CROP = 0.3  # of each side
_LONGEST_ASPECT = 2.0
_ATTEMPTS = 50

Window = tuple[int, int, int, int]  # left, top, width, height in pixels of the image


def ssd_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """What ``INPUT.AUGMENTATION`` ssd does before the flip.

    Images become squares of ``INPUT.MIN_SIZE_TRAIN`` pixels, whatever their aspect; a larger canvas
    is filled with ``MODEL.PIXEL_MEAN``.
    """
    fill = tuple(round(value) for value in cfg.MODEL.PIXEL_MEAN)
    return [PhotometricDistortion(), ExpandAndCrop(cfg.INPUT.MIN_SIZE_TRAIN[0], fill)]


class PhotometricDistortion(T.Augmentation):
    """Distort colours, each step with probability 1/2 and clipped to 8 bits.

    Brightness (plus -32 to 32), contrast (times 0.5 to 1.5), saturation (times 0.5 to 1.5), hue
    (plus -18 to 18 degrees), a random order of the channels. Contrast comes before saturation or
    after hue, with equal probability.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """A transform of uint8 [H, W, 3], RGB or BGR alike."""
        brightness = _draw(-_BRIGHTNESS, _BRIGHTNESS, otherwise=0.0)
        contrast = _draw(*_CONTRAST, otherwise=1.0)
        before, after = (contrast, 1.0) if np.random.rand() < 0.5 else (1.0, contrast)
        saturation = _draw(*_SATURATION, otherwise=1.0)
        hue = _draw(-_HUE, _HUE, otherwise=0.0)
        order = np.random.permutation(3) if np.random.rand() < 0.5 else np.arange(3)
        levels = np.arange(256)
        first = _in_8_bits(_in_8_bits(levels + brightness) * before)
        last = _in_8_bits(levels * after)

        def distort(image: np.ndarray) -> np.ndarray:
            return last[shift_colours(first[image], hue, saturation)][..., order]

        return T.ColorTransform(distort)


def shift_colours(image: np.ndarray, hue: float, saturation: float) -> np.ndarray:
    """An image with other hues and saturations, in 8 bits of each.

    Args:
        image: uint8 [H, W, 3], RGB. In BGR a hue is shifted by the negative angle.
        hue: added, degrees.
        saturation: factor, at least 0.

    Returns:
        uint8 [H, W, 3].
    """
    if hue == 0 and saturation == 1:
        return image
    levels = np.arange(256)
    table = [(levels + round(hue / 360 * 256)) % 256, _in_8_bits(levels * saturation), levels]
    shifted = Image.fromarray(image).convert("HSV").point(np.concatenate(table).tolist())
    return np.asarray(shifted.convert("RGB"))


class ExpandAndCrop(T.Augmentation):
    """Cut a random window, in part beyond the image, and make it a square.

    With probability 1/2 the image first lies anywhere on a canvas of 1 to 4 times its sides. Then
    0, 0.1, 0.3, 0.5, 0.7, 0.9 or no crop is drawn. A crop has sides of 0.3 to 1 times the canvas's,
    an aspect of 1/2 to 2, at least the drawn IoU with every object, and an object's centre in it;
    if 50 windows are none, another IoU is drawn.

    Args:
        size: side of the square, pixels.
        fill: of the canvas, a value in [0, 255] for each channel.
    """

    def __init__(self, size: int, fill: tuple[int, ...]) -> None:
        self.size = size
        self.fill = fill

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> T.Transform:
        """A transform of an image [H, W, C].

        Args:
            image: [H, W, C].
            boxes: [N, 4], XYXY, pixels; without any, a crop lies anywhere.
        """
        window = _crop(_expand(*image.shape[1::-1]), boxes)
        return WindowTransform(window, self.size, self.fill)


class WindowTransform(T.Transform):
    """Cut a window, in part beyond the image, and make it a square.

    An output pixel that the image does not cover is filled whole: the mean in images, 0 in masks.
    Polygons are not clipped to the square, which their rasterising does to the pixel; those that
    lie beyond it are left out.

    Args:
        window: what is cut.
        size: side of the square, pixels.
        fill: a value in [0, 255] for each channel.
    """

    def __init__(self, window: Window, size: int, fill: tuple[int, ...]) -> None:
        super().__init__()
        self.window = window
        self.size = size
        self.fill = fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """The square [S, S, C] of an image, uint8 [H, W, C]."""
        return self._cut(img, self.fill, Image.Resampling.BILINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The square [S, S] of labels, uint8 [H, W]; 0 beyond the image."""
        return self._cut(segmentation, 0, Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points [N, 2], x and y, where they lie in the square."""
        return (coords - self.window[:2]) * (self.size / np.array(self.window[2:]))

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Polygons, each [M, 2], where they lie in the square."""
        moved = [self.apply_coords(polygon) for polygon in polygons]
        return [
            each for each in moved if (each.max(0) > 0).all() and (each.min(0) < self.size).all()
        ]

    def _cut(self, pixels: np.ndarray, fill: int | tuple[int, ...], resample: int) -> np.ndarray:
        x, y, width, height = self.window
        left, right, *columns = self._covered(x, width, pixels.shape[1])
        top, bottom, *rows = self._covered(y, height, pixels.shape[0])
        square = np.full((self.size, self.size, *pixels.shape[2:]), fill, dtype=pixels.dtype)
        if left < right and top < bottom:
            box = columns[0], rows[0], columns[1], rows[1]
            image = Image.fromarray(pixels).resize((right - left, bottom - top), resample, box)
            square[top:bottom, left:right] = np.asarray(image)
        return square

    def _covered(self, start: int, length: int, extent: int) -> tuple[int, int, float, float]:
        """Along one axis: which output pixels an image covers whole, and of what part of it."""
        scale, rounding = length / self.size, 1e-6
        first = ceil((max(start, 0) - start) / scale - rounding)
        last = floor((min(start + length, extent) - start) / scale + rounding)
        return first, last, max(0.0, start + first * scale), min(extent, start + last * scale)


def _draw(low: float, high: float, otherwise: float) -> float:
    """With probability 1/2 a number between two, else another one."""
    return np.random.uniform(low, high) if np.random.rand() < 0.5 else otherwise


def _in_8_bits(values: np.ndarray) -> np.ndarray:
    return np.round(values).clip(0, 255).astype(np.uint8)


def _expand(width: int, height: int) -> Window:
    """A canvas around an image."""
    if np.random.rand() >= 0.5:
        return 0, 0, width, height
    ratio = np.random.uniform(1, _LARGEST_CANVAS)
    new_width, new_height = int(width * ratio), int(height * ratio)
    left = int(np.random.uniform(0, new_width - width))
    top = int(np.random.uniform(0, new_height - height))
    return -left, -top, new_width, new_height


def _crop(canvas: Window, boxes: np.ndarray) -> Window:
    """A part of the canvas, or all of it."""
    corner, sides = np.array(canvas[:2]), np.array(canvas[2:])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    while (least_iou := np.random.choice(_LEAST_IOUS)) < 1:
        size = np.random.uniform(_SMALLEST_CROP, 1, (_ATTEMPTS, 2)) * sides
        start = np.random.uniform(0, 1, (_ATTEMPTS, 2)) * (sides - size)
        low, high = start.astype(int) + corner, (start + size).astype(int) + corner
        aspect = size[:, 0] / size[:, 1]
        good = (aspect <= _LONGEST_ASPECT) & (aspect >= 1 / _LONGEST_ASPECT)
        good &= (low < high).all(1)
        if len(boxes):
            windows = torch.as_tensor(np.concatenate([low, high], axis=1)).double()
            ious = box_iou(windows, torch.as_tensor(boxes).double()).numpy()
            inside = (low[:, None] < centers) & (centers < high[:, None])
            good &= (ious >= least_iou).all(1) & inside.all(2).any(1)
        if good.any():
            first = good.argmax()
            return (*low[first].tolist(), *(high - low)[first].tolist())
    return canvas
