"""Each head against numbers that the official heads gave for the same tiny input."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances

from rs_d2.criterion.balancing import ValueBalancer
from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.labels import iou_label
from rs_d2.criterion.weights import score_weight
from rs_d2.losses.boxes import giou_loss
from rs_d2.losses.masks import dice_loss
from rs_d2.modeling import RSFastRCNNOutputLayers

ATOL = 2e-6


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected), rtol=0, atol=ATOL, check_dtype=False
    )


@pytest.fixture
def tiny_rpn(mask_cfg):
    """One level of stride 8 with one 16-pixel square anchor per cell, centred on its corner."""
    mask_cfg.MODEL.RPN.IN_FEATURES = ["p3"]
    mask_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16]]
    mask_cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    return build_proposal_generator(mask_cfg, {"p3": ShapeSpec(channels=4, stride=8)})


def test_rpn(tiny_rpn):
    anchors = tiny_rpn.anchor_generator([torch.zeros(1, 4, 2, 2)])
    gt = Instances((16, 16), gt_boxes=Boxes(torch.tensor([[-7.0, -7.0, 9.0, 8.0]])))
    # All four anchors belong to the official 16 x 16 map; ours are centred at 0 and 8, inside it.
    labels, boxes = tiny_rpn.label_and_sample_anchors(anchors, [gt])
    assert labels[0].tolist() == [1, -1, -1, 0]

    logits = torch.tensor([[0.3, -0.2, 0.1, 0.6]], requires_grad=True)
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0] = torch.tensor([0.5, -0.5, 0.2, 0.1])
    deltas.requires_grad_()
    losses = tiny_rpn.losses(anchors, [logits], labels, [deltas], boxes)
    close(losses["loss_rpn_rank"], 0.123077)
    close(losses["loss_rpn_sort"], 0.0)
    close(losses["loss_rpn_loc"], 0.123077)
    sum(losses.values()).backward()
    close(logits.grad[0], [-0.123077, 0.0, 0.0, 0.123077])
    close(deltas.grad[0, 0], [0.0, -0.110894, 0.108258, -0.009829])
    assert (deltas.grad[0, 1:] == 0).all()


@pytest.fixture
def box_case(mask_cfg):
    """Predictor, predictions and proposals of the official box-head example, K = 3."""
    predictor = RSFastRCNNOutputLayers(mask_cfg, ShapeSpec(channels=4))
    proposals = Instances(
        (100, 100),
        proposal_boxes=Boxes(
            torch.tensor([[10.0, 10, 50, 50], [20, 20, 80, 60], [0, 0, 30, 30], [60, 60, 90, 90]])
        ),
        gt_classes=torch.tensor([1, 0, 3, 3]),
        gt_boxes=Boxes(
            torch.tensor([[12.0, 8, 48, 52], [25, 18, 85, 66], [0, 0, 1, 1], [0, 0, 1, 1]])
        ),
    )
    logits = torch.tensor(
        [[0.2, 0.9, -0.4], [-0.3, 0.1, 0.6], [0.5, -1.0, 0.3], [-2.0, 0.0, -0.6]],
        requires_grad=True,
    )
    deltas = torch.zeros(4, 12)
    deltas[0, 4:8] = torch.tensor([0.1, -0.2, 0.3, 0.2])
    deltas[1, 0:4] = torch.tensor([0.4, 0.3, -0.2, 0.1])
    return predictor, logits, deltas.requires_grad_(), proposals


def test_box_head(box_case):
    predictor, logits, deltas, proposals = box_case
    output = predictor.loss_output((logits, deltas), [proposals])
    close(output.weights, [0.710949, 0.645656])
    losses = predictor.named_losses(output)
    close(losses["loss_rank"], 0.591346)
    close(losses["loss_sort"], 0.0)
    close(losses["loss_box_reg"], 0.591346)
    sum(losses.values()).backward()
    expected = [
        [0.064103, -0.1875, 0.025641],
        [-0.403846, 0.057692, 0.189103],
        [0.126603, 0.0, 0.064103],
        [0.0, 0.051282, 0.012821],
    ]
    close(logits.grad, expected)
    close(deltas.grad[0, 4:8], [0.0, 0.0, 0.240544, -0.245906])
    close(deltas.grad[1, 0:4], [-0.217520, 0.0, -0.005088, -0.209933])


def test_parts_of_the_box_loss():
    pred = torch.tensor(
        [[9.163267, 8.383785, 51.636734, 50.016216], [23.576319, 20.795975, 81.223686, 61.604027]]
    )
    gt = torch.tensor([[12.0, 8, 48, 52], [25, 18, 85, 66]])
    logits = torch.tensor([[0.2, 0.9, -0.4], [-0.3, 0.1, 0.6]])
    candidates = Candidates(
        logits, torch.tensor([1, 0]), torch.tensor([0, 1]), pred_boxes=pred, gt_boxes=gt
    )
    labels, weights = iou_label(candidates), score_weight(candidates)
    losses = giou_loss(pred, gt)
    close(labels, [0.808612, 0.780906])
    close(losses, [0.199589, 0.222567])
    # the second weight comes from the third class, not from the label's
    close(weights, [0.710949, 0.645656])
    box_loss = (weights * losses).sum() / weights.sum()
    close(box_loss, 0.210525)
    close(ValueBalancer()(box_loss, torch.tensor(0.591346)), 0.591346)


def test_mask_head(mask_cfg):
    """Two positives of classes 1 and 0 whose 2 x 2 masks are known, through the head itself."""
    head = build_mask_head(mask_cfg, ShapeSpec(channels=4, width=1, height=1)).train()
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 1] = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    logits[1, 0] = torch.tensor([[-1.0, 3.0], [1.0, -2.0]])
    head.layers = lambda x: logits
    gt_masks = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [1, 1]]], dtype=torch.bool)
    instances = Instances(
        (2, 2),
        proposal_boxes=Boxes(torch.tensor([[0.0, 0, 2, 2]] * 2)),
        gt_classes=torch.tensor([1, 0]),
        gt_masks=BitMasks(gt_masks),
        loss_weight=torch.tensor([0.710949, 0.645656]),
    )
    close(1 - dice_loss(torch.stack([logits[0, 1], logits[1, 0]]), gt_masks), [0.862553, 0.796236])
    loss = head(None, [instances])["loss_mask"]
    balanced = ValueBalancer()(loss, torch.tensor(0.591346))
    close(balanced, 0.591346)
    assert (balanced / loss).item() == pytest.approx(3.498893, abs=2e-4)
    instances.loss_weight = instances.loss_weight.flip(0)  # weights of the wrong instance
    assert head(None, [instances])["loss_mask"] != loss


def test_masks_are_cropped_from_bitmaps_at_one_half():
    masks = torch.zeros(1, 40, 40, dtype=torch.bool)
    masks[0, 8:24, 8:32] = True
    crop = BitMasks(masks).crop_and_resize(torch.tensor([[8.0, 8.0, 32.0, 40.0]]), 4)
    assert crop[0].tolist() == [[True] * 4, [True] * 4, [False] * 4, [False] * 4]
