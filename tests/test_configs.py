"""Every yaml loads, every key that we add is read, every closed list is closed."""

import re
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from rs_d2 import add_rs_config
from rs_d2.config import CHOICES
from rs_d2.config.check import check_choices, check_config
from rs_d2.model_zoo import MEASURED, PUBLISHED
from rs_d2.model_zoo.page import model_zoo_page
from rs_d2.utils.errors import UserError

REPO = Path(__file__).resolve().parents[1]
LEAVES = sorted(p for p in (REPO / "configs").rglob("*.yaml") if "_base_" not in p.parts)
BASES = sorted((REPO / "configs").rglob("_base_/**/*.yaml"))


def load(path=None):
    cfg = get_cfg()
    add_rs_config(cfg)
    if path is not None:
        cfg.merge_from_file(str(path))
    return cfg


def keys(node, prefix=""):
    for name, value in node.items():
        is_node = isinstance(value, CfgNode)
        yield from keys(value, f"{prefix}{name}.") if is_node else [prefix + name]


def build_without_memory(cfg):
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def names(paths):
    return [str(p.relative_to(REPO / "configs")) for p in paths]


@pytest.mark.parametrize("path", LEAVES + BASES, ids=names(LEAVES + BASES))
def test_a_config_merges_and_keeps_to_the_closed_lists(path):
    check_choices(load(path))


# Rows of tables are built by test_ablation_configs.
DETECTORS = [path for path in LEAVES if not path.match("ablations/S*/*.yaml")]


@pytest.mark.parametrize("path", DETECTORS, ids=names(DETECTORS))
def test_a_config_builds_its_model(path):
    cfg = load(path)
    model = build_without_memory(cfg)
    assert sum(p.numel() for p in model.parameters()) > 1e6


@pytest.mark.parametrize("row", PUBLISHED, ids=[row.config for row in PUBLISHED])
def test_parameter_counts_are_the_official_ones(row):
    model = build_without_memory(load(REPO / "configs" / row.config))
    affine = re.compile(r"norm\.(weight|bias)$")  # buffers where a norm is frozen
    count = sum(p.numel() for p in model.parameters())
    count += sum(b.numel() for n, b in model.named_buffers() if affine.search(n))
    assert count == row.parameters


def test_the_zoo_lists_every_config_of_the_publication():
    names = {str(path.relative_to(REPO / "configs")) for path in LEAVES}
    assert {name for name in names if Path(name).name.startswith("rs_") and "-" in name} == {
        row.config for row in PUBLISHED
    }
    assert {row.config for row in MEASURED} <= names


def test_the_zoo_page_is_up_to_date():
    assert (REPO / "MODEL_ZOO.md").read_text() == model_zoo_page()


def test_the_flagship_has_the_published_settings():
    cfg = load(REPO / "configs" / "rs_mask_rcnn_lvis.yaml")
    assert cfg.DATASETS.TRAIN == ("lvis_v1_train",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1203
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.60
    assert cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU == 0.5
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
    assert cfg.DATALOADER.REPEAT_ROUNDING == "ceil"
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.012, 16)
    assert cfg.SOLVER.WARMUP_ITERS == 500
    assert cfg.MODEL.RPN.LOSS_WEIGHT == 0.20
    assert list(cfg.MODEL.RPN.BBOX_REG_WEIGHTS) == [10, 10, 5, 5]
    assert list(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS) == [10, 10, 5, 5]
    of_classes = {"NEGATIVES": "all", "NEGATIVES_NUM_CLASSES": 50}
    for head, further in ((cfg.MODEL.RPN, {}), (cfg.MODEL.ROI_BOX_HEAD, of_classes)):
        assert dict(head.CRITERION) == further | {
            "LOSS": "rank_sort",
            "DELTA": None,  # its own: 0.5
            "LABELS": "iou",
            "WEIGHTS": "score",
            "DELTA_LOC": None,
            "BOX_LOSS": "giou",
            "BALANCE": None,  # its own: value
            "BALANCE_PERIOD": 0,
            "GLOBAL": False,
        }


