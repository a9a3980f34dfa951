"""What a dense head predicts, the levels one after another.

Shapes: ``N`` images, ``A`` anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

# Of a head: output by name, each a list over the levels [N, a C, H, W], C its width per anchor.
HeadOutputs = Mapping[str, list[Tensor]]


class Predictions(NamedTuple):
    """Predictions of a batch.

    ``anchors``: [A, 4], XYXY, pixels; ``outputs``: by name, [N, A, C]; ``level_sizes``: anchors of
    each level.
    """

    anchors: Tensor
    outputs: dict[str, Tensor]
    level_sizes: tuple[int, ...]

    def level_of(self, anchor_index: Tensor) -> Tensor:
        """Levels of anchors given by their index in [0, A), int64."""
        ends = torch.tensor(list(accumulate(self.level_sizes)), device=anchor_index.device)
        return torch.bucketize(anchor_index, ends, right=True)
