"""The list of settings in docs/porting.md against the published configs and Detectron2's own."""

import re
from pathlib import Path

import pytest
from conftest import REPO

pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg

from rs_d2 import add_rs_config
from rs_d2.model_zoo import PUBLISHED

# Which detector it is, on which data: no settings that a user could have forgotten.
CHOICE_OF_MODEL = {
    "DATASETS.TEST",
    "DATASETS.TRAIN",
    "MODEL.MASK_ON",
    "MODEL.META_ARCHITECTURE",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.NUM_GROUPS",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "TEST.EVAL_PERIOD",
}
UNREAD = {"MODEL.RETINANET.SMOOTH_L1_LOSS_BETA"}  # of a box loss that ATSS and PAA do not have


def load(path):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(path))
    return cfg


def flat(node, prefix=""):
    """All keys of a config with their values."""
    values = {}
    for name, value in node.items():
        if isinstance(value, CfgNode):
            values.update(flat(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = value
    return values


def text(value):
    """A value as the page writes it."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(text(item) for item in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.fixture(scope="module")
def differing():
    """Key -> the published values and those of Detectron2's base configs, as text."""
    zoo = Path(model_zoo.__file__).parent / "configs"
    ours_and_theirs = {}
    for row in PUBLISHED:
        ours = flat(load(REPO / "configs" / row.config))
        is_dense = ours["MODEL.META_ARCHITECTURE"] != "GeneralizedRCNN"
        base = flat(load(zoo / ("Base-RetinaNet.yaml" if is_dense else "Base-RCNN-FPN.yaml")))
        has_anchors = ours["MODEL.META_ARCHITECTURE"] != "SOLOv2"
        for key in ours:
            if key.startswith("MODEL.ANCHOR_GENERATOR.") and not has_anchors:
                continue
            if text(ours[key]) != text(base[key]) and key not in CHOICE_OF_MODEL | UNREAD:
                values = ours_and_theirs.setdefault(key, (set(), set()))
                values[0].add(text(ours[key]))
                values[1].add(text(base[key]))
    return ours_and_theirs


@pytest.fixture(scope="module")
def listed():
    """Key -> what the page says in backticks of the published values and of Detectron2's."""
    page = (REPO / "docs" / "porting.md").read_text()
    section = page.split("## Settings that Detectron2 needs")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z0-9_.]+)` \| (.*) \| (.*) \|$", section, re.MULTILINE)
    return {
        key: tuple(set(re.findall("`([^`]*)`", cell)) for cell in cells) for key, *cells in rows
    }


def test_every_setting_that_differs_is_listed_and_no_other(differing, listed):
    assert set(listed) == set(differing)


def test_the_listed_values_are_those_of_the_configs(differing, listed):
    for key, (ours, theirs) in differing.items():
        if key != "MODEL.WEIGHTS":  # said in words
            assert ours <= listed[key][0], key
            # What is long or no value at all is said in words.
            assert theirs <= listed[key][1] or not listed[key][1], key
