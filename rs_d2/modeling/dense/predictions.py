"""The predictions of all levels in one list, and the anchors that objects are assigned to.

Shapes: ``N`` images, ``A`` anchors of all levels, ``K`` classes, ``P`` positives of the batch.
Boxes are XYXY corners in pixels.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """Predictions of a batch, the levels one after another.

    ``anchors``: [A, 4]; ``logits``: [N, A, K]; ``deltas``: [N, A, 4]; ``quality``: logits [N, A],
    None without that branch; ``level_sizes``: anchors of each level.
    """

    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    quality: Tensor | None
    level_sizes: tuple[int, ...]

    def level_of(self, anchor_index: Tensor) -> Tensor:
        """Levels of anchors given by their index in [0, A), int64."""
        ends = torch.tensor(list(accumulate(self.level_sizes)), device=anchor_index.device)
        return torch.bucketize(anchor_index, ends, right=True)


class Positives(NamedTuple):
    """Anchors that an object was assigned to, over the batch.

    ``rows``: int64 [P] in [0, N A), ascending; ``objects``: int64 [P], the objects' numbers in the
    batch; ``gt_classes``: int64 [P]; ``gt_boxes``, ``pred_boxes``, ``anchors``: [P, 4].
    """

    rows: Tensor
    objects: Tensor
    gt_classes: Tensor
    gt_boxes: Tensor
    pred_boxes: Tensor
    anchors: Tensor

    def keep(self, mask: Tensor) -> Positives:
        """Those where the mask [P] is true."""
        index = mask.nonzero().squeeze(1)  # once: on a GPU the host waits for it
        return Positives(*(field[index] for field in self))
