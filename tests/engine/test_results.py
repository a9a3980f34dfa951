import json
import math

import pytest
from detectron2.config import get_cfg
from torch import nn

from rs_d2 import add_rs_config
from rs_d2.engine.results import finish, format_table, write_metrics

RESULTS = {
    "bbox": {"AP": 12.345, "AP50": 30.0, "APs": float("nan"), "AP-cat": 50.0},
    "segm": {"AP": 10.0, "AP50": 25.0, "APs": 1.0},
}


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.OUTPUT_DIR, cfg.TEST.DRAW_IMAGES = str(tmp_path), 0
    return cfg


def test_metrics_are_plain_json_with_null_for_no_number(tmp_path):
    written = write_metrics(tmp_path / "metrics.json", RESULTS)
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read == written
    assert read["bbox"] == {"AP": 12.345, "AP50": 30.0, "APs": None, "AP-cat": 50.0}


def test_the_table_has_a_row_per_task_and_only_columns_in_use():
    lines = format_table(json.loads(json.dumps(RESULTS).replace("NaN", "null"))).splitlines()
    assert lines[0].split() == ["AP", "AP50", "APs"]
    assert lines[2].split() == ["bbox", "12.3", "30.0", "-"]
    assert lines[3].split() == ["segm", "10.0", "25.0", "1.0"]


def test_several_test_sets_name_their_rows():
    table = format_table({"day": {"bbox": {"AP": 1.0}}, "night": {"bbox": {"AP": 2.0}}})
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["day", "bbox", "1.0"],
        ["night", "bbox", "2.0"],
    ]


def test_expected_results_pass_within_their_tolerance(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 12.0, 0.5]]
    finish(cfg, nn.Identity(), RESULTS)
    assert math.isclose(json.loads(_metrics(cfg).read_text())["bbox"]["AP"], 12.345)


@pytest.mark.parametrize(
    "expected", [["bbox", "AP", 20.0, 0.5], ["keypoints", "AP", 20.0, 0.5], ["bbox", "APs", 0, 9]]
)
def test_a_missed_expectation_ends_with_exit_code_1_after_writing(cfg, expected):
    cfg.TEST.EXPECTED_RESULTS = [expected]
    with pytest.raises(SystemExit) as stop:
        finish(cfg, nn.Identity(), RESULTS)
    assert stop.value.code == 1
    assert _metrics(cfg).is_file()


def test_without_a_test_set_nothing_is_written(cfg):
    finish(cfg, nn.Identity(), {})
    assert not _metrics(cfg).exists()


def _metrics(cfg):
    from pathlib import Path

    return Path(cfg.OUTPUT_DIR) / "metrics.json"
