"""Every reader of images sees the same pixels."""

import os

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from PIL import Image

from rs_d2 import add_rs_config
from rs_d2.coco.pixels import open_image, upright_size
from rs_d2.export.images import read
from rs_d2.prediction.predictor import InputMaker

VALUES = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)


def deep(path):
    Image.fromarray(VALUES).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_to_8_by_every_reader(tmp_path, name):
    path = deep(tmp_path / name)
    assert (read_image(str(path), "RGB") == 255).mean() > 0.9  # Detectron2's: nearly all white
    expected = np.round(VALUES / 257).astype(np.uint8)
    cfg = get_cfg()
    add_rs_config(cfg)
    for pixels in (
        np.asarray(open_image(path).convert("RGB")),
        np.asarray(open_image(Image.open(path)).convert("RGB")),
        read(path, "BGR"),
        InputMaker(cfg).read(path),
    ):
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels.astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_8_bits_are_read_as_detectron2_reads_them(tmp_path, mode, turn):
    path = saved(tmp_path / "a.png", mode, turn)
    expected = read_image(str(path), "RGB")
    assert np.array_equal(np.asarray(open_image(path).convert("RGB")), expected)
    assert upright_size(Image.open(path)) == expected.shape[1::-1]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_tiff_is_turned_once(tmp_path, mode, turn):
    """Pillow does it while decoding; Detectron2 turns it again."""
    path, plain = saved(tmp_path / "a.tif", mode, turn), saved(tmp_path / "b.tif", mode, 1)
    upright = np.rot90(read_image(str(plain), "RGB"), {1: 0, 3: 2, 6: -1}[turn])
    assert np.array_equal(np.asarray(open_image(path).convert("RGB")), upright)
    assert upright_size(Image.open(path)) == upright.shape[1::-1]


def saved(path, mode, turn):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).convert(mode).save(path, exif=exif)
    return path


@pytest.mark.parametrize("read", [open_image, lambda path: upright_size(Image.open(path))])
def test_broken_pixels_of_a_png_are_not_read_as_black(tmp_path, read):
    """Looking for EXIF decodes a PNG; an error there must not be lost."""
    Image.fromarray(np.full((48, 64, 3), 200, dtype=np.uint8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[41:45] = b"\0" * 4
    (tmp_path / "a.png").write_bytes(data)
    assert read_image(str(tmp_path / "a.png"), "RGB").max() == 0  # Detectron2's
    with pytest.raises(OSError, match="broken data stream"):
        read(tmp_path / "a.png")


def test_a_program_is_no_image(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")  # Pillow looks at the content
    with pytest.raises(OSError, match="a program"):
        open_image(tmp_path / "a.png")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="not a regular file"):
        open_image(tmp_path / "a.png")
