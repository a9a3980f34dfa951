"""What is wrong with a json is found and named."""

import pytest
from helpers.annotation_files import annotation, changed, coco

from rs_d2.coco.checks import Severity, check_content
from rs_d2.coco.reading import find_problems, read_annotations
from rs_d2.utils.errors import UserError


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
    path = save(content)
    with pytest.raises(UserError) as error:
        read_annotations(path)
    assert str(error.value) == f"{path}: {problem}"


def test_all_problems_can_be_listed():
    content = coco(
        images=[
            {"id": 7, "width": 64, "height": 0},
            {"id": 3, "file_name": "b.png", "width": 64, "height": 48, "neg_category_ids": ["4"]},
        ],
        categories=[{"id": 9, "frequency": "x"}, {"id": 4, "name": "date"}],
        annotations=[
            annotation(1, image_id=99, bbox=[1, 2, 3]),
            annotation(2, category_id=True, segmentation="x"),
        ],
    )
    assert [(f.entry, f.field, f.found, f.severity.name) for f in find_problems(content)] == [
        ("image 7", "height", "0", "STOPS"),
        ("image 7", "file_name", "nothing", "STOPS_TRAINING"),
        ("image 3", "neg_category_ids", "['4']", "STOPS"),
        ("category 9", "name", "nothing", "STOPS_TRAINING"),
        ("category 9", "frequency", "'x'", "STOPS"),
        ("annotation 1", "image_id", "99", "STOPS"),
        ("annotation 2", "category_id", "True", "STOPS"),
        ("annotation 1", "bbox", "[1, 2, 3]", "STOPS"),
        ("annotation 2", "segmentation", "'x'", "STOPS"),
    ]


def test_what_is_left_out_is_listed_with_the_rest():
    content = changed("annotations", 0, bbox=[10.0, 10.0, 0.0, 20.0])
    content["annotations"][1]["iscrowd"] = 1
    area, nothing_left = find_problems(content)
    assert area.severity is Severity.LEFT_OUT
    assert str(area) == (
        "annotation 1: bbox: expected a width and a height above 0, found [10.0, 10.0, 0.0, 20.0]"
    )
    assert nothing_left.severity is Severity.STOPS_TRAINING


def test_a_broken_table_hides_the_others_but_every_entry_of_it_is_listed():
    texts = [str(finding) for finding in find_problems(coco(images=[3, 4], categories=[]))]
    assert texts == [
        "images[0]: expected an object, found 3",
        "images[1]: expected an object, found 4",
        "categories: the list is empty",
    ]


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("images", ("coco_url", "neg_category_ids", "not_exhaustive_category_ids")),
        ("categories", ("frequency",)),
        ("annotations", ("area", "iscrowd", "ignore")),
    ],
)
def test_null_is_the_same_as_nothing(table, fields):
    assert find_problems(changed(table, 0, **dict.fromkeys(fields))) == []


def test_a_sound_file_has_no_findings():
    assert [*check_content(coco())] == find_problems(coco()) == []
