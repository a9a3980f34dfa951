"""Assigners: laws that hold for any anchors and objects, degenerate ones included."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis.extra.numpy import array_shapes

from rs_d2.targets.assign_atss import assign_atss
from rs_d2.targets.assign_iou import match_by_iou

OVERLAPS = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1, width=32))
IOUS = arrays.arrays(
    "float32", array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7), elements=OVERLAPS
)
COORDINATES = st.one_of(st.sampled_from([0.0, 8.0, 16.0]), st.floats(-50, 200, width=32))
BOXES = st.lists(st.tuples(*4 * [COORDINATES]), max_size=6)


@given(IOUS, st.sampled_from([(0.5,), (0.3, 0.7)]), st.sampled_from([1e-6, 0.3, 1.0]))
def test_matching_by_iou_is_the_literal_loop(table, thresholds, minimum):
    labels = (0, 1) if len(thresholds) == 1 else (0, -1, 1)
    index, label = match_by_iou(torch.from_numpy(table), thresholds, labels, minimum)
    num_gt, num_candidates = table.shape
    cut = torch.tensor(thresholds).tolist()  # in the table's precision
    for a in range(num_candidates):
        if num_gt == 0:
            assert (index[a], label[a]) == (0, labels[0])
            continue
        column = table[:, a].tolist()
        best = max(column)
        chosen, given_label = column.index(best), labels[sum(best >= value for value in cut)]
        for g in range(num_gt):
            highest = max(table[g].tolist())
            if column[g] == highest and highest >= torch.tensor(minimum).item():
                chosen, given_label = g, 1
        assert (index[a].item(), label[a].item()) == (chosen, given_label)


@given(BOXES, st.integers(1, 12), st.integers(0, 3), st.integers(1, 2))
def test_atss_gives_an_anchor_to_an_object_that_holds_its_centre(boxes, topk, size, per_cell):
    objects = (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 2, 2).sort(dim=1)[0].reshape(-1, 4)
    )
    levels = []
    for stride in (8, 16):
        y, x = torch.meshgrid(*2 * [torch.arange(size) * stride], indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1)[:, :, None].expand(-1, -1, per_cell, -1)
        half = torch.tensor([-1.0, -1, 1, 1]) * 2 * stride
        scale = torch.arange(1, per_cell + 1)[:, None]
        levels.append(centres + half * scale)
    found = assign_atss(levels, objects, topk)
    assert [each.numel() for each in found] == [level[..., 0].numel() for level in levels]
    for level, index in zip(levels, found, strict=True):
        flat = level.reshape(-1, 4)
        assert ((index >= -1) & (index < max(len(objects), 1))).all()
        for anchor in (index.flatten() >= 0).nonzero()[:, 0].tolist():
            x, y = (flat[anchor, :2] + flat[anchor, 2:]) / 2
            x1, y1, x2, y2 = objects[index.flatten()[anchor]]
            assert x1 < x < x2
            assert y1 < y < y2
