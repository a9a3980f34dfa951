"""The smallest RS-Mask R-CNN that still learns something, and a way to run ``train_net`` on it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from conftest import REPO
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

import train_net
from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata
from rs_d2.config.load import find_config, load_config

_YAML = """
_BASE_:
  - {configs}/_base_/detector/tiny_r18_fpn.yaml
  - {configs}/_base_/loss/rank_sort.yaml
MODEL:
  FPN:
    OUT_CHANNELS: 32
  ANCHOR_GENERATOR:
    SIZES: [[16], [32], [64]]
  RPN:
    PRE_NMS_TOPK_TRAIN: 100
    PRE_NMS_TOPK_TEST: 100
    POST_NMS_TOPK_TRAIN: 48
    POST_NMS_TOPK_TEST: 48
  ROI_HEADS:
    NUM_CLASSES: 30
    SCORE_THRESH_TEST: 0.05
  ROI_BOX_HEAD:
    FC_DIM: 64
  ROI_MASK_HEAD:
    NUM_CONV: 1
    CONV_DIM: 32
INPUT:
  MIN_SIZE_TRAIN: (112,)
  MIN_SIZE_TEST: 112
  MAX_SIZE_TRAIN: 160
  MAX_SIZE_TEST: 160
DATASETS:
  TRAIN: ("digits_train",)
DATALOADER:
  NUM_WORKERS: 0
SOLVER:
  OPTIMIZER: adamw
  BASE_LR: 0.001
  IMS_PER_BATCH: 4
  MAX_ITER: 30
  STEPS: ()
  WARMUP_ITERS: 0
  CHECKPOINT_PERIOD: 20
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: full_model
    CLIP_VALUE: 10.0
TEST:
  DRAW_IMAGES: 2
SEED: 1
VERSION: 2
"""


def write_config(folder: Path) -> str:
    """Write the tiny model's config file and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(_YAML.format(configs=REPO / "configs"))
    return str(path)


def write_checkpoint(
    folder: Path,
    *opts: str,
    class_names: Sequence[str] = (),
    config: str = "",
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write a model with random weights as training would, and return the file's path.

    ``config`` is a file's name; without one it is the tiny model of this module.
    """
    cfg, _ = load_config(
        find_config(config) or write_config(folder), ["MODEL.DEVICE", "cpu", *opts]
    )
    about = CheckpointMetadata(cfg.dump(), tuple(class_names), metrics or {}, "abc1234")
    torch.manual_seed(0)
    path = folder / "model_final.pth"
    model = build_model(cfg)
    torch.save({"model": model.state_dict(), "iteration": 29, ENTRY: about.to_entry()}, path)
    return str(path)


def own_data(train: Path, val: Path | None = None) -> list[str]:
    """Arguments for two json files beside a folder ``images``."""
    arguments = ["--train-json", str(train), "--train-images", str(train.parent / "images")]
    if val is not None:
        arguments += ["--val-json", str(val), "--val-images", str(val.parent / "images")]
    return arguments


def run(*arguments: str) -> int:
    """Run ``train_net.py`` in this process and take its log handlers down again."""
    try:
        return train_net.main(arguments)
    finally:
        reset_logging()


def reset_logging() -> None:
    """Undo what Detectron2 does to its loggers: handlers that hold pytest's stdout, and levels."""
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "rs_d2"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
