"""Assignment of anchors and proposals to ground truths by IoU.

Shapes: ``G`` ground truths, ``A`` candidates (anchors or proposals).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def match_by_iou(
    iou: Tensor,
    thresholds: Sequence[float],
    labels: Sequence[int],
    low_quality_min_iou: float,
    highest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Give each candidate the ground truth it overlaps most and a label by that IoU.

    A ground truth then claims every candidate that has its highest IoU, if that is at least
    ``low_quality_min_iou``: such a candidate becomes positive and belongs to it, also when another
    ground truth overlaps it more. Of several claims the later ground truth's wins. Without the
    minimum, a ground truth that nothing touches would claim every candidate of IoU 0.

    Args:
        iou: [G, A], in [0, 1].
        thresholds: ascending; they cut [0, 1] into ``len(thresholds) + 1`` intervals, closed below.
        labels: label of each interval: 1 positive, 0 negative, -1 ignored.
        low_quality_min_iou: least IoU of a claim, in (0, 1].
        highest: [G], highest IoU of each ground truth, where ``iou`` holds a part of its
            candidates; by default that in ``iou``.

    Returns:
        Index of the ground truth (int64 [A], 0 where G = 0) and label (int8 [A], the first of
        ``labels`` where G = 0).
    """
    num_gt, num_candidates = iou.shape
    if num_gt == 0 or num_candidates == 0:
        index = torch.zeros(num_candidates, dtype=torch.int64, device=iou.device)
        return index, torch.full_like(index, labels[0], dtype=torch.int8)
    best_iou, index = iou.max(dim=0)
    interval = torch.bucketize(best_iou, iou.new_tensor(thresholds), right=True)
    label = torch.tensor(labels, dtype=torch.int8, device=iou.device)[interval]

    claimant = _claims(iou, iou.amax(dim=1) if highest is None else highest, low_quality_min_iou)
    claimed = claimant >= 0
    return claimant.where(claimed, index), label.masked_fill(claimed, 1)


def _claims(iou: Tensor, highest: Tensor, min_iou: float) -> Tensor:
    """Last ground truth that claims each candidate, int64 [A]; -1 where there is none."""
    claims = (iou == highest[:, None]) & (highest >= min_iou)[:, None]
    gt_index, candidate_index = claims.nonzero(as_tuple=True)
    nobody = torch.full_like(iou[0], -1, dtype=torch.int64)
    return nobody.scatter_reduce(0, candidate_index, gt_index, "amax")
