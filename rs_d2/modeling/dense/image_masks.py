"""Predicted masks that span a whole image, in the place of Detectron2's masks inside boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, ROIMasks
from torch import Tensor

from rs_d2.ops.masks import to_pixels


class ImageMasks(ROIMasks):
    """Probabilities on a grid that spans an image; Detectron2's postprocessing makes pixels of it.

    Args:
        tensor: [n, h, w], in [0, 1].
        extent: height and width of what the grid spans, the padding of the batch included.
        image_size: height and width of the image inside it.
    """

    def __init__(self, tensor: Tensor, extent: Sequence[int], image_size: Sequence[int]) -> None:
        super().__init__(tensor)
        self.extent = extent
        self.image_size = image_size

    def to(self, device: torch.device) -> ImageMasks:
        """The same on another device."""
        return ImageMasks(self.tensor.to(device), self.extent, self.image_size)

    def __getitem__(self, item: Any) -> ImageMasks:
        """Some of the masks, by slice, index or mask."""
        return ImageMasks(self.tensor[item], self.extent, self.image_size)

    def to_bitmasks(
        self, boxes: Tensor, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Masks of the image resized to a height and width; the boxes were applied before."""
        return BitMasks(to_pixels(self.tensor, self.extent, self.image_size, (height, width)))
