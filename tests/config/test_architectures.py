"""What is known of each architecture, and what of one that nobody declared."""

from dataclasses import replace

import pytest

pytest.importorskip("detectron2")

from conftest import REPO
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from rs_d2 import add_rs_config
from rs_d2.config import (
    architecture_of,
    architecture_of_model,
    architectures,
    lookup,
    num_classes_key,
    register_architecture,
    score_thresh_key,
)
from rs_d2.config.architectures import DENSE, R_CNN, UNDECLARED
from rs_d2.config.check import check_config
from rs_d2.config.load import load_config
from rs_d2.utils.errors import UserError

ZOO = sorted((REPO / "configs").glob("[!_]*/*.yaml"))


def config(name="GeneralizedRCNN"):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = name
    return cfg


@pytest.fixture
def records(monkeypatch):
    """The records, put back after the test."""
    monkeypatch.setattr(architectures, "_ARCHITECTURES", dict(architectures._ARCHITECTURES))


@pytest.fixture
def new_class():
    """Registers a class as an architecture, for the test alone."""
    added = []

    def register(name, base):
        META_ARCH_REGISTRY._do_register(name, type(name, (base,), {}))
        added.append(name)

    yield register
    for name in added:
        META_ARCH_REGISTRY._obj_map.pop(name)


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_every_shipped_config_is_declared_and_its_keys_are_there(path):
    cfg, _ = load_config(str(path), [])
    architecture = architecture_of(cfg)
    assert architecture is not UNDECLARED
    assert lookup(cfg, num_classes_key(cfg)) > 0
    assert 0 <= lookup(cfg, score_thresh_key(cfg)) < 1
    assert architecture.tasks(cfg) == (("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",))


@pytest.mark.parametrize(
    ("config_file", "title"),
    [
        ("COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x.yaml", "RS-Mask R-CNN"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "Mask R-CNN"),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "Faster R-CNN"),
        ("COCO-Detection/rs_atss_R_50_FPN_1x.yaml", "RS-ATSS"),
        ("COCO-Detection/paa_R_50_FPN_1x.yaml", "PAA"),
        ("COCO-InstanceSegmentation/rs_yolact_R_50_FPN_55e.yaml", "RS-YOLACT"),
        ("COCO-InstanceSegmentation/yolact_R_50_FPN_55e.yaml", "YOLACT"),
    ],
)
def test_titles_of_pictures(config_file, title):
    cfg, _ = load_config(str(REPO / "configs" / config_file), [])
    assert architecture_of(cfg).title(cfg) == title


def test_our_heads_with_cross_entropy_have_no_ranking_in_their_title():
    cfg, _ = load_config(str(REPO / "configs" / "quick" / "rs_mask_rcnn_digits.yaml"), [])
    cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS = "cross_entropy"
    assert architecture_of(cfg).title(cfg) == "Mask R-CNN"


def stages_of(cfg):
    return {
        stage.name: (stage.num_tasks(cfg), stage.sampler and stage.sampler(cfg))
        for stage in architecture_of(cfg).stages
    }


def test_detectron2s_own_heads_end_in_a_softmax_and_sample_whatever_our_keys_say():
    cfg, _ = load_config(str(REPO / "configs/COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"), [])
    assert cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS == "rank_sort"  # read by nothing
    assert stages_of(cfg) == {"rpn": (1, "random"), "rcnn": (1, "random")}


def test_our_heads_are_counted_by_their_criterion_and_samplers():
    cfg, _ = load_config(str(REPO / "configs/COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x.yaml"), [])
    assert stages_of(cfg) == {"rpn": (1, "none"), "rcnn": (80, "none")}
    cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS, cfg.MODEL.RPN.SAMPLER = "cross_entropy", "random"
    assert stages_of(cfg) == {"rpn": (1, "random"), "rcnn": (1, "none")}


def test_a_dense_detector_has_one_stage():
    cfg, _ = load_config(str(REPO / "configs/quick/rs_paa_digits.yaml"), [])
    assert stages_of(cfg) == {"dense": (30, None)}


def test_a_dense_detector_that_nobody_declared_is_taken_for_retinanet(new_class):
    new_class("OwnDense", DenseDetector)
    for name in ("OwnDense", "RetinaNet"):
        assert architecture_of(config(name)) is DENSE
        assert num_classes_key(config(name)) == "MODEL.RETINANET.NUM_CLASSES"
        assert architecture_of(config(name)).title(config(name)) == name


@pytest.mark.parametrize("name", ["SemanticSegmentor", "NobodyRegisteredThis"])
def test_what_nobody_declared_is_taken_for_detectron2s_r_cnn(name):
    architecture = architecture_of(config(name))
    assert architecture is UNDECLARED
    assert architecture.num_classes_key == R_CNN.num_classes_key
    assert not architecture.checks_classes


def test_a_subclass_has_the_record_of_what_it_is_built_on():
    assert architecture_of(config("PanopticFPN")) is R_CNN
    assert not architecture_of(config("ProposalNetwork")).tasks(config("ProposalNetwork"))


def test_a_model_has_the_record_of_its_config():
    cfg, _ = load_config(str(REPO / "configs/quick/rs_atss_digits.yaml"), ["MODEL.DEVICE", "cpu"])
    assert architecture_of_model(build_model(cfg)) is architecture_of(cfg)


@pytest.mark.usefixtures("records")
def test_a_users_detector_declares_its_own_keys_and_masks(new_class):
    new_class("OwnMasks", DenseDetector)
    own = replace(DENSE, num_classes_key="MODEL.FPN.OUT_CHANNELS", has_masks=True, has_boxes=False)
    register_architecture("OwnMasks", own)
    cfg = config("OwnMasks")
    assert num_classes_key(cfg) == "MODEL.FPN.OUT_CHANNELS"
    with pytest.raises(UserError, match=r"^MODEL.MASK_ON: OwnMasks predicts nothing but masks$"):
        check_config(cfg)
    cfg.MODEL.MASK_ON = True
    check_config(cfg)
    assert architecture_of(cfg).tasks(cfg) == ("segm",)
    assert architecture_of(config("RetinaNet")) is DENSE
