"""What is painted on an image, and that nothing else is."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances
from PIL import Image

from rs_d2.drawing.painter import MaskPart, class_color, paint, paint_instances

SIDE = 420
NAMES = ["one", "two", "a name that is far too long to be written within so small an image"]


def made(boxes, scores, classes=None, masks=None, side=SIDE):
    instances = Instances((side, side))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes or [0] * len(scores), dtype=torch.long)
    if masks is not None:
        instances.pred_masks = masks
    return instances


def grey(side=SIDE):
    return np.full((side, side, 3), 128, np.uint8)


def test_without_detections_the_image_is_left():
    image = grey()
    assert np.array_equal(paint_instances(image, made([], []), NAMES), image)


def test_the_image_itself_is_not_painted_on():
    image = grey()
    image.setflags(write=False)
    paint_instances(image, made([[50, 50, 100, 100]], [0.9]), NAMES)
    assert (image == 128).all()


def test_a_box_has_the_colour_of_its_class():
    picture = paint_instances(grey(), made([[50, 60, 150, 160]], [0.9], [1]), NAMES)
    assert tuple(picture[110, 50]) == tuple(picture[160, 100]) == class_color(1)
    assert (picture[100:120, 70:120] == 128).all()


def test_a_mask_is_translucent_with_a_whole_outline():
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    masks[0, 70:120, 70:120] = True
    picture = paint_instances(grey(), made([[50, 60, 150, 160]], [0.9], [0], masks), NAMES)
    expected = 0.55 * 128 + 0.45 * np.array(class_color(0))
    assert np.abs(picture[90, 90] - expected).max() <= 1
    assert tuple(picture[70, 90]) == class_color(0)
    assert (picture[125:150, 125:140] == 128).all()


def test_a_mask_may_reach_the_border():
    masks = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    box = [[0, 0, SIDE, SIDE]]
    picture = paint_instances(grey(), made(box, [0.9], [0], masks), NAMES)
    assert (picture != 128).any(-1).all()


def test_the_best_scored_label_is_on_top():
    boxes = [[100, 100, 200, 200], [100, 100, 200, 200]]
    both = paint_instances(grey(), made(boxes, [0.9, 0.2], [0, 1]), NAMES)
    turned = paint_instances(grey(), made(boxes[::-1], [0.2, 0.9], [1, 0]), NAMES)
    alone = paint_instances(grey(), made(boxes[:1], [0.9], [0]), NAMES)
    assert np.array_equal(both, turned)
    assert np.array_equal(both[102:], alone[102:])


@pytest.mark.parametrize("box", [[0, 0, 30, 30], [400, 2, 420, 420], [-9, -9, 500, 500]])
@pytest.mark.parametrize("label", range(3))
def test_labels_stay_inside_the_image(box, label):
    picture = paint_instances(grey(), made([box], [0.5], [label]), NAMES)
    assert picture.shape == (SIDE, SIDE, 3)
    assert (picture == class_color(label)).all(-1).sum() > 300  # its background


def test_small_images_grow_and_large_ones_do_not():
    for side, expected in ((64, 384), (200, 400), (201, 201), (900, 900)):
        masks = torch.zeros(1, side, side, dtype=torch.bool)
        masks[0, side // 2 :, side // 2 :] = True
        box = [[side // 2, side // 2, side, side]]
        picture = paint_instances(grey(side), made(box, [0.9], [0], masks, side), NAMES)
        assert picture.shape == (expected, expected, 3)
        assert (picture[3 * expected // 4 - 20, 3 * expected // 4] != 128).any()


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 250), (16, 4000)), ((250, 1), (4000, 16)), ((1, 5000), (1, 5000))]
)
def test_strips_grow_no_further_than_can_be_encoded(size, expected):
    image = np.full((*size, 3), 128, np.uint8)
    found = made([[0, 0, size[1], size[0]]], [0.9], [0], torch.ones(1, *size, dtype=torch.bool))
    picture = paint_instances(image, found, NAMES)
    assert picture.shape == (*expected, 3)
    assert (picture != 128).any()


def test_later_objects_lie_on_earlier_ones_and_some_have_a_mask():
    picture = Image.fromarray(grey())
    boxes = np.array([[100, 100, 200, 200], [150, 150, 250, 250]], dtype=float)
    mask = MaskPart(np.ones((20, 30), dtype=bool), left=300, top=310)  # wherever it is
    red, blue = (255, 0, 0), (0, 0, 255)
    paint(picture, boxes, [red, blue], [("a",), ("b",)], [None, mask])
    pixels = np.asarray(picture)
    assert tuple(pixels[200, 150]) == blue
    assert tuple(pixels[200, 140]) == red
    covered = (pixels[300:340, 290:340] != 128).any(-1)
    assert covered[10:30, 10:40].all()
    assert covered.sum() == 600


def test_names_are_written_in_one_line_whatever_is_in_them():
    found = made([[50, 60, 150, 160]], [0.9])
    one, other = (paint_instances(grey(), found, [n]) for n in ("two\nlines\x00", "two lines "))
    assert np.array_equal(one, other)
    for name in ("$\\frac{", "\u7f8a \U0001f411", ""):
        assert (paint_instances(grey(), found, [name]) != 128).any()


def test_neighbouring_classes_look_different():
    colors = np.array([class_color(i) for i in range(60)], dtype=int)
    distance = np.abs(colors[:, None] - colors[None]).sum(-1)
    near = [distance[i, j] for i in range(60) for j in range(i + 1, min(i + 5, 60))]
    assert min(near) > 100
    assert len({tuple(color) for color in colors}) == 60
