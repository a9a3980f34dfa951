"""Results in; what is wrong with them is named."""

import numpy as np
import pytest
from helpers.made_detections import SIDE, made
from pycocotools import mask as mask_util

from rs_d2.evaluation import detections_from, ground_truth_from
from rs_d2.utils.errors import UserError


@pytest.fixture
def truth():
    return ground_truth_from(made("coco")[0], "coco")


def results_with(**changes):
    """Four good results, the third of which is changed."""
    results = made("coco")[1][:4]
    results[2] = {k: v for k, v in (results[2] | changes).items() if v is not None}
    return results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 99}, r"image_id: expected the id of an image of the ground truth, found 99"),
        (
            {"image_id": "1"},
            r"image_id: expected the id of an image of the ground truth, found '1'",
        ),
        ({"image_id": 10**30}, r"image_id: expected the id of an image"),
        ({"image_id": None}, r"image_id: expected the id of an image.*, found nothing"),
        ({"category_id": 0}, r"category_id: expected the id of a category.*, found 0"),
        ({"category_id": True}, r"category_id: expected the id of a category.*, found True"),
        ({"score": float("nan")}, r"score: expected a finite number, found nan"),
        ({"score": "0.5"}, r"score: expected a finite number, found '0.5'"),
        ({"score": None}, r"score: expected a finite number, found nothing"),
        (
            {"bbox": [1, 2, -3, 4]},
            r"bbox: expected four finite numbers .* >= 0, found \[1, 2, -3, 4\]",
        ),
        ({"bbox": [1, 2, float("inf"), 4]}, r"bbox: expected four finite numbers"),
        ({"bbox": [1, 2, 3]}, r"bbox: expected four finite numbers .*, found \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, "4"]}, r"bbox: expected four finite numbers"),
        ({"bbox": None}, r"bbox: expected four finite numbers .*, found nothing"),
    ],
)
def test_the_entry_of_a_bad_box_is_named(truth, changes, message):
    with pytest.raises(UserError, match=rf"^dets.json: entry 2 .*{message}") as raised:
        detections_from(results_with(**changes), truth, "bbox", "dets.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            {"size": [SIDE, SIDE + 1], "counts": "0"},
            rf"a mask of the image's .* \[{SIDE}, {SIDE}\]",
        ),
        ({"size": [SIDE, SIDE], "counts": [5, 5]}, rf"runs of {SIDE * SIDE} pixels"),
        ({"size": [SIDE, SIDE], "counts": [SIDE * SIDE + 5, -5]}, "run lengths or polygons"),
        ({"size": [SIDE, SIDE], "counts": "54"}, rf"runs of {SIDE * SIDE} pixels"),
        ({"size": [SIDE, SIDE], "counts": "\n"}, rf"runs of {SIDE * SIDE} pixels"),
        ({"counts": "0"}, "a mask of the image's height and width"),
        ({"size": [SIDE, SIDE]}, "run lengths or polygons"),
        ([[1, 2, 3, 4]], "run lengths or polygons"),
        ([], "run lengths or polygons"),
        (None, "run lengths or polygons, found nothing"),
    ],
)
def test_the_entry_of_a_bad_mask_is_named(truth, mask, message):
    with pytest.raises(UserError, match=rf"^results: entry 2 .*segmentation: expected {message}"):
        detections_from(results_with(segmentation=mask), truth, "segm")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"annotations": []}, "expected a list of results, found an object"),
        ("[]", "expected a list of results, found a string"),
        (None, "expected a list of results, found null"),
        (3, "expected a list of results, found a number"),
        ([7], "entry 0: expected an object, found 7"),
        ([[1, 2]], "entry 0: expected an object, found \\[1, 2\\]"),
    ],
)
def test_what_is_no_list_of_results_is_refused(truth, results, message):
    with pytest.raises(UserError, match=message):
        detections_from(results, truth, "bbox")


def test_an_empty_list_and_a_box_without_area_are_allowed(truth):
    assert len(detections_from([], truth, "segm")) == 0
    found = detections_from(results_with(bbox=[5, 5, 0, 0]), truth, "bbox")
    assert found.boxes[2].tolist() == [5, 5, 0, 0]


def test_any_form_of_a_mask_will_do(truth):
    box = [20, 30, 40, 50]
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    packed = mask_util.merge(mask_util.frPyObjects(polygon, SIDE, SIDE))
    bitmap = mask_util.decode(packed)
    runs = np.diff(np.flatnonzero(np.diff(bitmap.T.reshape(-1), prepend=2, append=2)))
    runs = [0, *runs.tolist()] if bitmap[0, 0] else runs.tolist()
    text = {"size": [SIDE, SIDE], "counts": packed["counts"].decode()}
    for mask in (polygon, text, {"size": [SIDE, SIDE], "counts": runs}):
        found = detections_from(results_with(segmentation=mask), truth, "segm")
        assert found.areas("segm")[2] == bitmap.sum()
