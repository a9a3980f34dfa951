"""Content-aware reassembly of features (Wang et al., CARAFE, ICCV 2019) in plain torch.

Shapes: ``N`` images, ``C`` channels, ``H, W`` of the low-resolution map, ``k`` side of the
reassembly kernel, ``s`` scale. A *cell* is a position of the low-resolution map; its ``s * s``
output pixels share their ``k * k`` taps, but not the weights of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Numbers of a block of output rows on the CPU: what stays in the second-level cache of a core.
_BLOCK_NUMBERS = 200_000


def carafe_upsample(
    features: Tensor, kernel_logits: Tensor, kernel_size: int = 5, scale: int = 2
) -> Tensor:
    """Upsample a map, each output pixel being a mean of low-resolution features with own weights.

    ``y(s h + a, s w + b) = sum_ij softmax_ij(z)(h, w, a, b) * x(h + i - r, w + j - r)`` with
    ``r = (k - 1) / 2`` and x zero outside the map (Eqs. 2 and 3 of the paper). No tensor of
    ``k * k`` values per channel and pixel is made, forward or backward.

    Args:
        features: [N, C, H, W], x.
        kernel_logits: [N, k*k*s*s, H, W], z; channel ``((i * k + j) * s + a) * s + b``, that is, a
            pixel shuffle would give the k*k taps, row by row, of every output pixel.
        kernel_size: k, odd.
        scale: s.

    Returns:
        [N, C, s*H, s*W] of the features' dtype; empty for an empty map.

    Raises:
        ValueError: The kernel size is even, or the logits have another shape.
    """
    if torch.jit.is_scripting():
        return _upsample_by_taps(features, kernel_logits, kernel_size, scale)
    else:  # not compiled by scripting
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return _upsample_by_taps(features, kernel_logits, kernel_size, scale)
        _check(features, kernel_logits, kernel_size, scale)
        kernels = _kernels(features, kernel_logits, kernel_size, scale)
        return _Reassembly.apply(features, kernels, kernel_size, scale)


def _check(features: Tensor, kernel_logits: Tensor, kernel_size: int, scale: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size} is not odd")
    num_images, _, height, width = features.shape
    expected = (num_images, (kernel_size * scale) ** 2, height, width)
    if kernel_logits.shape != expected:
        raise ValueError(f"kernel_logits: shape {tuple(kernel_logits.shape)}, expected {expected}")


def _kernels(features: Tensor, kernel_logits: Tensor, kernel_size: int, scale: int) -> Tensor:
    """Weights [N, k*k, s*s, H, W] that add up to 1 over the taps."""
    num_images, _, height, width = kernel_logits.shape
    taps, pixels = kernel_size * kernel_size, scale * scale
    logits = kernel_logits.reshape(num_images, taps, pixels, height, width)
    return logits.softmax(1).to(features.dtype)


def _upsample_by_taps(
    features: Tensor, kernel_logits: Tensor, kernel_size: int, scale: int
) -> Tensor:
    """The definition in elementary operations, for exported models: no size is fixed."""
    height, width = features.shape[2], features.shape[3]
    kernels = _kernels(features, kernel_logits, kernel_size, scale)
    radius = kernel_size // 2
    padded = F.pad(features, [radius, radius, radius, radius])[:, :, None]
    out = torch.zeros_like(features)[:, :, None]
    for i in range(kernel_size):
        for j in range(kernel_size):
            weights = kernels[:, None, i * kernel_size + j]
            out = out + weights * padded[:, :, :, i : i + height, j : j + width]
    return F.pixel_shuffle(out.flatten(1, 2), scale)


class _Reassembly(torch.autograd.Function):
    """Weighted sums of ``k x k`` cells, as batches of small matrix products.

    The map is laid out cell by cell, channels last, with a zero border. The k taps of a kernel row
    then are k consecutive cells: an overlapping view, of which nothing is copied. Each block of
    rows takes k products of [s*s, k] weights with [k, C] features per cell. Rows run on through
    the border, where weights are zero, so that consecutive cells have equal strides.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: Tensor, k: int, s: int) -> Tensor:
        """Return [N, C, s*H, s*W] for features [N, C, H, W] and kernels [N, k*k, s*s, H, W]."""
        ctx.save_for_backward(features, kernels)
        ctx.sizes = k, s
        num_images, channels, height, width = features.shape
        cells, weights = _cells(features, k), _weights(kernels, k)
        out = features.new_empty(num_images, channels, height, s, width, s)
        with torch.autocast(features.device.type, enabled=False):
            for n, top, bottom in _blocks(out):
                weight = weights[n, top:bottom].flatten(0, 1).transpose(1, 2)
                block = features.new_zeros(len(weight), s * s, channels)
                for i in range(k):
                    taps = _taps(cells[n, top + i :], len(weight), k)
                    block.baddbmm_(weight[:, :, i * k : (i + 1) * k], taps)
                pixels = block.view(bottom - top, width + k - 1, s, s, channels)[:, :width]
                out[n, :, top:bottom] = pixels.permute(4, 0, 2, 1, 3)
        return out.view(num_images, channels, height * s, width * s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of features and kernels."""
        features, kernels = ctx.saved_tensors
        k, s = ctx.sizes
        num_images, channels, height, width = features.shape
        cells, weights = _cells(features, k), _weights(kernels, k)
        grad_cells, grad_weights = torch.zeros_like(cells), torch.empty_like(weights)
        grad_out = grad_out.reshape(num_images, channels, height, s, width, s)
        with torch.autocast(features.device.type, enabled=False):
            for n, top, bottom in _blocks(grad_out):
                pixels = grad_out[n, :, top:bottom].permute(1, 3, 2, 4, 0)
                pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, k - 1))
                block = pixels.flatten(2, 3).flatten(0, 1)
                weight = weights[n, top:bottom].flatten(0, 1)
                grad_weight = grad_weights[n, top:bottom].flatten(0, 1)
                for i in range(k):
                    row = slice(i * k, (i + 1) * k)
                    taps = _taps(cells[n, top + i :], len(block), k)
                    grad_weight[:, row] = taps @ block.transpose(1, 2)
                    grad_taps = weight[:, row] @ block
                    target = grad_cells[n, top + i :].flatten(0, 1)
                    for j in range(k):
                        target[j : j + len(block)] += grad_taps[:, j]
        radius = k // 2
        grad_features = grad_cells[:, radius : radius + height, radius : radius + width]
        grad_kernels = grad_weights[:, :, :width].permute(0, 3, 4, 1, 2)
        return grad_features.permute(0, 3, 1, 2), grad_kernels, None, None


def _cells(features: Tensor, k: int) -> Tensor:
    """Channels-last map with a zero border, [N, H + k, W + k - 1, C].

    One row more than the border needs: the last cells of a block look k - 1 cells further.
    """
    r = k // 2
    return F.pad(features.permute(0, 2, 3, 1), (0, 0, r, r, r, r + 1)).contiguous()


def _weights(kernels: Tensor, k: int) -> Tensor:
    """Weights of every cell, zero in the border, [N, H, W + k - 1, k*k, s*s]."""
    return F.pad(kernels.permute(0, 3, 4, 1, 2), (0, 0, 0, 0, 0, k - 1)).contiguous()


def _taps(cells: Tensor, num_cells: int, k: int) -> Tensor:
    """View [num_cells, k, C] of rows of cells: each cell from the first on, and the next k - 1."""
    channels = cells.shape[-1]
    return cells.as_strided((num_cells, k, channels), (channels, channels, 1))


def _blocks(out: Tensor) -> Iterator[tuple[int, int, int]]:
    """Image, first row and end row of the blocks of a map [N, C, H, s, W, s] to treat at once."""
    num_images, channels, height, scale, width, _ = out.shape
    rows = max(height, 1)
    if out.device.type == "cpu":
        rows = max(1, _BLOCK_NUMBERS // max(1, channels * scale * width * scale))
    for n in range(num_images):
        for top in range(0, height, rows):
            yield n, top, min(top + rows, height)
