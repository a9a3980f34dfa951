"""Hundreds of dirty json files: each ends in one line that names the culprit, or is counted.

Nothing here may raise anything but a ``UserError`` of one line, take long, or ask for much memory;
what is accepted must go the whole way to training dicts and evaluation columns.
"""

import gzip
import json
import math

import numpy as np
import pytest
from helpers.annotation_files import SQUARE, annotation, changed, coco, lvis

from rs_d2.coco.fill_missing import evaluation_json
from rs_d2.coco.ground_truth import ground_truth_from, ground_truth_of
from rs_d2.coco.image_files import locate_images
from rs_d2.coco.json_files import read_json
from rs_d2.coco.reading import read_annotations
from rs_d2.coco.results import detections_from
from rs_d2.coco.rle import encode_mask
from rs_d2.utils.errors import UserError

HUGE = 10**400
HALF = "\ud800"  # of a character
AREA = 48 * 64


def runs(counts, size=(48, 64)):
    return {"size": list(size), "counts": counts}


def with_runs(counts, size=(48, 64)):
    return changed("annotations", 1, segmentation=runs(counts, size))


def with_polygon(*numbers):
    return changed("annotations", 1, segmentation=[list(numbers)])


def lists(**fields):
    content = lvis()
    content["images"][0] |= fields
    return content


TEXT = encode_mask(np.eye(48, 64, dtype=bool))["counts"]
ZIGZAG = [number for x in range(200_000) for number in (64.0 * (x % 2), x % 48)]

# content, and what the line must name
STOPPED = {
    **{f"top level {v!r}": (v, "top level") for v in (None, [], 3, "x", True, math.nan)},
    "empty object": ({}, "images: expected a list"),
    "images an object": (coco(images={}), "images: expected a list"),
    "images null": (coco(images=None), "images: expected a list"),
    "no image": (coco(images=[]), "images: the list is empty"),
    "no category": (coco(categories=[]), "categories: the list is empty"),
    "no annotation": (coco(annotations=[]), "annotations: nothing to train"),
    "annotations a text": (coco(annotations="x"), "annotations: expected a list"),
    "image null": (coco(images=[None]), "images[0]"),
    "category a number": (coco(categories=[4]), "categories[0]"),
    "annotation a list": (coco(annotations=[[]]), "annotations[0]"),
    **{
        f"{table} id {value!r:.20}": (changed(table, 0, id=value), f"{table}[0]: id")
        for table in ("images", "categories", "annotations")
        for value in (..., None, True, 1.5, [], {}, math.nan, HUGE, -HUGE, 2**63)
    },
    "image id empty": (changed("images", 0, id=""), "images[0]: id"),
    "image id half a character": (changed("images", 0, id=HALF), "images[0]: id"),
    "image ids mixed": (changed("images", 0, id="7"), "image ids"),
    "category id a text": (changed("categories", 0, id="9"), "categories[0]: id"),
    "annotation id a text": (changed("annotations", 0, id="1"), "annotations[0]: id"),
    "image twice": (changed("images", 0, id=3), "image 3"),
    "category twice": (changed("categories", 0, id=4), "category 4"),
    "annotation twice": (changed("annotations", 0, id=2), "annotation 2"),
    **{
        f"{side} {value!r:.20}": (changed("images", 0, **{side: value}), f"image 7: {side}")
        for side in ("width", "height")
        for value in (..., None, "64", 0, -64, 64.0, True, math.inf, [64])
    },
    "width of 400 digits": (changed("images", 0, width=HUGE), "image 7: width"),
    "too many pixels": (changed("images", 0, width=2**20, height=2**20), "image 7: width"),
    **{
        f"file_name {value!r}": (changed("images", 0, file_name=value), "image 7: file_name")
        for value in (..., None, "", 3, ["a.png"], HALF, "a\0.png")
    },
    "coco_url a number": (changed("images", 0, coco_url=5), "image 7: coco_url"),
    "coco_url broken": (changed("images", 0, coco_url="x/" + HALF), "image 7: coco_url"),
    **{
        f"category name {value!r}": (changed("categories", 0, name=value), "category 9: name")
        for value in (..., None, "", 3, HALF)
    },
    "frequency unknown": (changed("categories", 0, frequency="rare"), "category 9: frequency"),
    "frequency a list": (changed("categories", 0, frequency=["r"]), "category 9: frequency"),
    **{
        f"{field} {value!r:.20}": (
            changed("annotations", 0, **{field: value}), f"annotation 1: {field}",
        )
        for field in ("image_id", "category_id")
        for value in (..., None, 99, "7", True, 7.0, [7], HUGE)
    },
    **{
        f"box {value!r:.40}": (changed("annotations", 0, bbox=value), "annotation 1: bbox")
        for value in (
            ..., None, [], [1, 2, 3], [1, 2, 3, 4, 5], "1234", {"x": 1}, [1, 2, "3", 4],
            [1, 2, None, 4], [1, 2, True, 4], [[1], 2, 3, 4], [1, 2, HUGE, 4],
        )
    },
    **{
        f"{field} {value!r}": (
            changed("annotations", 0, **{field: value}), f"annotation 1: {field}: expected 0 or 1",
        )
        for field in ("iscrowd", "ignore")
        for value in ("0", "1", "false", 2, -1, [], {}, math.nan)
    },
    **{
        f"mask {value!r:.40}": (
            changed("annotations", 0, segmentation=value), "annotation 1: segmentation",
        )
        for value in (
            "x", 5, [1.0, 2.0], [["a"] * 6], [[1, 2, None, 4, 5, 6]], [None], [{}],
            {"counts": TEXT}, {"size": [48, 64]}, runs(None), runs(""), runs(["1"]), runs(3.5),
            runs(TEXT, (48.0, 64)), runs(HALF), {"size": "48x64", "counts": TEXT},
            [[HUGE] * 5 + [1.5]],
        )
    },
    **{
        f"{name} {value!r:.20}": (lists(**{name: value}), f"image 7: {name}")
        for name in ("neg_category_ids", "not_exhaustive_category_ids")
        for value in ("4", 4, ["4"], [True], [None], [4.0], [HUGE], {"4": 1})
    },
}  # fmt: skip

