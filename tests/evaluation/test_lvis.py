"""LVIS evaluation against the official numbers."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from conftest import shared
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_util

from rs_d2.data import register_custom
from rs_d2.evaluation import RSLVISEvaluator

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
NAME = "lvis_evaluation"

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def official(name):
    return json.loads((shared("data/evaluator_lvis") / name).read_text())


def check_official(scores, iou_type):
    expected = official("expected.json")[iou_type]
    for name in METRICS:
        assert scores[name] == pytest.approx(100 * expected[name], abs=1e-9), name


def as_outputs(id_map, masks):
    """The official results as a model's output, image by image."""
    images = official("lvis_val_50.json")["images"]
    by_image = {image["id"]: [] for image in images}
    for result in official("lvis_results_50.json"):
        by_image[result["image_id"]].append(result)
    for image in images:
        results = by_image[image["id"]]
        boxes = torch.tensor([r["bbox"] for r in results], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.zeros(0, 4))
        instances.pred_boxes.tensor = boxes  # Boxes() rounds to float32
        instances.scores = torch.tensor([r["score"] for r in results], dtype=torch.float64)
        instances.pred_classes = torch.tensor([id_map[r["category_id"]] for r in results])
        if masks:
            decoded = [mask_util.decode(r["segmentation"]) for r in results]
            instances.pred_masks = torch.from_numpy(np.array(decoded, dtype=bool))
        yield {"image_id": image["id"]}, {"instances": instances}


def run(evaluator, outputs):
    evaluator.reset()
    for entry, output in outputs:
        evaluator.process([entry], [output])
    return evaluator.evaluate()


def test_a_model_scores_the_official_numbers_whatever_the_category_ids(tmp_path):
    """Ids are the source's times ten, so that they are neither contiguous nor contiguous plus 1."""
    content = official("lvis_val_50.json")
    for entry in content["categories"]:
        entry["id"] *= 10
    for entry in content["annotations"]:
        entry["category_id"] *= 10
    for entry in content["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            entry[key] = [10 * i for i in entry[key]]
        picture = Image.new("1", (entry["width"], entry["height"]))
        picture.save(tmp_path / entry["file_name"])
    json_file = tmp_path / "val.json"
    json_file.write_text(json.dumps(content))
    register_custom(NAME, str(json_file), str(tmp_path))
    ids = MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id
    outputs = as_outputs({i // 10: index for i, index in ids.items()}, masks=True)
    evaluator = RSLVISEvaluator(NAME, ("bbox", "segm"), output_dir=str(tmp_path / "out"))
    scores = run(evaluator, outputs)
    check_official(scores["bbox"], "bbox")
    check_official(scores["segm"], "segm")
    saved = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert len(saved) == 2506
    assert all(result["category_id"] % 10 == 0 for result in saved)


def test_without_a_mapping_the_id_is_the_index_plus_one():
    path = shared("data/evaluator_lvis") / "lvis_val_50.json"
    MetadataCatalog.get(NAME).set(json_file=str(path))
    outputs = as_outputs({i: i - 1 for i in range(1, 1231)}, masks=False)
    scores = run(RSLVISEvaluator(NAME, ("bbox",)), outputs)
    check_official(scores["bbox"], "bbox")


def tiny(tmp_path, num_objects=1, **mask):
    """One image, a frequent class with objects in it and a rare one that it is known to lack."""
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 48}
    image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    Image.new("1", (64, 48)).save(tmp_path / "a.png")
    content = {
        "images": [image],
        "categories": [
            {"id": 1, "name": "fig", "frequency": "f"},
            {"id": 2, "name": "nut", "frequency": "r"},
        ],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [5.0 + i, 5, 20, 20]} | mask
            for i in range(num_objects)
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_custom(NAME, str(tmp_path / "val.json"), str(tmp_path))


def output(boxes, scores, classes):
    instances = Instances((48, 64))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return [({"image_id": 1}, {"instances": instances})]


def test_boxes_are_enough_for_box_evaluation(tmp_path):
    tiny(tmp_path)
    scores = run(RSLVISEvaluator(NAME, ("bbox",)), output([[5, 5, 25, 25]], [0.9], [0]))
    assert scores["bbox"]["AP"] == pytest.approx(100)
    assert scores["bbox"]["APf"] == pytest.approx(100)


def test_a_group_without_objects_is_nan(tmp_path):
    tiny(tmp_path)
    scores = run(RSLVISEvaluator(NAME, ("bbox",)), output([[5, 5, 25, 25]], [0.9], [0]))["bbox"]
    assert [name for name in METRICS if math.isnan(scores[name])] == ["APm", "APl", "APr", "APc"]


def test_a_model_that_finds_nothing_scores_zero_with_a_warning(tmp_path, caplog):
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    tiny(tmp_path, segmentation=square)
    with caplog.at_level(logging.WARNING, logger="rs_d2"):
        scores = run(RSLVISEvaluator(NAME, ("bbox", "segm")), output([], [], []))
    assert caplog.messages == ["the model found nothing in any image"]
    for task in ("bbox", "segm"):
        assert scores[task]["AP"] == scores[task]["APf"] == scores[task]["APs"] == 0
        assert math.isnan(scores[task]["APr"])


def test_only_the_best_300_of_an_image_count(tmp_path):
    tiny(tmp_path)
    found, wrong = [5, 5, 25, 25], [40, 30, 60, 45]
    for num_wrong, ap in ((299, 100 / 300), (300, 0)):
        boxes = [wrong] * num_wrong + [found]
        scores = [0.9] * num_wrong + [0.5]
        result = run(RSLVISEvaluator(NAME, ("bbox",)), output(boxes, scores, [0] * len(boxes)))
        assert result["bbox"]["AP50"] == pytest.approx(ap)


def test_fixed_ap_is_added_where_asked_for(tmp_path):
    tiny(tmp_path)
    boxes, scores = [[40, 30, 60, 45]] * 300 + [[5, 5, 25, 25]], [0.9] * 300 + [0.5]
    evaluator = RSLVISEvaluator(NAME, ("bbox",), fixed_ap=True)
    result = run(evaluator, output(boxes, scores, [0] * 301))["bbox"]
    assert result["AP50"] == 0
    assert result["AP50_fixed"] == pytest.approx(100 / 301)


def test_a_json_without_federation_lists_is_told_and_counts_throughout(tmp_path, caplog):
    tiny(tmp_path)
    path = tmp_path / "bare.json"
    content = json.loads((tmp_path / "val.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    path.write_text(json.dumps(content))
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).set(json_file=str(path))
    with caplog.at_level(logging.INFO, logger="rs_d2"):
        scores = run(RSLVISEvaluator(NAME, ("bbox",)), output([[5, 5, 25, 25]], [0.9], [0]))
    assert "no neg_category_ids, taken as annotated throughout" in caplog.text
    assert scores["bbox"]["AP"] == pytest.approx(100)
