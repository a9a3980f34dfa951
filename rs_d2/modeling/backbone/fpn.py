"""Detectron2's feature pyramid on our ResNets.

The builders differ in how the levels above the backbone's last are made; one fuses bilinearly.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.modeling.backbone.resnet import build_rs_resnet_backbone
from rs_d2.utils.errors import UserError


class StridedLevels(nn.Module):
    """Two coarser levels on top of a pyramid: 3x3 convolutions of stride 2, nothing between.

    Detectron2's block of this kind puts a ReLU before the second.

    Args:
        channels: C, of both levels.
        in_feature: what they start from: "p5", or a stage of the backbone such as "res5".
        in_channels: of that; C unless it is given.
    """

    def __init__(
        self, channels: int, in_feature: str = "p5", in_channels: int | None = None
    ) -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6, self.p7 = (
            nn.Conv2d(width, channels, 3, stride=2, padding=1)
            for width in (in_channels or channels, channels)
        )
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """From the feature [N, C', H, W] to p6 and p7, each half the size, rounded up."""
        p6 = self.p6(x)
        return [p6, self.p7(p6)]


class BilinearFPN(FPN):
    """A pyramid whose levels are enlarged bilinearly to just the size of the next finer one.

    Images of any size go in as they are, without padding: YOLACT's 550 pixels have levels of 69,
    35, 18, 9 and 5 cells.
    """

    @property
    def size_divisibility(self) -> int:
        """0: images need no padding."""
        return 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From images [N, 3, H0, W0] to the levels [N, C, H, W] by name, finest first."""
        features = self.bottom_up(x)
        levels: list[Tensor] = []
        merged = None
        for name, lateral, output in zip(
            self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True
        ):
            target = lateral(features[name])
            merged = target if merged is None else target + _enlarge(merged, target)
            levels.insert(0, output(merged))
        levels += self.top_block(features[self.top_block.in_feature])
        return dict(zip(self._out_features, levels, strict=True))


def require_sum(cfg: CfgNode) -> None:
    """Check that levels are to be added, for a pyramid that does nothing else.

    Raises:
        UserError: ``MODEL.FPN.FUSE_TYPE`` is not ``sum``.
    """
    if cfg.MODEL.FPN.FUSE_TYPE != "sum":
        raise UserError(f"MODEL.FPN.FUSE_TYPE: '{cfg.MODEL.FPN.FUSE_TYPE}' is not sum")


def _enlarge(level: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(level, size=target.shape[-2:], mode="bilinear", align_corners=False)


@BACKBONE_REGISTRY.register()
def build_rs_resnet_bilinear_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A :class:`BilinearFPN` on :func:`build_rs_resnet_backbone`, with p6 convolved from its end.

    Raises:
        UserError: ``MODEL.FPN.FUSE_TYPE`` is not ``sum``.
    """
    require_sum(cfg)
    bottom_up = build_rs_resnet_backbone(cfg, input_shape)
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return BilinearFPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=StridedLevels(channels, last, bottom_up.output_shape()[last].channels),
    )


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
