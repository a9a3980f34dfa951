"""What evaluators read and users' files lack is filled in."""

import json
import math

import pytest
from conftest import shared
from helpers.annotation_files import annotation, coco, lvis

from rs_d2.coco import reading
from rs_d2.coco.fill_missing import completed, evaluation_json, object_area
from rs_d2.coco.reading import check_same_categories, read_annotations


@pytest.mark.parametrize(
    "name", ["coco100/val.json", "coco100/lvis_v1_val.json", "evaluator_lvis/lvis_val_50.json"]
)
def test_a_complete_file_is_evaluated_as_it_is(name):
    file = read_annotations(shared("data") / name)
    assert evaluation_json(file, file.categories) == file.path


def test_a_part_of_the_training_categories_is_completed(save):
    content = coco(categories=[{"id": 9, "name": "fig"}], annotations=[annotation(1)])
    file = read_annotations(save(content, "val.json"))
    train = [{"id": 4, "name": "date"}, {"id": 9, "name": "fig"}]
    check_same_categories(file, (4, 9), ("date", "fig"))
    ids = [category["id"] for category in completed(file, train)["categories"]]
    assert sorted(ids) == [4, 9]


def test_what_evaluation_reads_is_filled_in(save):
    run_lengths = {"size": [48, 64], "counts": [100, 30, 48 * 64 - 130]}
    content = coco(
        annotations=[
            {k: v for k, v in annotation(0).items() if k not in ("area", "iscrowd")},
            annotation(5, area=math.nan, segmentation=run_lengths),
        ]
    )
    del content["info"]
    file = read_annotations(save(content))
    path = evaluation_json(file, file.categories)
    assert path != file.path
    written = json.loads(path.read_text())
    assert [a["id"] for a in written["annotations"]] == [1, 2]
    assert [a["iscrowd"] for a in written["annotations"]] == [0, 0]
    assert [a["area"] for a in written["annotations"]] == [400.0, 30.0]
    assert evaluation_json(file, file.categories) == path


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:50], lambda data: b"x"])
def test_a_copy_that_is_damaged_is_made_anew(save, damage):
    file = read_annotations(save(coco(), "train.json.gz"))
    path = evaluation_json(file, file.categories)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    reading._in_memory.clear()
    assert evaluation_json(file, file.categories) == path
    assert path.read_bytes() == whole
    assert read_annotations(path).content == coco()


@pytest.mark.parametrize("size", [0, 10, 74, 90])
def test_a_damaged_prepared_file_is_not_read(save, cache, size):
    path = save(coco())
    read_annotations(path)
    (prepared,) = cache.glob("*.prepared")
    whole = prepared.read_bytes()
    prepared.write_bytes(whole[:size])
    reading._in_memory.clear()
    assert read_annotations(path).content == coco()
    assert prepared.read_bytes() == whole


def test_the_area_of_a_box_stands_in_where_there_are_no_masks(save):
    boxes = [
        {k: v for k, v in annotation(i).items() if k not in ("segmentation", "area")}
        for i in (1, 2)
    ]
    file = read_annotations(save(coco(annotations=boxes)))
    assert [a["area"] for a in completed(file, [])["annotations"]] == [400.0, 400.0]


def test_a_gzip_file_is_evaluated_through_a_plain_copy(save):
    file = read_annotations(save(coco(), "train.json.gz"))
    assert json.loads(evaluation_json(file, file.categories).read_text()) == coco()


def test_without_negatives_every_absent_category_is_one(save):
    content = lvis()
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    file = read_annotations(save(content))
    images = completed(file, file.categories)["images"]
    assert [image["neg_category_ids"] for image in images] == [[4], [9]]
    assert [image["not_exhaustive_category_ids"] for image in images] == [[], []]


def test_an_image_without_negatives_beside_others_says_nothing(save):
    content = lvis()
    del content["images"][0]["neg_category_ids"]
    images = completed(read_annotations(save(content)), [])["images"]
    assert [image["neg_category_ids"] for image in images] == [[], [4]]


def test_training_frequencies_come_before_counted_ones(save):
    content = lvis()
    for category in content["categories"]:
        del category["frequency"]
    train = [{"id": 4, "name": "date", "frequency": "c"}, {"id": 9, "name": "fig"}]
    categories = completed(read_annotations(save(content)), train)["categories"]
    assert {c["id"]: c["frequency"] for c in categories} == {4: "c", 9: "r"}


def test_crowds_of_an_lvis_file_are_ignored_and_their_class_is_not_exhaustive(save):
    """`ignore` is LVIS's own: it says nothing of other objects."""
    for flag, expected in (("iscrowd", [[4, 9], []]), ("ignore", [[4], []])):
        content = lvis()
        content["images"][0]["not_exhaustive_category_ids"] = [4]
        content["annotations"][0][flag] = 1
        content = completed(read_annotations(save(content, f"{flag}.json")), [])
        assert [i["not_exhaustive_category_ids"] for i in content["images"]] == expected
        assert [a.get("ignore", 0) for a in content["annotations"]] == [1, 0]


def test_a_completed_copy_counts_as_read(save, monkeypatch):
    content = coco()
    del content["annotations"][0]["area"]
    path = evaluation_json(read_annotations(save(content)), [])
    written = json.loads(path.read_text())
    monkeypatch.setattr(reading, "read_json", None)
    assert reading.read_to_evaluate(path).content == written
    monkeypatch.setattr(reading, "_in_memory", {})  # another process
    assert reading.read_to_evaluate(path).content == written


@pytest.mark.parametrize("area", [None, 0, -5.0, math.nan, math.inf, True, "400", 10**400])
def test_an_area_that_is_none_is_that_of_the_mask_else_of_the_box(area):
    box = {"bbox": [1, 2, 3.5, 4], "area": area}
    assert object_area(box, 48, 64) == 14
    assert object_area({**annotation(1), "area": area}, 48, 64) == 400
    assert object_area({**box, "area": 7}, 48, 64) == 7
