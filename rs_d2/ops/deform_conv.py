"""Modulated deformable convolution on any device, from one map of offsets and modulations.

Shapes: ``N`` images, ``G`` deformable groups, ``T = kh * kw`` taps of the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d


def num_offset_channels(kernel_size: tuple[int, int], deform_groups: int) -> int:
    """Channels 3 * G * T of the map that :func:`modulated_deform_conv` takes."""
    return 3 * deform_groups * kernel_size[0] * kernel_size[1]


def modulated_deform_conv(
    features: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolution whose taps move and are weighted (Zhu et al., Deformable ConvNets v2, Eq. 1).

    ``y(p) = sum_t weight_t * sigmoid(m_t(p)) * x(p + p_t + dp_t(p))``, where ``p_t`` is tap t's
    place in the kernel and x is interpolated bilinearly, 0 outside the map. An offset map of zeros
    gives half of the plain convolution.

    Args:
        features: [N, C_in, H, W].
        offsets: [N, 3GT, H_out, W_out]. The first 2GT channels are the offsets dp in pixels, for
            each group and tap the vertical one, then the horizontal one; the last GT channels are
            the modulation logits m, in (group, tap) order. Group g moves the g-th of G equal
            parts of the input channels. This is the layout of Detectron2 and of mmdetection.
        weight: [C_out, C_in / groups, kh, kw]; the number of groups follows from it.
        bias: [C_out] or None.
        stride: vertical, horizontal.
        padding: vertical, horizontal; zeros.
        dilation: vertical, horizontal.

    Returns:
        [N, C_out, H_out, W_out], connected to every argument; empty for an empty input.

    Raises:
        ValueError: The channels of the offset map do not fit the kernel or the features.
    """
    if not torch.jit.is_tracing():  # sizes are tensors there
        _check_channels(features, offsets, weight)
    part = offsets.shape[1] // 3
    moves, logits = offsets[:, : 2 * part], offsets[:, 2 * part :]
    return deform_conv2d(
        features, moves, weight, bias, stride, padding, dilation, mask=logits.sigmoid()
    )


def _check_channels(features: Tensor, offsets: Tensor, weight: Tensor) -> None:
    taps = weight.shape[2] * weight.shape[3]
    deform_groups = offsets.shape[1] // (3 * taps)
    fits = deform_groups > 0 and offsets.shape[1] == 3 * taps * deform_groups
    if not fits or features.shape[1] % deform_groups:
        raise ValueError(
            f"offsets have {offsets.shape[1]} channels; expected 3 * groups * {taps}, with groups"
            f" dividing the {features.shape[1]} channels of the features"
        )
