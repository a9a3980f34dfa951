"""What LVIS's lists say about an image, from its dict to the instances that a model gets."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode, Instances
from PIL import Image

from rs_d2 import add_rs_config
from rs_d2.data import federated
from rs_d2.data.mapper import ImageMapper
from rs_d2.utils.errors import UserError

KEY = "MODEL.ROI_BOX_HEAD.CRITERION.NEGATIVES"
SET, CATEGORY_IDS = "tests_federated", (4, 9, 10, 30, 31, 40)
CLASS_OF = {identity: index for index, identity in enumerate(CATEGORY_IDS)}


@pytest.fixture
def catalog():
    """A data set in Detectron2's catalog, of the metadata alone."""
    MetadataCatalog.get(SET).set(thing_dataset_id_to_contiguous_id=CLASS_OF)
    yield MetadataCatalog
    for name in [name for name in MetadataCatalog if name.startswith(SET)]:
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(catalog):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_list([KEY, "verified", "DATASETS.TRAIN", (SET,)])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48,), 96
    return cfg


def entry(path="image.png", classes=(), absent=(), partial=(), crowds=()):
    """A dict of a data set: contiguous classes in annotations, category ids in the lists."""
    box = {"bbox": [5.0, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS}
    notes = [{**box, "category_id": c, "iscrowd": int(c in crowds)} for c in classes]
    lists = {"neg_category_ids": [*absent], "not_exhaustive_category_ids": [*partial]}
    return {"file_name": str(path), "width": 64, "height": 48, "annotations": notes, **lists}


def test_verified_is_what_a_loop_over_the_classes_finds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        classes, crowds = rng.integers(6, size=3).tolist(), {int(rng.integers(6))}
        absent, partial = (rng.choice(CATEGORY_IDS, 2).tolist() for _ in range(2))
        lists = entry(classes=classes, absent=[*absent, 777], partial=partial, crowds=crowds)
        expected = []
        for c, identity in enumerate(CATEGORY_IDS):
            is_looked_for = c in classes or identity in absent
            may_have_more = identity in partial or (c in crowds and c in classes)
            if is_looked_for and not may_have_more:
                expected.append(c)
        found = federated.verified_classes(lists, CLASS_OF)
        assert (found.dtype, found.tolist()) == (torch.int64, expected)


def test_ids_of_lvis_count_from_one_and_two_sets_must_agree(catalog):
    catalog.get(f"{SET}_lvis").set(thing_classes=["a", "b"])
    assert federated.class_of_category([f"{SET}_lvis"]) == {1: 0, 2: 1}
    assert federated.class_of_category([SET, SET]) == CLASS_OF
    with pytest.raises(UserError, match=f"^DATASETS.TRAIN: {SET} and {SET}_lvis number their cat"):
        federated.class_of_category([SET, f"{SET}_lvis"])


def test_a_set_without_the_lists_is_named_in_one_line_with_the_key(cfg):
    good = entry(absent=[4])
    federated.check_lists(cfg, [good, entry()])
    plain = {"file_name": "plain.png", "annotations": []}
    line = f"{KEY}: verified needs neg_category_ids, which plain.png of DATASETS.TRAIN {SET} lacks"
    with pytest.raises(UserError) as error:
        federated.check_lists(cfg, [good, plain])
    assert str(error.value) == line
    with pytest.raises(UserError, match=f"of which DATASETS.TRAIN {SET} has none in any image$"):
        federated.check_lists(cfg, [entry(), entry()])
    cfg.merge_from_list([KEY, "sampled"])
    federated.check_lists(cfg, [plain])


def test_images_are_counted_once_for_each_class_and_without_crowds():
    dicts = [entry(classes=[1, 1, 3]), entry(classes=[3, 0], crowds=[0]), entry(), {"width": 5}]
    assert federated.image_counts(dicts, 5).tolist() == [0, 1, 0, 2, 0]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 48), "grey").save(path)
    return path


@pytest.mark.parametrize("flip", ["horizontal", "none"])
@pytest.mark.parametrize("classes", [[0, 3, 3], []])
def test_the_lists_survive_the_mapper_and_all_that_is_done_to_instances(cfg, path, classes, flip):
    cfg.INPUT.RANDOM_FLIP = flip
    cfg.INPUT.CROP.ENABLED = True  # objects that it cuts off leave the instances, not the lists
    lists = entry(path, classes, absent=[10, 31], partial=[31])
    before = copy.deepcopy(lists)
    instances = ImageMapper(cfg, is_train=True)(lists)["instances"]
    assert lists == before
    expected = sorted({*classes, 2})
    for each in (
        instances.to("cpu"),
        pickle.loads(pickle.dumps(instances)),  # as from a worker of the loader
        copy.deepcopy(instances),
        instances[torch.zeros(len(instances), dtype=torch.bool)],
        instances[torch.arange(len(instances))],
        instances[:1],
        Instances.cat([instances, instances[:0], instances]),
    ):
        assert each.gt_verified.classes.tolist() == expected
        assert len(each.gt_verified) == len(each) == len(each.gt_boxes)


def test_no_mapper_adds_what_nobody_asks_for(cfg, path):
    lists = entry(path, [1], absent=[10])
    assert ImageMapper(cfg, is_train=True)(lists)["instances"].has("gt_verified")
    without = {key: value for key, value in lists.items() if key != "neg_category_ids"}
    assert not ImageMapper(cfg, is_train=True)(without)["instances"].has("gt_verified")
    for choice in ("all", "sampled"):
        cfg.merge_from_list([KEY, choice])
        assert not ImageMapper(cfg, is_train=True)(lists)["instances"].has("gt_verified")
