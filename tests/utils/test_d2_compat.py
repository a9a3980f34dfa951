"""What works the same for every Detectron2, on machines with and without a GPU."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from rs_d2.utils import d2_compat, folders
from rs_d2.utils.errors import UserError


def test_one_process_needs_no_wrapper():
    model = nn.Linear(1, 1)
    assert d2_compat.create_ddp_model(model) is model


def test_scalar_is_logged_inside_a_training_loop_only():
    from detectron2.utils.events import EventStorage

    d2_compat.put_scalar("area/name", 1.0)
    with EventStorage() as storage:
        d2_compat.put_scalar("area/name", 2.0)
    assert storage.latest()["area/name"][0] == 2.0


def test_lvis_finds_its_numpy_names():
    d2_compat.patch_numpy_for_lvis()
    d2_compat.patch_numpy_for_lvis()
    assert np.zeros(1, dtype=np.float).dtype == np.float64
    assert np.int is int


def test_pillow_has_the_old_name():
    from PIL import Image

    d2_compat.patch_pillow()
    assert Image.LINEAR == Image.BILINEAR


def test_compiled_means_that_rotated_boxes_work():
    from detectron2.structures import RotatedBoxes, pairwise_iou_rotated

    boxes = RotatedBoxes(torch.tensor([[5.0, 5.0, 4.0, 4.0, 30.0]]))
    if d2_compat.is_compiled():
        torch.testing.assert_close(pairwise_iou_rotated(boxes, boxes), torch.ones(1, 1))
    else:
        with pytest.raises(AttributeError, match="needs a compiled Detectron2"):
            pairwise_iou_rotated(boxes, boxes)


def test_deformable_convolutions_train_on_the_cpu():
    from detectron2.layers import ModulatedDeformConv

    if d2_compat.is_compiled():
        pytest.skip("upstream's own operators need a GPU")
    layer = ModulatedDeformConv(4, 6, 3, padding=1, deformable_groups=2)
    image = torch.randn(2, 4, 5, 5, requires_grad=True)
    offsets = torch.zeros(2, 2 * 2 * 9, 5, 5, requires_grad=True)
    result = layer(image, offsets, torch.ones(2, 2 * 9, 5, 5))
    torch.testing.assert_close(
        result, nn.functional.conv2d(image, layer.weight, layer.bias, padding=1)
    )
    result.square().sum().backward()
    assert all(t.grad.abs().sum() > 0 for t in (image, offsets, layer.weight))


def test_config_folder_has_the_flagship():
    assert (folders.config_dir() / "rs_mask_rcnn_lvis.yaml").is_file()


def test_missing_detectron2_is_one_line_with_the_cure(monkeypatch):
    d2_compat.require_detectron2()
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ImportError, match=r"^Detectron2 is not installed: run `make env`.*README"):
        d2_compat.require_detectron2()
    with pytest.raises(UserError):
        d2_compat.require_detectron2()


def test_unusable_detectron2_is_one_line_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2.layers", None)
    with pytest.raises(UserError, match=r"cannot be used here \(.*detectron2\.layers.*make env"):
        d2_compat.require_detectron2()
