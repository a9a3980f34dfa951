"""Single annotations that nobody can use are left out and counted."""

import math

import numpy as np
from helpers.annotation_files import SQUARE, annotation, changed, coco

from rs_d2.coco.reading import read_annotations
from rs_d2.coco.rle import encode_mask

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
    assert not any(a["segmentation"] for a in file.annotations)
    assert file.left_out == "masks in a file that mostly has none (1, first: annotation 4)"


def test_run_lengths_must_cover_the_image_however_they_are_written(save):
    area = 48 * 64
    good = [{"size": [48, 64], "counts": counts} for counts in ([5, area - 5], encoded(48, 64))]
    bad = [
        {"size": [48, 64], "counts": [area + 5, -5]},
        {"size": [48, 64], "counts": encoded(48, 63)},
        {"size": [64, 48], "counts": encoded(64, 48)},
    ]
    masks = [annotation(i, segmentation=mask) for i, mask in enumerate(good + bad, 1)]
    file = read_annotations(save(coco(annotations=masks)))
    assert [a["id"] for a in file.annotations] == [1, 2]
    kind = "run-length masks of another size than their image"
    assert file.left_out == f"{kind} (3, first: annotation 3)"


def encoded(height, width):
    return encode_mask(np.eye(height, width, dtype=bool))["counts"]
