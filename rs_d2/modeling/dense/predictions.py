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

    def scores(self) -> Tensor:
        """Scores [N, A, K]: of the classes, or their geometric mean with that of the quality.

        In float32: half precision has a thousand values between 0.5 and 1, and ties would decide.
        """
        scores = self.logits.float().sigmoid()
        if self.quality is None:
            return scores
        return (scores * self.quality.float().sigmoid()[:, :, None]).sqrt()

    def best_rows(self, scores: Tensor, topk: int) -> Tensor:
        """The ``topk`` anchors of each level with the best class score, int64 [N, R]."""
        starts = [0, *accumulate(self.level_sizes)]
        levels = scores.amax(dim=2).split(self.level_sizes, dim=1)
        return torch.cat(
            [
                level.topk(min(topk, level.shape[1]), dim=1).indices + start
                for level, start in zip(levels, starts, strict=False)
            ],
            dim=1,
        )

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
        return Positives(*(field[mask] for field in self))
