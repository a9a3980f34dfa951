"""Anchors whose sizes are fractions of an octave above the strides of their levels."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

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
