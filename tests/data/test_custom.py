"""The user's own json in Detectron2's catalogs."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, shared
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import BoxMode
from PIL import Image

from rs_d2.coco.rle import encode_mask
from rs_d2.data import CustomDataset, register_custom
from rs_d2.utils.errors import UserError


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """A cache of its own, and nothing left in the catalogs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for name in ("own", "own_val", "upstream"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def nuts(part):
    folder = shared("data/nuts")
    return str(folder / f"{part}.json"), str(folder / "images")


@pytest.fixture
def tiny(tmp_path):
    """Write a json with one 64 x 48 image, and that image."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "sub" / "a.png")

    def write(name="train.json", annotation=None, **changes):
        content = {
            "images": [{"id": 1, "file_name": "sub/a.png", "width": 64, "height": 48}],
            "categories": [{"id": 5, "name": "nut"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 5, "bbox": [7, 9, 11, 13]}
                | (annotation or {})
            ],
        }
        (tmp_path / name).write_text(json.dumps({**content, **changes}))
        return str(tmp_path / name), str(tmp_path / "images")

    return write


def test_classes_are_counted_in_the_json():
    dataset = register_custom("own", *nuts("train"))
    assert dataset == CustomDataset(
        name="own",
        format="coco",
        thing_classes=("date", "fig", "hazelnut"),
        category_ids=(1, 2, 3),
        frequencies=None,
        has_masks=True,
        num_images=12,
        num_instances=120,
        left_out="",
    )
    metadata = MetadataCatalog.get("own")
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file == nuts("train")[0]
    assert metadata.thing_classes == ["date", "fig", "hazelnut"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}


def comparable(dicts):
    """Dicts without what only one of two loaders adds."""
    for entry in dicts:
        for annotation in entry["annotations"]:
            annotation.pop("iscrowd", None)
            annotation["bbox"] = [float(number) for number in annotation["bbox"]]
    return dicts


def test_coco_dicts_are_those_of_detectron2():
    folder = shared("data/coco100")
    args = str(folder / "train.json"), str(folder / "images")
    register_custom("own", *args)
    crowds = [a["iscrowd"] for d in DatasetCatalog.get("own") for a in d["annotations"]]
    assert sum(crowds) == 6
    assert comparable(DatasetCatalog.get("own")) == comparable(load_coco_json(*args, "upstream"))


def test_lvis_dicts_are_those_of_detectron2():
    folder = shared("data/coco100")
    json_file = str(folder / "lvis_v1_train.json")
    dataset = register_custom("own", json_file, str(folder / "images"))
    assert (dataset.format, len(dataset.thing_classes)) == ("lvis", 80)
    assert [dataset.frequencies.count(group) for group in "rcf"] == [47, 23, 10]
    upstream = load_lvis_json(json_file, f"{folder / 'images'}/")
    assert comparable(DatasetCatalog.get("own")) == comparable(upstream)


def test_boxes_without_masks_are_loaded_without_masks():
    folder = shared("data/bccd")
    dataset = register_custom("own", str(folder / "train.json"), str(folder / "images"))
    assert not dataset.has_masks
    dicts = get_detection_dataset_dicts(["own"])
    assert len(dicts) == 205
    assert not any("segmentation" in a for d in dicts for a in d["annotations"])


def test_whole_numbers_survive_scaling(tiny):
    """Detectron2 scales coordinates in place, which cuts integers off."""
    polygon = [7, 9, 18, 9, 18, 22, 7, 22]
    register_custom("own", *tiny(annotation={"segmentation": [polygon]}))
    mapper = DatasetMapper(
        True, augmentations=[T.Resize((24, 32))], image_format="RGB", use_instance_mask=True
    )
    instances = mapper(DatasetCatalog.get("own")[0])["instances"]
    np.testing.assert_allclose(instances.gt_boxes.tensor[0], [3.5, 4.5, 9.0, 11.0])
    np.testing.assert_allclose(instances.gt_masks.polygons[0][0], np.array(polygon) / 2)


def test_run_lengths_are_compressed(tiny):
    counts = [48 * 7 + 9, 13, 48 * 64 - 48 * 7 - 22]
    runs = {"size": [48, 64], "counts": counts}
    register_custom("own", *tiny(annotation={"segmentation": runs}))
    mapper = DatasetMapper(
        True, augmentations=[], image_format="RGB", use_instance_mask=True,
        instance_mask_format="bitmask",
    )  # fmt: skip
    masks = mapper(DatasetCatalog.get("own")[0])["instances"].gt_masks.tensor
    assert masks[0].nonzero().tolist() == [[9 + i, 7] for i in range(13)]


def test_images_are_found_by_the_end_of_their_url(tiny):
    for url in ("http://x/sub/a.png", "http://x/elsewhere/sub/a.png"):
        image = {"id": 1, "coco_url": url, "width": 64, "height": 48}
        register_custom("own", *tiny(images=[image]))
        path = DatasetCatalog.get("own")[0]["file_name"]
        assert path.endswith("images/sub/a.png")


def test_missing_images_are_named_and_counted(tiny):
    images = [
        {"id": 1, "file_name": "sub/a.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
        {"id": 3, "file_name": "c.png", "width": 64, "height": 48},
    ]
    json_file, root = tiny(images=images)
    with pytest.raises(UserError) as error:
        register_custom("own", json_file, root)
    assert str(error.value) == f"{json_file}: 2 of 3 image files are missing, first {root}/b.png"
    assert "own" not in DatasetCatalog


def test_a_missing_image_folder_is_named(tiny):
    json_file, root = tiny()
    with pytest.raises(UserError, match=f"its image folder {root}x does not exist"):
        register_custom("own", json_file, root + "x")


def test_an_image_of_another_size_is_named(tiny):
    images = [{"id": 1, "file_name": "sub/a.png", "width": 48, "height": 64}]
    json_file, root = tiny(images=images)
    with pytest.raises(UserError) as error:
        register_custom("own", json_file, root)
    assert str(error.value) == (
        f"{json_file}: image 1: 48 x 64 pixels are stated, but {root}/sub/a.png has 64 x 48"
    )


def test_the_exif_rotation_counts(tiny):
    images = [{"id": 1, "file_name": "b.jpg", "width": 48, "height": 64}]
    json_file, root = tiny(images=images)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (64, 48)).save(Path(root) / "b.jpg", exif=exif)
    register_custom("own", json_file, root)
    mapper = DatasetMapper(False, augmentations=[], image_format="RGB")
    assert mapper(DatasetCatalog.get("own")[0])["image"].shape == (3, 64, 48)


def test_a_file_that_is_no_image_is_named(tiny):
    json_file, root = tiny()
    (Path(root) / "sub" / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"a.png is not an image that can be read"):
        register_custom("own", json_file, root)


def test_dropped_annotations_give_one_warning(tiny, caplog):
    good = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [7, 9, 11, 13]}
    annotations = [good, {**good, "id": 2, "bbox": [7, 9, 0, 13]}]
    with caplog.at_level(logging.WARNING, logger="rs_d2"):
        dataset = register_custom("own", *tiny(annotations=annotations))
        assert len(DatasetCatalog.get("own")[0]["annotations"]) == 1
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("left out boxes without area (1, first: annotation 2)")
    assert dataset.num_instances == 1


def test_a_name_can_be_registered_again(tiny):
    register_custom("own", *nuts("train"))
    register_custom("own", *tiny())
    assert MetadataCatalog.get("own").thing_classes == ["nut"]
    assert len(DatasetCatalog.get("own")) == 1


NO_PARSER = """
import sys
from rs_d2.coco import reading
reading.read_json = None
from detectron2.data import DatasetCatalog
from rs_d2.data import register_custom
from rs_d2.evaluation import RSCOCOEvaluator
register_custom("own", *sys.argv[1:])
print(len(DatasetCatalog.get("own")), len(RSCOCOEvaluator("own").ground_truth.boxes))
"""


def test_other_processes_need_not_parse_what_one_has_checked(tiny):
    """Neither the file, nor the copy that evaluation reads: this one has no areas."""
    arguments = tiny()
    register_custom("own", *arguments)
    assert MetadataCatalog.get("own").json_file != arguments[0]
    command = [sys.executable, "-c", NO_PARSER, *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1"]


def test_dicts_share_nothing_with_the_file(tiny):
    """Whoever changes them must not change what is evaluated on."""
    runs = encode_mask(np.eye(48, 64, dtype=bool))
    image = {"id": 1, "file_name": "sub/a.png", "width": 64, "height": 48}
    image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [5]}
    for mask in (runs, [[7.0, 9.0, 18.0, 9.0, 18.0, 22.0]]):
        register_custom("own", *tiny(annotation={"segmentation": mask}, images=[image]))
        (entry,) = DatasetCatalog.get("own")
        entry["not_exhaustive_category_ids"].clear()
        entry["annotations"][0]["bbox"].clear()
        entry["annotations"][0]["segmentation"].clear()
        (entry,) = DatasetCatalog.get("own")
        assert entry["not_exhaustive_category_ids"] == [5]
        assert entry["annotations"][0]["bbox"] == [7, 9, 11, 13]
        assert entry["annotations"][0]["segmentation"] == mask


def test_validation_takes_the_classes_of_training(tiny):
    two = [{"id": 5, "name": "nut"}, {"id": 2, "name": "fig"}]
    train = register_custom("own", *tiny(categories=two))
    val = register_custom("own_val", *tiny("val.json"), reference=train)
    assert val.thing_classes == ("fig", "nut")
    assert DatasetCatalog.get("own_val")[0]["annotations"][0]["category_id"] == 1
    evaluated = json.loads(Path(MetadataCatalog.get("own_val").json_file).read_text())
    assert sorted(c["id"] for c in evaluated["categories"]) == [2, 5]


def test_validation_with_other_classes_is_refused():
    train = register_custom("own", *nuts("train"))
    bccd = shared("data/bccd")
    with pytest.raises(UserError, match="category 1 'RBC' is 'date' in the training set"):
        register_custom("own_val", str(bccd / "val.json"), str(bccd / "images"), reference=train)


def test_the_test_loader_reads_every_image():
    register_custom("own", *nuts("val"))
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    names = {batch[0]["file_name"] for batch in build_detection_test_loader(cfg, "own")}
    assert len(names) == 6


def test_boxes_are_left_width_height():
    register_custom("own", *nuts("val"))
    annotation = DatasetCatalog.get("own")[0]["annotations"][0]
    assert annotation["bbox"] == [167.31, 17.65, 77.91, 108.12]
    assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