def test_every_key_that_we_add_is_read_somewhere():
    added = set(keys(load())) - set(keys(get_cfg()))
    code = "\n".join(
        p.read_text() for p in (REPO / "rs_d2").rglob("*.py") if p.parent.name != "config"
    )
    assert added
    unread = [key for key in sorted(added) if not re.search(rf"\.{key.split('.')[-1]}\b", code)]
    assert unread == []


@pytest.mark.parametrize("path", LEAVES, ids=names(LEAVES))
def test_a_leaf_is_short_and_repeats_nothing_of_its_bases(path):
    lines = [x for x in path.read_text().splitlines() if x.strip() and not x.startswith("#")]
    is_table_row = path.match("ablations/S*/*.yaml")
    if "quick" not in path.parts and (is_table_row or "ablations" not in path.parts):
        assert len(lines) <= 15
    if is_table_row:  # it says what it is, also where that is its base's choice
        return
    raw = yaml.safe_load(path.read_text())
    bases = raw.pop("_BASE_", [])
    inherited = load()
    for base in [bases] if isinstance(bases, str) else bases:
        inherited.merge_from_file(str(path.parent / base))
    final = load(path)
    assert [k for k in keys(CfgNode(raw)) if _value(inherited, k) == _value(final, k)] == []


def _value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_a_value_outside_a_closed_list_is_named(key):
    cfg = load()
    cfg.merge_from_list([key, "nonsense"])
    with pytest.raises(UserError, match=f"^{re.escape(key)}: 'nonsense' is not one of "):
        check_choices(cfg)


@pytest.mark.parametrize("label", ["dice", "iou_dice"])
@pytest.mark.parametrize("head", ["RPN", "ROI_BOX_HEAD", "DENSE_HEAD"])
def test_labels_from_masks_are_refused_where_a_head_predicts_none(head, label):
    cfg = load()
    key = f"MODEL.{head}.CRITERION.LABELS"
    cfg.merge_from_list([key, label])
    with pytest.raises(UserError, match=f"^{re.escape(key)}: {label} needs masks, which MODEL"):
        check_config(cfg)


@pytest.mark.parametrize("head", ["RPN", "ROI_BOX_HEAD", "DENSE_HEAD"])
@pytest.mark.parametrize("loss", ["cross_entropy", "sigmoid_cross_entropy", "focal"])
def test_weights_by_rank_are_refused_where_nothing_is_ranked(head, loss):
    cfg = load()
    keys = [f"MODEL.{head}.CRITERION.{name}" for name in ("WEIGHTS", "LOSS")]
    cfg.merge_from_list([keys[0], "ranking", keys[1], loss])
    with pytest.raises(UserError) as error:
        check_config(cfg)
    assert str(error.value) == f"{keys[0]}: {keys[1]} {loss} ranks nothing"
    cfg.merge_from_list([keys[1], "ap"])
    check_config(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RPN.LOW_QUALITY_MIN_IOU", 0.0),
        ("MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU", 1.5),
        ("MODEL.RPN.CRITERION.DELTA", -1.0),
        ("MODEL.ROI_BOX_HEAD.CRITERION.DELTA", float("nan")),
        ("MODEL.RPN.CRITERION.DELTA_LOC", -0.1),
        ("MODEL.ROI_MASK_HEAD.MAX_POSITIVES", 0),
        ("MODEL.DENSE_HEAD.ASSIGN_TOPK", 0),
        ("MODEL.RETINANET.PRIOR_PROB", 0.0),
        ("MODEL.DENSE_HEAD.CANDIDATE_MIN_IOU", 0.0),
        ("MODEL.SOLO.CENTER_SIZE", 0.0),
        ("MODEL.DENSE_HEAD.CRITERION.DELTA", -0.5),
        ("MODEL.DENSE_HEAD.CRITERION.NEGATIVES_NUM_CLASSES", 0),
    ],
)
def test_a_number_out_of_range_is_named(key, value):
    cfg = load()
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=f"^{re.escape(key)}: "):
        check_choices(cfg)
