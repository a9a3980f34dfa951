"""Probabilistic anchor assignment: candidates by IoU, positives by a mixture of their losses.

K. Kim and H. S. Lee, Probabilistic Anchor Assignment with IoU Prediction for Object Detection, ECCV
2020.

Shapes: ``G`` ground truths; ``A`` anchors of all levels; ``P`` positives of the first pass; ``n``
the most candidates that a ground truth has in the second, at most ``topk * levels``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rs_d2.targets.assign_iou import match_by_iou

# A ground truth that no anchor overlaps claims none; at a minimum of 0 it would claim all.
MIN_CLAIM = torch.finfo(torch.float32).tiny
TABLE_ELEMENTS = 1 << 20  # of ground truths x anchors that are held at a time

# How scikit-learn fits a mixture, of which the publication used the estimator.
VARIANCE_FLOOR = 1e-5
MAX_ITERATIONS = 100
TOLERANCE = 1e-3  # change of the mean log-likelihood
# Log-likelihoods closer than this are equal: two losses on either side of their component's mean
# are equally likely, and components of nearly equal losses coincide; rounding must not decide.
EQUAL_LIKELIHOOD = 1e-6
EMPTY = 10 * torch.finfo(torch.float64).eps  # added to the weight of a component


def assign_by_iou(
    anchors: Sequence[Tensor], gt_boxes: Tensor, min_iou: float = 0.1
) -> list[Tensor]:
    """First pass: match every anchor with the ground truth that it overlaps most.

    An anchor is a candidate of that ground truth (of equal IoU the first) if the IoU is at least
    ``min_iou``. Besides, a ground truth claims all anchors that have its highest IoU, also those
    that overlap another one more; of several claims the later ground truth's wins. A claim needs
    an IoU above 0: one of 0 would take every anchor of the image.

    Args:
        anchors: per level [H, W, a, 4], XYXY, finite; a level may be empty.
        gt_boxes: [G, 4], XYXY, finite.
        min_iou: least IoU of a candidate without a claim, in (0, 1].

    Returns:
        Per level the index of the ground truth, int64 [H, W, a], -1 for negatives; all -1 for
        G = 0.
    """
    shapes = [level.shape[:-1] for level in anchors]
    sizes = [shape.numel() for shape in shapes]
    matched = gt_boxes.new_full((sum(sizes),), -1, dtype=torch.int64)
    if len(gt_boxes) > 0 and len(matched) > 0:
        boxes = torch.cat([level.reshape(-1, 4) for level in anchors])
        chunks = boxes.split(max(TABLE_ELEMENTS // len(gt_boxes), 1))
        matched = torch.cat(_match_chunks(gt_boxes, chunks, min_iou))
    return [m.view(s) for m, s in zip(matched.split(sizes), shapes, strict=True)]


def separate_by_loss(losses: Tensor, gt_index: Tensor, levels: Tensor, topk: int = 9) -> Tensor:
    """Second pass: keep the positives that the model already explains well.

    Candidates of a ground truth are its ``topk`` positives of lowest loss on every level (of equal
    loss the first). A mixture of two Gaussians is fitted to their losses, as scikit-learn's
    ``GaussianMixture`` does from the lowest and the highest loss as means, equal weights and
    precisions of 1. Of the candidates that belong to the low component, those up to and including
    the one of highest likelihood stay positive, in the order of their losses. All others become
    negatives, and so do all of a ground truth with fewer than two candidates. Likelihoods whose
    logarithms are within 1e-6 count as equal; then the low component and the first candidate win.

    Args:
        losses: [P]; a positive whose loss is not finite does not stay and is no candidate.
        gt_index: int64 [P], not negative, distinct for different objects of the whole batch.
        levels: int64 [P], each positive's level.
        topk: candidates per level.

    Returns:
        bool [P], which positives stay; without gradient.
    """
    losses = losses.detach().double()
    finite = losses.isfinite()
    if not len(losses):
        return finite
    by_loss = losses.where(finite, torch.inf).argsort(stable=True)
    candidate = finite & (_places(by_loss, levels, gt_index) < topk)

    by_loss = by_loss[(~candidate)[by_loss].long().argsort(stable=True)]  # candidates first
    slot = _places(by_loss, gt_index)
    _, row = gt_index.unique(return_inverse=True)
    last_row, last_slot = torch.stack([row, slot.masked_fill(~candidate, 0)]).amax(dim=1).tolist()
    # What is no candidate goes to one more column.
    column = slot.where(candidate, last_slot + 1)
    table = losses.new_zeros(last_row + 1, last_slot + 2)
    table[row, column] = losses.where(candidate, 0)
    valid = torch.zeros_like(table, dtype=torch.bool)
    valid[row, column] = candidate
    return _keep_low(table[:, :-1], valid[:, :-1])[row, column.clamp(max=last_slot)] & candidate


def _match_chunks(gt_boxes: Tensor, chunks: Sequence[Tensor], min_iou: float) -> list[Tensor]:
    """Index of the ground truth of every anchor, chunk by chunk; -1 for negatives."""
    highest = torch.stack([_iou_table(gt_boxes, boxes).amax(dim=1) for boxes in chunks])
    matched = []
    for boxes in chunks:
        # Once more, because all tables at once may not fit; the same chunks round alike.
        table = _iou_table(gt_boxes, boxes)
        index, label = match_by_iou(table, (min_iou,), (0, 1), MIN_CLAIM, highest.amax(dim=0))
        matched.append(index.where(label > 0, -1))
    return matched


def _iou_table(gt_boxes: Tensor, boxes: Tensor) -> Tensor:
    """IoU of all pairs, [G, number of boxes]; 0 where both have no area."""
    x1, y1, x2, y2 = gt_boxes[:, :, None].unbind(1)
    u1, v1, u2, v2 = boxes.unbind(1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0)
    inter = width.mul_(height)
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(inter)
    return inter.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _places(order: Tensor, *keys: Tensor) -> Tensor:
    """Place of each entry in its group, int64 [P], counted from 0 along ``order``.

    Args:
        order: int64 [P], a permutation.
        keys: int64 [P] each; entries with the same keys are a group.
    """
    for key in keys:
        order = order[key[order].argsort(stable=True)]
    number = torch.arange(len(order), device=order.device)
    starts = torch.zeros_like(order, dtype=torch.bool)
    for key in keys:
        sorted_key = key[order]
        starts[1:] |= sorted_key[1:] != sorted_key[:-1]
    place = number - number.where(starts, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, place)


class _Mixture(NamedTuple):
    """Two Gaussians per ground truth, [G, 2] each."""

    weight: Tensor
    mean: Tensor
    precision: Tensor

    def log_densities(self, x: Tensor) -> Tensor:
        """``log(w_k N(x; mu_k, 1 / p_k))``, [G, 2, n] for x [G, n]."""
        offset = self.weight.log() + (self.precision.log() - math.log(2 * math.pi)) / 2
        squares = (x[:, None] - self.mean[..., None]).square() * self.precision[..., None]
        return offset[..., None] - squares / 2

    def rows(self, index: Tensor) -> _Mixture:
        """The mixtures of some ground truths."""
        return _Mixture(*(part[index] for part in self))


def _keep_low(losses: Tensor, valid: Tensor) -> Tensor:
    """Which candidates of each ground truth stay, bool [G, n].

    Args:
        losses: float64 [G, n], ascending.
        valid: bool [G, n], which entries are candidates: the first of each row.
    """
    densities = _fit(losses, valid).log_densities(losses)
    low = valid & (densities[:, 0] >= densities[:, 1] - EQUAL_LIKELIHOOD)
    low &= valid.sum(dim=1, keepdim=True) > 1
    likelihood = densities.logsumexp(dim=1).masked_fill(~low, -torch.inf)
    highest = likelihood >= likelihood.amax(dim=1, keepdim=True) - EQUAL_LIKELIHOOD
    before = highest.cumsum(dim=1) - highest.long()  # as likely ones of lower loss
    return low & (before == 0)


def _fit(x: Tensor, valid: Tensor) -> _Mixture:
    """Fit the mixtures of all rows by expectation-maximisation; a row stops when it has converged.

    Args:
        x: float64 [G, n], ascending.
        valid: bool [G, n], the first entries of each row.
    """
    count = valid.sum(dim=1)
    highest = x.gather(1, (count - 1).clamp(min=0)[:, None])
    ones = torch.ones_like(x[:, :1]).expand(-1, 2)
    fitted = _Mixture(ones / 2, torch.cat([x[:, :1], highest], dim=1), ones.clone())
    running = torch.arange(len(x), device=x.device)
    bound = torch.full_like(x[:, 0], -torch.inf)
    for _ in range(MAX_ITERATIONS):
        rows = x[running], valid[running]
        new_bound, updated = _step(fitted.rows(running), *rows)
        for part, new_part in zip(fitted, updated, strict=True):
            part[running] = new_part
        change = (new_bound - bound).abs()
        running, bound = running[change >= TOLERANCE], new_bound[change >= TOLERANCE]
        if not len(running):
            break
    return fitted


def _step(mixture: _Mixture, x: Tensor, valid: Tensor) -> tuple[Tensor, _Mixture]:
    """Mean log-likelihood before the step, [G], and the mixtures after it."""
    densities = mixture.log_densities(x)
    likelihood = densities.logsumexp(dim=1)
    count = valid.sum(dim=1)
    bound = (likelihood * valid).sum(dim=1) / count
    share = (densities - likelihood[:, None]).exp() * valid[:, None]  # [G, 2, n]
    total = share.sum(dim=2) + EMPTY
    mean = (share * x[:, None]).sum(dim=2) / total
    variance = (share * x.square()[:, None]).sum(dim=2) / total - mean.square()
    weight = total / total.sum(dim=1, keepdim=True)
    return bound, _Mixture(weight, mean, 1 / (variance.clamp(min=0) + VARIANCE_FLOOR))
