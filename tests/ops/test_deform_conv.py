"""Modulated deformable convolution against a literal loop over taps."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from rs_d2.ops.deform_conv import modulated_deform_conv, num_offset_channels


def bilinear(plane, y, x):
    """Value of a map [H, W] at a place between its points; 0 beyond them."""
    total = 0.0
    for row, column in itertools.product(
        (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
    ):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(plane[row, column])
    return total


def reference(features, offsets, weight, stride, padding, dilation):
    num_images, in_channels = features.shape[:2]
    out_channels, per_group, kh, kw = weight.shape
    deform_groups = offsets.shape[1] // (3 * kh * kw)
    height, width = offsets.shape[2:]
    moves = offsets[:, : 2 * deform_groups * kh * kw]
    moves = moves.unflatten(1, (deform_groups, kh, kw, 2))  # the vertical one comes first
    masks = offsets[:, 2 * deform_groups * kh * kw :].unflatten(1, (deform_groups, kh, kw))
    out = features.new_zeros(num_images, out_channels, height, width)
    groups = in_channels // per_group
    for n, o, h, w, c, i, j in itertools.product(
        *map(range, (num_images, out_channels, height, width, per_group, kh, kw))
    ):
        channel = o // (out_channels // groups) * per_group + c
        group = channel // (in_channels // deform_groups)
        dy, dx = moves[n, group, i, j, :, h, w].tolist()
        y = h * stride - padding + i * dilation + dy
        x = w * stride - padding + j * dilation + dx
        value = bilinear(features[n, channel], y, x)
        out[n, o, h, w] += weight[o, c, i, j] * masks[n, group, i, j, h, w].sigmoid() * value
    return out


@pytest.mark.parametrize(
    ("deform_groups", "groups", "stride", "padding", "dilation"),
    [(1, 1, 1, 1, 1), (2, 1, 2, 1, 1), (4, 2, 1, 2, 2), (2, 4, 2, 0, 1)],
)
def test_values_are_those_of_a_loop_over_taps(deform_groups, groups, stride, padding, dilation):
    features = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    weight = torch.randn(4, 4 // groups, 3, 3, dtype=torch.float64)
    steps = [(n,) * 2 for n in (stride, padding, dilation)]
    shape = F.conv2d(features, weight, None, *steps, groups).shape[2:]
    channels = num_offset_channels((3, 3), deform_groups)
    offsets = 2 * torch.randn(2, channels, *shape, dtype=torch.float64)
    out = modulated_deform_conv(features, offsets, weight, None, *steps)
    expected = reference(features, offsets, weight, stride, padding, dilation)
    assert torch.allclose(out, expected, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_offset_map_of_zeros_gives_half_of_the_plain_convolution(stride):
    features, weight, bias = torch.randn(2, 8, 9, 11), torch.randn(6, 8, 3, 3), torch.randn(6)
    plain = F.conv2d(features, weight, None, stride, 1)
    offsets = torch.zeros(2, num_offset_channels((3, 3), 4), *plain.shape[2:])
    out = modulated_deform_conv(features, offsets, weight, bias, (stride, stride), (1, 1))
    assert torch.allclose(out, plain / 2 + bias[:, None, None], atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    features = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    offsets = torch.randn(2, 54, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def function(*inputs):
        return modulated_deform_conv(*inputs, padding=(1, 1))

    assert gradcheck(function, (features, offsets, weight, bias))


def test_an_empty_batch_gives_an_empty_map_and_zero_gradients():
    features = torch.randn(0, 4, 5, 6, requires_grad=True)
    weight = torch.randn(3, 4, 3, 3, requires_grad=True)
    out = modulated_deform_conv(features, torch.randn(0, 27, 5, 6), weight, padding=(1, 1))
    assert out.shape == (0, 3, 5, 6)
    out.sum().backward()
    assert features.grad.shape == features.shape
    assert not weight.grad.any()


@pytest.mark.parametrize("channels", [26, 18, 81])
def test_an_offset_map_that_does_not_fit_is_named(channels):
    features, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    with pytest.raises(ValueError, match=f"offsets have {channels} channels; expected 3"):
        modulated_deform_conv(features, torch.zeros(1, channels, 5, 5), weight, padding=(1, 1))
