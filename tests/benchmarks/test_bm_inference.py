"""The benchmark of the search runs, and its inputs are what it says they are."""

import json
import sys

import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

sys.path.insert(0, str(REPO / "benchmarks"))
import bm_inference


def shares(kind, thresholds):
    scores = bm_inference.make_scores(300, kind, torch.Generator().manual_seed(0))
    return [float((scores > threshold).float().mean()) for threshold in thresholds]


def test_the_scores_are_as_high_and_low_as_stated():
    assert shares("rs", (0.1, 0.4, 0.6)) == pytest.approx([0.95, 0.24, 0.04], abs=0.005)
    assert shares("ce", (1e-4, 1e-3)) == pytest.approx([0.57, 0.04], abs=0.005)


@pytest.mark.parametrize("kind", ["agnostic", "specific"])
def test_boxes_are_ordered_corners(kind):
    boxes = bm_inference.make_boxes(5, kind, torch.Generator().manual_seed(0))
    assert boxes.shape == (1000, 4 if kind == "agnostic" else 20)
    corners = boxes.view(-1, 4)
    assert (corners[:, :2] < corners[:, 2:]).all()


def test_a_small_run_writes_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bm_inference, "MODELS", [None, None, (3, 10, "agnostic")])
    monkeypatch.setattr(bm_inference, "THRESHOLDS", (0.1, 0.8))
    monkeypatch.setattr(bm_inference, "FEW_CLASSES", [])
    small = {"YOLACT": ("quick/rs_yolact_digits.yaml", 64)}
    monkeypatch.setattr(bm_inference, "MASK_MODELS", small)
    monkeypatch.setattr(bm_inference.common.gc, "collect", lambda: None)  # most of the time
    bm_inference.main(["--quick", "--output", str(tmp_path / "new" / "out.json")])
    content = json.loads((tmp_path / "new" / "out.json").read_text())
    assert [(row["scores"], row["threshold"]) for row in content["rows"]] == [
        *(("rs", 0.1), ("rs", 0.8)),
        *(("ce", 0.1), ("ce", 0.8)),
    ]
    assert all(row["ours ms"] > 0 for row in content["rows"] + content["worst"])
    assert content["worst"][0]["ours / typical"] == 1
    assert [row["model"] for row in content["masks"]] == ["YOLACT"]
    assert content["masks"][0]["100 / 10"] > 0
    assert "plain / ours" in capsys.readouterr().out
