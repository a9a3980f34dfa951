"""Anchor sizes that follow the strides: the original's to the last bit, and a user's own first."""

import numpy as np
import pytest
import torch
from conftest import REPO
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import build_anchor_generator

from rs_d2 import add_rs_config
from rs_d2.utils.errors import UserError

STRIDES = (8, 16, 32, 64, 128)


def config(path):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / path))
    return cfg


def cell_anchors(cfg, strides=STRIDES):
    """The anchors of one cell of each level, [a, 4] each."""
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=stride) for stride in strides])
    return list(generator.cell_anchors)


@pytest.mark.parametrize(
    ("path", "base", "num_scales", "strides"),
    [
        ("COCO-Detection/rs_atss_R_50_FPN_1x.yaml", 4, 3, STRIDES),
        ("COCO-Detection/rs_paa_R_50_FPN_1x.yaml", 4, 3, STRIDES),
        ("COCO-Detection/atss_R_50_FPN_1x.yaml", 8, 1, STRIDES),
        ("COCO-Detection/paa_R_50_FPN_1x.yaml", 8, 1, STRIDES),
        ("quick/rs_atss_digits.yaml", 4, 3, STRIDES[:3]),
        ("quick/rs_paa_digits.yaml", 4, 3, STRIDES[:3]),
        ("quick/atss_digits.yaml", 4, 1, STRIDES[:3]),
    ],
)
def test_the_anchors_are_the_originals_to_the_last_bit(path, base, num_scales, strides):
    """The original rounds the scales to float32 and multiplies them by the stride."""
    scales = torch.tensor(np.array([2 ** (q / num_scales) for q in range(num_scales)]) * base)
    half = scales.float()[:, None] * 0.5 * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    for anchors, stride in zip(cell_anchors(config(path), strides), strides, strict=True):
        assert torch.equal(anchors, half * stride)


def test_sizes_of_a_config_count_before_octaves():
    cfg = config("COCO-Detection/rs_atss_R_50_FPN_1x.yaml")
    sizes = [[10.0 + stride, 20.5 + stride] for stride in STRIDES]
    cfg.merge_from_list(["MODEL.ANCHOR_GENERATOR.SIZES", str(sizes)])
    octaves = cell_anchors(cfg)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    assert all(torch.equal(a, b) for a, b in zip(octaves, cell_anchors(cfg), strict=True))
    assert octaves[0].tolist() == [[-9.0, -9.0, 9.0, 9.0], [-14.25, -14.25, 14.25, 14.25]]


def test_a_checkpoint_holds_no_anchors():
    cfg = config("quick/rs_atss_digits.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert [name for name in model.state_dict() if "anchor" in name] == []
    assert [name for name, _ in model.named_buffers() if "anchor" in name] != []


@pytest.mark.parametrize(("key", "value"), [("OCTAVE_BASE_SCALE", 0.0), ("SCALES_PER_OCTAVE", 0)])
def test_octaves_without_anchors_are_named(key, value):
    cfg = config("quick/rs_atss_digits.yaml")
    cfg.MODEL.ANCHOR_GENERATOR[key] = value
    with pytest.raises(UserError, match=f"^MODEL.ANCHOR_GENERATOR.{key}: {value} is not positive"):
        cell_anchors(cfg, STRIDES[:3])


def test_yolacts_anchors_span_an_image_of_550_pixels():
    cfg = config("COCO-InstanceSegmentation/rs_yolact_R_50_FPN_55e.yaml")
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=stride) for stride in STRIDES])
    cells = (69, 35, 18, 9, 5)
    features = [torch.zeros(1, 1, count, count) for count in cells]
    levels = [level.tensor for level in generator.spanning(features, (550, 550))]
    assert [len(level) for level in levels] == [3 * count**2 for count in cells]
    for level, count, stride in zip(levels, cells, STRIDES, strict=True):
        centers = ((level[:, :2] + level[:, 2:]) / 2).view(count, count, 3, 2)
        x = (torch.arange(count) + 0.5) * 550 / count
        torch.testing.assert_close(centers[0, :, 0, 0], x, atol=1e-4, rtol=0)
        torch.testing.assert_close(centers[:, 0, 2, 1], x, atol=1e-4, rtol=0)
        width, height = (level[:3, 2:] - level[:3, :2]).unbind(1)
        torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]))
        torch.testing.assert_close((height * width).sqrt(), torch.full((3,), 3.0 * stride))
