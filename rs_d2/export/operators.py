"""Operators that ONNX has and PyTorch's exporter does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
from torchvision.ops import nms

Pair = tuple[int, int]


class NonMaxSuppression(torch.autograd.Function):
    """Suppression per image and class: int64 [m, 3], the image, class and box of what is kept.

    Arguments: boxes [B, R, 4] (XYXY); scores [B, 1, R]; most that a class keeps; IoU above which
    the lower box is dropped; scores must exceed the last.
    """

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, most: int, nms_thresh: float, score_thresh: float
    ) -> Tensor:
        """What the operator gives; the graph's shapes are read from it."""
        found = []
        for image, (own_boxes, own_scores) in enumerate(zip(boxes, scores[:, 0], strict=True)):
            rows = (own_scores > score_thresh).nonzero().squeeze(1)
            rows = rows[nms(own_boxes[rows], own_scores[rows], nms_thresh)[:most]]
            label = torch.zeros_like(rows)
            found.append(torch.stack([torch.full_like(rows, image), label, rows], dim=1))
        return torch.cat(found)

    @staticmethod
    def symbolic(
        graph: Any, boxes: Any, scores: Any, most: int, nms_thresh: float, score_thresh: float
    ) -> Any:
        """The node of the graph."""
        limits = (
            torch.tensor([most], dtype=torch.int64),
            torch.tensor([nms_thresh], dtype=torch.float32),
            torch.tensor([score_thresh], dtype=torch.float32),
        )
        constants = [graph.op("Constant", value_t=value) for value in limits]
        return graph.op("NonMaxSuppression", boxes, scores, *constants)


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor,
        mask: Tensor,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: Pair,
    ) -> Tensor:
        return torchvision_deform_conv2d(
            features, offset, weight, bias, stride, padding, dilation, mask
        )

    @staticmethod
    def symbolic(
        graph: Any,
        features: Any,
        offset: Any,
        weight: Any,
        bias: Any,
        mask: Any,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: Pair,
    ) -> Any:
        return graph.op(
            "DeformConv",
            features,
            weight,
            offset,
            bias,
            mask,
            kernel_shape_i=weight.type().sizes()[2:],
            strides_i=list(stride),
            pads_i=[*padding, *padding],
            dilations_i=list(dilation),
            group_i=groups[0],
            offset_group_i=groups[1],
        )


def deform_conv2d(
    features: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor,
) -> Tensor:
    """The function of this name in torchvision, in the form for the graph being made."""
    if not torch.onnx.is_in_onnx_export():
        return torchvision_deform_conv2d(
            features, offset, weight, bias, stride, padding, dilation, mask
        )
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    # Sizes are constants here; the graph does not know them everywhere.
    groups = (
        int(features.shape[1]) // int(weight.shape[1]),
        int(mask.shape[1]) // int(weight[0, 0].numel()),
    )
    return _DeformConv.apply(
        features, offset, weight, bias, mask, stride, padding, dilation, groups
    )
