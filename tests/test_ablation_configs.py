"""Every row of the publication's tables takes a training step; its own lines, a tiny backbone."""

from functools import cache

import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

import helpers.tiny_pyramid  # noqa: F401  registers it
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_zoo import example

from rs_d2.analysis.ablation import TABLES
from rs_d2.analysis.ablation.variants import model_lines
from rs_d2.config import lookup, score_thresh_key
from rs_d2.config.check import check_config
from rs_d2.config.load import load_config

FOLDER = REPO / "configs" / "ablations"
LEAVES = sorted(FOLDER.glob("S*/*.yaml"))
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "TinyPyramid", "MODEL.RETINANET.NORM", ""),
    *("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.RETINANET.NUM_CLASSES", 5),
    *("TEST.DETECTIONS_PER_IMAGE", 5),
]


def test_every_row_has_a_file_and_every_file_a_row():
    rows = {f"{table.name}/{row.name}.yaml" for table in TABLES.values() for row in table.rows}
    assert {str(leaf.relative_to(FOLDER)) for leaf in LEAVES} == rows


@cache
def small_base(table):
    cfg, _ = load_config(str(FOLDER / f"{TABLES[table].base}_digits.yaml"), [])
    return cfg


@pytest.mark.parametrize("path", LEAVES, ids=[f"{p.parent.name}-{p.stem}" for p in LEAVES])
def test_a_row_takes_a_training_step_that_reaches_every_parameter(path):
    cfg, _ = load_config(str(path), [])
    check_config(cfg)
    # Laid over the table's small base, the row's own lines say the same.
    pairs = model_lines(str(path))
    laid = small_base(path.parent.name).clone()
    laid.merge_from_list(list(pairs))
    assert all(lookup(laid, key) == lookup(cfg, key) for key in pairs[::2])
    cfg.merge_from_list(SMALL)
    cfg.merge_from_list([score_thresh_key(cfg), 0.0])
    model = build_model(cfg)
    with EventStorage():
        losses = model([example(5)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    lost = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # of levels that the detector does not read, or where no region of this image falls
    assert [name for name in lost if not name.startswith("backbone.")] == []
    with torch.no_grad():
        (output,) = model.eval()([example(5)])
    assert 0 < len(output["instances"]) <= 5
