"""Masks that span a whole image, in the place of Detectron2's masks inside boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks, ROIMasks
from torch import Tensor

from rs_d2.ops.masks import to_pixels


class ImageMasks(ROIMasks):
    """Probabilities on a grid that spans an image; Detectron2's postprocessing makes pixels of it.

    Args:
        tensor: [n, h, w], in [0, 1].
        extent: height and width of what the grid spans, the padding of the batch included.
        image_size: height and width of the image inside it.
        via_extent: see :func:`rs_d2.ops.masks.to_pixels`.
    """

    def __init__(
        self,
        tensor: Tensor,
        extent: Sequence[int],
        image_size: Sequence[int],
        *,
        via_extent: bool = False,
    ) -> None:
        super().__init__(tensor)
        self.extent = extent
        self.image_size = image_size
        self.via_extent = via_extent

    def _with(self, tensor: Tensor) -> ImageMasks:
        return ImageMasks(tensor, self.extent, self.image_size, via_extent=self.via_extent)

    def to(self, device: torch.device) -> ImageMasks:
        """The same on another device."""
        return self._with(self.tensor.to(device))

    def __getitem__(self, item: Any) -> ImageMasks:
        """Some of the masks, by slice, index or mask."""
        return self._with(self.tensor[item])

    def to_bitmasks(
        self, boxes: Tensor, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Masks of the image resized to a height and width; the boxes were applied before."""
        size = height, width
        return BitMasks(
            to_pixels(self.tensor, self.extent, self.image_size, size, via_extent=self.via_extent)
        )


def gt_bitmaps(instances: Instances) -> Tensor:
    """Masks of an image's objects, bool [G, H, W]; an image without objects may lack the field."""
    device = instances.gt_classes.device
    if len(instances) == 0:
        return torch.zeros(0, *instances.image_size, dtype=torch.bool, device=device)
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    return masks.tensor.to(device)
