"""Sums over the positives of lower label: blocks and table equal the P x P table."""

import pytest
import torch
from helpers.ranking import random_case
from operation_count import count_operations

from rs_d2.losses import rank_sort_loss
from rs_d2.losses.kernel import sorting
from rs_d2.losses.kernel.ranking import smoothed_step
from rs_d2.losses.kernel.sorting import sum_lower_labels


def all_pairs(scores, labels, weights, delta):
    step = smoothed_step(scores[None] - scores[:, None], delta)
    return weights @ (step * (labels[None] < labels[:, None])).T


def case(num, ties):
    scores, labels = torch.randn(num, dtype=torch.float64), torch.rand(num, dtype=torch.float64)
    if ties:
        scores, labels = (scores * 4).round() / 4, (labels * 5).ceil() / 5
    return scores, labels, torch.rand(2, num, dtype=torch.float64)


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("num", "block"), [(1, 4), (7, 4), (64, 16), (300, 16), (300, 1)])
def test_blocks_equal_all_pairs(monkeypatch, num, block, ties, delta):
    monkeypatch.setattr(sorting, "_block_size", lambda *_: min(block, num))
    arguments = case(num, ties)
    torch.testing.assert_close(
        sum_lower_labels(*arguments, delta), all_pairs(*arguments, delta), rtol=0, atol=1e-11
    )


def test_huge_scores_spoil_nothing_in_the_table():
    scores, labels, weights = case(400, ties=False)
    scores[:2] = torch.tensor([3e38, -3e38], dtype=torch.float64)
    actual = sum_lower_labels(scores, labels, weights, 0.5)
    expected = all_pairs(scores.clamp(-50, 50), labels, weights, 0.5)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def test_equal_labels_give_exactly_nothing():
    scores, _, weights = case(1000, ties=True)
    assert (sum_lower_labels(scores, torch.full_like(scores, 0.5), weights, 0.5) == 0).all()


def test_many_positives_equal_a_table_by_rows():
    logits, targets = random_case(5000, 2000)
    loss = rank_sort_loss(logits, targets)
    scores, labels = logits[targets > 0], targets[targets > 0]
    rows = [smoothed_step(scores[None] - part[:, None], 0.5) for part in scores.split(500)]
    step = torch.cat(rows)
    current = step @ (1 - labels) / step.sum(1)
    step *= labels[None] >= labels[:, None]
    target = step @ (1 - labels) / step.sum(1)
    assert loss.sorting.item() == pytest.approx((current - target).mean().item(), abs=1e-12)


def test_memory_is_bounded_with_fifty_thousand_positives():
    scores, labels = torch.randn(2, 50_000, dtype=torch.float64)
    weights = torch.rand(2, 50_000, dtype=torch.float64)
    counted = count_operations(lambda: sum_lower_labels(scores, labels, weights, 0.5))
    assert counted.largest_bytes < 200e6  # all pairs: 20 GB
