"""Suppression that tracing can follow: no loop over data, no answer read by the host.

The search of ``rs_d2.ops.nms`` stops as soon as it has enough, which a graph cannot. These look at
every candidate above the threshold and find the same boxes.

Shapes: ``R`` regions, ``K`` classes, ``n`` candidates. Boxes are XYXY corners in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import nms

from rs_d2.export.operators import NonMaxSuppression
from rs_d2.ops.nms import BoxTable

# Farther apart than boxes of one image can be. Moved by multiples of a power of two, coordinates of
# float32 lose nothing in float64.
_CLASS_DISTANCE = 1 << 17


def traceable_search(
    table: BoxTable, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
) -> tuple[Tensor, Tensor]:
    """What :func:`rs_d2.ops.nms.class_wise_nms` returns, in the form for the graph being made."""
    scores = scores.float()
    if torch.onnx.is_in_onnx_export():
        return _search_by_operator(table, scores, score_thresh, nms_thresh, topk)
    rows, classes = (scores > score_thresh).nonzero().unbind(1)
    # Apart from each other, boxes of different classes suppress none of the others.
    apart = table.at(rows, classes).double() + (classes.double() * _CLASS_DISTANCE)[:, None]
    kept = nms(apart, scores[rows, classes].double(), nms_thresh)
    kept = kept if topk < 0 else kept[:topk]
    return rows[kept], classes[kept]


def traceable_batched_nms(num_groups: int) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """Detectron2's ``batched_nms`` for a known number of groups, the levels of an RPN."""

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        kept = []
        for group in range(num_groups):
            members = (idxs == group).nonzero().squeeze(1)
            kept.append(members[nms(boxes[members], scores[members], iou_threshold)])
        together = torch.cat(kept)
        return together[scores[together].sort(descending=True).indices]

    return batched_nms


def _search_by_operator(
    table: BoxTable, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
) -> tuple[Tensor, Tensor]:
    """The search as one operator of ONNX: each class is an image of its batch."""
    every_class, every_row = torch.ones_like(scores.t()).nonzero().unbind(1)
    boxes = table.at(every_row, every_class).reshape(scores.shape[1], -1, 4)
    most = topk if topk >= 0 else torch.iinfo(torch.int64).max
    chosen = NonMaxSuppression.apply(boxes, scores.t()[:, None], most, nms_thresh, score_thresh)
    classes, rows = chosen[:, 0], chosen[:, 2]
    # It answers class by class. Equal scores go by position, as everywhere.
    position = (rows * scores.shape[1] + classes).argsort()
    classes, rows = classes[position], rows[position]
    order = scores[rows, classes].sort(descending=True).indices  # in ONNX a stable sort
    order = order if topk < 0 else order[:topk]
    return rows[order], classes[order]
