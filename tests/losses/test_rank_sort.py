"""Rank & Sort Loss against the recorded reference, a literal loop, and the laws it obeys."""

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.ranking import golden_cases, random_case

from rs_d2.losses import rank_sort_loss

DELTAS = (0.0, 0.25, 0.5, 1.0)


def gradients(logits, targets, delta=0.5, weights=(1.0, 1.0)):
    logits = logits.detach().requires_grad_()
    loss = rank_sort_loss(logits, targets, delta)
    (loss.ranking * weights[0] + loss.sorting * weights[1]).backward()
    return loss.ranking.item(), loss.sorting.item(), logits.grad


@pytest.mark.parametrize(
    ("dtype", "loss_atol", "grad_rtol"),
    [(torch.float32, 1e-7, 1e-7), (torch.float64, 1e-12, 1e-12)],
)
def test_equals_the_recorded_reference(dtype, loss_atol, grad_rtol):
    compared = 0
    for case in golden_cases("rs"):
        logits = torch.tensor(case["logits"], dtype=dtype)
        targets = torch.tensor(case["targets"], dtype=dtype)
        for delta in DELTAS:
            key = f"delta{delta:.2f}:"
            if f"{key}rank64" not in case:
                continue
            ranking, sorting, grad = gradients(logits, targets, delta)
            assert ranking == pytest.approx(float(case[f"{key}rank64"]), abs=loss_atol)
            assert sorting == pytest.approx(float(case[f"{key}sort64"]), abs=loss_atol)
            own, expected = grad.double().numpy(), case[f"{key}grad64"]
            own = own[case["index"]] if "index" in case else own
            scale = np.linalg.norm(expected)
            assert np.linalg.norm(own - expected) <= grad_rtol * scale + 1e-15, case["name"]
            compared += 1
    assert compared >= 88


def test_each_output_scales_the_recorded_share_of_the_gradient():
    compared = 0
    for case in golden_cases("rs"):
        key = "delta0.50:"
        if "index" in case or f"{key}grad_rank64" not in case:
            continue
        logits, targets = (
            torch.tensor(case[k], dtype=torch.float64) for k in ("logits", "targets")
        )
        share = case[f"{key}grad_rank64"]
        _, _, ranking_only = gradients(logits, targets, 0.5, weights=(1.0, 0.0))
        _, _, sorting_only = gradients(logits, targets, 0.5, weights=(0.0, 1.0))
        np.testing.assert_allclose(ranking_only.numpy(), share, atol=1e-10)
        np.testing.assert_allclose(sorting_only.numpy(), case[f"{key}grad64"] - share, atol=1e-10)
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 0, 0), (1, 5, 2), (7, 0, 1), (6, 30, 4), (25, 3, 0)])
def test_equals_the_literal_loop(sizes, ties, delta):
    logits, targets = random_case(*sizes, seed=sum(sizes), ties=ties)
    expected = reference.rank_sort(logits, targets, delta)
    ranking, sorting, _ = gradients(logits, targets, delta)
    assert ranking == pytest.approx(expected.ranking, abs=1e-13)
    assert sorting == pytest.approx(expected.sorting, abs=1e-13)
    for weights, share in [
        ((1.0, 0.0), expected.ranking_gradient),
        ((0.0, 1.0), expected.sorting_gradient),
        ((2.0, 3.0), 2 * expected.ranking_gradient + 3 * expected.sorting_gradient),
    ]:
        _, _, grad = gradients(logits, targets, delta, weights)
        np.testing.assert_allclose(grad.numpy(), share, atol=1e-13)


@pytest.mark.parametrize("delta", DELTAS)
def test_gradients_sum_to_zero_and_negatives_to_the_ranking_loss(delta):
    logits, targets = random_case(20, 300, 10)
    ranking, _, grad = gradients(logits, targets, delta)
    assert grad.sum().item() == pytest.approx(0, abs=1e-14)
    assert grad[targets == 0].sum().item() == pytest.approx(ranking, abs=1e-14)
    assert (grad[targets < 0] == 0).all()


def test_scaling_the_logits_changes_nothing_for_the_hard_step_only():
    logits, targets = random_case(10, 100)
    assert gradients(3 * logits, targets, 0.0)[:2] == gradients(logits, targets, 0.0)[:2]
    assert gradients(3 * logits, targets, 0.5)[0] != gradients(logits, targets, 0.5)[0]


def test_equal_labels_leave_nothing_to_sort():
    logits, targets = random_case(10, 100)
    _, sorting, grad = gradients(logits, (targets > 0).double(), weights=(0.0, 1.0))
    assert sorting == 0
    assert (grad == 0).all()


def test_positives_above_negatives_in_label_order_by_more_than_delta_give_zero():
    targets = torch.tensor([0.9, 0.6, 0.3, 0.0, 0.0])
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, -5.0])
    ranking, sorting, grad = gradients(logits, targets, 0.5)
    assert (ranking, sorting) == (0, 0)
    assert (grad == 0).all()


def test_lifting_a_negative_over_a_positive_raises_the_ranking_loss():
    targets = torch.tensor([0.8, 0.0])
    below, _, _ = gradients(torch.tensor([1.0, 0.0]), targets)
    above, _, _ = gradients(torch.tensor([1.0, 2.0]), targets)
    assert above > below


def test_infinite_positives_are_the_first_and_the_last():
    targets = torch.tensor([0.7, 0.4, 0.0])
    ranking, sorting, grad = gradients(torch.tensor([torch.inf, -torch.inf, 0.0]), targets)
    expected = reference.rank_sort([1e3, -1e3, 0.0], targets, 0.5)
    assert (ranking, sorting) == pytest.approx((expected.ranking, expected.sorting), abs=1e-7)
    assert grad.isfinite().all()
