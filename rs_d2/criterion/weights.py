"""Weights of positives in the losses of the other tasks, all detached.

A weight is ``(candidates) -> [P]``. Add one of your own with ``@WEIGHTS.register("name")``; a class
is constructed with ``delta`` (the ranking's) and ``delta_loc`` (the config's) first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rs_d2.criterion.candidates import Candidates
from rs_d2.losses import ranking_weights
from rs_d2.losses.kernel.processes import are_joined, total
from rs_d2.ops.boxes import aligned_iou, centerness
from rs_d2.utils.registry import Registry

Weight = Callable[[Candidates], Tensor]
WEIGHTS: Registry[Weight | type] = Registry("weight")


@WEIGHTS.register("score")
def score_weight(candidates: Candidates) -> Tensor:
    """Largest class-wise sigmoid score of each positive, whatever its own class, [P] in (0, 1)."""
    return candidates.positive_logits.detach().float().amax(dim=1).sigmoid()


@WEIGHTS.register("iou")
def iou_weight(candidates: Candidates) -> Tensor:
    """IoU of each positive's decoded box with its ground truth, [P] in [0, 1]."""
    return aligned_iou(candidates.pred_boxes.detach(), candidates.gt_boxes)


@WEIGHTS.register("centerness")
def centerness_weight(candidates: Candidates) -> Tensor:
    """How near each positive's anchor is to the middle of its ground truth, [P] in [0, 1]."""
    return centerness(candidates.anchors, candidates.gt_boxes)


@WEIGHTS.register("ranking")
class RankingWeight:
    """Share of each positive in how all are ranked; see :func:`rs_d2.losses.ranking_weights`.

    Args:
        delta: half width of the ramp in the ranks.
        delta_loc: half width of all ramps; None: a hard step in the numerator, ``delta`` elsewhere.
    """

    def __init__(self, *, delta: float, delta_loc: float | None = None) -> None:
        self.delta = delta
        self.delta_loc = delta_loc

    def __call__(self, candidates: Candidates) -> Tensor:
        """[P], above 0; needs class-wise logits."""
        logits, targets = candidates.logits.detach().flatten(), candidates.targets().flatten()
        return ranking_weights(logits, targets, self.delta, self.delta_loc)


@WEIGHTS.register("gt_quality")
def gt_quality_weight(candidates: Candidates) -> Tensor:
    """What a branch is to predict as the quality of each positive, [P]; 1 without that branch."""
    if candidates.gt_quality is None:
        return uniform_weight(candidates)
    return candidates.gt_quality


@WEIGHTS.register("none")
def uniform_weight(candidates: Candidates) -> Tensor:
    """1 for every positive, [P]."""
    return torch.ones_like(candidates.positives, dtype=torch.float32)


def weighted_mean(values: Tensor, weights: Tensor, eps: float = 1e-10) -> Tensor:
    """``sum(w_i v_i) / sum(w_i)``; the divisor is 1 where the weights sum to less than ``eps``.

    Inside ``rs_d2.losses.across_processes`` both sums run over the positives of all processes.

    Args:
        values: [P].
        weights: [P], not negative.
        eps: smallest sum of weights that is divided by.

    Returns:
        A scalar; a zero attached to ``values`` for P = 0.
    """
    weighted, weight = (weights * values).sum(), weights.sum()
    if are_joined():
        weighted, weight = total(torch.stack([weighted, weight.to(weighted.dtype)])).unbind()
    return weighted / weight.where(weight >= eps, torch.ones_like(weight))
