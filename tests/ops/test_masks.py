"""Masks of whole images on a grid: sums of prototypes, boxes, pixels and back."""

from functools import partial

import pytest
import torch
from operation_count import count_operations
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from rs_d2.ops.masks import (
    assemble,
    boxes_of_masks,
    inside_boxes,
    shrink_masks,
    to_grid,
    to_pixels,
)


def test_a_mask_is_the_sum_of_its_prototypes():
    coefficients, prototypes = torch.randn(3, 4), torch.randn(4, 5, 6)
    expected = [sum(row[m] * prototypes[m] for m in range(len(prototypes))) for row in coefficients]
    torch.testing.assert_close(assemble(coefficients, prototypes), torch.stack(expected))
    assert assemble(coefficients[:0], prototypes).shape == (0, 5, 6)


def test_a_box_holds_its_cells_and_one_more_on_every_side():
    boxes = torch.tensor([[8.0, 4, 15.9, 12], [0, 0, 40, 24], [39, 23, 40, 24]])
    inside = inside_boxes(boxes, (24, 40), (6, 10))  # cells of 4 pixels
    cells = inside[0].nonzero()
    assert (cells.amin(0).tolist(), cells.amax(0).tolist()) == ([0, 1], [3, 4])
    assert inside[1].all()
    assert inside[2].nonzero().tolist() == [[5, 9]]  # from 5.75 - 1 and 9.75 - 1 on
    assert inside_boxes(boxes[:0], (24, 40), (6, 10)).shape == (0, 6, 10)


def test_masks_on_a_grid_are_resized_and_cut_at_one_half():
    masks = torch.rand(3, 20, 30) > 0.5
    resized = F.interpolate(masks[None].float(), (10, 15), mode="bilinear", align_corners=False)
    assert torch.equal(to_grid(masks, (20, 30), (10, 15)), resized[0] > 0.5)
    assert to_grid(masks[:0], (20, 30), (10, 15)).shape == (0, 10, 15)


def test_a_smaller_image_lies_in_the_corner_of_the_grid():
    on_grid = to_grid(torch.ones(1, 12, 20, dtype=torch.bool), (20, 40), (5, 10))
    expected = torch.zeros(5, 10, dtype=torch.bool)
    expected[:3, :5] = True  # cells of 4 pixels
    assert torch.equal(on_grid[0], expected)


@pytest.mark.parametrize("size", [(16, 24), (15, 22), (13, 25), (1, 2)])
def test_shrunk_masks_are_interpolated_with_empty_borders(size):
    masks = torch.rand(5, *size) < 0.5
    padded = F.pad(masks, (0, 28 - size[1], 0, 16 - size[0]))
    means = F.interpolate(padded[None].float(), scale_factor=0.25, mode="bilinear")[0]
    assert torch.equal(shrink_masks(masks, (4, 7)), means >= 0.5)
    assert shrink_masks(masks[:0], (4, 7)).shape == (0, 4, 7)


@pytest.mark.parametrize("size", [(40, 60), (33, 100), (7, 5)])
def test_pixels_are_bilinear_and_above_one_half(size):
    probabilities = torch.rand(4, 10, 15)
    expected = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)[0]
    found = to_pixels(probabilities, (20, 30), (20, 30), size)
    assert torch.equal(found, expected > 0.5)
    flat = torch.full((1, 10, 15), 0.5)  # where all prototypes are 0 there is no mask
    assert not to_pixels(flat, (20, 30), (20, 30), size).any()


@pytest.mark.parametrize("size", [(30, 40), (45, 33), (7, 5)])
def test_pixels_by_way_of_the_extent_are_interpolated_twice(size):
    probabilities = torch.rand(5, 8, 16)
    larger = F.interpolate(probabilities[None], (32, 64), mode="bilinear")[:, :, :30, :50]
    expected = F.interpolate(larger, size, mode="bilinear")[0] > 0.5
    found = to_pixels(probabilities, (32, 64), (30, 50), size, via_extent=True)
    assert torch.equal(found, expected)


def test_pixels_of_a_padded_image_are_those_of_its_share_of_the_grid():
    probabilities = torch.zeros(1, 10, 10)
    probabilities[0, :5, :5] = 1.0  # the image's part
    found = to_pixels(probabilities, (40, 40), (20, 20), (60, 60))
    assert found.shape == (1, 60, 60)
    assert found[0, :57, :57].all()


def test_nothing_to_resize():
    assert to_pixels(torch.zeros(0, 4, 4), (8, 8), (8, 8), (16, 12)).shape == (0, 16, 12)
    assert to_pixels(torch.zeros(2, 4, 4), (8, 8), (8, 8), (0, 12)).shape == (2, 0, 12)


def test_many_masks_are_resized_in_parts(monkeypatch):
    monkeypatch.setattr("rs_d2.ops.masks._PIXELS_AT_ONCE", 50 * 50)
    probabilities, masks = torch.rand(5, 8, 8), torch.rand(5, 50, 50) > 0.5

    def resized():
        to = partial(to_pixels, probabilities, (8, 8), (8, 8), (50, 50))
        return to(), to(via_extent=True), to_grid(masks, (50, 50), (8, 8))

    parts = resized()
    monkeypatch.undo()
    whole = resized()
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_many_masks_need_the_memory_of_a_few(monkeypatch):
    monkeypatch.setattr("rs_d2.ops.masks._PIXELS_AT_ONCE", 1 << 14)
    probabilities = torch.rand(100, 16, 16)
    for way in (True, False):
        resize = partial(to_pixels, probabilities, (64, 64), (60, 64), (120, 128), via_extent=way)
        assert count_operations(resize).largest_bytes == 100 * 120 * 128  # the result, bytes


def test_boxes_reach_around_the_last_pixels():
    masks = torch.rand(20, 9, 13) < 0.03
    masks = torch.cat([masks[masks.flatten(1).any(1)], torch.ones(1, 9, 13, dtype=torch.bool)])
    expected = masks_to_boxes(masks) + torch.tensor([0.0, 0, 1, 1])
    assert torch.equal(boxes_of_masks(masks), expected)
    empty = torch.zeros(2, 9, 13, dtype=torch.bool)
    assert torch.equal(boxes_of_masks(empty), torch.zeros(2, 4))
    assert boxes_of_masks(empty[:0]).shape == (0, 4)
