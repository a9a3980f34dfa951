"""What one evaluation promises, whatever the engine."""

import math

import numpy as np
import pytest
from helpers.made_detections import made

from rs_d2.evaluation import (
    METRICS,
    detections_from,
    evaluate_detections,
    evaluate_fixed_ap,
    ground_truth_from,
)
from rs_d2.utils.errors import UserError

SUMMARY = {
    *METRICS,
    *("oLRPs", "oLRPm", "oLRPl", "oLRPr", "oLRPc", "oLRPf"),
    *("AR", "ARs", "ARm", "ARl"),
}


def loaded(style, iou_type="bbox", **size):
    content, results = made(style, **size)
    truth = ground_truth_from(content, style)
    return truth, detections_from(results, truth, iou_type)


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_the_order_of_the_file_does_not_matter_but_for_ties(style):
    truth, found = loaded(style, seed=1)
    scores = np.random.default_rng(0).permutation(len(found)) / len(found)
    found = type(found)(found.images, found.categories, scores, found.boxes)
    before = evaluate_detections(truth, found).summary
    shuffled = found.select(np.random.default_rng(1).permutation(len(found)))
    assert evaluate_detections(truth, shuffled).summary == pytest.approx(
        before, abs=1e-10, nan_ok=True
    )
    assert set(before) == SUMMARY


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_ids_are_names_only(style):
    """Strings as image ids, gaps and zeros elsewhere; the order is kept."""
    content, results = made(style, seed=2)
    truth = ground_truth_from(content, style)
    expected = evaluate_detections(truth, detections_from(results, truth, "bbox")).summary
    for entry in content["images"]:
        entry["id"] = f"image {entry['id']:03}"
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            entry[key] = [7 * i - 7 for i in entry.get(key, [])]
    for entry in content["categories"]:
        entry["id"] = 7 * entry["id"] - 7
    for entry in content["annotations"] + results:
        entry["image_id"] = f"image {entry['image_id']:03}"
        entry["category_id"] = 7 * entry["category_id"] - 7
    for entry in content["annotations"]:
        entry["id"] -= 1
    truth = ground_truth_from(content, style)
    found = evaluate_detections(truth, detections_from(results, truth, "bbox")).summary
    assert found == pytest.approx(expected, abs=0, nan_ok=True)


def test_perfect_detections_score_100_and_err_0():
    content, _ = made("coco", seed=3)
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    results = [{**a, "score": 1 - a["id"] / 1e4} for a in content["annotations"]]
    truth = ground_truth_from(content, "coco")
    for iou_type in ("bbox", "segm"):
        found = detections_from(results, truth, iou_type)
        summary = evaluate_detections(truth, found, iou_type).summary
        assert summary["AP"] == pytest.approx(100)
        assert summary["oLRP"] == pytest.approx(0, abs=1e-12)


def test_masks_have_their_own_area_also_where_results_carry_boxes():
    content, results = made("coco", seed=4)
    truth = ground_truth_from(content, "coco")
    bare = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    with_boxes, without = (
        evaluate_detections(truth, detections_from(r, truth, "segm"), "segm").summary
        for r in (results, bare)
    )
    assert with_boxes == pytest.approx(without, abs=0, nan_ok=True)


def test_fixed_ap_lifts_the_cap_of_an_image_and_caps_each_class():
    truth, found = loaded("lvis", seed=5, num_images=2, num_detections=500)
    capped = evaluate_detections(truth, found)
    fixed = evaluate_fixed_ap(truth, found)
    free = evaluate_detections(truth, found, max_dets=math.inf)
    assert fixed.summary == pytest.approx(free.summary, abs=0, nan_ok=True)
    assert len(fixed.matches.scores) > len(capped.matches.scores)
    few = evaluate_fixed_ap(truth, found, per_class=10)
    assert np.bincount(few.matches.categories).max() <= 10
    best = few.detections.scores[few.detections.categories == 0]
    assert best.min() == np.sort(found.scores[found.categories == 0])[-10]


def test_detections_of_unstated_classes_do_not_count_in_lvis():
    truth, found = loaded("lvis", seed=6)
    known = truth.is_known(found.images, found.categories)
    assert 0 < known.sum() < len(found)
    before = evaluate_detections(truth, found, max_dets=math.inf).summary
    after = evaluate_detections(truth, found.select(known), max_dets=math.inf).summary
    assert before == pytest.approx(after, abs=0, nan_ok=True)


def test_class_ap_averages_to_ap():
    truth, found = loaded("lvis", seed=7)
    evaluation = evaluate_detections(truth, found)
    with_objects = evaluation.classes_with_objects()
    assert np.isnan(evaluation.class_ap()[~with_objects]).all()
    assert np.nanmean(evaluation.class_ap()) == pytest.approx(evaluation.summary["AP"])
    assert np.nanmean(evaluation.class_ap(0)) == pytest.approx(evaluation.summary["AP50"])


def test_masks_that_are_not_there_are_named():
    truth, found = loaded("coco")
    with pytest.raises(UserError, match="the detections have no masks"):
        evaluate_detections(truth, found, "segm")
    with pytest.raises(UserError, match="'keypoints' is not one of bbox, segm"):
        evaluate_detections(truth, found, "keypoints")
    content, results = made("coco")
    content["annotations"][3]["segmentation"] = []
    truth = ground_truth_from(content, "coco")
    with pytest.raises(UserError, match="the ground truth has an object without a mask"):
        evaluate_detections(truth, detections_from(results, truth, "segm"), "segm")
