"""Anchors whose sizes are fractions of an octave above the strides of their levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor

from rs_d2.utils.errors import UserError


@ANCHOR_GENERATOR_REGISTRY.register()
class OctaveAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors with sizes ``base * stride * 2^(q / n)`` pixels, ``q = 0 ... n - 1``.

    ``base`` is ``MODEL.ANCHOR_GENERATOR.OCTAVE_BASE_SCALE`` and ``n`` is ``SCALES_PER_OCTAVE``. The
    sizes follow the levels that a config chooses, and are exact where decimals would round them.
    ``SIZES`` that a config gives count instead; it is empty in the configs that leave them to this
    class. The state dict has no entry of an anchor generator.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Detectron2's arguments.

        Raises:
            UserError: the base or the number of scales is not positive.
        """
        ret = super().from_config(cfg, input_shape)
        node = cfg.MODEL.ANCHOR_GENERATOR
        for key in ("OCTAVE_BASE_SCALE", "SCALES_PER_OCTAVE"):
            if not node[key] > 0:
                raise UserError(f"MODEL.ANCHOR_GENERATOR.{key}: {node[key]} is not positive")
        if not node.SIZES:
            base, scales = node.OCTAVE_BASE_SCALE, node.SCALES_PER_OCTAVE
            ret["sizes"] = [
                [base * stride * 2 ** (q / scales) for q in range(scales)]
                for stride in ret["strides"]
            ]
        return ret


@ANCHOR_GENERATOR_REGISTRY.register()
class SpanningAnchorGenerator(OctaveAnchorGenerator):
    """Anchors in the middle of the cells of a grid that spans the image, whatever its size.

    With levels of ``h x w`` cells in an image of ``H x W`` pixels a cell is ``H / h`` by ``W / w``
    pixels, which need not be whole: YOLACT's 550 pixels have 69 cells of 7.97. The sizes of the
    anchors follow the nominal strides 8, 16 and so on.
    """

    def spanning(self, features: Sequence[Tensor], image_size: Sequence[int]) -> list[Boxes]:
        """The anchors of every level, [h w a, 4].

        Args:
            features: per level [N, C, h, w].
            image_size: height and width of the images that the features come from, padding
                included.
        """
        anchors = []
        for feature, cell_anchors in zip(features, self.cell_anchors, strict=True):
            y, x = (
                (torch.arange(cells, device=cell_anchors.device) + 0.5) * (side / cells)
                for side, cells in zip(image_size, feature.shape[-2:], strict=True)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            centers = torch.stack([x, y, x, y], dim=2)
            anchors.append(Boxes((centers[:, :, None] + cell_anchors).reshape(-1, 4)))
        return anchors
