"""Masks of whole images: enlarged a few at a time, and the boxes around them."""

import pytest
import torch
from operation_count import count_operations
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from rs_d2.ops import masks as module
from rs_d2.ops.masks import boxes_of_masks, enlarge_masks


def test_boxes_reach_around_the_last_pixels():
    masks = torch.rand(20, 9, 13) < 0.03
    masks = torch.cat([masks[masks.flatten(1).any(1)], torch.ones(1, 9, 13, dtype=torch.bool)])
    expected = masks_to_boxes(masks) + torch.tensor([0.0, 0, 1, 1])
    assert torch.equal(boxes_of_masks(masks), expected)
    empty = torch.zeros(2, 9, 13, dtype=torch.bool)
    assert torch.equal(boxes_of_masks(empty), torch.zeros(2, 4))
    assert boxes_of_masks(empty[:0]).shape == (0, 4)


@pytest.mark.parametrize("size", [(30, 40), (45, 33), (7, 5)])
def test_masks_are_enlarged_without_the_padding(size, monkeypatch):
    probs = torch.rand(5, 8, 16)
    larger = F.interpolate(probs[None], scale_factor=4.0, mode="bilinear")[:, :, :30, :50]
    expected = F.interpolate(larger, size=size, mode="bilinear")[0] > 0.5
    assert torch.equal(enlarge_masks(probs, 4, (30, 50), size), expected)
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 1)  # one mask at a time
    assert torch.equal(enlarge_masks(probs, 4, (30, 50), size), expected)
    assert enlarge_masks(probs[:0], 4, (30, 50), size).shape == (0, *size)


def test_many_masks_need_the_memory_of_a_few(monkeypatch):
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 1 << 14)
    probs = torch.rand(100, 16, 16)
    work = count_operations(lambda: enlarge_masks(probs, 4, (64, 64), (128, 128)))
    assert work.largest_bytes == 100 * 128 * 128  # the result itself, a byte a pixel
