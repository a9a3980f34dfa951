"""A sweep evaluates what a model would return at each threshold, and recommends the right one."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from helpers.made_detections import made
from PIL import Image

from rs_d2.analysis.threshold_sweep import (
    THRESHOLDS,
    evaluate_at,
    main_metric,
    recommend,
    sweep,
    write_sweep,
)
from rs_d2.evaluation import detections_from, evaluate_detections, ground_truth_from
from rs_d2.ops.nms import StoredBoxes, class_wise_nms


def set_of(style):
    content, results = made(style, num_images=6)
    truth = ground_truth_from(content, style)
    return truth, detections_from(results, truth, "segm")


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("topk", [5, 100])
def test_detections_at_a_threshold_are_those_of_a_lower_one_that_score_above_it(threshold, topk):
    centers = torch.rand(60, 2) * 50
    table = StoredBoxes(torch.cat([centers - 6, centers + 6], 1), (50, 50))
    scores = (torch.rand(60, 8) * 20).round() / 20  # with ties, also at the thresholds
    rows, classes = class_wise_nms(table, scores, 1e-4, 0.5, topk)
    above = scores[rows, classes] > threshold
    expected = class_wise_nms(table, scores, threshold, 0.5, topk)
    assert torch.equal(rows[above], expected[0])
    assert torch.equal(classes[above], expected[1])


@pytest.mark.parametrize(("style", "tasks"), [("coco", ["bbox"]), ("lvis", ["segm", "bbox"])])
def test_each_row_is_the_evaluation_of_what_scores_above(style, tasks):
    truth, detections = set_of(style)
    rows = sweep(truth, detections, [0.5, 0.1, 0.9], tasks)
    assert [row["threshold"] for row in rows] == [0.1, 0.5, 0.9]
    for row in rows:
        kept = detections.select(detections.scores > np.float32(row["threshold"]))
        summary = evaluate_detections(truth, kept, tasks[0]).summary
        shown = [name.split()[1] for name in row if name.startswith(main_metric(rows)[:4])]
        expected = {"coco": ["AP", "AP50", "AP75", "oLRP"], "lvis": ["AP", "APr", "APc", "APf"]}
        assert shown[: len(expected[style])] == expected[style]
        label = main_metric(rows).split()[0]
        for name in shown:
            assert row[f"{label} {name}"] == pytest.approx(summary[name], nan_ok=True)
        assert row["detections"] == len(kept) / 6
    assert ("box AP" in rows[0]) is True
    assert main_metric(rows) == {"bbox": "box AP", "segm": "mask AP"}[tasks[0]]


def test_a_score_equal_to_the_threshold_is_not_above_it():
    truth, detections = set_of("coco")
    threshold = float(np.median(detections.scores))
    (evaluation,) = evaluate_at(truth, detections, threshold, ["bbox"]).values()
    assert (evaluation.detections.scores > threshold).all()
    assert (detections.scores == threshold).any()


def test_above_every_score_there_is_nothing():
    truth, detections = set_of("coco")
    (row,) = sweep(truth, detections, [0.9999], ["bbox"])
    assert row["box AP"] == row["detections"] == 0


@pytest.mark.parametrize(
    ("tolerance", "expected"), [(0.0, 0.4), (0.05, 0.4), (0.2, 0.6), (100.0, 0.8)]
)
def test_the_largest_threshold_within_the_tolerance_is_recommended(tolerance, expected):
    aps = {1e-4: 25.2, 0.1: 25.2, 0.4: 25.2, 0.6: 25.1, 0.8: 17.0}
    rows = [{"threshold": t, "mask AP": ap, "box AP": 0.0} for t, ap in aps.items()]
    assert recommend(rows, tolerance)["threshold"] == expected


def test_a_loss_between_smaller_thresholds_does_not_matter():
    rows = [{"threshold": t, "box AP": ap} for t, ap in ((0.1, 10.0), (0.2, 9.0), (0.3, 10.0))]
    assert recommend(rows)["threshold"] == 0.3


def test_without_ground_truth_the_smallest_threshold_is_recommended():
    rows = [{"threshold": t, "box AP": math.nan} for t in (0.1, 0.2)]
    assert recommend(rows)["threshold"] == 0.1


def test_table_and_picture_are_written(tmp_path):
    rows = [
        {"threshold": t, "mask AP": 30.0, "mask APr": math.nan, "images/s plain": 2.0}
        for t in THRESHOLDS
    ]
    paths = write_sweep(tmp_path / "new", rows, recommended=0.8)
    content = json.loads(paths["json"].read_text())
    assert content["recommended"] == 0.8
    assert [row["threshold"] for row in content["rows"]] == list(THRESHOLDS)
    assert content["rows"][0]["mask APr"] is None
    with paths["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["threshold"]) for line in lines] == list(THRESHOLDS)
    assert lines[0]["mask APr"] == ""
    with Image.open(paths["png"]) as picture:
        assert len(set(picture.convert("L").getdata())) > 10
