"""The feature pyramid of the "+" models: content-aware upsampling and a learned last level.

Shapes: ``N`` images, ``C`` channels of the pyramid, ``H, W`` of the level at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from rs_d2.modeling.backbone.fpn import require_sum
from rs_d2.modeling.backbone.resnet import build_rs_resnet_backbone
from rs_d2.ops.carafe import carafe_upsample


class CARAFE(nn.Module):
    """Upsample a map with kernels predicted from it (Wang et al., CARAFE, ICCV 2019).

    A 1x1 convolution compresses the map, a second one encodes a kernel for each output pixel, whose
    softmax weights the features around the pixel's place in the map.

    Args:
        channels: of the map.
        compressed_channels: of the compressed map.
        kernel_size: side of the reassembly kernel.
        encoder_size: side of the encoder's convolution.
        scale: of the upsampling.
    """

    def __init__(
        self,
        channels: int,
        compressed_channels: int = 64,
        kernel_size: int = 5,
        encoder_size: int = 3,
        scale: int = 2,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.scale = scale
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, kernel_size=1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            (kernel_size * scale) ** 2,
            kernel_size=encoder_size,
            padding=encoder_size // 2,
        )
        _xavier_fill(self.channel_compressor)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        nn.init.zeros_(self.content_encoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From [N, C, H, W] to [N, C, scale * H, scale * W]."""
        kernel_logits = self.content_encoder(self.channel_compressor(x))
        return carafe_upsample(x, kernel_logits, self.kernel_size, self.scale)


class CARAFEFPN(Backbone):
    """Feature pyramid whose top-down path upsamples by :class:`CARAFE`.

    The last level comes from a 3x3 convolution of stride 2 on the deepest feature map and is the
    start of the top-down path. An upsampled map that is larger than its target is cropped at the
    bottom and on the right.

    Layers, with ``i`` the binary logarithm of a level's stride: ``fpn_lateral{i}``,
    ``fpn_output{i}``, and ``fpn_upsample{i}`` from level i to level i - 1. In the original, level i
    is number i - 2 of ``lateral_convs`` and ``fpn_convs`` and number i - 3 of ``upsample_modules``.

    Args:
        bottom_up: network that gives the feature maps.
        in_features: names of its maps, strides ascending by factors of 2.
        out_channels: C.
        norm: Detectron2's name of a norm layer after each convolution; empty for a bias instead.
    """

    def __init__(
        self, bottom_up: Backbone, in_features: Sequence[str], out_channels: int, norm: str = ""
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        strides = [shape.stride for shape in shapes]
        if any(2 * fine != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(f"in_features {self.in_features}: strides {strides} do not double")
        self._size_divisibility = strides[-1]

        laterals = [_conv(shape.channels, out_channels, 1, norm) for shape in shapes]
        laterals.append(_conv(shapes[-1].channels, out_channels, 3, norm, stride=2))
        outputs = [_conv(out_channels, out_channels, 3, norm) for _ in laterals]
        upsamplers = [CARAFE(out_channels) for _ in shapes]
        finest = int(math.log2(strides[0]))
        for kind, first, layers in (
            ("lateral", finest, laterals),
            ("output", finest, outputs),
            ("upsample", finest + 1, upsamplers),
        ):
            for level, layer in enumerate(layers, start=first):
                self.add_module(f"fpn_{kind}{level}", layer)
        # Plain lists: the layers have their names already. Top down, as they are used.
        self.lateral_convs = laterals[::-1]
        self.output_convs = outputs[::-1]
        self.upsamplers = upsamplers[::-1]
        self._out_features = [f"p{finest + i}" for i in range(len(laterals))]
        self._out_feature_strides = {
            name: strides[0] * 2**i for i, name in enumerate(self._out_features)
        }
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this; the last level may be rounded up."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """From images [N, 3, H0, W0] to the levels [N, C, H, W] by name, finest first."""
        features = self.bottom_up(x)
        inputs = [features[name] for name in self.in_features]
        inputs.append(inputs[-1])
        inputs.reverse()
        merged = [self.lateral_convs[0](inputs[0])]
        for lateral, upsampler, feature in zip(
            self.lateral_convs[1:], self.upsamplers, inputs[1:], strict=True
        ):
            target = lateral(feature)
            upsampled = upsampler(merged[-1])
            merged.append(target + upsampled[:, :, : target.shape[2], : target.shape[3]])
        levels = [conv(level) for conv, level in zip(self.output_convs, merged, strict=True)]
        return dict(zip(self._out_features, levels[::-1], strict=True))


@BACKBONE_REGISTRY.register()
def build_rs_resnet_carafe_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A :class:`CARAFEFPN` with the settings of ``MODEL.FPN`` on ``build_rs_resnet_backbone``.

    Raises:
        UserError: ``MODEL.FPN.FUSE_TYPE`` is not ``sum``.
    """
    require_sum(cfg)
    return CARAFEFPN(
        bottom_up=build_rs_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
    )


def _conv(in_channels: int, out_channels: int, size: int, norm: str, stride: int = 1) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        stride=stride,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
    )
    _xavier_fill(conv)
    return conv


def _xavier_fill(conv: nn.Conv2d) -> None:
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
