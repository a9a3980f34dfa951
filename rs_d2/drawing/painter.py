"""Boxes, translucent masks and labels painted on a picture, fast enough for video."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

_SHORT_SIDE = 400  # small images grow towards it, so that labels can be read; in pixels
_LONG_SIDE = 4096  # at most so far: a strip would become too large to be encoded; in pixels
_MASK_OPACITY = 0.45
_GOLDEN_RATIO = (5**0.5 - 1) / 2

Color = tuple[int, int, int]  # RGB


class MaskPart(NamedTuple):
    """Bool pixels [h, w] of a mask, whose first is that of row ``top``, column ``left``."""

    pixels: np.ndarray
    left: int
    top: int


def paint(
    picture: Image.Image,
    boxes: np.ndarray,
    colors: Sequence[Color],
    labels: Sequence[Sequence[str]],
    masks: Iterable[MaskPart | None] = (),
    scale: int = 1,
) -> None:
    """Paint objects into a picture, later ones on top of earlier ones.

    Args:
        picture: RGB, is changed.
        boxes: [N, 4], XYXY, pixels of the image.
        colors: [N].
        labels: [N], the parts of each label, written one after the other. Parts that return, such
            as class names, are written once and then copied.
        masks: [N], or none at all.
        scale: how many times the picture is as large as the image.
    """
    for mask, color in zip(masks, colors, strict=False):
        if mask is not None and mask.pixels.any():
            _paint_mask(picture, mask, scale, color)
    corners = (boxes * scale).tolist()
    pen, width = ImageDraw.Draw(picture), max(2, round(min(picture.size) / 300))
    for box, color in zip(corners, colors, strict=True):
        pen.rectangle(box, outline=color, width=width)
    for box, label, color in zip(corners, labels, colors, strict=True):
        _paint_label(picture, pen, box, label, color)


def paint_instances(
    image: np.ndarray, instances: Instances, class_names: Sequence[str]
) -> np.ndarray:
    """Paint detections, the best-scored on top.

    Args:
        image: uint8 [H, W, 3], RGB; not changed.
        instances: on the CPU, with ``pred_boxes`` (XYXY, pixels), ``scores``, ``pred_classes`` and,
            where there are masks, ``pred_masks`` [N, H, W], of which only the box is painted.
        class_names: by class.

    Returns:
        uint8 picture, RGB; of the image's size, or a multiple of it as long as the short side has
        at most 400 pixels and the long side 4096.
    """
    order = instances.scores.argsort(stable=True)
    boxes = instances.pred_boxes.tensor[order].numpy()
    classes, scores = instances.pred_classes[order].tolist(), instances.scores[order].tolist()
    masks: Iterable[MaskPart] = ()
    if instances.has("pred_masks"):
        whole = instances.pred_masks.numpy()
        masks = (_cut(whole[i], box) for i, box in zip(order.tolist(), boxes, strict=True))
    labels = [
        (f"{class_names[k]} ", f"{score:.2f}") for k, score in zip(classes, scores, strict=True)
    ]
    picture, scale = _enlarged(image)
    paint(picture, boxes, [class_color(k) for k in classes], labels, masks, scale)
    return np.asarray(picture)


@cache
def class_color(index: int) -> Color:
    """A bright colour for a class; those of neighbouring classes are far apart."""
    hue = (0.02 + index * _GOLDEN_RATIO) % 1
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (1.0, 0.75))[index // 12 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _enlarged(image: np.ndarray) -> tuple[Image.Image, int]:
    """A copy, and how many times it is as large."""
    height, width = image.shape[:2]
    scale = max(1, min(_SHORT_SIDE // min(height, width), _LONG_SIDE // max(height, width)))
    picture = Image.fromarray(image)
    if scale == 1:
        return picture.copy(), 1
    return picture.resize((width * scale, height * scale), Image.Resampling.BICUBIC), scale


def _cut(mask: np.ndarray, box: np.ndarray) -> MaskPart:
    """What a mask [H, W] has in its box and a pixel around it."""
    left, top = (max(math.floor(value) - 1, 0) for value in box[:2])
    right, bottom = (max(math.ceil(value) + 1, 0) for value in box[2:])
    return MaskPart(mask[top:bottom, left:right], left, top)


def _paint_mask(picture: Image.Image, mask: MaskPart, scale: int, color: Color) -> None:
    """Blend a mask and its outline into the picture."""
    pixels = mask.pixels
    if scale > 1:
        size = (pixels.shape[1] * scale, pixels.shape[0] * scale)
        grown = Image.fromarray(pixels.astype(np.uint8) * 255)
        pixels = np.asarray(grown.resize(size, Image.Resampling.BILINEAR)) > 127
    opacity = pixels * np.uint8(round(255 * _MASK_OPACITY))
    opacity[_outline(pixels)] = 255
    picture.paste(color, (mask.left * scale, mask.top * scale), Image.fromarray(opacity))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that touch one outside it, or the border."""
    edge = mask.copy()
    inside = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    edge[1:-1, 1:-1] &= ~inside
    return edge


def _paint_label(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    corners: Sequence[float],
    words: Sequence[str],
    color: Color,
) -> None:
    """Write above the box, or inside it where the image ends."""
    size = min(max(round(min(picture.size) / 34), 12), 28)
    written = [_written(word, size) for word in words]
    width = sum(word.width for word in written) + 6
    height = written[0].height + 4
    x = round(min(max(corners[0], 0), max(picture.width - width, 0)))
    y = round(corners[1]) - height
    y = max(round(corners[1]), 0) if y < 0 else y
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 120
    x += 3
    for word in written:
        picture.paste("black" if bright else "white", (x, y + 2), word)
        x += word.width


@lru_cache(maxsize=4096)
def _written(word: str, size: int) -> Image.Image:
    """A word's opacity; all of one size have one height. To write it costs more than to paste."""
    word = "".join(letter if letter.isprintable() else " " for letter in word)
    font = _font(size)
    _, top, _, bottom = font.getbbox("Agjl_")
    image = Image.new("L", (math.ceil(font.getlength(word)), math.ceil(bottom - top)))
    ImageDraw.Draw(image).text((0, -top), word, fill=255, font=font)
    return image


@cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
