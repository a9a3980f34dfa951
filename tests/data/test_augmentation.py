"""SSD's augmentation: image, boxes, polygons, run lengths and keypoints stay together."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.structures import BoxMode
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image

from rs_d2 import add_rs_config
from rs_d2.coco.rle import to_rle
from rs_d2.config.check import check_config
from rs_d2.data import augmentation
from rs_d2.data.augmentation import (
    ExpandAndCrop,
    PhotometricDistortion,
    WindowTransform,
    shift_colours,
)
from rs_d2.data.mapper import ImageMapper
from rs_d2.utils.errors import UserError
from rs_d2.utils.random_state import seeded

HEIGHT, WIDTH = 24, 32
L_SHAPE = [4, 4, 20, 4, 20, 10, 12, 10, 12, 18, 4, 18]
FILL = (10, 20, 30)


def note(polygon, **fields):
    """An annotation of a polygon."""
    x, y = polygon[::2], polygon[1::2]
    box = [float(v) for v in (min(x), min(y), max(x), max(y))]
    fields = {"segmentation": [[float(v) for v in polygon]], **fields}
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0, **fields}


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def painted(polygon, height=HEIGHT, width=WIDTH):
    """A white shape on black, [H, W, 3]."""
    mask = polygons_to_bitmask([np.array(polygon, dtype=float)], height, width)
    return np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)


def after(transform, annotation):
    return transform_instance_annotations(annotation, T.TransformList([transform]), (48, 48))


@pytest.mark.parametrize(
    "window",
    [(2, 1, 24, 24), (0, 0, 48, 24), (-8, -20, 48, 48), (14, 6, 24, 24), (-10, -30, 96, 96)],
    ids=["enlarged", "another aspect", "beyond all sides", "cut by two sides", "half the size"],
)
def test_all_that_describes_an_object_is_transformed_as_its_pixels(window):
    transform = WindowTransform(window, 48, (0, 0, 0))
    seen = transform.apply_image(painted(L_SHAPE))[..., 0] > 127
    assert seen.any()
    polygons = after(transform, note(L_SHAPE))
    runs = after(transform, note(L_SHAPE, segmentation=to_rle([L_SHAPE], HEIGHT, WIDTH)))
    assert (polygons_to_bitmask(polygons["segmentation"], 48, 48) == seen).all()
    assert (runs["segmentation"] == seen).all()
    box = transform.apply_segmentation(painted([4, 4, 20, 4, 20, 18, 4, 18])[..., 0])
    rows, columns = np.nonzero(box.any(1))[0], np.nonzero(box.any(0))[0]
    corners = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert polygons["bbox"].tolist() == pytest.approx(corners)


@pytest.mark.parametrize("window", [(3, 2, 23, 17), (-31, -7, 101, 73), (-1, -3, 34, 90)])
def test_broken_scales_shift_nothing(window):
    """The centre of a soft blob, so that the fraction of a pixel is seen."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    blob = 255 * np.exp(-((x - 15.3) ** 2 + (y - 11.7) ** 2) / 12)
    blob = np.repeat(blob.round().astype(np.uint8)[..., None], 3, axis=2)
    transform = WindowTransform(window, 64, (0, 0, 0))
    seen = transform.apply_image(blob)[..., 0].astype(float)
    y, x = np.mgrid[:64, :64] + 0.5
    center = np.array([(x * seen).sum(), (y * seen).sum()]) / seen.sum()
    (expected,) = transform.apply_coords(np.array([[15.3, 11.7]]))
    assert center == pytest.approx(expected, abs=0.1)


def test_a_canvas_has_the_mean_in_images_and_nothing_in_masks():
    image = np.full((4, 6, 3), 200, dtype=np.uint8)
    transform = WindowTransform((-2, -3, 12, 12), 24, FILL)
    inside = np.zeros((24, 24), dtype=bool)
    inside[6:14, 4:16] = True
    square_ = transform.apply_image(image)
    assert (square_[inside] == 200).all()
    assert (square_[~inside] == FILL).all()
    assert (transform.apply_segmentation(image[..., 0]) == 200 * inside).all()


def test_polygons_beyond_the_window_are_left_out():
    transform = WindowTransform((8, 8, 8, 8), 16, FILL)
    kept = transform.apply_polygons([np.array(square(x, 9, 4)).reshape(4, 2) for x in (2, 6, 16)])
    assert [each.tolist() for each in kept] == [[[-4, 2], [4, 2], [4, 10], [-4, 10]]]


BOXES = np.array([[2.0, 3, 12, 20], [15, 1, 30, 10], [20, 15, 26, 22]])


def windows(count):
    augment, image = ExpandAndCrop(16, FILL), np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    with seeded(1):
        return np.array([augment.get_transform(image, BOXES).window for _ in range(count)])


