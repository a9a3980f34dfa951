"""Detectron2 components; importing this package registers them."""

from rs_d2.modeling import backbone  # noqa: F401
from rs_d2.modeling.anchor_generator import OctaveAnchorGenerator, SpanningAnchorGenerator
from rs_d2.modeling.dense import ATSS, PAA, YOLACT, SOLOv2
from rs_d2.modeling.proposal_generator import RSRPN
from rs_d2.modeling.roi_heads import (
    RSCascadeROIHeads,
    RSFastRCNNOutputLayers,
    RSMaskRCNNConvUpsampleHead,
    RSROIHeads,
)

__all__ = [
    "ATSS",
    "PAA",
    "YOLACT",
    "RSRPN",
    "SOLOv2",
    "OctaveAnchorGenerator",
    "RSCascadeROIHeads",
    "RSFastRCNNOutputLayers",
    "RSMaskRCNNConvUpsampleHead",
    "RSROIHeads",
    "SpanningAnchorGenerator",
]
