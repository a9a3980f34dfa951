"""Configs and an event storage for head tests."""

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage

from rs_d2 import add_rs_config
from rs_d2.utils.folders import config_dir


@pytest.fixture(autouse=True)
def event_storage():
    """Detectron2's heads log to a global storage."""
    with EventStorage(0) as storage:
        yield storage


@pytest.fixture
def mask_cfg():
    """The Mask R-CNN config with published settings, on the CPU, with small layers."""
    cfg = get_cfg()
    add_rs_config(cfg)
    leaf = "COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x.yaml"
    cfg.merge_from_file(str(config_dir() / leaf))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    return cfg