def test_a_canvas_has_one_to_four_times_the_sides_and_the_image_lies_in_it(monkeypatch):
    monkeypatch.setattr(augmentation, "_LEAST_IOUS", (1.0,))  # no crop
    found = windows(600)
    larger = found[(found != (0, 0, WIDTH, HEIGHT)).any(1)]
    assert 0.42 < len(larger) / len(found) < 0.55  # one half; a few have a ratio of 1
    ratio = larger[:, 2:] / (WIDTH, HEIGHT)
    assert 1 <= ratio.min() < 1.1
    assert 3.8 < ratio.max() <= 4
    assert np.abs(ratio[:, 0] - ratio[:, 1]).max() < 1 / HEIGHT
    assert (larger[:, :2] <= 0).all()
    assert (larger[:, :2] + larger[:, 2:] >= (WIDTH, HEIGHT)).all()


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_a_crop_overlaps_every_object_and_has_the_centre_of_one(monkeypatch, least):
    monkeypatch.setattr(augmentation, "_LEAST_IOUS", (least, 1.0))
    monkeypatch.setattr(augmentation, "_LARGEST_CANVAS", 1.0)
    found = windows(300)
    found = found[(found != (0, 0, WIDTH, HEIGHT)).any(1)]
    assert len(found) > 60
    low, high = found[:, None, :2], found[:, None, :2] + found[:, None, 2:]
    shared = (np.minimum(high, BOXES[:, 2:]) - np.maximum(low, BOXES[:, :2])).clip(0).prod(2)
    areas = (BOXES[:, 2:] - BOXES[:, :2]).prod(1) + found[:, None, 2:].prod(2)
    assert (shared / (areas - shared)).min() >= least
    centers = (BOXES[:, :2] + BOXES[:, 2:]) / 2
    assert ((low < centers) & (centers < high)).all(2).any(1).all()
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= (WIDTH, HEIGHT)).all()
    aspect = found[:, 2] / found[:, 3]
    assert 0.4 < aspect.min() < 1 < aspect.max() < 2.3  # 0.5 to 2 before they become whole


def test_red_turns_green_and_grey_stays_grey():
    red = np.array([[[200, 0, 0]]], dtype=np.uint8)
    assert np.abs(shift_colours(red, 120, 1).astype(int) - [0, 200, 0]).max() <= 5
    assert np.abs(shift_colours(red, 0, 0.5).astype(int) - [200, 100, 100]).max() <= 1
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert (shift_colours(grey, 18, 1.5) == grey).all()


def test_distortion_moves_nothing_and_stays_within_its_bounds():
    image = np.full((2, 2, 3), 100, dtype=np.uint8)  # grey: brightness and contrast alone
    with seeded(2):
        found = [PhotometricDistortion().get_transform(image) for _ in range(400)]
    values = np.array([each.apply_image(image)[0, 0, 0] for each in found])
    assert 0.19 < (values == 100).mean() < 0.31  # a quarter has neither
    assert 34 <= values.min() < 45
    assert 170 < values.max() <= 198
    assert (found[0].apply_coords(BOXES.copy()) == BOXES).all()
    colours = np.array([[[250, 120, 10]]], dtype=np.uint8)
    first = {int(each.apply_image(colours)[0, 0].argmax()) for each in found}
    assert first == {0, 1, 2}  # the order of the channels


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.INPUT.AUGMENTATION = "ssd"
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    return cfg


def entry(folder, notes, size=(WIDTH, HEIGHT)):
    """The dict of an image of noise."""
    path = folder / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    width, height = size
    names = {"file_name": str(path), "image_id": 1, "width": width, "height": height}
    return {**names, "annotations": notes}


def mapped(mapper, entry, seed):
    with seeded(seed):
        return mapper(entry)


