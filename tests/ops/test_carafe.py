"""Content-aware reassembly against its definition, pixel by pixel."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from rs_d2.ops import carafe
from rs_d2.ops.carafe import carafe_upsample


def reference(features, kernel_logits, k=5, s=2):
    """The definition: shuffle, softmax over the taps, a sum around the nearest cell."""
    kernels = F.pixel_shuffle(kernel_logits, s).softmax(1)
    num_images, channels, height, width = features.shape
    out = features.new_zeros(num_images, channels, s * height, s * width)
    for y, x in itertools.product(range(s * height), range(s * width)):
        for i, j in itertools.product(range(k), range(k)):
            row, column = y // s + i - k // 2, x // s + j - k // 2
            if 0 <= row < height and 0 <= column < width:
                weight = kernels[:, i * k + j, y, x, None]
                out[:, :, y, x] += weight * features[:, :, row, column]
    return out


def inputs(shape, k=5, s=2, dtype=torch.float64):
    num_images, _, height, width = shape
    features = torch.randn(shape, dtype=dtype, requires_grad=True)
    logits = torch.randn(num_images, (k * s) ** 2, height, width, dtype=dtype, requires_grad=True)
    return features, logits


SHAPES = [(2, 3, 4, 5), (1, 2, 1, 1), (1, 1, 7, 2), (3, 4, 1, 9)]
SIZES = [(5, 2), (3, 2), (1, 2), (3, 3), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("k", "s"), SIZES)
def test_values_and_gradients_are_those_of_the_definition(shape, k, s):
    features, logits = inputs(shape, k, s)
    out, expected = carafe_upsample(features, logits, k, s), reference(features, logits, k, s)
    assert torch.allclose(out, expected, atol=1e-12)
    upstream = torch.randn_like(out)
    gradients = torch.autograd.grad(out, [features, logits], upstream)
    expected = torch.autograd.grad(expected, [features, logits], upstream)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    features, logits = inputs((2, 2, 3, 4))
    assert gradcheck(carafe_upsample, (features, logits))


def test_gradients_of_maps_that_are_not_contiguous():
    features, logits = inputs((2, 2, 3, 4))
    strided = [t.detach().transpose(2, 3).contiguous().transpose(2, 3) for t in (features, logits)]
    assert not strided[0].is_contiguous()
    assert gradcheck(carafe_upsample, [t.requires_grad_() for t in strided])


@pytest.mark.parametrize("block", [1, 200, 10_000])
def test_the_size_of_a_block_changes_nothing(monkeypatch, block):
    features, logits = inputs((2, 3, 6, 5))
    expected = torch.autograd.grad(
        carafe_upsample(features, logits).sin().sum(), [features, logits]
    )
    monkeypatch.setattr(carafe, "_BLOCK_NUMBERS", block)
    gradients = torch.autograd.grad(
        carafe_upsample(features, logits).sin().sum(), [features, logits]
    )
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_a_constant_map_stays_constant_away_from_the_border():
    _, logits = inputs((1, 1, 8, 9))
    out = carafe_upsample(torch.full((1, 3, 8, 9), 7.0, dtype=torch.float64), logits)
    assert torch.allclose(out[:, :, 4:-4, 4:-4], torch.tensor(7.0, dtype=torch.float64))


def test_a_kernel_that_looks_at_the_centre_is_nearest_upsampling():
    features = torch.randn(2, 3, 4, 6)
    logits = torch.full((2, 25, 2, 2, 4, 6), -1e4)
    logits[:, 12] = 0
    out = carafe_upsample(features, logits.flatten(1, 3))
    assert torch.equal(out, F.interpolate(features, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (1, 0, 4, 5), (1, 3, 0, 5), (1, 3, 4, 0)])
def test_an_empty_map_gives_an_empty_map_and_zero_gradients(shape):
    features, logits = inputs(shape)
    out = carafe_upsample(features, logits)
    assert out.shape == (shape[0], shape[1], 2 * shape[2], 2 * shape[3])
    out.sum().backward()
    assert features.grad.shape == features.shape
    assert not logits.grad.any()


@pytest.mark.parametrize("export", [torch.jit.script, "trace"])
def test_the_exported_form_is_the_same_function_at_other_sizes(export):
    features, logits = inputs((2, 3, 6, 5), dtype=torch.float32)
    if export == "trace":
        example = [t.detach() for t in inputs((1, 3, 4, 8), dtype=torch.float32)]
        exported = torch.jit.trace(carafe_upsample, example)
    else:
        exported = export(carafe_upsample)
    assert torch.allclose(exported(features, logits), carafe_upsample(features, logits), atol=1e-6)


def test_half_precision_features_keep_their_dtype():
    features, logits = inputs((1, 8, 5, 6), dtype=torch.float32)
    expected = carafe_upsample(features, logits)
    out = carafe_upsample(features.bfloat16(), logits)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=0.05)
    out.sum().backward()
    assert features.grad.isfinite().all()


def test_autocast_leaves_float32_maps_in_float32():
    features, logits = inputs((1, 8, 5, 6), dtype=torch.float32)
    expected = carafe_upsample(features, logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = carafe_upsample(features, logits)
    assert torch.equal(out, expected)


def test_memory_grows_by_less_than_one_tap_per_pixel_and_channel():
    """Every tensor that forward and backward make is counted, alive or not."""
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().nbytes() // out.element_size())
            return out

    features, logits = inputs((1, 64, 20, 30))
    with Sizes():
        carafe_upsample(features, logits).sum().backward()
    assert max(sizes) <= 1.5 * features.numel() * 4


def test_logits_of_another_shape_are_named():
    features, logits = inputs((1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"kernel_logits: shape .* expected \(1, 36, 4, 5\)"):
        carafe_upsample(features, logits, kernel_size=3)
    with pytest.raises(ValueError, match="kernel_size 4 is not odd"):
        carafe_upsample(features, logits, kernel_size=4)
