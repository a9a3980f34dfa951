"""What surrounds a graph is what Detectron2 does, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from rs_d2.config.load import find_config, load_config
from rs_d2.export import images
from rs_d2.prediction.predictor import InputMaker

ORIENTATION = 0x0112  # of EXIF


def input_maker(pixel_format, min_size=64, max_size=100):
    opts = f"INPUT.FORMAT {pixel_format} INPUT.MIN_SIZE_TEST {min_size}"
    config = find_config("COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml")
    cfg, _ = load_config(config, [*opts.split(), "INPUT.MAX_SIZE_TEST", str(max_size)])
    return InputMaker(cfg)


def colours(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(mode):
    rgb = Image.fromarray(colours(37, 53))
    if mode == "P":
        return rgb.quantize(16)
    if mode == "I;16":
        return Image.fromarray(colours(37, 53)[:, :, 0].astype(np.uint16) * 3)
    if mode.startswith("turned"):
        exif = Image.Exif()
        exif[ORIENTATION] = int(mode[-1])
        rgb.info["exif"] = exif.tobytes()
        return rgb
    return rgb.convert(mode)


@pytest.mark.parametrize("pixel_format", ["BGR", "RGB"])
@pytest.mark.parametrize(
    "mode", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16", "CMYK", "turned 3", "turned 6", "turned 7"]
)
def test_files_and_pictures_are_read_as_by_detectron2(mode, pixel_format, tmp_path):
    image, path = picture(mode), tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path, exif=image.info.get("exif", b"")) if "exif" in image.info else image.save(path)
    expected = input_maker(pixel_format).read(path)
    assert np.array_equal(images.read(path, pixel_format), expected)
    assert np.array_equal(images.read(Image.open(path), pixel_format), expected)
    assert expected.shape == ((53, 37, 3) if mode in ("turned 6", "turned 7") else (37, 53, 3))


@pytest.mark.parametrize("pixel_format", ["BGR", "RGB"])
def test_arrays_are_bgr(pixel_format):
    array = colours(5, 7)
    expected = input_maker(pixel_format).read(array)
    assert np.array_equal(images.read(array, pixel_format), expected)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 5)), np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\] in BGR, not (float64|uint8) \[4, 5"):
        images.read(array, "BGR")


@pytest.mark.parametrize("limits", [(64, 100), (64, 1000), (20, 45), (0, 100), (64, 64)])
@pytest.mark.parametrize("size", [(37, 53), (53, 37), (64, 64), (1, 90), (90, 2), (333, 501)])
def test_images_are_resized_as_in_a_test(size, limits):
    pixels = colours(*size)
    expected = input_maker("BGR", *limits)(pixels)["image"]
    found = images.resize(pixels, *limits)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())


def made_boxes(size):
    """Inside, across each side, beyond, thin, of the whole image, on whole pixels."""
    height, width = size
    boxes = torch.tensor(
        [
            [3.3, 4.7, 20.1, 18.8],
            [-5.0, -3.0, 8.5, 9.5],
            [width - 9.5, height - 7.5, width + 6, height + 4],
            [5.0, 6.0, 17.0, 21.0],
            [10.2, 3.0, 10.9, 20.0],
            [0.0, 0.0, width, height],
            [width + 5, 3.0, width + 9, 9.0],
        ]
    )
    return boxes


@pytest.mark.parametrize("size", [(31, 44), (50, 23)])
@pytest.mark.parametrize("side", [28, 14])
def test_masks_are_pasted_as_by_detectron2(side, size):
    coarse = torch.rand(7, 1, 4, 4)
    masks = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[:, 0].clamp(0, 1)
    boxes = made_boxes(size)
    found = images.paste_masks(masks, boxes, size)
    assert (found.dtype, found.shape) == (np.dtype(bool), (7, *size))
    assert not found[6].any()  # Detectron2 fails on a box beyond the image
    expected = paste_masks_in_image(masks[:6], boxes[:6], size, threshold=0.5).numpy()
    assert expected.any((1, 2)).sum() >= 5
    assert np.array_equal(found[:6], expected)


def test_no_boxes_have_no_masks():
    found = images.paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (31, 44))
    assert (found.shape, found.dtype) == ((0, 31, 44), bool)


@pytest.mark.parametrize("size", [(31, 44), (123, 77)])
def test_boxes_are_scaled_as_by_detectron2(size):
    instances = Instances((64, 80), pred_boxes=Boxes(made_boxes((64, 80))))
    expected = detector_postprocess(instances, *size).pred_boxes.tensor
    found = images.scale_boxes(made_boxes((64, 80)), (64, 80), size)
    full = (found[:, 2:] > found[:, :2]).all(1)
    assert full.tolist() == [True] * 6 + [False]
    assert torch.equal(found[full], expected)
