"""Exact class-wise non-maximum suppression that stops as soon as enough boxes have survived.

The canonical order of candidates: score, best first; among equal scores the earlier position
(in a score matrix: the smaller r * C + c). In this order a candidate survives unless a surviving
earlier one of its class has an IoU above the threshold with it; IoU is computed in float32, as
inter / (area + area - inter), and compared in double precision. As only earlier candidates matter,
the survivors of a prefix are the first survivors of all: a search may stop at ``topk`` of them.

Shapes: ``R`` regions, ``C`` classes, ``n`` candidates. Boxes are XYXY corners in pixels.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rs_d2.ops._nms_device import search_on_device
from rs_d2.ops._nms_search import canonical_keys, float32_below, greedy, positions, search


class BoxTable(Protocol):
    """Boxes of every region for every class, made when they are asked for."""

    def at(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Finite float32 boxes [n, 4] of the candidates with these rows [n] and classes [n]."""

    def finite_rows(self) -> Tensor | None:
        """Mask [R] of the regions whose boxes are all finite; ``None`` where all surely are."""


class StoredBoxes:
    """A :class:`BoxTable` of boxes that are there already, clipped to the image.

    Args:
        boxes: [R, 4] for class-agnostic boxes, else [R, 4C], class-major.
        image_size: height and width in pixels.
    """

    def __init__(self, boxes: Tensor, image_size: tuple[int, int]) -> None:
        self._boxes = boxes
        self._image_size = image_size
        self._agnostic = clip(boxes, image_size) if boxes.shape[1] == 4 else None

    def at(self, rows: Tensor, classes: Tensor) -> Tensor:
        """See :class:`BoxTable`."""
        if self._agnostic is not None:
            return self._agnostic[rows]
        return clip(self._boxes.unflatten(1, (-1, 4))[rows, classes], self._image_size)

    def finite_rows(self) -> Tensor | None:
        """See :class:`BoxTable`."""
        return finite_rows(self._boxes)


def class_wise_nms(
    table: BoxTable, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
) -> tuple[Tensor, Tensor]:
    """Regions and classes of the ``topk`` best boxes that survive class-wise suppression.

    The cost hardly depends on how many candidates pass ``score_thresh``, and no scores, ties or
    duplicates make it grow with their number. With ``topk`` < 0 everything must be looked at.

    Args:
        table: the boxes.
        scores: [R, C], C >= 1; compared in float32. Regions with a score or box that is not finite
            take no part.
        score_thresh: candidates score higher.
        nms_thresh: IoU in [0, 1] above which the later box is dropped.
        topk: most survivors; below 0 all of them.

    Returns:
        int64 rows in [0, R) and classes in [0, C), in canonical order; empty where nothing passes.
        On a GPU the host reads one answer from it, another one for a second, longer prefix.
    """
    scores = scores.detach().float()
    if scores.numel() == 0 or topk == 0:
        return _no_indices(scores.device), _no_indices(scores.device)
    scores = without_bad_rows(scores, table)
    if scores.device.type != "cpu" and topk > 0:
        limit = float(float32_below(nms_thresh))
        found = search_on_device(scores, table.at, score_thresh, limit, topk)
        if found is not None:
            return found

    def boxes_at(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        where = (torch.from_numpy(i).to(scores.device) for i in (rows, classes))
        return table.at(*where).detach().cpu().numpy()

    found = search(scores.cpu().numpy(), boxes_at, score_thresh, nms_thresh, topk)
    return tuple(torch.from_numpy(i).to(scores.device) for i in found)


def batched_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_thresh: float, topk: int = -1
) -> Tensor:
    """Survivors of class-wise suppression in a list of candidates, for heads that make a list.

    Args:
        boxes: [n, 4], finite, compared as they are.
        scores: [n], finite; compared in float32.
        classes: int [n]; only boxes of the same class suppress each other.
        nms_thresh: IoU in [0, 1] above which the later box is dropped.
        topk: most survivors; below 0 all of them.

    Returns:
        int64 indices into the list, in canonical order; empty for an empty list.

    Raises:
        ValueError: The shapes do not belong together.
    """
    n = len(scores)
    if boxes.shape != (n, 4) or scores.shape != (n,) or classes.shape != (n,):
        shapes = ", ".join(str(tuple(t.shape)) for t in (boxes, scores, classes))
        raise ValueError(f"boxes [n, 4], scores [n] and classes [n] expected, not {shapes}")
    corners = boxes.detach().float().cpu().numpy()
    keys = canonical_keys(scores.detach().float().cpu().numpy(), np.arange(n))
    kept = greedy(keys, classes.cpu().numpy(), corners.__getitem__, nms_thresh, topk)
    return torch.from_numpy(positions(kept)).to(boxes.device)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] in float32, their corners moved into an image of this height and width."""
    height, width = image_size
    clipped = boxes.detach().to(torch.float32, copy=True)
    clipped[:, 0::2].clamp_(0, width)
    clipped[:, 1::2].clamp_(0, height)
    return clipped


def finite_rows(values: Tensor) -> Tensor | None:
    """Mask [R] of the rows of [R, M] that are finite throughout; ``None`` where all surely are.

    On the CPU a sum settles most cases: one entry that is not finite makes it so.
    """
    if values.device.type == "cpu" and values.sum(dtype=torch.float32).isfinite():
        return None
    return values.isfinite().all(1)


def without_bad_rows(scores: Tensor, table: BoxTable) -> Tensor:
    """Scores [R, C] with minus infinity where a region's scores or boxes are not all finite."""
    for good in (finite_rows(scores), table.finite_rows()):
        if good is not None:
            scores = torch.where(good[:, None], scores, -torch.inf)
    return scores


def _no_indices(device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.long, device=device)
