"""What is wrong with a ground-truth file is named."""

import copy

import numpy as np
import pytest
from helpers.made_detections import made

from rs_d2.evaluation import ground_truth_from
from rs_d2.utils.errors import UserError


def content_with(table, **changes):
    content = copy.deepcopy(made("lvis")[0])
    entry = content[table][1]
    entry.update(changes)
    content[table][1] = {k: v for k, v in entry.items() if v is not None}
    return content


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        (
            "images",
            {"id": None},
            r"images\[1\]: id: expected an integer or a string, found nothing",
        ),
        ("images", {"id": 1}, "image 1: the id occurs 2 times"),
        ("images", {"id": "2"}, "image ids: some are integers and some are strings"),
        ("images", {"height": 0}, "image 2: height: expected a positive integer, found 0"),
        ("images", {"neg_category_ids": [1.5]}, "image 2: neg_category_ids: expected a list"),
        ("categories", {"id": "2"}, r"categories\[1\]: id: expected an integer, found '2'"),
        ("categories", {"id": 1}, "category 1: the id occurs 2 times"),
        ("categories", {"frequency": "x"}, "category 2: frequency: expected r, c or f, found 'x'"),
        ("annotations", {"image_id": 77}, "annotation 2: image_id: expected the id of an image"),
        ("annotations", {"category_id": None}, "annotation 2: category_id: .*, found nothing"),
        ("annotations", {"bbox": [1, 2, 3]}, r"annotation 2: bbox: expected four numbers \[x, y,"),
        (
            "annotations",
            {"bbox": [1, 2, 3, float("nan")]},
            "annotation 2: bbox: expected four finite",
        ),
    ],
)
def test_a_bad_entry_is_named(table, changes, message):
    with pytest.raises(UserError, match=rf"^val.json: {message}"):
        ground_truth_from(content_with(table, **changes), "lvis", "val.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "neither COCO nor LVIS: the top level is not an object"),
        ({"images": []}, "categories: expected a list, found nothing"),
        ({"images": [3], "categories": [], "annotations": []}, r"images\[0\]: expected an object"),
        ({"images": [], "categories": [], "annotations": []}, "images: the list is empty"),
    ],
)
def test_what_is_no_ground_truth_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        ground_truth_from(content, "coco")


def test_an_unknown_style_is_refused():
    with pytest.raises(UserError, match="'voc' is not one of coco, lvis"):
        ground_truth_from(made("coco")[0], "voc")


def test_a_missing_area_is_that_of_the_mask_else_of_the_box():
    content, _ = made("coco")
    first, second = content["annotations"][:2]
    del first["area"], second["area"], second["segmentation"]
    truth = ground_truth_from(content, "coco")
    assert 0.6 < truth.areas[0] / np.prod(first["bbox"][2:]) < 0.95  # an ellipse: pi / 4
    assert truth.areas[1] == second["bbox"][2] * second["bbox"][3]


def test_lists_may_name_classes_that_a_subset_lacks():
    content, _ = made("lvis")
    content["images"][0]["neg_category_ids"].append(999)
    content["images"][0]["not_exhaustive_category_ids"].append(999)
    truth = ground_truth_from(content, "lvis")
    assert truth.known.max() < len(truth.image_ids) * truth.num_categories


@pytest.mark.parametrize("flag", ["iscrowd", "ignore"])
def test_either_flag_is_a_crowd_in_coco_and_ignored_in_lvis(flag):
    """As in training: one file must not have two scores."""
    content, _ = made("coco", seed=1)
    flags = [annotation.pop("iscrowd") for annotation in content["annotations"]]
    for annotation, value in zip(content["annotations"], flags, strict=True):
        annotation[flag] = value
    flags = np.array(flags, dtype=bool)
    assert flags.any()
    coco, lvis = (ground_truth_from(content, style) for style in ("coco", "lvis"))
    np.testing.assert_array_equal(coco.crowd, flags)
    np.testing.assert_array_equal(coco.ignored, flags)
    np.testing.assert_array_equal(lvis.ignored, flags)
    assert not lvis.crowd.any()
    unsure = lvis.is_not_exhaustive(lvis.images, lvis.categories)
    assert unsure[flags].all() if flag == "iscrowd" else not unsure.any()


def test_null_is_the_same_as_nothing():
    content, _ = made("lvis")
    del content["annotations"][0]["segmentation"]
    bare = copy.deepcopy(content)
    for table, *fields in (
        ("images", "neg_category_ids", "not_exhaustive_category_ids"),
        ("categories", "frequency", "name"),
        ("annotations", "area", "ignore", "segmentation"),
    ):
        for field in fields:
            content[table][0][field] = None
            bare[table][0].pop(field, None)
    found, expected = (vars(ground_truth_from(c, "lvis")) for c in (content, bare))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
