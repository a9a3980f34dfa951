"""The benchmark of prediction runs, and finds as many objects as it says."""

import json
import sys

import pytest
from conftest import REPO

pytest.importorskip("detectron2")

sys.path.insert(0, str(REPO / "benchmarks"))
import bm_predict


def test_a_small_run_writes_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bm_predict, "IMAGE", (48, 64))
    monkeypatch.setattr(bm_predict, "CASES", [("quick/rs_mask_rcnn_own_data", 5, 2)])
    output = tmp_path / "new" / "out.json"
    argv = ["--images", "3", "--rounds", "1", "--workers", "0", "--output", str(output)]
    bm_predict.main(argv)
    (row,) = json.loads(output.read_text())["rows"]
    assert (row["detections"], row["batch"]) == (5, 2)
    assert row["end to end / bare"] > 0
    assert "end to end / bare" in capsys.readouterr().out
