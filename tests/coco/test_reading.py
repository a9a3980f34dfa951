"""A json is read and checked once, without Detectron2."""

import pytest
from conftest import shared
from helpers.annotation_files import annotation, changed, coco, lvis

from rs_d2.coco import prepared, reading
from rs_d2.coco.json_files import read_json
from rs_d2.coco.reading import (
    category_frequencies,
    check_same_categories,
    read_annotations,
    read_to_evaluate,
)
from rs_d2.utils.errors import UserError


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


def test_null_in_every_optional_field_makes_no_lvis_file(save):
    content = coco()
    for image in content["images"]:
        image["neg_category_ids"] = None
    for category in content["categories"]:
        category["frequency"] = None
    assert read_annotations(save(content)).format == "coco"


def test_what_only_training_needs_may_be_missing_in_evaluation(save):
    content = changed("images", 0, file_name=...)
    del content["categories"][0]["name"], content["annotations"]
    path = save(content)
    file = read_to_evaluate(path)
    assert file.annotations == []
    assert file.training_problem == "image 7: file_name: expected the name of a file, found nothing"
    with pytest.raises(UserError, match=file.training_problem):
        read_annotations(path)


@pytest.fixture
def parsed(monkeypatch):
    """Names of the json files that were parsed."""
    names = []

    def read(path):
        names.append(path.name)
        return read_json(path)

    monkeypatch.setattr(reading, "read_json", read)
    return names


def forget(monkeypatch):
    """What another process finds: the cache alone."""
    monkeypatch.setattr(reading, "_in_memory", {})


def test_a_file_is_parsed_once_whatever_reads_it(save, parsed, monkeypatch):
    path = save(coco())
    first = read_annotations(path)
    assert read_to_evaluate(str(path)).content is first.content
    forget(monkeypatch)
    assert read_annotations(path) == first
    assert parsed == ["train.json"]


def test_a_file_under_another_name_is_the_same_file(save, tmp_path, parsed):
    (tmp_path / "link.json").symlink_to(save(coco()))
    read_annotations(tmp_path / "train.json")
    assert read_annotations(tmp_path / "link.json").path == tmp_path / "link.json"
    assert parsed == ["train.json"]


def test_evaluation_alone_leaves_nothing_in_the_cache(save, cache):
    read_to_evaluate(save(coco()))
    assert [*cache.rglob("*")] == []


def test_large_files_are_not_kept_in_memory(save, parsed, monkeypatch):
    monkeypatch.setattr(reading, "_LARGEST_IN_MEMORY", 10)
    path = save(coco())
    assert read_annotations(path) == read_annotations(path)
    assert (parsed, reading._in_memory) == (["train.json"], {})


def test_few_files_are_kept_in_memory(save, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_IN_MEMORY", 2)
    paths = [save(coco(), name) for name in ("a.json", "b.json", "c.json")]
    for path in (*paths[:2], paths[0], paths[2]):
        read_annotations(path)
    assert [file.path for file in reading._in_memory.values()] == [paths[0], paths[2]]


def test_a_changed_file_is_read_again(save, parsed, cache):
    path = save(coco())
    read_annotations(path)
    save(changed("categories", 0, name="other fruit"))
    assert read_annotations(path).categories[1]["name"] == "other fruit"
    assert parsed == ["train.json"] * 2
    assert len([*cache.iterdir()]) == 1


@pytest.mark.parametrize("damage", [b"", b"x" * 200, None])
def test_a_damaged_cache_is_rebuilt_silently(save, parsed, cache, monkeypatch, caplog, damage):
    path = save(coco())
    first = read_annotations(path)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9] if damage is None else damage)
    forget(monkeypatch)
    assert read_annotations(path) == first
    assert kept.read_bytes() == whole
    assert (parsed, caplog.messages) == (["train.json"] * 2, [])


def test_another_version_of_the_checks_reads_the_file_anew(save, parsed, monkeypatch):
    path = save(coco())
    read_annotations(path)
    forget(monkeypatch)
    monkeypatch.setattr(prepared, "_code", lambda: "another version")
    read_annotations(path)
    assert parsed == ["train.json"] * 2


def test_without_a_cache_that_can_be_written_files_are_read(save, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(prepared, "_temporary_folder", lambda: tmp_path / "gone")
    assert len(read_annotations(save(coco())).annotations) == 2
