import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import REPO, shared
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from rs_d2 import add_rs_config
from rs_d2.config import architectures
from rs_d2.config.architectures import DENSE
from rs_d2.config.check import check_config
from rs_d2.config.load import find_config, load_config
from rs_d2.engine import OwnData, prepare
from rs_d2.engine.own_data import OWN_TRAIN, OWN_VAL, count_epochs, use_own_data
from rs_d2.engine.setup import resolve_device
from rs_d2.utils.errors import UserError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rs_config(cfg)
    return cfg


def nuts(split):
    return str(shared(f"data/nuts/{split}.json"))


def images(name="nuts"):
    return str(shared(f"data/{name}/images"))


def test_a_config_is_found_here_first_then_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(REPO / "configs" / "rs_mask_rcnn_lvis.yaml")
    assert find_config("rs_mask_rcnn_lvis.yaml") == packaged
    assert find_config("configs/rs_mask_rcnn_lvis.yaml") == packaged
    assert find_config("rs_mask_rcnn_lvis") == packaged
    (tmp_path / "rs_mask_rcnn_lvis.yaml").write_text("VERSION: 2")
    assert find_config("rs_mask_rcnn_lvis.yaml") == "rs_mask_rcnn_lvis.yaml"


def test_named_keys_are_those_of_the_file_its_bases_and_the_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER:\n  MAX_ITER: 7\nVERSION: 2")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nMODEL:\n  MASK_ON: True")
    cfg, named = load_config(str(tmp_path / "leaf.yaml"), ["SOLVER.BASE_LR", "0.5"])
    assert {"SOLVER.MAX_ITER", "MODEL.MASK_ON", "SOLVER.BASE_LR"} <= named
    assert "MODEL.DEVICE" not in named
    assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.MASK_ON, cfg.SOLVER.BASE_LR) == (7, True, 0.5)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_default_falls_back_to_the_cpu_with_a_line(cfg):
    notes = resolve_device(cfg, explicit=False, num_processes=1)
    assert notes == ["no GPU found: running on the CPU"]
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.usefixtures("no_gpu")
def test_several_processes_on_the_cpu_are_announced(cfg):
    (line,) = resolve_device(cfg, explicit=False, num_processes=3)
    assert "3 processes" in line
    assert "gloo" in line


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_was_asked_for_must_be_there(cfg):
    with pytest.raises(UserError, match=r"MODEL.DEVICE: 'cuda' was asked for"):
        resolve_device(cfg, explicit=True, num_processes=1)


@pytest.mark.usefixtures("no_gpu")
def test_mixed_precision_is_off_on_the_cpu(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    (line,) = resolve_device(cfg, explicit=False, num_processes=1)
    assert not cfg.SOLVER.AMP.ENABLED
    assert "SOLVER.AMP.ENABLED needs a GPU" in line


@pytest.mark.usefixtures("a_gpu")
def test_a_gpu_is_used_without_a_word(cfg):
    assert resolve_device(cfg, explicit=False, num_processes=8) == []
    assert cfg.MODEL.DEVICE == "cuda"


@pytest.mark.usefixtures("a_gpu")
def test_several_cpu_processes_beside_a_gpu_are_refused(cfg):
    cfg.MODEL.DEVICE = "cpu"
    assert resolve_device(cfg, explicit=True, num_processes=1) == []
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        resolve_device(cfg, explicit=True, num_processes=2)


def test_without_own_data_nothing_changes(cfg):
    before = cfg.clone()
    assert use_own_data(cfg, OwnData(), ()) == []
    assert cfg == before


def test_the_schedule_is_told_in_epochs_of_own_data(cfg):
    assert count_epochs(cfg) == []
    use_own_data(cfg, OwnData(train_json=nuts("train"), train_images=images()), ())
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 90, 4
    assert count_epochs(cfg) == [
        "SOLVER.MAX_ITER: 90 iterations of 4 images are 30.0 epochs of own_train"
    ]


def test_classes_and_data_sets_come_from_the_json(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 50.0, 1.0]]
    given = OwnData(
        train_json=nuts("train"), train_images=images(), val_json=nuts("val"), val_images=images()
    )
    notes = use_own_data(cfg, given, ())
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((OWN_TRAIN,), (OWN_VAL,))
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES) == (3, 80)
    assert cfg.TEST.EXPECTED_RESULTS == []
    assert notes[0] == "own_train: 12 images, 120 objects, 3 classes (COCO form)"
    assert len(DatasetCatalog.get(OWN_TRAIN)) == 12
    assert MetadataCatalog.get(OWN_VAL).thing_classes == ["date", "fig", "hazelnut"]


def test_training_without_validation_data_is_announced(cfg):
    cfg.DATASETS.TEST = ("coco_2017_val",)
    notes = use_own_data(cfg, OwnData(train_json=nuts("train"), train_images=images()), ())
    assert cfg.DATASETS.TEST == ()
    assert "--val-json is not given: training without evaluation" in notes