# content, and the kind under which annotation 2 is counted
LEFT_OUT = {
    **{
        f"box {box}": (changed("annotations", 1, bbox=box), kind)
        for kind, boxes in {
            "boxes without area": ([1, 1, 0, 5], [1, 1, 5, -1], [1.0, 1, -math.inf, 5]),
            "boxes that are not finite": ([math.nan, 1, 5, 5], [1, 1, math.inf, 5]),
            "boxes beyond a million pixels": ([1, 1, 1e10, 5], [-1e300, 1, 2e300, 5]),
            "boxes outside their image": ([64, 1, 5, 5], [1, 48, 5, 5], [-9, 1, 9, 5]),
        }.items()
        for box in boxes
        if box != [1.0, 1, -math.inf, 5]
    },
    "box minus infinitely wide": (
        changed("annotations", 1, bbox=[1, 1, -math.inf, 5]), "boxes that are not finite",
    ),
    **{
        f"mask {mask}": (
            coco(annotations=[annotation(1), annotation(3), annotation(2, segmentation=mask)]),
            "annotations without a mask",
        )
        for mask in ([], None, {}, "")
    },
    **{
        f"polygon {numbers!r:.40}": (with_polygon(*numbers), "polygons with fewer than 3 points")
        for numbers in (
            [], [1, 1], [1, 1, 9, 1], [1, 1, 9, 1, 9], [1, 1, 9, 1, 9, 9, 1], [math.nan] * 6,
            [1, 1, math.nan, 1, 9, 9], [1, 1, math.inf, 1, 9, 9], [1, 1, -math.inf, 1, 9, 9],
        )
    },
    **{
        f"polygon {numbers!r:.40}": (with_polygon(*numbers), "polygons far beyond their image")
        for numbers in (
            [1, 1, 1e10, 1, 9, 9], [1, 1, 1e9, 1, 9, 9], [1e300] * 6, [HUGE] * 6,
            [1, 1, 9, -1e7, 9, 9], [1e4] * 6, ZIGZAG,
        )
    },
    **{
        f"runs {counts!r:.40}": (with_runs(counts), "run-length masks of another size")
        for counts in (
            [], [5], [AREA - 1], [AREA + 1], [AREA + 5, -5], [5, -5, AREA], [HUGE], [1, HUGE],
            [2**32 + AREA], TEXT[:-1], TEXT + TEXT, TEXT + "P", "0", "\x7f", "é", " ", TEXT + "\n",
            "P" * 50, "~" * 1000,
        )
    },
    "runs of another size": (with_runs(TEXT, (64, 48)), "run-length masks of another size"),
    "runs of three sides": (with_runs(TEXT, (48, 64, 1)), "run-length masks of another size"),
    "runs of a negative size": (with_runs([AREA], (-48, -64)), "run-length masks of another size"),
    "runs of a huge size": (with_runs([HUGE], (HUGE, 1)), "run-length masks of another size"),
}  # fmt: skip

ACCEPTED = {
    "crowd true": changed("annotations", 1, iscrowd=True),
    "crowd a float": changed("annotations", 1, iscrowd=1.0),
    "area of 400 digits": changed("annotations", 1, area=HUGE),
    "area a text": changed("annotations", 1, area="400"),
    "area not finite": changed("annotations", 1, area=math.nan),
    "annotation id 0": changed("annotations", 1, id=0),
    "annotation id negative": changed("annotations", 1, id=-5),
    "annotation id above 2^53": changed("annotations", 1, id=2**60 + 1),
    "image ids large": coco(
        images=[{"id": 2**62, "file_name": "a.png", "width": 64, "height": 48}],
        annotations=[annotation(1, image_id=2**62)],
    ),
    "image ids of lines": coco(
        images=[{"id": "a\nb", "file_name": "a.png", "width": 64, "height": 48}],
        annotations=[annotation(1, image_id="a\nb")],
    ),
    "category negative": coco(
        categories=[{"id": -1, "name": "fig"}], annotations=[annotation(1, category_id=-1)]
    ),
    "absent and annotated": lists(neg_category_ids=[9, 9, 12345]),
    "unknown fields": {**coco(), HALF: [HUGE], "licenses": HALF},
}


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


@pytest.mark.parametrize("data", [b"", b"x", gzip.compress(PLAIN)[:-9], gzip.compress(PLAIN)[:5]])
def test_a_broken_archive_is_told_in_one_line(save, data):
    path = save({}, "train.json.gz")
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert line_of(error).startswith(f"{path}: ")


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
