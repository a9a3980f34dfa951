"""Detectron2's feature pyramid on our ResNets.

The two builders differ in how the levels above the backbone's last are made.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from rs_d2.modeling.backbone.resnet import build_rs_resnet_backbone


class StridedLevels(nn.Module):
    """Two coarser levels on top of a pyramid: 3x3 convolutions of stride 2, nothing between.

    Detectron2's block of this kind starts from the backbone or puts a ReLU before the second.
    """

    def __init__(self, channels: int, in_feature: str = "p5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6, self.p7 = (nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """From p5 [N, C, H, W] to p6 and p7, each half the size, rounded up."""
        p6 = self.p6(x)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_rs_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A pyramid on :func:`build_rs_resnet_backbone`, its last level pooled from the one below."""
    return _build_fpn(cfg, input_shape, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_rs_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A pyramid on :func:`build_rs_resnet_backbone`, with p6 and p7 convolved from p5."""
    return _build_fpn(cfg, input_shape, StridedLevels(cfg.MODEL.FPN.OUT_CHANNELS))


def _build_fpn(cfg: CfgNode, input_shape: ShapeSpec, top_block: nn.Module) -> Backbone:
    return FPN(
        bottom_up=build_rs_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
