"""Detections as json: numbers, masks, ids, and files that are whole whatever happens."""

import json
from pathlib import Path
from types import SimpleNamespace

import pycocotools.mask as mask_util
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances

from rs_d2.prediction.result_files import (
    Ids,
    ResultFiles,
    as_json,
    default_ids,
    ids_of_ground_truth,
    result_entries,
)
from rs_d2.utils.errors import UserError


def made(with_masks):
    instances = Instances((10, 20))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 5.0, 9.0], [0.0, 0.0, 20.0, 10.0]]))
    instances.scores = torch.tensor([0.75, 0.5])
    instances.pred_classes = torch.tensor([1, 0])
    if with_masks:
        instances.pred_masks = torch.ones(2, 10, 20, dtype=torch.bool)
    return instances


def test_entries_are_those_of_coco():
    first, second = result_entries(made(True), 7, Ids((30, 40)))
    mask = first.pop("segmentation")
    assert first == {"image_id": 7, "category_id": 40, "bbox": [1, 2, 4, 7], "score": 0.75}
    assert mask_util.decode(mask).all()
    assert second["category_id"] == 30
    assert "segmentation" not in result_entries(made(False), 7, Ids((30, 40)))[0]


def test_an_image_without_detections_has_no_entry():
    assert result_entries(made(True)[:0], 7, Ids((30, 40))) == []


def model(class_names, known=True, id_map=None):
    metadata = Metadata(name="made", thing_classes=list(class_names))
    if id_map is not None:
        metadata.thing_dataset_id_to_contiguous_id = id_map
    about = SimpleNamespace(class_names=class_names if known else ())
    return SimpleNamespace(class_names=class_names, metadata=metadata, about=about)


def test_ids_count_from_one_unless_the_data_set_has_its_own():
    assert default_ids(model(("a", "b"))) == Ids((1, 2))
    assert default_ids(model(("a", "b"))).image(0) == 1
    assert default_ids(model(("a", "b"), id_map={9: 0, 3: 1})) == Ids((9, 3))


def truth(**more):
    images = [{"id": 10, "file_name": "x/1.jpg"}, {"id": 20, "file_name": "y/1.jpg"}]
    images.append({"id": 30, "coco_url": "http://images/val2017/3.jpg"})
    categories = [{"id": 5, "name": "b"}, {"id": 4, "name": "a"}, {"id": 6, "name": "c"}]
    return {"images": images, "categories": categories, **more}


def test_ids_of_a_ground_truth_are_found_by_name():
    paths = [Path("/data/y/1.jpg"), Path("/data/3.jpg"), Path("/data/x/1.jpg")]
    ids = ids_of_ground_truth(truth(), "gt.json", model(("a", "b")), paths)
    assert ids == Ids((4, 5), (20, 30, 10))
    assert ids.image(1) == 30


def test_unknown_names_take_the_categories_in_order():
    ids = ids_of_ground_truth(truth(), "gt.json", model(("class 0",) * 3, known=False), [])
    assert ids.categories == (4, 5, 6)


@pytest.mark.parametrize(
    ("content", "names", "path", "problem"),
    [
        (truth(), ("a",), "/data/1.jpg", "1 of 1 images are not in it, first /data/1.jpg"),
        (truth(), ("a", "z"), "/data/3.jpg", "1 of the model's classes are not in it, first 'z'"),
        ([], ("a",), "/data/3.jpg", "expected the images and categories of a COCO json"),
        (truth(images=3), ("a",), "/data/3.jpg", "expected the images and categories"),
    ],
)
def test_what_is_not_in_the_ground_truth_is_named(content, names, path, problem):
    with pytest.raises(UserError, match=rf"^gt.json: {problem}"):
        ids_of_ground_truth(content, "gt.json", model(names), [Path(path)])


def write_and_stop(folder, entries):
    with ResultFiles(folder) as files:
        files.set_categories(Ids((1, 2)), ("a", "b"))
        files.add({"id": 1}, as_json(entries), len(entries))
        files.add({"id": 2}, "", 0)
        files.add({"id": 3}, as_json(entries), len(entries))
        files.add_unreadable("4.jpg", "not an image")
        raise KeyboardInterrupt


def test_files_are_whole_after_an_error_too(tmp_path):
    entries = result_entries(made(False), 1, Ids((1, 2)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.json").write_text("an earlier run's")
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(tmp_path / "out", entries)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == entries * 2
    index = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [image["id"] for image in index["images"]] == [1, 2, 3]
    assert index["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert index["unreadable"] == [{"file_name": "4.jpg", "reason": "not an image"}]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_nothing_found_is_an_empty_list(tmp_path):
    with ResultFiles(tmp_path):
        pass
    assert json.loads((tmp_path / "predictions.json").read_text()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output: .*file/out cannot be made"):
        ResultFiles(tmp_path / "file" / "out").__enter__()
