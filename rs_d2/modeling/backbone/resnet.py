"""Detectron2's ResNet, with deformable stages on any device and one more normalisation.

Detectron2 builds the plain network; what it cannot build everywhere is put in afterwards: its own
deformable block needs compiled code and a GPU, and its list of norm names is closed.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.ops.deform_conv import modulated_deform_conv, num_offset_channels
from rs_d2.ops.norm import freeze_batch_norm_statistics
from rs_d2.utils.errors import UserError

# Value of MODEL.RESNETS.NORM, beside Detectron2's: constant statistics, trainable affine map.
FROZEN_STAT_NORM = "FrozenStatBN"


class DeformBottleneckBlock(CNNBlockBase):
    """A bottleneck block whose 3x3 convolution is deformable and modulated.

    The layers are those of the block it is made from, and ``conv2_offset``, which predicts offsets
    and modulations (Zhu et al., Deformable ConvNets v2). It starts at zero: undeformed taps of half
    weight. State-dict names are those of Detectron2's block of this name.

    Args:
        block: the plain block; its layers are taken over.
        deform_groups: groups of input channels with offsets of their own.
    """

    def __init__(self, block: BottleneckBlock, deform_groups: int) -> None:
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.shortcut = block.shortcut
        self.conv1, self.conv2, self.conv3 = block.conv1, block.conv2, block.conv3
        self.conv2_offset = Conv2d(
            self.conv2.in_channels,
            num_offset_channels(self.conv2.kernel_size, deform_groups),
            kernel_size=self.conv2.kernel_size,
            stride=self.conv2.stride,
            padding=self.conv2.padding,
            dilation=self.conv2.dilation,
        )
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From [N, C_in, H, W] to [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        conv2 = self.conv2
        out = F.relu_(self.conv1(x))
        out = modulated_deform_conv(
            out,
            self.conv2_offset(out),
            conv2.weight,
            stride=conv2.stride,
            padding=conv2.padding,
            dilation=conv2.dilation,
        )
        if conv2.norm is not None:
            out = conv2.norm(out)
        out = self.conv3(F.relu_(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


@BACKBONE_REGISTRY.register()
def build_rs_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The ResNet of ``MODEL.RESNETS``, as Detectron2's builder reads it.

    Two settings differ. ``NORM`` may be ``FrozenStatBN``: batch norm with constant statistics and
    trainable weight and bias in the stages that ``MODEL.BACKBONE.FREEZE_AT`` leaves trainable. The
    stages of ``DEFORM_ON_PER_STAGE`` also work on a CPU and without Detectron2's compiled code.

    Raises:
        UserError: Deformable stages without modulation, or in a network without bottlenecks.
    """
    deformable = [bool(on) for on in cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE]
    if any(deformable):
        _check_deformable(cfg)
    resnet = build_resnet_backbone(_plain_settings(cfg), input_shape)
    for stage, on in zip(resnet.stages, deformable, strict=False):  # unused stages are not built
        if on:
            for name, block in stage.named_children():
                deformed = DeformBottleneckBlock(block, cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS)
                setattr(stage, name, deformed)
    if cfg.MODEL.RESNETS.NORM == FROZEN_STAT_NORM:
        freeze_batch_norm_statistics(resnet)
    return resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def _check_deformable(cfg: CfgNode) -> None:
    if not cfg.MODEL.RESNETS.DEFORM_MODULATED:
        raise UserError(
            "MODEL.RESNETS.DEFORM_MODULATED: False is not supported by build_rs_resnet_backbone"
        )
    if cfg.MODEL.RESNETS.DEPTH < 50:
        raise UserError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE: ResNet-{cfg.MODEL.RESNETS.DEPTH} has no bottleneck"
            " blocks to deform"
        )


def _plain_settings(cfg: CfgNode) -> CfgNode:
    """Return a copy for Detectron2's builder: nothing deformed or frozen, a norm it knows."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # later: layers are still to be replaced
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    if cfg.MODEL.RESNETS.NORM == FROZEN_STAT_NORM:
        cfg.MODEL.RESNETS.NORM = "BN"
    return cfg
