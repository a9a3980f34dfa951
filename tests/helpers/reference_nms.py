"""Class-wise suppression as a literal loop over candidates: what the search must equal."""

from __future__ import annotations

import numpy as np


def class_wise_nms(boxes, scores, image_size, score_thresh, nms_thresh, topk):
    """Rows and classes of the first ``topk`` survivors, a candidate after the other.

    ``boxes`` is [R, 4] or [R, 4C], ``scores`` [R, C]; boxes are clipped to ``image_size``.
    """
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    num_rows, num_classes = scores.shape
    good = [r for r in range(num_rows) if np.isfinite(boxes[r]).all()]
    good = [r for r in good if np.isfinite(scores[r]).all()]
    candidates = [
        (-float(scores[r, c]), r * num_classes + int(c))
        for r in good
        for c in np.flatnonzero(scores[r] > np.float32(score_thresh))
    ]
    kept, boxes_of_class = [], {}
    for _, position in sorted(candidates):
        r, c = divmod(position, num_classes)
        box = clipped(boxes[r] if boxes.shape[1] == 4 else boxes[r, 4 * c : 4 * c + 4], image_size)
        if all(iou(box, other) <= nms_thresh for other in boxes_of_class.get(c, [])):
            kept.append((r, c))
            boxes_of_class.setdefault(c, []).append(box)
    return kept if topk < 0 else kept[:topk]


def clipped(box, image_size):
    """The box with its corners moved into an image of this height and width."""
    height, width = image_size
    return [min(max(v, np.float32(0)), np.float32(m)) for v, m in zip(box, [width, height] * 2)]  # noqa: B905


def iou(a, b):
    """Intersection over union, each step rounded to float32; 0 without any area."""
    zero = np.float32(0)
    width = max(min(a[2], b[2]) - max(a[0], b[0]), zero)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union) if union != 0 else 0.0
