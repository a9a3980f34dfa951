"""Adaptive training sample selection: anchors of ground truths by the statistics of their IoUs.

S. Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection, CVPR 2020.

Shapes: ``G`` ground truths; ``H``, ``W`` rows and columns of a level with ``a`` anchors per cell;
``m = ceil(topk / a)`` cells hold the ``topk`` anchors of a level that are nearest to a ground
truth; ``N <= topk * levels`` candidates of a ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from rs_d2.ops.boxes import aligned_iou

Lines = Sequence[tuple[Tensor, Tensor]]  # per level, what _nearest_lines returns
INSIDE_MARGIN = 0.01  # pixels between a positive's centre and the sides of its ground truth


def assign_atss(anchors: Sequence[Tensor], gt_boxes: Tensor, topk: int = 9) -> list[Tensor]:
    """Match every ground truth with those of the nearest anchors that overlap it best.

    Candidates of a ground truth are, on every level, the ``topk`` anchors of the nearest centres in
    the order (distance of the centres, flat index ``(y W + x) a + anchor``). A candidate becomes
    positive when its IoU is at least ``mean + std`` of all its ground truth's candidates (unbiased;
    a lone candidate has no deviation, std = 0) and its centre lies more than 0.01 pixels inside.
    An anchor that several ground truths want goes to the one of the highest IoU, of equal IoU to
    the first.

    No table of all anchors and ground truths is made: on a grid, the cell in the i-th nearest
    column and the j-th nearest row is at least as far as the other ``i j - 1`` cells of nearer
    ones, so that the m nearest cells have ``i j <= m``.

    Args:
        anchors: per level [H, W, a, 4], XYXY, finite, with the same ``a`` on all levels. All
            anchors of a cell have its centre (its first anchor's, where they round), all cells of a
            column the same x and all of a row the same y. A level may be empty.
        gt_boxes: [G, 4], XYXY, finite.
        topk: candidates per level; all anchors of a level that has fewer.

    Returns:
        Per level the index of the ground truth, int64 [H, W, a], -1 for negatives; all -1 for
        G = 0.

    Raises:
        ValueError: if the levels differ in ``a``, or ``topk`` is not positive.
    """
    if topk < 1:
        raise ValueError(f"topk must be positive, not {topk}")
    sizes = [level[..., 0].numel() for level in anchors]
    matched = gt_boxes.new_full((sum(sizes),), -1, dtype=torch.int64)
    filled = [level for level in anchors if level.numel() > 0]
    if filled and len(gt_boxes) > 0:
        per_level = _nearest_anchors(filled, gt_boxes, topk)
        boxes = torch.cat(
            [level.reshape(-1, 4)[i] for level, i in zip(filled, per_level, strict=True)], dim=1
        )
        starts = accumulate((size for size in sizes if size > 0), initial=0)
        index = torch.cat([i + start for i, start in zip(per_level, starts, strict=False)], dim=1)
        iou, positive = _select(boxes, gt_boxes)
        matched = _best_claim(index, iou, positive, matched)
    shapes = [level.shape[:-1] for level in anchors]
    return [m.view(s) for m, s in zip(matched.split(sizes), shapes, strict=True)]


def _nearest_anchors(levels: Sequence[Tensor], gt_boxes: Tensor, topk: int) -> list[Tensor]:
    """Flat indices within each level of the nearest anchors, int64 [G, min(topk, H W a)]."""
    (per_cell,) = _same({level.shape[2] for level in levels})
    num_cells = -(-topk // per_cell)
    distance, cell = _cells_near([level[:, :, 0] for level in levels], gt_boxes, num_cells)
    cell, order = cell.sort(dim=-1)  # of equal distances the stable sort puts the lower index first
    order = distance.gather(-1, order).argsort(dim=-1, stable=True)[..., :num_cells]
    anchor = torch.arange(per_cell, device=cell.device)
    nearest = (cell.gather(-1, order)[..., None] * per_cell + anchor).flatten(-2)[..., :topk]
    return [nearest[:, i, : level[..., 0].numel()] for i, level in enumerate(levels)]


def _cells_near(levels: Sequence[Tensor], gt_boxes: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Cells of each level among which are the ``num`` nearest.

    Args:
        levels: per level [H, W, 4], a box per cell.
        gt_boxes: [G, 4].
        num: wanted cells.

    Returns:
        Squared distance and flat index, [G, levels, C] each, C the number of pairs with ``i j <=
        num``; the distance is inf where there is no cell.
    """
    x, y = _centers(gt_boxes).unbind(1)
    columns = [_nearest_lines(_centers(level[0])[:, 0], x, num) for level in levels]
    rows = [_nearest_lines(_centers(level[:, 0])[:, 1], y, num) for level in levels]
    rows = [(dy, row * level.shape[1]) for (dy, row), level in zip(rows, levels, strict=True)]
    return _sums_of_pairs(columns, rows, 0), _sums_of_pairs(columns, rows, 1)


def _sums_of_pairs(columns: Lines, rows: Lines, part: int) -> Tensor:
    """Sum of a part of the i-th column and the j-th row for ``i j <= num``, [G, levels, C]."""
    column = torch.stack([lines[part] for lines in columns], dim=1)  # [G, levels, num]
    row = torch.stack([lines[part] for lines in rows], dim=1)
    num = row.shape[2]
    return torch.cat([column[..., i, None] + row[..., : num // (i + 1)] for i in range(num)], dim=2)


def _nearest_lines(lines: Tensor, center: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The ``num`` columns (or rows) nearest to each ground truth: squared distance, index.

    Args:
        lines: [W], coordinate of each column.
        center: [G], of the ground truths.
        num: columns to return; inf and 0 fill up what the level lacks.

    Returns:
        [G, num] each, in the order (distance, index).
    """
    distance, index = (lines - center[:, None]).abs().sort(dim=1, stable=True)
    missing = (0, max(num - len(lines), 0))
    return F.pad(distance[:, :num].square(), missing, value=torch.inf), F.pad(
        index[:, :num], missing
    )


def _select(boxes: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of the candidates and which of them are positive, [G, N] each.

    The IoUs have 24 bits and their statistics 53, so that the mean of equal IoUs is exact and they
    reach their own threshold.
    """
    gt_boxes = gt_boxes.double()[:, None].expand(boxes.shape)
    iou = aligned_iou(boxes.double().flatten(0, 1), gt_boxes.flatten(0, 1)).float()
    iou = iou.view(boxes.shape[:2])
    value = iou.double()
    mean = value.mean(dim=1, keepdim=True)
    variance = (value - mean).square().sum(dim=1, keepdim=True) / max(value.shape[1] - 1, 1)
    center = _centers(boxes)
    inside = torch.cat([center - gt_boxes[..., :2], gt_boxes[..., 2:] - center], dim=-1)
    return iou, (value >= mean + variance.sqrt()) & (inside.amin(dim=-1) > INSIDE_MARGIN)


def _best_claim(index: Tensor, iou: Tensor, positive: Tensor, nobody: Tensor) -> Tensor:
    """The ground truth of highest IoU among those that want an anchor, int64 [A].

    Args:
        index: int64 [G, N], anchors of the candidates.
        iou: [G, N], in [0, 1].
        positive: bool [G, N], which candidates are wanted.
        nobody: int64 [A], -1.
    """
    num_gt = len(index)
    claim = iou.masked_fill(~positive, -1)
    highest = torch.full_like(nobody, -1, dtype=iou.dtype)
    highest = highest.scatter_reduce(0, index.flatten(), claim.flatten(), "amax")
    claimant = torch.arange(num_gt, device=index.device)[:, None].expand(index.shape)
    claimant = claimant.where(positive & (iou == highest[index]), num_gt)
    first = torch.full_like(nobody, num_gt)
    first = first.scatter_reduce(0, index.flatten(), claimant.flatten(), "amin")
    return first.where(first < num_gt, nobody)


def _centers(boxes: Tensor) -> Tensor:
    """Centres of XYXY boxes [..., 2] in float64, in which the distances of pixels are exact."""
    boxes = boxes.double()
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _same(values: set[int]) -> set[int]:
    if len(values) > 1:
        raise ValueError(f"the levels differ in anchors per cell: {sorted(values)}")
    return values
