"""Rank & Sort Loss against the recorded reference, a literal loop, and the laws it obeys."""

import sys

import numpy as np
import pytest
import reference
import torch
from conftest import shared

from rs_d2.losses import rank_sort_loss

DELTAS = (0.0, 0.25, 0.5, 1.0)


def golden_cases():
    folder = shared("golden")
    sys.path.insert(0, str(folder))
    try:
        import golden_inputs
    finally:
        sys.path.pop(0)
    return list(golden_inputs.cases("rs"))


def gradients(logits, targets, delta=0.5, weights=(1.0, 1.0)):
    logits = logits.detach().requires_grad_()
    loss = rank_sort_loss(logits, targets, delta)
    (loss.ranking * weights[0] + loss.sorting * weights[1]).backward()
    return loss.ranking.item(), loss.sorting.item(), logits.grad


def random_case(num_pos, num_neg, num_ignored=0, seed=0, ties=False, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_pos + num_neg + num_ignored, generator=rng, dtype=torch.float64)
    quality = torch.rand(num_pos, generator=rng, dtype=torch.float64).clamp(min=0.01)
    if ties:
        logits, quality = (logits * 4).round() / 4, (quality * 5).ceil() / 5
    targets = torch.cat([quality, torch.zeros(num_neg), -torch.ones(num_ignored)])
    order = torch.randperm(len(targets), generator=rng)
    return logits[order].to(dtype), targets[order].to(dtype)


@pytest.mark.parametrize(
    ("dtype", "loss_atol", "grad_rtol"),
    [(torch.float32, 1e-7, 1e-7), (torch.float64, 1e-12, 1e-12)],
)
def test_equals_the_recorded_reference(dtype, loss_atol, grad_rtol):
    compared = 0
    for case in golden_cases():
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
    for case in golden_cases():
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


@pytest.mark.parametrize("size", ["_NEGATIVES_PER_CHUNK", "_RELATIONS_PER_CHUNK"])
def test_chunking_changes_nothing(monkeypatch, size):
    from rs_d2.losses import _ranking

    logits, targets = random_case(17, 200)
    whole = gradients(logits, targets)
    monkeypatch.setattr(_ranking, size, 40)
    chunked = gradients(logits, targets)
    assert chunked[:2] == pytest.approx(whole[:2], abs=1e-14)
    torch.testing.assert_close(chunked[2], whole[2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("delta", DELTAS)
def test_gradients_sum_to_zero_and_negatives_to_the_ranking_loss(delta):
    logits, targets = random_case(20, 300, 10)
    ranking, _, grad = gradients(logits, targets, delta)
    assert grad.sum().item() == pytest.approx(0, abs=1e-14)
    assert grad[targets == 0].sum().item() == pytest.approx(ranking, abs=1e-14)
    assert (grad[targets < 0] == 0).all()


def test_permuting_the_candidates_permutes_the_gradient():
    logits, targets = random_case(10, 100)
    order = torch.randperm(len(logits))
    ranking, sorting, grad = gradients(logits, targets)
    moved = gradients(logits[order], targets[order])
    assert moved[:2] == pytest.approx((ranking, sorting), abs=1e-14)
    torch.testing.assert_close(moved[2], grad[order], rtol=0, atol=1e-15)


def test_a_constant_added_to_all_logits_changes_nothing():
    logits, targets = random_case(10, 100)
    shifted = gradients(logits + 8, targets)
    plain = gradients(logits, targets)
    assert shifted[:2] == pytest.approx(plain[:2], abs=1e-12)
    torch.testing.assert_close(shifted[2], plain[2], rtol=0, atol=1e-12)


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


def test_negatives_below_every_window_get_exactly_zero():
    logits, targets = random_case(5, 50)
    far = (targets == 0) & (logits < 0)
    logits = torch.where(far, logits - 100, logits)
    _, _, grad = gradients(logits, targets)
    assert far.any()
    assert (grad[far] == 0).all()


def test_lifting_a_negative_over_a_positive_raises_the_ranking_loss():
    targets = torch.tensor([0.8, 0.0])
    below, _, _ = gradients(torch.tensor([1.0, 0.0]), targets)
    above, _, _ = gradients(torch.tensor([1.0, 2.0]), targets)
    assert above > below


@pytest.mark.parametrize("targets", [[], [0.0, 0.0, -1.0], [-1.0]])
def test_no_positives_give_zeros_attached_to_the_logits(targets):
    logits = torch.full((len(targets),), torch.inf, requires_grad=True)
    loss = rank_sort_loss(logits, torch.tensor(targets))
    assert (loss.ranking.item(), loss.sorting.item()) == (0, 0)
    (loss.ranking + loss.sorting).backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_that_takes_part_makes_losses_and_gradient_nan(place):
    logits, targets = torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.7, 0.0, -1.0])
    poisoned = logits.clone()
    poisoned[place] = torch.nan
    ranking, sorting, grad = gradients(poisoned, targets)
    assert np.isnan([ranking, sorting]).all()
    assert grad.isnan().any()
    ignored = logits.clone()
    ignored[2] = torch.nan
    assert gradients(ignored, targets)[0] == gradients(logits, targets)[0]


