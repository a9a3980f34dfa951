"""Which evaluator a data set gets, and that users' files can be evaluated."""

import gzip
import json

import pytest
import torch
from conftest import shared
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util

from rs_d2 import add_rs_config
from rs_d2.data import register_custom
from rs_d2.evaluation import RSCOCOEvaluator, RSLVISEvaluator, build_evaluator
from rs_d2.utils.errors import UserError

NAME = "built_evaluation"

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def config(mask_on):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.MODEL.MASK_ON = mask_on
    return cfg


def nothing():
    """The output of a model that finds nothing."""
    instances = Instances((8, 8), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    return {"instances": instances}


def evaluate_ground_truth(tmp_path, mask_on=True):
    """Scores of a model that finds exactly the ground truth."""
    evaluator = build_evaluator(config(mask_on), NAME, str(tmp_path / "out"))
    evaluator.reset()
    for image in DatasetCatalog.get(NAME):
        objects = [a for a in image["annotations"] if not a["iscrowd"]]
        size = image["height"], image["width"]
        instances = Instances(size)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.ones(len(objects))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects]).long()
        if mask_on:
            masks = [
                mask_util.decode(mask_util.merge(mask_util.frPyObjects(a["segmentation"], *size)))
                for a in objects
            ]
            masks = [torch.from_numpy(mask).bool() for mask in masks]
            instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *size)
        evaluator.process([{"image_id": image["image_id"]}], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("json_file", "images", "kind"),
    [
        ("nuts/val.json", "nuts/images", RSCOCOEvaluator),
        ("coco100/val.json", "coco100/images", RSCOCOEvaluator),
        ("coco100/lvis_v1_val.json", "coco100/images", RSLVISEvaluator),
    ],
)
def test_the_ground_truth_scores_100(tmp_path, json_file, images, kind):
    register_custom(NAME, str(shared("data") / json_file), str(shared("data") / images))
    assert type(build_evaluator(config(True), NAME, str(tmp_path))) is kind
    scores = evaluate_ground_truth(tmp_path)
    assert scores["bbox"]["AP"] == pytest.approx(100)
    assert scores["segm"]["AP"] == pytest.approx(100)


def test_ground_truth_without_masks_is_evaluated_by_boxes_only(tmp_path):
    bccd = shared("data/bccd")
    register_custom(NAME, str(bccd / "val.json"), str(bccd / "images"))
    scores = evaluate_ground_truth(tmp_path, mask_on=False)
    assert list(scores) == ["bbox"]
    assert scores["bbox"]["AP"] == pytest.approx(100)
    assert build_evaluator(config(True), NAME, str(tmp_path)).tasks == ("bbox",)


@pytest.mark.parametrize("name", ["val.json", "val.json.gz"])
def test_a_bare_coco_file_can_be_evaluated(tmp_path, name):
    """No info, area, iscrowd; ids from 0, of which COCO's evaluator makes a missed object."""
    content = json.loads((shared("data/nuts") / "val.json").read_text())
    for index, annotation in enumerate(content["annotations"]):
        annotation["id"] = index
        del annotation["area"], annotation["iscrowd"]
    content = {key: content[key] for key in ("images", "annotations", "categories")}
    data = json.dumps(content).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    register_custom(NAME, str(path), str(shared("data/nuts") / "images"))
    scores = evaluate_ground_truth(tmp_path)
    assert scores["bbox"]["AP"] == pytest.approx(100)
    assert scores["segm"]["AP"] == pytest.approx(100)


def test_a_validation_set_with_fewer_classes_is_evaluated(tmp_path):
    nuts = shared("data/nuts")
    content = json.loads((nuts / "val.json").read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] != "fig"]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 2]
    (tmp_path / "val.json").write_text(json.dumps(content))
    train = register_custom(NAME, str(nuts / "train.json"), str(nuts / "images"))
    register_custom(NAME, str(tmp_path / "val.json"), str(nuts / "images"), reference=train)
    scores = evaluate_ground_truth(tmp_path)
    assert scores["bbox"]["AP"] == scores["bbox"]["AP-hazelnut"] == pytest.approx(100)


def test_crowds_in_an_lvis_file_are_no_missed_objects(tmp_path):
    coco100 = shared("data/coco100")
    content = json.loads((coco100 / "val.json").read_text())
    for category in content["categories"]:
        category["frequency"] = "f"
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_custom(NAME, str(tmp_path / "val.json"), str(coco100 / "images"))
    scores = evaluate_ground_truth(tmp_path)
    assert scores["bbox"]["AP"] == pytest.approx(100)


def test_a_set_that_its_loader_makes_is_made(tmp_path):
    nuts = shared("data/nuts")
    made = tmp_path / "val.json"
    DatasetCatalog.register(NAME, lambda: made.write_bytes((nuts / "val.json").read_bytes()))
    MetadataCatalog.get(NAME).set(json_file=str(made), evaluator_type="coco")
    build_evaluator(config(False), NAME, str(tmp_path))
    assert made.is_file()


@pytest.mark.parametrize("kind", [None, "sem_seg"])
def test_an_unknown_evaluator_type_is_refused(tmp_path, kind):
    if kind:
        MetadataCatalog.get(NAME).evaluator_type = kind
    with pytest.raises(UserError, match=f"evaluator_type {kind} is not one of coco, lvis"):
        build_evaluator(config(False), NAME, str(tmp_path))


def test_the_config_reaches_the_evaluator(tmp_path):
    nuts = shared("data/nuts")
    register_custom(NAME, str(nuts / "val.json"), str(nuts / "images"))
    cfg = config(False)
    cfg.TEST.EVALUATOR_ENGINE, cfg.TEST.FIXED_AP = "reference", True
    cfg.DATASETS.TEST = (NAME, "another")
    written = []
    evaluator = build_evaluator(cfg, NAME, str(tmp_path), lambda *given: written.append(given))
    evaluator.process([{"image_id": DatasetCatalog.get(NAME)[0]["image_id"]}], [nothing()])
    assert "AP_fixed" in evaluator.evaluate()["bbox"]
    ((folder, evaluations),) = written
    assert folder == tmp_path / NAME  # sets do not overwrite each other
    assert evaluations["bbox"].engine == "reference"


def test_a_model_that_only_proposes_gets_the_stock_evaluator(tmp_path):
    nuts = shared("data/nuts")
    register_custom(NAME, str(nuts / "val.json"), str(nuts / "images"))
    cfg = config(False)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    assert type(build_evaluator(cfg, NAME, str(tmp_path))) is COCOEvaluator
