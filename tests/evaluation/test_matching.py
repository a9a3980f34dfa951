"""Matches are those of the official evaluators, and obey their rules."""

import math

import numpy as np
import pytest
from helpers.made_detections import made

from rs_d2.evaluation import detections_from, ground_truth_from
from rs_d2.evaluation.ap_backends import run_lvis, run_pycocotools
from rs_d2.evaluation.matching import match
from rs_d2.evaluation.top_k import cap_per_image


def official(truth, found, iou_type):
    """(area, detection) -> matched object or -1, and whether ignored, by pycocotools or lvis."""
    if truth.style == "coco":
        evaluation = run_pycocotools(truth, found, iou_type, 100)
        entries, ranges = evaluation.evalImgs, evaluation.params.areaRng
        names = ("aRng", "dtIds", "dtMatches", "dtIgnore")
    else:
        evaluation = run_lvis(truth, found, iou_type, math.inf)
        entries, ranges = evaluation.eval_imgs, evaluation.params.area_rng
        names = ("area_rng", "dt_ids", "dt_matches", "dt_ignore")
    matched = {}
    for entry in filter(None, entries):
        area, ids, objects, ignored = (entry[name] for name in names)
        for i, identity in enumerate(ids):
            row = ranges.index(area), identity - 1
            matched[row] = (int(objects[0][i]) - 1, bool(ignored[0][i]))
    return matched


@pytest.mark.parametrize(
    ("style", "iou_type"), [("coco", "bbox"), ("coco", "segm"), ("lvis", "bbox"), ("lvis", "segm")]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_are_the_official_ones(style, iou_type, seed):
    content, results = made(style, seed, num_images=6, num_detections=250)
    truth = ground_truth_from(content, style)
    found = detections_from(results, truth, iou_type)
    if style == "lvis":
        found = found.select(cap_per_image(found, 100))
    matches = match(truth, found, iou_type, 100 if style == "coco" else math.inf)
    expected = official(truth, found, iou_type)
    mine = {}
    for area in range(4):
        for column, detection in enumerate(matches.detections.tolist()):
            row = int(matches.objects[area, column]), bool(matches.ignored[area, column])
            mine[area, detection] = row
    assert mine == expected
    assert (matches.objects[0] >= 0).sum() > 20


def test_an_object_is_taken_once_and_a_crowd_any_number_of_times():
    content, results = made("coco", seed=4, num_detections=100)
    truth = ground_truth_from(content, "coco")
    matches = match(truth, detections_from(results, truth, "bbox"), "bbox")
    for objects in matches.objects:
        taken = np.bincount(objects[objects >= 0], minlength=len(truth.images))
        assert taken[~truth.crowd].max() == 1
        assert taken[truth.crowd].max() > 1


def test_a_match_reaches_the_threshold():
    content, results = made("coco", seed=2)
    truth = ground_truth_from(content, "coco")
    found = detections_from(results, truth, "bbox")
    for threshold in (0.5, 0.75):
        matches = match(truth, found, "bbox", iou_thresh=threshold)
        taken = matches.objects >= 0
        assert matches.ious[taken].min() >= threshold
        assert (matches.ious[~taken] == 0).all()


def test_without_detections_there_are_no_matches_but_objects_are_counted():
    content, _ = made("coco")
    truth = ground_truth_from(content, "coco")
    matches = match(truth, detections_from([], truth, "bbox"), "bbox")
    assert len(matches.scores) == matches.objects.shape[1] == 0
    assert matches.num_objects[0].sum() == (~truth.crowd).sum()


def test_memory_is_bounded_by_taking_groups_in_parts(monkeypatch):
    content, results = made("coco", seed=6)
    truth = ground_truth_from(content, "coco")
    found = detections_from(results, truth, "segm")
    whole = match(truth, found, "segm")
    monkeypatch.setattr("rs_d2.evaluation.matching._PAIRS_AT_ONCE", 50)
    parts = match(truth, found, "segm")
    np.testing.assert_array_equal(whole.objects, parts.objects)
    np.testing.assert_array_equal(whole.ious, parts.ious)
