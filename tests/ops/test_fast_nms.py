"""Fast suppression against its literal form, and beside the exact one."""

import pytest
import torch

from rs_d2.ops.fast_nms import fast_nms
from rs_d2.ops.nms import StoredBoxes, class_wise_nms

SIZE = (40, 40)


def iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - width * height
    return width * height / union if union > 0 else 0.0


def literal(boxes, scores, score_thresh, nms_thresh, topk, topk_per_class):
    """One class after the other: a box stays unless any better one overlaps it too much."""
    boxes, found = boxes.tolist(), []
    for c, column in enumerate(scores.t().tolist()):
        order = sorted(range(len(column)), key=lambda r: (-column[r], r))[:topk_per_class]
        for place, r in enumerate(order):
            overlaps = [iou(boxes[r], boxes[better]) for better in order[:place]]
            if column[r] > score_thresh and all(value <= nms_thresh for value in overlaps):
                found.append((-column[r], r, c))
    return [(r, c) for _, r, c in sorted(found)][: topk if topk >= 0 else None]


def a_case(seed, count=40, classes=3, ties=False):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) * 8], dim=1)
    scores = torch.rand(count, classes, generator=generator)
    return (boxes, (scores * 5).round() / 5) if ties else (boxes, scores)


def pairs(found):
    return list(zip(*(values.tolist() for values in found), strict=True))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limits", [(0.05, 0.5, 100, 200), (0.3, 0.2, 7, 10), (0.5, 0.7, -1, 5)])
def test_equals_the_literal_form(limits, seed, ties):
    boxes, scores = a_case(seed, ties=ties)
    score_thresh, nms_thresh, topk, per_class = limits
    table = StoredBoxes(boxes, SIZE)
    found = fast_nms(table, scores, score_thresh, nms_thresh, topk, topk_per_class=per_class)
    assert pairs(found) == literal(boxes, scores, *limits)
    assert len(found[0]) > 0


def test_a_dropped_box_still_drops_others():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 3.5]])
    scores = torch.tensor([[0.9], [0.8], [0.7]])  # the second drops the third, the first does not
    table = StoredBoxes(boxes, SIZE)
    assert pairs(fast_nms(table, scores, 0.1, 0.5, 10)) == [(0, 0)]
    assert pairs(class_wise_nms(table, scores, 0.1, 0.5, 10)) == [(0, 0), (2, 0)]


def test_rows_that_are_not_finite_take_no_part():
    boxes, scores = a_case(0, classes=1)
    boxes[3, 1] = torch.nan
    scores[5] = torch.inf
    rows, _ = fast_nms(StoredBoxes(boxes, SIZE), scores, 0.0, 0.5, -1)
    assert not {3, 5} & set(rows.tolist())
    assert len(rows) > 5


def test_no_regions_and_a_threshold_that_nothing_passes():
    empty = StoredBoxes(torch.zeros(0, 4), SIZE), torch.zeros(0, 3)
    boxes, scores = a_case(1)
    for table, values in (empty, (StoredBoxes(boxes, SIZE), scores)):
        rows, classes = fast_nms(table, values, 1.0, 0.5, 10)
        assert (rows.shape, classes.shape) == ((0,), (0,))
        assert rows.dtype == classes.dtype == torch.int64
