"""oLRP: the golden numbers, the laws, the corners."""

import gzip
import json
import math

import numpy as np
import pytest
from conftest import shared
from helpers.made_detections import made

from rs_d2.coco.records import AREAS
from rs_d2.evaluation import detections_from, evaluate_detections, ground_truth_from
from rs_d2.evaluation.evaluate import MAX_DETS
from rs_d2.evaluation.lrp import optimal_lrp
from rs_d2.evaluation.matching import match

MEANS = {"olrp": "oLRP", "olrp_loc": "oLRP_Loc", "olrp_fp": "oLRP_FP", "olrp_fn": "oLRP_FN"}
PARTS = {
    "oLRP": "olrp",
    "Loc": "localisation",
    "FP": "false_positives",
    "FN": "false_negatives",
    "thr": "thresholds",
}
GROUPS = {"oLRPr": "oLRPr", "oLRPc": "oLRPc", "oLRPf": "oLRPf"}
EDGE_CASES = (
    "class_without_detections",
    "class_with_only_false_positives",
    "class_without_ground_truth",
    "iou_exactly_half_after_fp",
    "iou_exactly_half_alone",
    "score_ties",
    "crowd",
    "ignored_first_iou_half",
    "more_than_100_detections",
    "duplicates",
    "areas",
    "lvis_federated",
    "lvis_more_than_300",
)


def same(found, expected):
    """Golden files say null for undefined and -1 for a class without objects."""
    if expected is None or expected == -1:
        return math.isnan(found)
    return found == pytest.approx(expected, abs=1e-9)


def check(evaluation, expected):
    lrp, truth = evaluation.lrp, evaluation.ground_truth
    for area in AREAS:
        means = lrp.mean(area)
        for name, value in expected["means_by_area"][area].items():
            assert same(means[MEANS[name]] / 100, value), (area, name)
    for name in GROUPS.keys() & expected["summary"].keys():
        assert same(evaluation.summary[name] / 100, expected["summary"][name]), name
    for identity, parts in expected["per_class"].items():
        k = truth.category_ids.tolist().index(int(identity))
        for name, field in PARTS.items():
            assert same(getattr(lrp, field)[0, k], parts[name]), (identity, name)
        assert evaluation.matches.num_objects[0, k] == parts.get(
            "n_gt", evaluation.matches.num_objects[0, k]
        )


def test_the_golden_sets_give_the_numbers_of_the_authors_code(golden):
    truth, found, iou_type, expected = golden
    check(evaluate_detections(truth, found, iou_type), expected)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_case(name):
    cases = json.loads(gzip.decompress(shared("golden/olrp/edge_cases.json.gz").read_bytes()))
    assert {case["name"] for case in cases} == set(EDGE_CASES)
    case = next(case for case in cases if case["name"] == name)
    truth = ground_truth_from(case["gt"], case["protocol"])
    found = detections_from(case["detections"], truth, case["iou_type"])
    check(evaluate_detections(truth, found, case["iou_type"]), case["expected"])


def boxes(*entries):
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, entry, strict=False)) for entry in entries]


def truth_of(*objects, style="coco"):
    annotations = [{"id": i + 1} | entry for i, entry in enumerate(boxes(*objects))]
    return ground_truth_from(
        {
            "images": [{"id": i, "height": 200, "width": 200} for i in (1, 2)],
            "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
            "annotations": annotations,
        },
        style,
    )


def test_a_worked_example():
    truth = truth_of(
        (1, 1, [10, 10, 50, 50]),
        (1, 1, [100, 100, 50, 50]),
        (2, 1, [20, 20, 40, 40]),
        (2, 2, [100, 20, 60, 60]),
    )
    results = boxes(
        (1, 1, [10, 10, 50, 50], 0.9),
        (1, 1, [105, 100, 50, 50], 0.8),
        (1, 1, [0, 150, 20, 20], 0.7),
        (2, 1, [25, 20, 40, 40], 0.6),
        (2, 1, [150, 150, 20, 20], 0.1),
    )
    evaluation = evaluate_detections(truth, detections_from(results, truth, "bbox"))
    lrp = evaluation.lrp
    assert lrp.olrp[0] == pytest.approx([0.452020, 1, math.nan], abs=1e-6, nan_ok=True)
    assert lrp.localisation[0, 0] == pytest.approx(0.134680, abs=1e-6)
    assert (lrp.false_positives[0, 0], lrp.false_negatives[0, 0]) == (0.25, 0)
    assert lrp.thresholds[0].tolist() == pytest.approx([0.6, math.nan, math.nan], nan_ok=True)
    assert evaluation.summary["oLRP"] == pytest.approx(72.6010, abs=1e-4)
    assert evaluation.summary["oLRP_FN"] == 50
    assert evaluation.summary["AP"] == pytest.approx(35.8416, abs=1e-4)


def test_without_detections_every_class_with_objects_has_the_largest_error():
    truth = truth_of((1, 1, [10, 10, 50, 50]), (2, 2, [10, 10, 50, 50]))
    evaluation = evaluate_detections(truth, detections_from([], truth, "bbox"))
    assert evaluation.lrp.olrp[0] == pytest.approx([1, 1, math.nan], nan_ok=True)
    assert evaluation.lrp.false_negatives[0, :2].tolist() == [1, 1]
    assert np.isnan(evaluation.lrp.thresholds).all()
    assert evaluation.summary["AP"] == 0
    assert math.isnan(evaluation.summary["oLRP_Loc"])


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_the_parts_recombine_class_by_class(style):
    content, results = made(style, seed=3)
    truth = ground_truth_from(content, style)
    found = detections_from(results, truth, "bbox")
    lrp = optimal_lrp(match(truth, found, "bbox", MAX_DETS[style]))
    matches = match(truth, found, "bbox")
    whole = ~np.isnan(lrp.localisation[0]) & ~np.isnan(lrp.false_positives[0])
    assert whole.sum() > 5
    n = matches.num_objects[0][whole]
    loc, fp, fn = (getattr(lrp, PARTS[p])[0, whole] for p in ("Loc", "FP", "FN"))
    tp = n * (1 - fn)
    wrong = tp * fp / (1 - fp)
    expected = (2 * tp * loc + wrong + n * fn) / (tp + wrong + n * fn)
    np.testing.assert_allclose(lrp.olrp[0, whole], expected, atol=1e-12)
    assert (lrp.olrp[0, whole] <= 1).all()


def test_cutting_at_the_optimal_thresholds_changes_neither_olrp_nor_its_parts():
    content, results = made("coco", seed=5)
    truth = ground_truth_from(content, "coco")
    found = detections_from(results, truth, "bbox")
    before = evaluate_detections(truth, found).lrp
    kept = found.scores >= np.nan_to_num(before.thresholds[0], nan=-1)[found.categories]
    assert 0 < kept.sum() < len(found)
    after = evaluate_detections(truth, found.select(kept)).lrp
    np.testing.assert_array_equal(before.olrp[0], after.olrp[0])
    np.testing.assert_array_equal(before.false_negatives[0], after.false_negatives[0])
