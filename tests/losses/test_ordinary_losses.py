"""Box and mask losses are ordinary functions: known values, gradcheck, empty input."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from rs_d2.losses.boxes import giou_loss, iou_loss, smooth_l1_loss
from rs_d2.losses.classification import cross_entropy_loss, focal_loss, hardest_negatives
from rs_d2.losses.masks import dice_loss, mask_cross_entropy, semantic_cross_entropy


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("pred", "gt", "iou", "giou"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0, 1.0),  # the same box
        ([0, 0, 5, 5], [0, 0, 10, 10], 0.25, 0.25),  # a quarter of the box, inside it
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0, 0.0),  # side by side, the hull is full
        ([0, 0, 10, 10], [30, 0, 40, 10], 0.0, -0.5),  # apart, half of the hull is empty
    ],
)
def test_known_overlaps(pred, gt, iou, giou):
    assert iou_loss(boxes(pred), boxes(gt)).item() == pytest.approx(1 - iou, abs=1e-6)
    assert giou_loss(boxes(pred), boxes(gt)).item() == pytest.approx(1 - giou, abs=1e-6)


@pytest.mark.parametrize("loss", [giou_loss, iou_loss])
def test_box_losses_pass_gradcheck_and_survive_empty_and_flat_boxes(loss):
    gt = boxes([0, 0, 10, 10], [5, 5, 9, 30])
    pred = boxes([1, -2, 9, 13], [4, 7, 12, 21]).requires_grad_()
    assert gradcheck(lambda p: loss(p, gt), pred)
    assert gradcheck(lambda p: loss(p.t().contiguous().t(), gt), pred)
    assert loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    flat = boxes([3, 3, 3, 3]).requires_grad_()
    loss(flat, boxes([3, 3, 3, 3])).sum().backward()
    assert flat.grad.isfinite().all()


def test_dice_of_half_precision_logits_is_computed_in_float32():
    logits, masks = torch.randn(2, 28, 28), torch.rand(2, 28, 28) > 0.5
    half = dice_loss(logits.half(), masks)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, dice_loss(logits.half().float(), masks))


def test_dice_of_a_perfect_an_inverted_and_an_empty_mask():
    masks = torch.tensor([[[1, 0], [1, 0]], [[1, 0], [1, 0]], [[0, 0], [0, 0]]])
    logits = 100 * torch.tensor([[[1.0, -1], [1, -1]], [[-1, 1], [-1, 1]], [[-1, -1], [-1, -1]]])
    perfect, inverted, empty = dice_loss(logits, masks).tolist()
    assert perfect == pytest.approx(0, abs=1e-5)
    assert inverted == pytest.approx(1, abs=1e-5)
    assert 0 <= empty <= 1


@pytest.mark.parametrize("loss", [dice_loss, mask_cross_entropy])
def test_mask_losses_pass_gradcheck_and_take_empty_input(loss):
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 3, 4) > 0.5
    assert gradcheck(lambda x: loss(x, masks), logits)
    assert gradcheck(lambda x: loss(x.mT.contiguous().mT, masks), logits)
    assert loss(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).shape == (0,)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, classes = torch.randn(5, 3), torch.tensor([0, 2, 3, 1, 3])  # 3: the background
    expected = cross_entropy_loss(logits, classes, 3)
    torch.testing.assert_close(focal_loss(logits, classes, alpha=-1.0, gamma=0.0), expected)


def test_focal_loss_is_the_formula():
    logits = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    p, q = logits.sigmoid()[0].tolist()
    expected = -0.25 * (1 - p) ** 2 * math.log(p) - 0.75 * q**2 * math.log(1 - q)
    found = focal_loss(logits, torch.tensor([0]), alpha=0.25, gamma=2.0)
    assert found.tolist() == pytest.approx([expected])


def test_focal_loss_passes_gradcheck_and_takes_empty_and_half_precision_input():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 2, 3, 1])
    assert gradcheck(lambda x: focal_loss(x, classes, 0.25, 2.0), logits)
    assert focal_loss(torch.zeros(0, 3), classes[:0], 0.25, 2.0).shape == (0,)
    assert focal_loss(logits.detach().half(), classes, 0.25, 2.0).dtype == torch.float32


def test_smooth_l1_is_a_parabola_near_zero_and_a_line_beyond():
    gt = boxes([0, 0, 0, 0], [1, 1, 1, 1])
    pred = boxes([0.5, -0.5, 0, 0], [3, 1, 1, -2]).requires_grad_()
    assert smooth_l1_loss(pred, gt).tolist() == [0.25, 1.5 + 2.5]
    assert gradcheck(lambda p: smooth_l1_loss(p, gt), pred)
    assert smooth_l1_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_the_cross_entropy_of_a_cropped_mask_is_a_mean_over_what_is_left():
    logits, masks = torch.randn(2, 4, 4), torch.rand(2, 4, 4) > 0.5
    logits[:, 2:], masks[:, 2:] = -100.0, False
    areas = torch.tensor([8, 8])
    expected = mask_cross_entropy(logits[:, :2], masks[:, :2])
    torch.testing.assert_close(mask_cross_entropy(logits, masks, areas), expected)
    nothing = mask_cross_entropy(logits[:, 2:], masks[:, 2:], torch.tensor([0, 0]))
    assert nothing.tolist() == [0, 0]


def test_semantic_cross_entropy_is_a_sum_over_classes_and_a_mean_over_pixels():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 3, 4, 5) > 0.5
    signs = torch.where(targets, 1.0, -1.0)
    expected = [
        sum(math.log1p(math.exp(-value)) for value in image) / 20
        for image in (signs * logits).flatten(1).tolist()
    ]
    assert semantic_cross_entropy(logits, targets).tolist() == pytest.approx(expected)
    assert gradcheck(lambda x: semantic_cross_entropy(x, targets), logits)


def test_the_hardest_negatives_of_each_image():
    losses = torch.tensor([[5.0, 1, 3, 2], [4, 7, 6, 8], [1, 1, 1, 1]])
    negatives = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert hardest_negatives(losses, negatives, torch.tensor([2, 3, 0])).tolist() == [5, 11, 0]
    assert hardest_negatives(losses[:, :0], negatives[:, :0], torch.tensor([1, 1, 1])).sum() == 0
