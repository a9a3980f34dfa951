"""The criterion: ranking, labels, weights and tasks put together."""

import pytest
import torch
from torch.nn import functional as F

from rs_d2.criterion import (
    BALANCERS,
    BOX_LOSSES,
    LABELS,
    RANKINGS,
    WEIGHTS,
    Candidates,
    Criterion,
    Task,
    find_positives,
)
from rs_d2.criterion.names import name_losses, name_stage
from rs_d2.losses import alrp_loss, average_precision_loss, rank_sort_loss
from rs_d2.losses.boxes import giou_loss
from rs_d2.losses.classification import focal_loss
from rs_d2.ops.boxes import aligned_iou

K = 3


def make(
    ranking="rank_sort", label="iou", weight="score", box_loss="giou", balance="value", **options
):
    loss = BOX_LOSSES[box_loss]
    return Criterion(
        ranking=RANKINGS[ranking](num_classes=K, box_loss=loss, **options),
        label=LABELS[label],
        weight=WEIGHTS[weight],
        tasks={"box": Task(loss, BALANCERS[balance](), outputs="pred_deltas")},
    )


def record(logits, gt_classes, pred_boxes, gt_boxes, **fields):
    positives = find_positives(gt_classes, K)
    return Candidates(logits, gt_classes, positives, pred_boxes, gt_boxes, **fields)


@pytest.fixture
def batch():
    """Six candidates: two positives, one ignored, three background."""
    gt_classes = torch.tensor([2, K, -1, 0, K, K])
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 25, 15]])
    pred_boxes = (gt_boxes + torch.tensor([1.0, -1, 2, 0])).requires_grad_()
    return record(torch.randn(6, K, requires_grad=True), gt_classes, pred_boxes, gt_boxes)


def targets_of(batch, quality):
    targets = torch.zeros(6, K)
    targets[2] = -1
    targets[0, 2], targets[3, 0] = quality
    return targets.flatten()


def test_all_logits_are_ranked_in_one_list_with_iou_labels(batch):
    output = make()(batch)
    iou = aligned_iou(batch.pred_boxes, batch.gt_boxes).detach()
    expected = rank_sort_loss(batch.logits.flatten(), targets_of(batch, iou))
    assert output.losses["rank"] == expected.ranking
    assert output.losses["sort"] == expected.sorting
    assert output.reference == expected.ranking + expected.sorting
    assert output.candidates is batch


@pytest.mark.parametrize(("delta", "used"), [(None, 1.0), (0.25, 0.25)])
def test_ap_ranks_all_logits_with_its_own_delta(batch, delta, used):
    output = make("ap", delta=delta)(batch)
    expected = average_precision_loss(batch.logits.flatten(), targets_of(batch, [1.0, 1.0]), used)
    assert output.losses["cls"] == expected == output.reference
    torch.testing.assert_close(output.losses["box"], output.reference)


def test_alrp_brings_its_own_box_term_and_divides_the_errors_of_the_ranking_only(batch):
    output = make("alrp", balance="constant", positive_iou=0.7)(batch)
    losses = giou_loss(batch.pred_boxes, batch.gt_boxes)
    targets = targets_of(batch, [1.0, 1.0])
    expected = alrp_loss(batch.logits.flatten(), targets, losses / 0.6, 1.0)
    assert output.losses["cls"] == expected.classification
    torch.testing.assert_close(output.losses["box"], expected.localization * 0.6)
    ours = torch.autograd.grad(sum(output.losses.values()), batch.logits)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(sum(expected), batch.logits)[0])


def test_focal_is_the_sum_over_the_candidates_for_each_positive(batch):
    output = make("focal")(batch)
    used = batch.gt_classes >= 0
    each = focal_loss(batch.logits[used], batch.gt_classes[used], 0.25, 2.0)
    torch.testing.assert_close(output.losses["cls"], each.sum() / 2)


def test_an_ignored_row_gets_no_gradient(batch):
    sum(make()(batch).losses.values()).backward()
    assert (batch.logits.grad[2] == 0).all()
    assert (batch.logits.grad[0] != 0).any()


def test_binary_labels_leave_nothing_to_sort(batch):
    assert make(label="binary")(batch).losses["sort"] == 0