def test_objects_stay_as_long_as_their_centre_does(tmp_path):
    augment = ExpandAndCrop(32, FILL)
    mapper = ImageMapper(
        is_train=True, augmentations=[augment], image_format="RGB", needs_center=True
    )
    notes = [
        note(square(*box[:2], 1), bbox=box.tolist(), category_id=i) for i, box in enumerate(BOXES)
    ]
    crowd = note(square(0, 0, 20), iscrowd=1, category_id=9)
    image = entry(tmp_path, [*notes, crowd])
    centers, seen = (BOXES[:, :2] + BOXES[:, 2:]) / 2, set()
    for seed in range(60):
        with seeded(seed):
            x, y, width, height = augment.get_transform(np.zeros((HEIGHT, WIDTH, 3)), BOXES).window
        inside = ((centers > (x, y)) & (centers < (x + width, y + height))).all(1)
        instances = mapped(mapper, image, seed)["instances"]
        assert instances.gt_classes.tolist() == np.nonzero(inside)[0].tolist()
        assert instances.gt_boxes.tensor.min() >= 0
        assert instances.gt_boxes.tensor.max() <= 32
        seen.add(len(instances))
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_the_mapper_gives_squares_with_masks_the_same_for_the_same_seed(cfg, tmp_path, mask_format):
    cfg.INPUT.MASK_FORMAT = mask_format
    check_config(cfg)
    mapper, image = ImageMapper(cfg), entry(tmp_path, [note(L_SHAPE)])
    for seed in range(8):
        first, second = (mapped(mapper, image, seed) for _ in range(2))
        assert first["image"].shape == (3, 32, 32)
        assert first["image"].dtype == torch.uint8
        assert torch.equal(first["image"], second["image"])
        assert (
            first["instances"].gt_boxes.tensor.tolist()
            == second["instances"].gt_boxes.tensor.tolist()
        )
        assert len(first["instances"].gt_masks) == len(first["instances"])
    others = [mapped(mapper, image, seed)["image"] for seed in range(8)]
    assert not any(torch.equal(others[0], other) for other in others[1:])


def test_evaluation_is_not_augmented(cfg, tmp_path):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 96
    image = ImageMapper(cfg, is_train=False)(entry(tmp_path, []))["image"]
    assert image.shape == (3, 48, 64)


@pytest.mark.parametrize("size", [(32, 24), (1, 1), (1, 200), (300, 2)])
@pytest.mark.parametrize("with_object", [True, False])
def test_images_without_objects_or_of_a_pixel_pass(cfg, tmp_path, size, with_object):
    width, height = size
    notes = [note([0, 0, width, 0, width, height, 0, height])] if with_object else []
    mapper, image = ImageMapper(cfg), entry(tmp_path, notes, size)
    for seed in range(10):
        output = mapped(mapper, image, seed)
        assert output["image"].shape == (3, 32, 32)
        assert len(output["instances"]) <= len(notes)


def test_small_objects_are_left_out_in_the_pixels_of_the_file(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(augmentation, "_LARGEST_CANVAS", 1.0)
    monkeypatch.setattr(augmentation, "_LEAST_IOUS", (1.0,))
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)  # 1.5 times the width, twice the height
    notes = [note(square(3, 3, side), category_id=side) for side in (2, 3, 4)]
    for size, expected in ((0.0, [2, 3, 4]), (3.0, [3, 4]), (3.5, [4])):
        cfg.INPUT.MIN_OBJECT_SIZE = size
        instances = ImageMapper(cfg)(entry(tmp_path, notes))["instances"]
        assert instances.gt_classes.tolist() == expected


def test_keypoints_move_with_the_image(cfg, tmp_path):
    DatasetCatalog.register("augmented", list)
    MetadataCatalog.get("augmented").set(keypoint_names=["a", "b"], keypoint_flip_map=[])
    try:
        cfg.DATASETS.TRAIN, cfg.MODEL.KEYPOINT_ON, cfg.MODEL.MASK_ON = ("augmented",), True, False
        mapper = ImageMapper(cfg)
        box = note(square(8, 8, 6), keypoints=[8.0, 8, 2, 14.0, 14, 2])  # two corners of its box
        for seed in range(12):
            instances = mapped(mapper, entry(tmp_path, [box]), seed)["instances"]
            points = instances.gt_keypoints.tensor[0]
            for point in points[points[:, 2] > 0]:
                corner = instances.gt_boxes.tensor[0].reshape(2, 2)
                assert (point[:2] - corner).abs().min(0).values.max() < 1e-4
    finally:
        DatasetCatalog.remove("augmented")
        MetadataCatalog.remove("augmented")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["INPUT.MIN_SIZE_TRAIN", (32, 48)], "INPUT.MIN_SIZE_TRAIN: INPUT.AUGMENTATION ssd needs"),
        (["INPUT.MIN_SIZE_TRAIN", (0,)], "INPUT.MIN_SIZE_TRAIN: INPUT.AUGMENTATION ssd needs"),
        (["INPUT.FORMAT", "L"], "INPUT.FORMAT: INPUT.AUGMENTATION ssd does not know L"),
        (["INPUT.CROP.ENABLED", True], "INPUT.CROP.ENABLED: INPUT.AUGMENTATION ssd has a crop"),
        (["INPUT.MIN_OBJECT_SIZE", -1.0], "INPUT.MIN_OBJECT_SIZE: -1.0 is not at least 0"),
    ],
)
def test_what_cannot_be_augmented_is_one_line(cfg, options, line):
    cfg.merge_from_list(options)
    with pytest.raises(UserError, match=f"^{line}"):
        check_config(cfg)
