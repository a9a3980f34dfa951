"""What a run gives its evaluator to report with."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from helpers.made_detections import made

from rs_d2 import add_rs_config
from rs_d2.evaluation import detections_from, evaluate_detections, ground_truth_from
from rs_d2.report.run import report_of_run

NAME = "reported"


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = (NAME,), str(tmp_path)
    yield cfg
    MetadataCatalog.pop(NAME, None)


def test_the_report_of_a_run_shows_its_training(cfg, tmp_path):
    content, results = made("coco", num_images=4)
    (tmp_path / "train.json").write_text(json.dumps(content))
    MetadataCatalog.get(NAME).set(json_file=str(tmp_path / "train.json"), image_root=str(tmp_path))
    truth = ground_truth_from(content, "coco")
    evaluation = evaluate_detections(truth, detections_from(results, truth, "bbox"))
    write, out = report_of_run(cfg, NAME), tmp_path / "out"
    page = write(out, {"bbox": evaluation}).read_text()
    assert {path.name for path in out.iterdir()} == {"report.html", "per_class_bbox.csv"}
    assert f"<title>{NAME}</title>" in page
    assert "objects in the training set" in page
    assert "Negatives for one positive" not in page
    (tmp_path / "imbalance.json").write_text(json.dumps({"iteration": 12, "rpn_tasks": 3456.7}))
    page = write(out, {"bbox": evaluation}).read_text()
    assert "Negatives for one positive" in page
    assert "3457" in page


def test_no_report_is_written_where_it_is_switched_off(cfg):
    cfg.TEST.REPORT = False
    assert report_of_run(cfg, NAME) is None
