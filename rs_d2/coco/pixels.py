"""The one way that image files become pixels: turned as their EXIF entry says, in 8 bits."""

from __future__ import annotations

import os
from os import PathLike
from typing import IO, Any

import numpy as np
from PIL import Image

_Transpose = Image.Transpose
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)
_LARGEST = 65535  # of 16 bits


def open_image(source: str | PathLike | IO[bytes] | Image.Image) -> Image.Image:
    """An image as training, prediction and pictures see it, decoded.

    It is turned as its EXIF entry says. Of 16 bits (and 32, as Pillow reads some files of 16) the
    values from 0 to 65535 become 0 to 255; Pillow's own conversion would make all above 255 white.

    Args:
        source: path, open file or image.

    Raises:
        OSError: There is no such file, it is a pipe or folder, or not an image that can be read;
            broken files make Pillow raise other errors, too.
    """
    if isinstance(source, (str, PathLike)):
        if os.path.exists(source) and not os.path.isfile(source):
            raise OSError("not a regular file")
        with open(source, "rb") as file:
            return open_image(file)
    image = source if isinstance(source, Image.Image) else Image.open(source)
    image.load()  # first: looking for EXIF would swallow what is wrong, and leave black pixels
    turn = _TURNS.get(orientation(image))
    image = image.transpose(turn) if turn is not None else image
    return _of_8_bits(image) if is_deep(image) else image


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I")


def orientation(image: Image.Image) -> int:
    """The EXIF entry; 1, upright, where there is none or none that can be read.

    Raises:
        OSError: A PNG, which may have it behind its pixels, has broken ones.
    """
    if image.format == "PNG":
        image.load()
    try:
        found: Any = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # whatever broken metadata makes Pillow raise; the pixels may be good
        return 1
    return found if found in _TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the turn, of an image that is not decoded yet."""
    if image.format == "TIFF":  # Pillow turns these itself
        return image.size
    return image.size[::-1] if orientation(image) in _QUARTER_TURNS else image.size


def _of_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64).clip(0, _LARGEST)
    return Image.fromarray(((values * 255 + _LARGEST // 2) // _LARGEST).astype(np.uint8))
