"""Reading and checking json files, without Detectron2."""

import gzip
import json
import math

import pytest
from conftest import shared

from rs_d2.coco.fill_missing import completed, evaluation_json
from rs_d2.coco.reading import category_frequencies, check_same_categories, read_annotations
from rs_d2.utils.errors import UserError

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]


def coco(**changes):
    """A complete COCO file: two images, two categories with a gap, one object each."""
    content = {
        "info": {},
        "images": [
            {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
            {"id": 3, "file_name": "sub/b.png", "width": 64, "height": 48},
        ],
        "categories": [{"id": 9, "name": "fig"}, {"id": 4, "name": "date"}],
        "annotations": [
            annotation(1, image_id=7, category_id=9),
            annotation(2, image_id=3, category_id=4),
        ],
    }
    return {**content, **changes}


def annotation(identity, **changes):
    fields = {"image_id": 7, "category_id": 9, "bbox": [10.0, 10.0, 20.0, 20.0]}
    mask = {"segmentation": SQUARE, "area": 400.0, "iscrowd": 0}
    return {"id": identity, **fields, **mask, **changes}


def lvis():
    """The same objects in LVIS form, but for what LVIS adds to them."""
    content = coco()
    for image in content["images"]:
        image |= {"neg_category_ids": [4], "not_exhaustive_category_ids": []}
    for category, group in zip(content["categories"], "rf", strict=True):
        category["frequency"] = group
    for entry in content["annotations"]:
        del entry["iscrowd"]
    return content


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Write content as json; the user's cache is a temporary folder too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(content, name="train.json"):
        data = json.dumps(content).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def problem_of(path):
    with pytest.raises(UserError) as error:
        read_annotations(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def changed(table, index, **fields):
    """`coco()` with some fields of one entry replaced; a field that is ... is removed."""
    content = coco()
    entry = {**content[table][index], **fields}
    content[table][index] = {key: value for key, value in entry.items() if value is not ...}
    return content


@pytest.mark.parametrize("name", ["train.json", "train.json.gz"])
def test_a_coco_file_is_sorted_by_id(save, name):
    file = read_annotations(save(coco(), name))
    assert file.format == "coco"
    assert [image["id"] for image in file.images] == [3, 7]
    assert [category["name"] for category in file.categories] == ["date", "fig"]
    assert file.has_masks
    assert file.left_out == ""


@pytest.mark.parametrize(
    ("name", "images", "objects", "file_format", "has_masks"),
    [
        ("bccd/train.json", 205, 2804, "coco", False),
        ("nuts/val.json", 6, 45, "coco", True),
        ("coco100/train.json", 70, 586, "coco", True),
        ("coco100/lvis_v1_train.json", 70, 580, "lvis", True),
        ("evaluator_lvis/lvis_val_50.json", 50, 502, "lvis", True),
        ("evaluator_coco/instances_val2014_100.json", 100, 839, "coco", True),
    ],
)
def test_real_files_are_recognised_and_kept_whole(name, images, objects, file_format, has_masks):
    file = read_annotations(shared("data") / name)
    assert (len(file.images), len(file.annotations)) == (images, objects)
    assert (file.format, file.has_masks, file.left_out) == (file_format, has_masks, "")


@pytest.mark.parametrize(
    "name", ["coco100/val.json", "coco100/lvis_v1_val.json", "evaluator_lvis/lvis_val_50.json"]
)
def test_a_complete_file_is_evaluated_as_it_is(name):
    file = read_annotations(shared("data") / name)
    assert evaluation_json(file, file.categories) == file.path


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "no such file"),
        (b"{", "not json (Expecting property name enclosed in double quotes in line 1)"),
        (b"\xff\xfe\xfd", "not json"),
        (b"[]", "neither COCO nor LVIS: the top level is not an object"),
        (b"{}", "images: expected a list, found nothing"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, data, problem):
    path = tmp_path / "train.json"
    if data is not None:
        path.write_bytes(data)
    assert problem_of(path) == problem


def test_a_cut_off_gzip_file_is_refused(save, tmp_path):
    whole = save(coco(), "train.json.gz").read_bytes()
    path = tmp_path / "cut.json.gz"
    path.write_bytes(whole[: len(whole) // 2])
    assert problem_of(path) == "not a whole gzip file"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (coco(images={}), "images: expected a list, found {}"),
        (coco(categories=[]), "categories: the list is empty"),
        (coco(annotations=[5]), "annotations[0]: expected an object, found 5"),
        (changed("images", 1, id=7), "image 7: the id occurs 2 times"),
        (
            changed("images", 0, id=...),
            "images[0]: id: expected an integer or a string, found nothing",
        ),
        (
            changed("images", 0, id="a"),
            "image ids: some are integers and some are strings",
        ),
        (
            changed("images", 0, width="64"),
            "image 7: width: expected a positive integer, found '64'",
        ),
        (
            changed("images", 0, file_name=...),
            "image 7: file_name: expected the name of a file, found nothing",
        ),
        (changed("categories", 1, id=9), "category 9: the id occurs 2 times"),
        (changed("categories", 0, name=3), "category 9: name: expected a name, found 3"),
        (
            changed("categories", 0, frequency="x"),
            "category 9: frequency: expected r, c or f, found 'x'",
        ),
        (changed("annotations", 1, id=1), "annotation 1: the id occurs 2 times"),
        (
            changed("annotations", 0, id=True),
            "annotations[0]: id: expected an integer, found True",
        ),
        (
            changed("annotations", 0, image_id=99),
            "annotation 1: image_id: expected the id of an image, found 99",
        ),
        (
            changed("annotations", 0, category_id=[4]),
            "annotation 1: category_id: expected the id of a category, found [4]",
        ),
        (
            changed("annotations", 0, bbox=[1, 2, 3]),
            "annotation 1: bbox: expected four numbers [x, y, width, height], found [1, 2, 3]",
        ),
        (
            changed("annotations", 0, segmentation=[1.0, 2.0, 3.0]),
            "annotation 1: segmentation: expected polygons or a run-length mask,"
            " found [1.0, 2.0, 3.0]",
        ),
        (coco(annotations=[]), "annotations: nothing to train or evaluate on"),
        (
            coco(annotations=[annotation(5, iscrowd=1), annotation(6, bbox=[1, 1, 0, 5])]),
            "annotations: nothing to train or evaluate on "
            "(boxes without area (1, first: annotation 6) left out)",
        ),
    ],
)
def test_a_broken_file_is_refused_by_one_line_that_names_the_culprit(save, content, problem):
    assert problem_of(save(content)) == problem


BAD = {
    11: {"bbox": [5, 5, 0, 5]},
    12: {"bbox": [5, 5, 5, -1]},
    13: {"bbox": [math.nan, 5, 5, 5]},
    14: {"bbox": [5, 5, math.inf, 5]},
    15: {"bbox": [64, 5, 5, 5]},
    16: {"segmentation": []},
    17: {"segmentation": [[1, 1, 2, 2]]},
    18: {"segmentation": [[1, 1, 2, 2, 3, 3, 4]]},
    19: {"segmentation": {"size": [9, 9], "counts": [81]}},
    20: {"segmentation": {"size": [48, 64], "counts": [1, 2]}},
}


def test_single_bad_annotations_are_left_out_and_counted(save):
    good = [annotation(i) for i in range(1, 25 - len(BAD)) if i not in BAD]
    bad = [annotation(identity, **fields) for identity, fields in BAD.items()]
    file = read_annotations(save(coco(annotations=good + bad)))
    assert file.annotations == good
    assert file.left_out == (
        "boxes without area (2, first: annotation 11); "
        "boxes that are not finite (2, first: annotation 13); "
        "boxes outside their image (1, first: annotation 15); "
        "annotations without a mask (1, first: annotation 16); "
        "polygons with fewer than 3 points, an odd count or a number that is not finite "
        "(2, first: annotation 17); "
        "run-length masks of another size than their image (2, first: annotation 19)"
    )


def test_the_sound_pieces_of_a_mask_are_kept(save):
    pieces = [[1, 1, 2, 2], *SQUARE, [math.nan] * 6]
    file = read_annotations(save(changed("annotations", 0, segmentation=pieces)))
    assert file.annotations[0]["segmentation"] == SQUARE


def test_a_box_over_the_border_is_kept_as_it_is(save):
    box = [-5.0, 40.0, 20.0, 20.0]
    file = read_annotations(save(changed("annotations", 0, bbox=box)))
    assert file.annotations[0]["bbox"] == box


def test_empty_segmentations_throughout_mean_boxes_only(save):
    content = coco(annotations=[annotation(1, segmentation=[]), annotation(2, segmentation=None)])
    file = read_annotations(save(content))
    assert not file.has_masks
    assert (len(file.annotations), file.left_out) == (2, "")


def test_a_few_masks_among_boxes_are_left_out(save):
    boxes = [annotation(i, segmentation=[]) for i in range(1, 4)]
    file = read_annotations(save(coco(annotations=[*boxes, annotation(4)])))
    assert (file.has_masks, len(file.annotations)) == (False, 4)
    assert file.left_out == "masks in a file that mostly has none (1, first: annotation 4)"


def test_ignored_annotations_are_crowds(save):
    file = read_annotations(save(changed("annotations", 0, ignore=1)))
    assert [a["iscrowd"] for a in file.annotations] == [1, 0]


def test_image_ids_may_be_names(save):
    content = coco(annotations=[annotation(1, image_id="x")])
    content["images"] = [{**content["images"][0], "id": "x"}]
    assert read_annotations(save(content)).images[0]["id"] == "x"


def test_either_sign_of_lvis_is_enough(save):
    negatives, frequency = lvis(), lvis()
    for category in negatives["categories"]:
        del category["frequency"]
    for image in frequency["images"]:
        del image["neg_category_ids"]
    assert read_annotations(save(negatives)).format == "lvis"
    assert read_annotations(save(frequency)).format == "lvis"


def test_missing_frequencies_follow_from_the_number_of_images(save):
    content = lvis()
    images = [{**content["images"][0], "id": i} for i in range(101)]
    content |= {"images": images, "categories": [{"id": i, "name": "x"} for i in (1, 2, 3, 4)]}
    counts = {1: 10, 2: 11, 3: 101, 4: 0}
    content["annotations"] = [
        annotation(1000 * c + 2 * i + twice, image_id=i, category_id=c)
        for c, count in counts.items()
        for i in range(count)
        for twice in (0, 1)
    ]
    file = read_annotations(save(content))
    assert category_frequencies(file) == {1: "r", 2: "c", 3: "f", 4: "r"}


@pytest.mark.parametrize(
    ("categories", "problem"),
    [
        ([(4, "date"), (9, "fig"), (5, "nut")], "category 5 'nut' does not exist"),
        ([(4, "fig"), (9, "date")], "category 4 'fig' is 'date'"),
    ],
)
def test_other_categories_than_the_training_set_has_are_refused(save, categories, problem):
    content = coco(categories=[{"id": i, "name": n} for i, n in categories])
    file = read_annotations(save(content, "val.json"))
    with pytest.raises(UserError, match=f"val.json: {problem} in the training set"):
        check_same_categories(file, (4, 9), ("date", "fig"))


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
