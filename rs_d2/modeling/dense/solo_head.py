"""SOLOv2's head: classes and mask kernels of every cell, and the features that kernels act on.

Shapes: ``N`` images, ``K`` classes, ``E`` channels of a kernel, ``S`` rows and columns of a grid,
``H`` and ``W`` of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rs_d2.modeling.build import bias_for_prior
from rs_d2.modeling.dense.head import conv, start_small


class SOLOv2Head(nn.Module):
    """Two towers on grids that are laid over the levels, and one map of mask features.

    The kernel tower sees the normalised coordinates of each place, so that kernels of equal objects
    at different places differ. Weights are shared by the grids. Convolutions start from N(0, 0.01),
    class biases at ``-log((1 - prior) / prior)``, other biases at 0.

    Args:
        in_channels: of every level.
        grids: S of each level.
        num_convs: convolutions of each tower.
        conv_channels: of the towers.
        num_classes: K; there is no background column.
        kernel_channels: E.
        mask_channels: of the mask features before the last convolution.
        norm: after each convolution, a name Detectron2 knows; "" for none.
        prior_prob: score of every class at the start of the training.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        grids: Sequence[int],
        num_convs: int,
        conv_channels: int,
        num_classes: int,
        kernel_channels: int,
        mask_channels: int,
        norm: str,
        prior_prob: float,
    ) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.category_tower, self.kernel_tower = (
            nn.Sequential(
                *(
                    conv(first if i == 0 else conv_channels, conv_channels, norm)
                    for i in range(num_convs)
                )
            )
            for first in (in_channels, in_channels + 2)
        )
        self.category = nn.Conv2d(conv_channels, num_classes, 3, padding=1)
        self.kernel = nn.Conv2d(conv_channels, kernel_channels, 3, padding=1)
        self.mask_features = MaskFeatures(
            in_channels, len(self.grids) - 1, mask_channels, kernel_channels, norm
        )
        start_small(self)
        bias_for_prior(self.category, prior_prob)

    def forward(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Outputs of all grids.

        Args:
            features: per level [N, C, H, W], finest first. The first is taken at the size of the
                second, the last at the size of the one before.

        Returns:
            Per grid ``logits`` of the classes [N, K, S, S] and ``kernels`` [N, E, S, S];
            ``mask_features``: one map [N, E, H, W] of the size of the first level.
        """
        levels = [
            _resize(features[0], features[1].shape[-2:]),
            *features[1:-1],
            _resize(features[-1], features[-2].shape[-2:]),
        ]
        outputs: dict[str, list[Tensor]] = {"logits": [], "kernels": []}
        for level, size in zip(levels, self.grids, strict=True):
            grid = _resize(with_coordinates(level), (size, size))
            outputs["logits"].append(self.category(self.category_tower(grid[:, :-2])))
            outputs["kernels"].append(self.kernel(self.kernel_tower(grid)))
        return {**outputs, "mask_features": [self.mask_features(features[:-1])]}


class MaskFeatures(nn.Module):
    """The sum of all levels at the size of the first, each doubled step by step.

    The last level brings the normalised coordinates along.

    Args:
        in_channels: of every level.
        num_levels: levels that :meth:`forward` is given.
        channels: of the sum.
        out_channels: of the result.
        norm: after each convolution, a name Detectron2 knows; "" for none.
    """

    def __init__(
        self, in_channels: int, num_levels: int, channels: int, out_channels: int, norm: str
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(num_levels):
            first = in_channels + 2 * (level == num_levels - 1)
            convs = [conv(channels if i else first, channels, norm) for i in range(max(1, level))]
            self.levels.append(nn.ModuleList(convs))
        self.out = conv(channels, out_channels, norm, size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """From levels [N, C, H, W], each half the size of the one before, to [N, E, H, W]."""
        total = None
        for number, (convs, x) in enumerate(zip(self.levels, features, strict=True)):
            if number == len(self.levels) - 1:
                x = with_coordinates(x)
            for layer in convs:
                x = layer(x)
                if number > 0:
                    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            total = x if total is None else total + x
        return self.out(total)


def with_coordinates(x: Tensor) -> Tensor:
    """A map [N, C, H, W] with two more channels: x and y of each place, from -1 to 1."""
    columns, rows = (_from_minus_one_to_one(line) for line in (x[0, 0, 0, :], x[0, 0, :, 0]))
    shape = x[:, :1]
    return torch.cat(
        [x, columns.expand_as(shape), rows[:, None].expand_as(shape)],
        dim=1,
    )


def _from_minus_one_to_one(line: Tensor) -> Tensor:
    """As many numbers at even distances as the line has; -1 of a single one."""
    index = torch.ones_like(line, dtype=torch.float32).cumsum(0) - 1
    return (2 * index / index[-1:].clamp(min=1) - 1).to(line.dtype)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
