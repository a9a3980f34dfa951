"""The criterion: labels, weights and balance put together."""

import pytest
import torch

from rs_d2.criterion.balancing import ConstantBalancer, ValueBalancer
from rs_d2.criterion.criterion import CrossEntropyCriterion, MaskCriterion, RankSortCriterion
from rs_d2.criterion.labels import binary_labels, iou_labels
from rs_d2.criterion.weights import score_weights, uniform_weights
from rs_d2.losses import rank_sort_loss
from rs_d2.losses.boxes import giou_loss, iou_loss
from rs_d2.losses.masks import dice_loss
from rs_d2.ops.boxes import aligned_iou

K = 3


def make(**changes):
    parts = {
        "num_classes": K,
        "delta": 0.5,
        "label_function": iou_labels,
        "weight_function": score_weights,
        "box_loss": giou_loss,
        "balancer": ValueBalancer(),
    }
    return RankSortCriterion(**(parts | changes))


@pytest.fixture
def batch():
    """Six candidates: two positives, one ignored, three background."""
    gt_classes = torch.tensor([2, K, -1, 0, K, K])
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 25, 15]])
    pred_boxes = (gt_boxes + torch.tensor([1.0, -1, 2, 0])).requires_grad_()
    return torch.randn(6, K, requires_grad=True), gt_classes, pred_boxes, gt_boxes


def test_all_logits_are_ranked_in_one_list_with_iou_labels(batch):
    logits, _, pred_boxes, gt_boxes = batch
    output = make()(*batch)
    iou = aligned_iou(pred_boxes, gt_boxes).detach()
    targets = torch.zeros(6, K)
    targets[2] = -1
    targets[0, 2], targets[3, 0] = iou
    expected = rank_sort_loss(logits.flatten(), targets.flatten())
    assert output.losses["rank"] == expected.ranking
    assert output.losses["sort"] == expected.sorting
    assert output.reference == expected.ranking + expected.sorting


def test_an_ignored_row_gets_no_gradient(batch):
    logits = batch[0]
    sum(make()(*batch).losses.values()).backward()
    assert (logits.grad[2] == 0).all()
    assert (logits.grad[0] != 0).any()


def test_binary_labels_leave_nothing_to_sort(batch):
    assert make(label_function=binary_labels)(*batch).losses["sort"] == 0


def test_the_balanced_box_loss_has_the_ranking_losses_value_and_its_own_direction(batch):
    pred_boxes = batch[2]
    balanced = make()(*batch)
    balanced.losses["box"].backward()
    direction = pred_boxes.grad.clone()
    pred_boxes.grad = None
    plain = make(balancer=ConstantBalancer())(*batch)
    plain.losses["box"].backward()
    torch.testing.assert_close(balanced.losses["box"], balanced.reference)
    factor = balanced.reference / plain.losses["box"].detach()
    torch.testing.assert_close(direction, factor * pred_boxes.grad)


def test_the_box_loss_does_not_reach_the_logits(batch):
    logits = batch[0]
    make()(*batch).losses["box"].backward()
    assert logits.grad is None or (logits.grad == 0).all()


@pytest.mark.parametrize("logits_scale", [1.0, 1e4])
def test_weights_are_the_largest_scores_and_uniform_weights_the_mean(batch, logits_scale):
    logits, gt_classes, pred_boxes, gt_boxes = batch
    logits = logits.detach() * logits_scale
    output = make()(logits, gt_classes, pred_boxes, gt_boxes)
    torch.testing.assert_close(output.weights, logits[[0, 3]].sigmoid().amax(1))
    plain = make(weight_function=uniform_weights, box_loss=iou_loss, balancer=ConstantBalancer())
    mean = plain(logits, gt_classes, pred_boxes, gt_boxes).losses["box"]
    torch.testing.assert_close(mean, (1 - aligned_iou(pred_boxes, gt_boxes)).mean())


def test_weights_that_vanish_do_not_divide_by_zero(batch):
    logits, gt_classes, pred_boxes, gt_boxes = batch
    output = make()(logits.detach() - 1e6, gt_classes, pred_boxes, gt_boxes)
    assert (output.weights == 0).all()
    assert output.losses["box"] == 0


@pytest.mark.parametrize("criterion", ["rank_sort", "cross_entropy"])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_positives_give_zeros_attached_to_every_input(criterion, rows):
    logits = torch.randn(rows, K, requires_grad=True)
    pred_boxes = torch.zeros(0, 4, requires_grad=True)
    gt_classes = torch.full((rows,), -1 if criterion == "cross_entropy" else K)
    maker = make() if criterion == "rank_sort" else cross_entropy()
    losses = maker(logits, gt_classes, pred_boxes, torch.zeros(0, 4)).losses
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert (logits.grad == 0).all()
    assert pred_boxes.grad is not None


def cross_entropy():
    return CrossEntropyCriterion(num_classes=K, box_loss=giou_loss)


def test_cross_entropy_with_a_background_column_is_softmax(batch):
    _, gt_classes, pred_boxes, gt_boxes = batch
    logits = torch.randn(6, K + 1)
    losses = cross_entropy()(logits, gt_classes, pred_boxes, gt_boxes).losses
    used = gt_classes >= 0
    expected = torch.nn.functional.cross_entropy(logits[used], gt_classes[used])
    torch.testing.assert_close(losses["cls"], expected)
    torch.testing.assert_close(losses["box"], giou_loss(pred_boxes, gt_boxes).sum() / 5)


def test_cross_entropy_without_a_background_column_is_class_wise_sigmoid(batch):
    logits, gt_classes, pred_boxes, gt_boxes = batch
    one_hot = torch.zeros(6, K)
    one_hot[0, 2] = one_hot[3, 0] = 1
    used = gt_classes >= 0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[used], one_hot[used], reduction="sum"
    )
    losses = cross_entropy()(logits, gt_classes, pred_boxes, gt_boxes).losses
    torch.testing.assert_close(losses["cls"], expected / 5)


def test_mask_loss_is_the_weighted_mean_of_its_instances():
    logits, masks = torch.randn(3, 4, 4), torch.rand(3, 4, 4) > 0.5
    weights = torch.tensor([0.2, 0.0, 0.6])
    each = dice_loss(logits, masks)
    weighted = MaskCriterion(dice_loss, use_weights=True)(logits, masks, weights)
    torch.testing.assert_close(weighted, (0.2 * each[0] + 0.6 * each[2]) / 0.8)
    plain = MaskCriterion(dice_loss, use_weights=False)(logits, masks, weights)
    torch.testing.assert_close(plain, each.mean())


def test_an_empty_mask_batch_is_a_zero_attached_to_the_graph():
    logits = torch.randn(0, 4, 4, requires_grad=True)
    loss = MaskCriterion(dice_loss, use_weights=True)(logits, torch.zeros(0, 4, 4), torch.zeros(0))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
