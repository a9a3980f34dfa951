"""The comparison of a file with its model: what it finds, and what it forgives."""

import numpy as np
import pytest

pytest.importorskip("detectron2")

from rs_d2.export.comparison import compare
from rs_d2.export.runtime import ExportedDetections

SIZE = (40, 50)


def detections(**changes):
    """Three detections, the last two of one score."""
    made = ExportedDetections(
        boxes=np.array([[1, 2, 20, 30], [5, 6, 25, 35], [10, 12, 44, 39]], dtype=np.float32),
        scores=np.array([0.9, 0.5, 0.5], dtype=np.float32),
        classes=np.array([3, 1, 1]),
        masks=np.zeros((3, *SIZE), dtype=bool),
    )
    made.masks[:, 5:15, 5:15] = True
    return made._replace(**changes)


def taken(found, order):
    return ExportedDetections(*(value[order] for value in found))


def test_a_file_does_not_differ_from_itself():
    difference = compare(detections(), detections(), SIZE)
    assert difference == (SIZE, 3, 3, 0.0, 0.0, 0.0, True)
    assert difference.acceptable


def test_nothing_does_not_differ_from_nothing():
    nothing = taken(detections(), slice(0, 0))
    assert compare(nothing, nothing, SIZE) == (SIZE, 0, 0, 0.0, 0.0, 0.0, True)


def test_equal_scores_may_come_in_another_order():
    assert compare(taken(detections(), [0, 2, 1]), detections(), SIZE).acceptable


@pytest.mark.parametrize(("moved", "acceptable"), [(5e-4, True), (0.01, False)])
def test_a_moved_box_is_found(moved, acceptable):
    boxes = detections().boxes.copy()
    boxes[1, 2] += moved
    difference = compare(detections(boxes=boxes), detections(), SIZE)
    assert difference.boxes == pytest.approx(moved, rel=0.01)
    assert difference.acceptable == acceptable
    assert difference.same_classes


@pytest.mark.parametrize(("moved", "acceptable"), [(5e-6, True), (1e-4, False)])
def test_a_moved_score_is_found(moved, acceptable):
    scores = detections().scores + np.float32([moved, 0, 0])
    difference = compare(detections(scores=scores), detections(), SIZE)
    assert difference.scores == pytest.approx(moved, rel=0.05)
    assert difference.acceptable == acceptable


def test_a_changed_class_is_found():
    difference = compare(detections(classes=np.array([3, 1, 2])), detections(), SIZE)
    assert not difference.same_classes
    assert not difference.acceptable


def test_changed_masks_are_counted_in_pixels_of_their_object():
    masks = detections().masks.copy()
    masks[1, 5, 5:10] = False
    difference = compare(detections(masks=masks), detections(), SIZE)
    assert difference.masks == pytest.approx(0.05)
    assert not compare(taken(detections(), [0, 1, 1]), detections(), SIZE).acceptable


@pytest.mark.parametrize("order", [[0, 1], [], [0, 1, 2, 2]])
def test_one_too_few_or_too_many_is_found(order):
    found = taken(detections(), np.array(order, dtype=int))
    for pair in ((found, detections()), (detections(), found)):
        difference = compare(*pair, SIZE)
        assert not difference.acceptable
        assert sorted([difference.found, difference.expected]) == sorted([len(order), 3])


def test_a_value_that_is_no_number_is_found():
    scores = np.array([0.9, np.nan, 0.5], dtype=np.float32)
    assert not compare(detections(scores=scores), detections(), SIZE).acceptable
