"""Results out."""

import json

import pytest
from helpers.made_detections import made

from rs_d2.coco.ground_truth import ground_truth_from
from rs_d2.coco.results import detections_from
from rs_d2.coco.writing import as_results


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_results_survive_the_round_trip(iou_type):
    content, results = made("coco")
    truth = ground_truth_from(content, "coco")
    before = json.dumps(results)
    found = detections_from(results, truth, iou_type)
    assert json.dumps(results) == before
    back = as_results(found, truth)
    fields = ["image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation"]
    assert [{k: r[k] for k in fields} for r in back] == [{k: r[k] for k in fields} for r in results]