def test_the_balanced_box_loss_has_the_ranking_losses_value_and_its_own_direction(batch):
    balanced = make()(batch)
    direction = torch.autograd.grad(balanced.losses["box"], batch.pred_boxes)[0]
    plain = make(balance="constant")(batch)
    unscaled = torch.autograd.grad(plain.losses["box"], batch.pred_boxes)[0]
    torch.testing.assert_close(balanced.losses["box"], balanced.reference)
    factor = balanced.reference / plain.losses["box"].detach()
    torch.testing.assert_close(direction, factor * unscaled)


@pytest.mark.parametrize("ranking", ["rank_sort", "ap", "alrp"])
def test_magnitude_balance_equals_autograd_written_out(batch, ranking):
    deltas = torch.randn(2, 4, requires_grad=True)
    pred_boxes = batch.gt_boxes + deltas
    candidates = record(
        batch.logits, batch.gt_classes, pred_boxes, batch.gt_boxes, pred_deltas=deltas
    )
    *ranked, plain = make(ranking, balance="constant")(candidates).losses.values()
    (of_logits,) = torch.autograd.grad(sum(ranked), batch.logits, retain_graph=True)
    (of_deltas,) = torch.autograd.grad(plain, deltas, retain_graph=True)
    balanced = make(ranking, balance="magnitude")(candidates).losses["box"]
    torch.testing.assert_close(balanced, plain * (of_logits.abs().sum() / of_deltas.abs().sum()))
    (gradient,) = torch.autograd.grad(balanced, deltas)
    torch.testing.assert_close(gradient.abs().sum(), of_logits.abs().sum())


def test_the_box_loss_does_not_reach_the_logits(batch):
    make()(batch).losses["box"].backward()
    assert batch.logits.grad is None or (batch.logits.grad == 0).all()


@pytest.mark.parametrize("logits_scale", [1.0, 1e4])
def test_weights_are_the_largest_scores_and_uniform_weights_the_mean(batch, logits_scale):
    logits = batch.logits.detach() * logits_scale
    candidates = record(logits, batch.gt_classes, batch.pred_boxes, batch.gt_boxes)
    torch.testing.assert_close(make()(candidates).weights, logits[[0, 3]].sigmoid().amax(1))
    plain = make(weight="none", box_loss="iou", balance="constant")(candidates)
    mean = (1 - aligned_iou(batch.pred_boxes, batch.gt_boxes)).mean()
    torch.testing.assert_close(plain.losses["box"], mean)


def test_weights_that_vanish_do_not_divide_by_zero(batch):
    logits = batch.logits.detach() - 1e6
    output = make()(record(logits, batch.gt_classes, batch.pred_boxes, batch.gt_boxes))
    assert (output.weights == 0).all()
    assert output.losses["box"] == 0


@pytest.mark.parametrize("ranking", sorted(RANKINGS))
@pytest.mark.parametrize("balance", sorted(BALANCERS))
@pytest.mark.parametrize("rows", [0, 4])
def test_no_positives_give_zeros_attached_to_every_input(ranking, balance, rows):
    num_columns = RANKINGS[ranking](num_classes=K).num_columns
    logits = torch.randn(rows, num_columns, requires_grad=True)
    pred_boxes = torch.zeros(0, 4, requires_grad=True)
    ignored = RANKINGS[ranking].is_baseline  # which learns from the background alone
    gt_classes = torch.full((rows,), -1 if ignored else K)
    criterion = make(ranking, balance=balance)
    losses = criterion(record(logits, gt_classes, pred_boxes, torch.zeros(0, 4))).losses
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert (logits.grad == 0).all()
    assert pred_boxes.grad is not None
    if balance == "epoch":  # nothing was counted
        assert criterion.tasks["box"].balancer.count == 0


def test_cross_entropy_with_a_background_column_is_softmax(batch):
    logits = torch.randn(6, K + 1)
    candidates = record(logits, batch.gt_classes, batch.pred_boxes, batch.gt_boxes)
    losses = make("cross_entropy", weight="none", balance="constant")(candidates).losses
    used = batch.gt_classes >= 0
    expected = F.cross_entropy(logits[used], batch.gt_classes[used])
    torch.testing.assert_close(losses["cls"], expected)
    each = giou_loss(batch.pred_boxes, batch.gt_boxes)
    torch.testing.assert_close(losses["box"], each.sum() / 5)


