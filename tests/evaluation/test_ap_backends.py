"""hotcoco, where installed, and the reference packages give the same precision."""

import importlib.util
import json
import math

import numpy as np
import pytest
from conftest import shared
from helpers.made_detections import made

from rs_d2.evaluation import SUMMARY, detections_from, evaluate_detections, ground_truth_from
from rs_d2.evaluation.ap_backends import average_precision, choose_engine
from rs_d2.evaluation.evaluate import MAX_DETS
from rs_d2.utils.errors import UserError

needs_hotcoco = pytest.mark.skipif(
    importlib.util.find_spec("hotcoco") is None, reason="hotcoco is not installed"
)


def engines():
    return ["reference", "hotcoco"] if importlib.util.find_spec("hotcoco") else ["reference"]


def check_engines_agree(truth, found, iou_type, max_dets=None):
    max_dets = max_dets or MAX_DETS[truth.style]
    ours, reference = (
        average_precision(truth, found, iou_type, engine, max_dets)
        for engine in ("hotcoco", "reference")
    )
    same_precision(ours, reference)
    return reference


def same_precision(ours, reference):
    np.testing.assert_allclose(ours.precision, reference.precision, atol=1e-9, rtol=0)
    np.testing.assert_allclose(ours.recall, reference.recall, atol=1e-9, rtol=0)


def check_all_engines(truth, found, iou_type, expected):
    """Every engine that is installed gives the expected summary, and all the same curves."""
    evaluations = [evaluate_detections(truth, found, iou_type, engine) for engine in engines()]
    for evaluation in evaluations:
        check_summary(evaluation, expected)
        same_precision(evaluation.precision, evaluations[0].precision)


GOLDEN_NAMES = {"AR100": "AR", "AR@300": "AR", "AR@100": "AR"}
GOLDEN_NAMES |= {f"AR{size}@300": f"AR{size}" for size in "sml"}


def test_the_golden_sets_give_the_golden_precision(golden):
    truth, found, iou_type, expected = golden
    check_all_engines(truth, found, iou_type, expected["summary"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("style", "folder", "gt", "results"),
    [
        ("coco", "evaluator_coco", "instances_val2014_100", "fake{}100_results"),
        ("lvis", "evaluator_lvis", "lvis_val_50", "lvis_results_50"),
    ],
)
def test_the_official_examples_give_the_official_numbers(style, folder, gt, results, iou_type):
    def read(name):
        return json.loads((shared("data") / folder / f"{name}.json").read_text())

    truth = ground_truth_from(read(gt), style)
    found = detections_from(read(results.format(iou_type)), truth, iou_type)
    check_all_engines(truth, found, iou_type, read("expected")[iou_type])


def check_summary(evaluation, expected):
    """Of the average recalls, only those at the full cap are ours."""
    assert set(evaluation.summary) == set(SUMMARY)
    checked = 0
    for name, value in expected.items():
        name = GOLDEN_NAMES.get(name, name)
        if name in evaluation.summary and not name.startswith("oLRP"):
            assert evaluation.summary[name] == pytest.approx(100 * value, abs=1e-7), name
            assert abs(evaluation.summary[name] / 100 - value) < 1e-9, name
            checked += 1
    assert checked >= 10


@needs_hotcoco
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize(
    "size",
    [
        {"seed": 0},
        {"seed": 1, "num_images": 30, "num_objects": 2, "num_detections": 15},
        {"seed": 2, "num_images": 3, "num_detections": 420},  # above both caps
    ],
)
def test_the_engines_agree_on_random_sets(style, iou_type, size):
    content, results = made(style, **size)
    truth = ground_truth_from(content, style)
    check_engines_agree(truth, detections_from(results, truth, iou_type), iou_type)


@needs_hotcoco
def test_the_engines_agree_on_1203_classes():
    content, results = made("lvis", seed=3, num_images=6, num_classes=1203, num_detections=330)
    truth = ground_truth_from(content, "lvis")
    found = detections_from(results, truth, "bbox")
    reference = check_engines_agree(truth, found, "bbox")
    assert reference.precision.shape == (10, 101, 1203, 4)


@needs_hotcoco
@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_the_engines_agree_where_nothing_is_found_or_capped(style):
    content, results = made(style, seed=4, num_images=6)
    truth = ground_truth_from(content, style)
    nothing = check_engines_agree(truth, detections_from([], truth, "segm"), "segm")
    assert nothing.precision.max() == 0
    found = detections_from(results, truth, "bbox")
    for max_dets in (3, math.inf):
        check_engines_agree(truth, found, "bbox", max_dets)


@needs_hotcoco
@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_the_engines_agree_on_many_detections_of_one_class_in_an_image(style):
    content, results = made(style, seed=5, num_images=1, num_classes=2, num_detections=900)
    truth = ground_truth_from(content, style)
    found = detections_from(results, truth, "bbox")
    assert np.bincount(found.categories).max() > 300
    for max_dets in (100, 300, math.inf):
        check_engines_agree(truth, found, "bbox", max_dets)


@needs_hotcoco
def test_lvis_without_federation_lists_is_annotated_throughout():
    content, results = made("lvis", seed=5, num_images=8)
    every = list(range(1, 13))
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = every, []
    explicit = ground_truth_from(content, "lvis")
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    implicit = ground_truth_from(content, "lvis")
    found = detections_from(results, implicit, "bbox")
    expected = evaluate_detections(explicit, found).summary
    assert evaluate_detections(implicit, found).summary == pytest.approx(expected, nan_ok=True)
    check_engines_agree(implicit, found, "bbox")


def test_the_engine_is_chosen_by_what_is_installed(monkeypatch):
    def only(**versions):
        monkeypatch.setattr("rs_d2.evaluation.ap_backends._version", versions.get)

    only(hotcoco="1.3.0", pycocotools="2.0.11", lvis="0.5.3")
    assert choose_engine("auto", "coco") == choose_engine("auto", "lvis") == "hotcoco"
    assert choose_engine("reference", "lvis") == "reference"
    only(hotcoco="1.12.1")
    assert choose_engine("hotcoco", "lvis") == "hotcoco"
    for version in ("0.9.3", "1.2.9", "2.0.0"):
        only(hotcoco=version, pycocotools="2.0.11")
        assert choose_engine("auto", "coco") == "reference"
        with pytest.raises(UserError, match=f"hotcoco {version} is installed: pip install"):
            choose_engine("hotcoco", "coco")
    with pytest.raises(UserError, match="no lvis is installed: pip install lvis"):
        choose_engine("auto", "lvis")
    only()
    with pytest.raises(UserError, match="no hotcoco is installed: pip install"):
        choose_engine("hotcoco", "coco")
    with pytest.raises(UserError, match="'fast' is not one of auto, hotcoco, reference"):
        choose_engine("fast", "coco")