def test_a_nan_label_makes_the_losses_nan():
    ranking, sorting, _ = gradients(torch.tensor([0.5, 0.2]), torch.tensor([torch.nan, 0.0]))
    assert np.isnan([ranking, sorting]).all()


@pytest.mark.parametrize("value", [torch.inf, 3e38, 1e20])
def test_huge_negatives_count_as_one_and_spoil_nothing(value):
    targets = torch.tensor([0.7, 0.4, 0.0, 0.0, 0.0])
    logits = torch.tensor([0.3, 0.1, 0.2, value, -value])
    expected = gradients(torch.tensor([0.3, 0.1, 0.2, 50.0, -50.0]), targets)
    actual = gradients(logits, targets)
    assert actual[:2] == expected[:2]
    torch.testing.assert_close(actual[2], expected[2])


def test_infinite_positives_are_the_first_and_the_last():
    targets = torch.tensor([0.7, 0.4, 0.0])
    ranking, sorting, grad = gradients(torch.tensor([torch.inf, -torch.inf, 0.0]), targets)
    expected = reference.rank_sort([1e3, -1e3, 0.0], targets, 0.5)
    assert (ranking, sorting) == pytest.approx((expected.ranking, expected.sorting), abs=1e-7)
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, targets = random_case(20, 1000, dtype=torch.float32)
    logits = logits.to(dtype)
    half = gradients(logits, targets)
    full = gradients(logits.float(), targets)
    assert half[:2] == full[:2]
    assert half[2].dtype == dtype
    torch.testing.assert_close(half[2].float(), full[2].to(dtype).float())


def test_the_gradient_is_scaled_before_it_is_rounded_to_half():
    logits, targets = random_case(3, 5000, dtype=torch.float32)
    scaled = gradients(logits.half(), targets, weights=(65536.0, 65536.0))[2].float() / 65536
    exact = gradients(logits.half().float(), targets)[2]
    torch.testing.assert_close(scaled, exact, rtol=1e-3, atol=1e-12)


def test_two_runs_agree_to_the_bit():
    logits, targets = random_case(50, 20000, dtype=torch.float32)
    first, second = gradients(logits, targets), gradients(logits, targets)
    assert first[:2] == second[:2]
    assert torch.equal(first[2], second[2])


def test_inputs_are_left_as_they_were():
    logits, targets = random_case(5, 20)
    copies = logits.clone(), targets.clone()
    gradients(logits, targets)
    assert torch.equal(logits, copies[0])
    assert torch.equal(targets, copies[1])


@pytest.mark.parametrize(
    ("logits", "targets", "delta", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2, 1), 0.5, "one shape"),
        (torch.zeros(2), torch.zeros(3), 0.5, "one shape"),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2), 0.5, "floating-point"),
        (torch.zeros(2), torch.zeros(2), -0.1, "delta >= 0"),
        (torch.zeros(2), torch.zeros(2), float("nan"), "delta >= 0"),
    ],
)
def test_wrong_arguments_are_named(logits, targets, delta, message):
    with pytest.raises(ValueError, match=message):
        rank_sort_loss(logits, targets, delta)
