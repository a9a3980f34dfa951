"""Images that cannot be read, are of another size than stated, or extremely long."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

from rs_d2 import add_rs_config
from rs_d2.coco.rle import to_rle
from rs_d2.config.check import check_choices
from rs_d2.data.mapper import BadImage, ImageMapper
from rs_d2.prediction.predictor import InputMaker
from rs_d2.utils.errors import UserError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (48,), 48
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 96
    return cfg


def entry(path, width=64, height=48):
    box = {"bbox": [5.0, 5, 20, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    note = {**box, "segmentation": [[5.0, 5, 25, 5, 25, 15]], "iscrowd": 0}
    names = {"file_name": str(path), "image_id": path.stem, "width": width, "height": height}
    return {**names, "annotations": [note]}


@pytest.fixture
def files(tmp_path):
    """Dicts of a good image and of one for each way to be broken, by their names."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("good.png", "cut.png", "cut.jpg", "flipped.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    for name in ("cut.png", "cut.jpg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    data = bytearray((tmp_path / "flipped.png").read_bytes())
    data[41:45] = b"\0" * 4
    (tmp_path / "flipped.png").write_bytes(data)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    names = [path.name for path in tmp_path.iterdir()] + ["missing.png"]
    return {name: entry(tmp_path / name) for name in names}


BROKEN = ["cut.png", "cut.jpg", "flipped.png", "empty.png", "text.jpg", "folder.png", "small.png"]


def test_a_good_image_gives_what_detectron2_gives(cfg, files):
    cfg.INPUT.RANDOM_FLIP = "none"
    for is_train in (True, False):
        ours = ImageMapper(cfg, is_train)(files["good.png"])
        theirs = DatasetMapper(cfg, is_train)(files["good.png"])
        assert ours.keys() == theirs.keys()
        assert (ours["image"] == theirs["image"]).all()
    assert files["good.png"] == entry(Path(files["good.png"]["file_name"]))  # is not changed


@pytest.mark.parametrize("name", [*BROKEN, "missing.png"])
@pytest.mark.parametrize("is_train", [True, False])
def test_a_broken_image_is_named_in_one_line(cfg, files, name, is_train):
    cfg.DATALOADER.ON_BAD_IMAGE = "error"
    with pytest.raises(BadImage) as error:
        ImageMapper(cfg, is_train)(files[name])
    assert str(error.value).startswith(f"{files[name]['file_name']} cannot be read")
    assert len(str(error.value).splitlines()) == 1


def test_in_training_it_is_skipped_and_counted(cfg, files, caplog):
    mapper = ImageMapper(cfg, is_train=True, num_images=9)
    with caplog.at_level(logging.WARNING, logger="rs_d2"):
        assert [mapper(files[name]) for name in BROKEN] == [None] * len(BROKEN)
    assert mapper.skipped == len(BROKEN)
    ours = [each.getMessage() for each in caplog.records if each.name.startswith("rs_d2.")]
    assert ours[1].startswith(f"{files['cut.jpg']['file_name']} cannot be read (")
    assert ours[1].endswith("; skipped (2 so far)")


def test_an_evaluation_skips_nothing(cfg, files):
    assert cfg.DATALOADER.ON_BAD_IMAGE == "skip"
    with pytest.raises(BadImage):
        ImageMapper(cfg, is_train=False)(files["cut.png"])


def batches(cfg, dicts, num_workers, count):
    mapper = ImageMapper(cfg, is_train=True, num_images=len(dicts))
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = iter(build_detection_train_loader(cfg, mapper=mapper, dataset=dicts))
    return mapper, [next(loader)[0]["image_id"] for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_takes_another_image(cfg, files, num_workers):
    dicts = [files[name] for name in ("good.png", "cut.png")]
    mapper, ids = batches(cfg, dicts, num_workers, 6)
    assert ids == ["good"] * 6
    assert mapper.skipped >= 2  # of all processes


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("choice", "names"), [("error", ["cut.png"]), ("skip", BROKEN)])
def test_a_worker_names_what_ends_the_training(cfg, files, num_workers, choice, names):
    cfg.DATALOADER.ON_BAD_IMAGE = choice
    with pytest.raises(UserError) as error:
        batches(cfg, [files[name] for name in names], num_workers, 1)
    assert " cannot be read" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith(str(Path(files["good.png"]["file_name"]).parent))


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_run_lengths_and_polygons_go_together(cfg, files, mask_format):
    """Detectron2 refuses run lengths where its masks are polygons."""
    cfg.INPUT.MASK_FORMAT, cfg.MODEL.MASK_ON = mask_format, True
    mapper = ImageMapper(cfg, is_train=True)
    polygon = files["good.png"]["annotations"][0]
    runs = {**polygon, "segmentation": to_rle(polygon["segmentation"], 48, 64)}
    both = {**files["good.png"], "annotations": [polygon, runs]}
    masks = mapper(both)["instances"].gt_masks
    assert isinstance(masks, BitMasks)
    assert (masks.tensor[0] == masks.tensor[1]).all()
    plain = mapper(files["good.png"])["instances"].gt_masks
    assert isinstance(plain, PolygonMasks if mask_format == "polygon" else BitMasks)


def test_the_key_has_two_values(cfg):
    cfg.DATALOADER.ON_BAD_IMAGE = "ignore"
    with pytest.raises(UserError, match=r"DATALOADER.ON_BAD_IMAGE: 'ignore' is not one of skip, e"):
        check_choices(cfg)


@pytest.mark.parametrize("size", [(8000, 20), (20, 8000)])
def test_an_extreme_aspect_keeps_a_pixel(cfg, tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "long.png")
    for is_train in (True, False):
        image = ImageMapper(cfg, is_train)(entry(tmp_path / "long.png", *size))["image"]
        assert sorted(image.shape) == [1, 3, 96]


def test_16_bits_are_trained_on_in_8(cfg, tmp_path):
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = ImageMapper(cfg, is_train=True)(entry(tmp_path / "deep.png"))["image"]
    assert 120 < image.float().mean() < 135


def test_images_become_squares(cfg, files):
    cfg.INPUT.SQUARE, cfg.INPUT.RANDOM_FLIP = True, "none"
    cfg.INPUT.MASK_FORMAT, cfg.MODEL.MASK_ON = "bitmask", True
    made = ImageMapper(cfg, True)(files["good.png"])
    assert made["image"].shape == (3, 48, 48)
    assert made["instances"].image_size == (48, 48)
    torch.testing.assert_close(  # of 64 x 48 pixels, whose height stays
        made["instances"].gt_boxes.tensor, torch.tensor([[3.75, 5, 18.75, 15]])
    )
    assert made["instances"].gt_masks.tensor.shape == (1, 48, 48)
    assert ImageMapper(cfg, False)(files["good.png"])["image"].shape == (3, 48, 48)
    assert InputMaker(cfg).of_pixels(np.zeros((20, 90, 3), np.uint8))["image"].shape == (3, 48, 48)


@pytest.mark.parametrize(("least", "left"), [(0.0, 2), (4.0, 2), (4.1, 1), (11.0, 0)])
def test_objects_that_are_too_small_are_left_out(cfg, files, least, left):
    cfg.INPUT.MIN_OBJECT_SIZE = least
    image = files["good.png"]
    flat = {"bbox": [5.0, 5, 25, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    image["annotations"].append({**flat, "segmentation": [[5.0, 5, 25, 5, 25, 9]]})
    assert len(ImageMapper(cfg, True)(image)["instances"]) == left
    assert len(image["annotations"]) == 2
