"""Backbones: deformable ResNets, and feature pyramids on them."""

from rs_d2.modeling.backbone.carafe_fpn import CARAFE, CARAFEFPN
from rs_d2.modeling.backbone.fpn import StridedLevels
from rs_d2.modeling.backbone.resnet import DeformBottleneckBlock

__all__ = ["CARAFE", "CARAFEFPN", "DeformBottleneckBlock", "StridedLevels"]