def test_images_lie_beside_the_json_unless_a_folder_is_given(cfg, tmp_path):
    content = json.loads(shared("data/nuts/train.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(images())
    use_own_data(cfg, OwnData(train_json=str(tmp_path / "train.json")), ())
    assert len(DatasetCatalog.get(OWN_TRAIN)) == 12


def test_masks_are_off_for_objects_without_masks(cfg):
    cfg.MODEL.MASK_ON = True
    cells = str(shared("data/bccd/train.json"))
    notes = use_own_data(cfg, OwnData(train_json=cells, train_images=images("bccd")), ())
    assert not cfg.MODEL.MASK_ON
    assert "own_train has objects without masks: MODEL.MASK_ON is off" in notes


def test_masks_are_trained_but_not_evaluated_where_only_the_training_set_has_them(cfg, tmp_path):
    content = json.loads(shared("data/nuts/val.json").read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation")
    (tmp_path / "val.json").write_text(json.dumps(content))
    cfg.MODEL.MASK_ON = True
    given = OwnData(
        train_json=nuts("train"),
        train_images=images(),
        val_json=str(tmp_path / "val.json"),
        val_images=images(),
    )
    notes = use_own_data(cfg, given, ())
    assert cfg.MODEL.MASK_ON
    assert "own_val has objects without masks: only boxes are evaluated" in notes


def test_the_class_count_goes_to_the_key_that_the_detector_reads(cfg):
    cfg.MODEL.META_ARCHITECTURE = "ATSS"
    use_own_data(cfg, OwnData(nuts("train"), images()), ())
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES) == (80, 3)


def test_of_an_architecture_that_nobody_declared_the_key_is_told(cfg):
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    notes = use_own_data(cfg, OwnData(nuts("train"), images()), ())
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    (note,) = [note for note in notes if "register_architecture" in note]
    assert "MODEL.ROI_HEADS.NUM_CLASSES is set to 3; if SemanticSegmentor reads another" in note


def test_objects_without_masks_do_not_train_a_detector_of_nothing_but_masks(cfg, monkeypatch):
    only_masks = replace(DENSE, has_boxes=False, has_masks=True)
    monkeypatch.setitem(architectures._ARCHITECTURES, "ATSS", only_masks)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "ATSS", True
    cells = str(shared("data/bccd/train.json"))
    with pytest.raises(UserError, match="own_train has objects without masks, but ATSS learns"):
        use_own_data(cfg, OwnData(cells, images("bccd")), ())


def test_a_run_is_prepared_from_python(tmp_path):
    overrides = {
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 2,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    data = OwnData(nuts("train"), images(), nuts("val"), images())
    cfg, notes = prepare("quick/rs_mask_rcnn_own_data", overrides, data)
    assert cfg.is_frozen()
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.IMS_PER_BATCH) == ((64,), 2)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert any("epochs of own_train" in note for note in notes)
    assert (tmp_path / "out").is_dir()
    pairs = [word for key, value in overrides.items() for word in (key, str(value))]
    assert prepare("quick/rs_mask_rcnn_own_data", pairs, data) == (cfg, notes)


@pytest.mark.parametrize(
    ("overrides", "data", "message"),
    [
        (["SOLVER.MAX_ITER"], {}, "KEY VALUE pairs: 'SOLVER.MAX_ITER' has no partner"),
        ({"SOLVER.MAX_ITTER": 1}, {}, "SOLVER.MAX_ITTER is not a config key"),
        ({}, {"train_images": "images"}, "--train-images needs --train-json"),
        ({}, {"val_json": "val.json"}, "--val-json needs --train-json"),
        ({"MODEL.ROI_HEADS.NUM_CLASSES": 7}, None, "MODEL.ROI_HEADS.NUM_CLASSES: 7, but own_train"),
    ],
)
def test_a_mistake_in_python_is_the_same_one_line(overrides, data, message):
    own = OwnData(nuts("train"), images()) if data is None else OwnData(**data)
    with pytest.raises(UserError, match=re.escape(message)):
        prepare("quick/rs_mask_rcnn_own_data", overrides, own)


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        (["SOLVER.MAX_ITER", "None"], "SOLVER.MAX_ITER: None is not of the type of its default"),
        (["MODEL.ROI_HEADS.NAME", "None"], "MODEL.ROI_HEADS.NAME: None is not of the type"),
        (["MODEL.BACKBONE.NAME", "None", "MODEL.BACKBONE.NAME", "0"], "BACKBONE.NAME: 0 is not of"),
        (["MODEL", "None"], "MODEL: None is no mapping, but this key holds others"),
        (["MODEL", "x" * 9999], r"MODEL: x{80}\.\.\. is no mapping"),
    ],
)
def test_none_is_no_way_around_the_type_of_a_key(pairs, problem):
    with pytest.raises(UserError, match=problem):
        check_config(load_config("", pairs)[0])