@pytest.mark.parametrize("ranking", ["cross_entropy", "sigmoid_cross_entropy"])
def test_cross_entropy_without_a_background_column_is_class_wise_sigmoid(batch, ranking):
    one_hot = torch.zeros(6, K)
    one_hot[0, 2] = one_hot[3, 0] = 1
    used = batch.gt_classes >= 0
    expected = F.binary_cross_entropy_with_logits(
        batch.logits[used], one_hot[used], reduction="sum"
    )
    losses = make(ranking)(batch).losses
    torch.testing.assert_close(losses["cls"], expected / 5)


@pytest.mark.parametrize(
    ("ranking", "terms"),
    [
        ("rank_sort", {"loss_rpn_rank", "loss_rpn_sort", "loss_rpn_loc"}),
        ("alrp", {"loss_rpn_cls", "loss_rpn_loc"}),
        ("focal", {"loss_rpn_cls", "loss_rpn_loc"}),
    ],
)
def test_every_rankings_terms_have_names_in_every_head(batch, ranking, terms):
    losses = make(ranking, balance="constant")(batch).losses
    assert set(name_losses(losses, "rpn")) == terms
    second = {name.replace("rpn_", "").replace("loc", "box_reg") + "_stage1" for name in terms}
    assert set(name_stage(name_losses(losses), 1)) == second


def test_positives_that_are_not_kept_become_negatives_and_take_their_fields_along(batch):
    kept = batch.keep(torch.tensor([False, True]), background=K)
    assert kept.gt_classes.tolist() == [K, K, -1, 0, K, K]
    assert kept.positives.tolist() == [3]
    assert torch.equal(kept.gt_boxes, batch.gt_boxes[1:])
    assert torch.equal(kept.pred_boxes, batch.pred_boxes[1:])
    assert kept.anchors is None
    assert batch.gt_classes.tolist() == [2, K, -1, 0, K, K]  # the original is unchanged


def test_hard_negatives_are_three_for_each_positive_of_their_image():
    generator = torch.Generator().manual_seed(0)
    gt_classes = torch.tensor([2, K, K, -1, K, K, 0, 1, *[K] * 8, *[K] * 8])  # of three
    logits = torch.randn(24, K + 1, generator=generator)
    losses = F.cross_entropy(logits, gt_classes.clamp(min=0), reduction="none").view(3, 8)
    expected = losses[0, [0, 6, 7]].sum() + losses[0, [1, 2, 4, 5]].sum()  # all four
    candidates = Candidates(logits, gt_classes, find_positives(gt_classes, K), num_images=3)
    ranking = RANKINGS["ohem_cross_entropy"](num_classes=K)
    torch.testing.assert_close(ranking(candidates).terms["cls"], expected / 3)
    gt_classes[8] = 0
    losses[1, 0] = F.cross_entropy(logits[8], gt_classes[8])
    expected += losses[1, 0] + losses[1, 1:].topk(3).values.sum()
    candidates = Candidates(logits, gt_classes, find_positives(gt_classes, K), num_images=3)
    torch.testing.assert_close(ranking(candidates).terms["cls"], expected / 4)


def test_hard_negatives_without_positives_are_a_zero_attached_to_the_graph():
    logits = torch.randn(6, K + 1, requires_grad=True)
    gt_classes = torch.full((6,), K)
    candidates = Candidates(logits, gt_classes, find_positives(gt_classes, K), num_images=2)
    loss = RANKINGS["ohem_cross_entropy"](num_classes=K)(candidates).terms["cls"]
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_what_stays_positive_keeps_what_belongs_to_the_images():
    candidates = Candidates(
        torch.randn(4, K),
        torch.tensor([0, K, 1, K]),
        torch.tensor([0, 2]),
        mask_areas=torch.tensor([5, 6]),
        num_images=2,
        gt_semantic=torch.zeros(2, K, 3, 3),
    )
    kept = candidates.keep(torch.tensor([False, True]), background=K)
    assert (kept.num_images, kept.gt_semantic) == (2, candidates.gt_semantic)
    assert kept.mask_areas.tolist() == [6]
