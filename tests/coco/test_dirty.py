"""Hundreds of dirty json files: each ends in one line that names the culprit, or is counted.

Nothing here may raise anything but a ``UserError`` of one line, take long, or ask for much memory;
what is accepted must go the whole way to training dicts and evaluation columns.
"""

import gzip
import json
import math

import pytest
from helpers.annotation_files import SQUARE, changed, coco
from helpers.dirty_json import ACCEPTED, AREA, HALF, HUGE, LEFT_OUT, STOPPED, TEXT, ZIGZAG, runs

from rs_d2.coco.fill_missing import evaluation_json
from rs_d2.coco.ground_truth import ground_truth_from, ground_truth_of
from rs_d2.coco.image_files import locate_images
from rs_d2.coco.json_files import read_json
from rs_d2.coco.reading import read_annotations
from rs_d2.coco.results import detections_from
from rs_d2.utils.errors import UserError


def goes_all_the_way(path):
    file = read_annotations(path)
    for style in ("coco", "lvis"):
        ground_truth_of(file, style).rles  # noqa: B018  rasterises every mask
    evaluation_json(file, file.categories)
    return file


def line_of(error):
    line = str(error.value)
    assert len(line.splitlines()) == 1
    assert len(line) < 500
    return line


def test_there_are_more_than_a_hundred():
    assert len(STOPPED) + len(LEFT_OUT) + len(ACCEPTED) > 200


@pytest.mark.parametrize("name", STOPPED)
def test_one_line_names_the_culprit(save, name):
    content, culprit = STOPPED[name]
    path = save(content)
    with pytest.raises(UserError) as error:
        goes_all_the_way(path)
    assert line_of(error).startswith(f"{path}: ")
    assert culprit in line_of(error)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_one_annotation_is_left_out_and_counted(save, name):
    content, kind = LEFT_OUT[name]
    file = goes_all_the_way(save(content))
    assert 2 not in [a["id"] for a in file.annotations]
    assert file.left_out.startswith(kind)
    assert file.left_out.endswith("(1, first: annotation 2)")


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_harmless_goes_all_the_way(save, name):
    assert goes_all_the_way(save(ACCEPTED[name])).left_out == ""


@pytest.mark.parametrize("name", [n for n, (_, kind) in LEFT_OUT.items() if "boxes" not in kind])
def test_who_counts_every_object_refuses_what_cannot_be_rasterised(name):
    content, kind = LEFT_OUT[name]
    if kind == "annotations without a mask":
        assert ground_truth_from(content, "coco").segmentations[-1] is None
        return
    with pytest.raises(UserError, match=r"^val: annotation 2: segmentation: ") as error:
        ground_truth_from(content, "coco", "val")
    line_of(error)


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1e10, 1, 9, 9]], [[1, 1, 1e9, 1, 9, 9]], [[HUGE] * 6], [ZIGZAG], [[1, 1, 9, 1]],
        [[math.nan] * 6], [[True] * 6], runs([AREA + 5, -5]), runs([HUGE]), runs(TEXT[:-1]),
        runs(TEXT, (HUGE, 1)), runs(HALF),
    ],
    ids=lambda mask: repr(mask)[:30],
)  # fmt: skip
def test_masks_of_results_have_the_same_bounds(mask):
    entry = {"image_id": 7, "category_id": 9, "score": 0.5, "segmentation": mask}
    with pytest.raises(UserError, match=r"^found: entry 0 \(image 7.*segmentation") as error:
        detections_from([entry], ground_truth_from(coco(), "coco"), "segm", "found")
    line_of(error)


def test_boxes_of_results_have_areas_that_are_numbers():
    entry = {"image_id": 7, "category_id": 9, "score": 0.5, "bbox": [0, 0, 1e300, 1e300]}
    good = {**entry, "bbox": [0, 0, 1e9, 1e9]}
    truth = ground_truth_from(coco(), "coco")
    with pytest.raises(UserError, match=r"^found: entry 1 \(.*four numbers of at most 1e\+09"):
        detections_from([good, entry], truth, "bbox", "found")


PLAIN = json.dumps(coco()).encode()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_read_and_evaluated_as_plain_json(save, encoding):
    path = save(coco())
    path.write_bytes(json.dumps(coco(), ensure_ascii=False).encode(encoding))
    file = goes_all_the_way(path)
    assert file.content == coco()
    assert json.loads(evaluation_json(file, file.categories).read_bytes().decode("utf-8")) == coco()


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", PLAIN[:-9], PLAIN + b"x", b"\xff\xfe", b"\0" * 99, b"\x89PNG\r\n\x1a\n",
        b"[" * 100_000, b'{"a": ' * 100_000, b"{'images': []}", b'{"images": [1,]}', b"images: []",
        b'{"images": ' + b"9" * 5000 + b"}", b'{"images": 1e}', b'{"images": "\xff"}', b"\x80abc",
    ],
    ids=lambda data: repr(data)[:24],
)  # fmt: skip
def test_what_is_no_json_is_told_in_one_line(save, data):
    path = save({})
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert line_of(error).startswith(f"{path}: ")


PACKED = gzip.compress(PLAIN, mtime=0)  # without the time, which would name the tests


@pytest.mark.parametrize("data", [b"", b"x", PACKED[:-9], PACKED[:5]])
def test_a_broken_archive_is_told_in_one_line(save, data):
    path = save({}, "train.json.gz")
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert line_of(error).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31mred.png", "a" * 100_000])
def test_names_do_not_break_the_line(tmp_path, name):
    with pytest.raises(UserError, match="1 of 1 image files are missing, first ") as error:
        locate_images([{"id": 7, "file_name": name}], tmp_path, tmp_path / "train.json")
    assert line_of(error).isprintable()


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("file_name", "/etc/hostname"),
        ("file_name", "../secret.png"),
        ("file_name", "sub/../../secret.png"),
        ("file_name", ".."),
        ("coco_url", "http://host/../secret.png"),
        ("coco_url", "http://host/.."),
    ],
)
def test_no_name_leads_out_of_the_image_folder(tmp_path, field, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    with pytest.raises(UserError, match="image 7: file_name: expected a name below") as error:
        locate_images([{"id": 7, field: name}], tmp_path / "images", tmp_path / "train.json")
    line_of(error)


def test_absolute_names_are_an_option_and_dots_are_not(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "elsewhere.png"
    inside.mkdir()
    outside.write_bytes(b"x")
    image = {"id": 7, "file_name": str(outside)}
    paths = locate_images([image], inside, tmp_path / "train.json", absolute_paths=True)
    assert paths == {7: str(outside)}
    image = {"id": 7, "file_name": "../elsewhere.png"}
    with pytest.raises(UserError, match="expected a name below the image folder, found"):
        locate_images([image], inside, tmp_path / "train.json", absolute_paths=True)


def test_a_polygon_keeps_its_good_pieces(save):
    content = changed("annotations", 1, segmentation=[*SQUARE, [1, 1, 1e10, 1, 9, 9]])
    file = goes_all_the_way(save(content))
    assert file.annotations[1]["segmentation"] == SQUARE
    assert file.left_out == "polygons far beyond their image (1, first: annotation 2)"
