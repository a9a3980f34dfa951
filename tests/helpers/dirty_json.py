"""Hundreds of dirty COCO and LVIS contents, and what is to be said about each."""

import math

import numpy as np
from helpers.annotation_files import annotation, changed, coco, lvis

from rs_d2.coco.rle import encode_mask

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
