"""Suppression equals the literal loop, whatever boxes and scores come in."""

import numpy as np
import torch
from helpers.reference_nms import class_wise_nms as literal_loop
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rs_d2.ops.nms import StoredBoxes, batched_nms, class_wise_nms

CORNERS = st.one_of(
    st.sampled_from([0.0, 10.0, 20.0, 30.0, 40.0]),
    st.floats(-20, 120, width=32),
    st.floats(width=32),  # any at all, NaN and infinity included
)
SCORES = st.one_of(
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]), st.floats(0, 1, width=32), st.floats(width=32)
)
SIZES = st.tuples(st.integers(1, 100), st.integers(1, 100))
THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.floats(0, 1))


@st.composite
def cases(draw):
    rows, classes = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    columns = draw(st.sampled_from([4, 4 * classes]))
    boxes = draw(arrays.arrays(np.float32, (rows, columns), elements=CORNERS))
    scores = draw(arrays.arrays(np.float32, (rows, classes), elements=SCORES))
    ordered = boxes.reshape(-1, 2, 2)
    ordered.sort(axis=1)  # corners in their order, as every head gives them
    return boxes, scores


@given(cases(), SIZES, THRESHOLDS, THRESHOLDS, st.integers(-1, 15))
def test_the_search_is_the_literal_loop(case, size, score_thresh, nms_thresh, topk):
    boxes, scores = case
    table = StoredBoxes(torch.from_numpy(boxes), size)
    found = class_wise_nms(table, torch.from_numpy(scores), score_thresh, nms_thresh, topk)
    with np.errstate(all="ignore"):
        expected = literal_loop(boxes, scores, size, score_thresh, nms_thresh, topk)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@given(cases(), THRESHOLDS, st.integers(-1, 15), st.integers(0, 10_000))
def test_survivors_of_a_list_do_not_suppress_each_other(case, nms_thresh, topk, seed):
    boxes, scores = (torch.from_numpy(part) for part in case)
    boxes, scores = boxes[:, :4].nan_to_num(0, 1e4, -1e4).clamp(-1e4, 1e4), scores[:, 0]
    scores = scores.nan_to_num(0, 1, 0)
    classes = torch.randint(3, scores.shape, generator=torch.Generator().manual_seed(seed))
    kept = batched_nms(boxes, scores, classes, nms_thresh, topk)
    assert len(set(kept.tolist())) == len(kept)
    assert (scores[kept].diff() <= 0).all()
    assert torch.equal(kept, batched_nms(boxes, scores, classes, nms_thresh, -1)[: len(kept)])
    again = batched_nms(boxes[kept], scores[kept], classes[kept], nms_thresh, -1)
    assert again.tolist() == list(range(len(kept)))
