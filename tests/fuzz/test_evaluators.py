"""Evaluators: laws of AP and oLRP that hold for any detections."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_d2.coco.ground_truth import ground_truth_from
from rs_d2.coco.results import detections_from
from rs_d2.evaluation.evaluate import METRICS, evaluate_detections

SIDE = 60
CORNER = st.one_of(st.sampled_from([0, 10, 20]), st.floats(-5, 50, width=32))
EXTENT = st.one_of(st.sampled_from([1, 10, 33, 50]), st.floats(0.125, 60, width=32))
BOX = st.tuples(CORNER, CORNER, EXTENT, EXTENT).map(list)
OBJECTS = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), BOX, st.booleans()), max_size=6)
SCORES = st.one_of(st.sampled_from([0.1, 0.5, 0.9]), st.floats(0, 1, width=32))
FOUND = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), BOX, SCORES), max_size=10)


def truth_of(objects, style):
    images = [{"id": i, "width": SIDE, "height": SIDE, "file_name": f"{i}.png"} for i in (1, 2)]
    categories = [{"id": k, "name": f"class {k}"} for k in (1, 2)]
    if style == "lvis":
        for image in images:
            image |= {"neg_category_ids": [1, 2], "not_exhaustive_category_ids": []}
        for category in categories:
            category["frequency"] = "rf"[category["id"] - 1]
    annotations = [
        {
            **{"id": index, "image_id": image, "category_id": category, "bbox": box},
            **{"area": box[2] * box[3], "iscrowd": int(crowd and style == "coco")},
        }
        for index, (image, category, box, crowd) in enumerate(objects, 1)
    ]
    content = {"images": images, "categories": categories, "annotations": annotations}
    return ground_truth_from(content, style)


def summary_of(truth, found, engine):
    results = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in found
    ]
    detections = detections_from(results, truth, "bbox")
    return evaluate_detections(truth, detections, "bbox", engine).summary


@pytest.mark.parametrize("style", ["coco", "lvis"])
@given(objects=OBJECTS, found=FOUND, seed=st.integers(0, 99))
def test_scores_are_percent_and_both_engines_agree(style, objects, found, seed):
    truth = truth_of(objects, style)
    summary = summary_of(truth, found, "auto")
    for name in METRICS:
        value = summary[name]
        assert math.isnan(value) or -1e-9 <= value <= 100 + 1e-9, name
    reference = summary_of(truth, found, "reference")
    for name in METRICS:
        assert summary[name] == pytest.approx(reference[name], abs=1e-6, nan_ok=True), name
    untied = [(*entry[:3], (index + 1) / 32) for index, entry in enumerate(found)]
    order = np.random.default_rng(seed).permutation(len(untied))
    shuffled = summary_of(truth, [untied[i] for i in order], "auto")
    assert shuffled == pytest.approx(summary_of(truth, untied, "auto"), nan_ok=True)


@pytest.mark.parametrize("style", ["coco", "lvis"])
@given(objects=OBJECTS)
def test_the_objects_themselves_are_found_perfectly(style, objects):
    unique = {tuple(box): (image, k, box, False) for image, k, box, _ in objects}  # no duplicates
    truth = truth_of(list(unique.values()), style)
    found = [(image, category, box, 1.0) for image, category, box, _ in unique.values()]
    summary = summary_of(truth, found, "auto")
    if unique and len(truth.images):
        assert summary["AP"] == pytest.approx(100, abs=1e-6)
        assert summary["oLRP"] == pytest.approx(0, abs=1e-3)
