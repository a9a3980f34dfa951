"""Functions of boxes."""

import pytest
import torch

from rs_d2.ops.boxes import cells_within, centerness, centers_beyond


def grid_boxes(rows, columns, stride):
    ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    center = torch.stack([xs, ys, xs, ys], dim=-1).reshape(-1, 4).float() * stride
    return center + torch.tensor([-5.0, -5, 5, 5])


@pytest.mark.parametrize("stride", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("size", [(1, 1), (40, 96), (97, 64), (200, 300)])
def test_cells_within_are_those_whose_anchors_are_not_beyond(stride, size):
    grid = (-(-320 // stride), -(-416 // stride))
    beyond = centers_beyond(grid_boxes(*grid, stride), size, 32).view(grid)
    rows, columns = cells_within(size, grid, stride, 32)
    expected = torch.ones(grid, dtype=torch.bool)
    expected[:rows, :columns] = False
    assert torch.equal(beyond, expected)


def test_cells_within_never_exceed_the_grid():
    assert cells_within((1000, 1000), (3, 5), 8, 32) == (3, 5)


def test_centerness_is_one_in_the_middle_and_zero_on_the_border_and_outside():
    gt = torch.tensor([[0.0, 0, 40, 20]]).expand(4, 4)
    center = torch.tensor([[20.0, 10], [0, 10], [50, 10], [30, 5]])
    boxes = torch.cat([center - 3, center + 3], dim=1)
    expected = torch.tensor([1.0, 0.0, 0.0, (10 / 30 * 5 / 15) ** 0.5])
    torch.testing.assert_close(centerness(boxes, gt), expected)


def test_centerness_of_nothing_is_empty_and_of_a_point_is_zero():
    assert centerness(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    point = torch.tensor([[5.0, 5, 5, 5]])
    assert centerness(point, point).tolist() == [0.0]
