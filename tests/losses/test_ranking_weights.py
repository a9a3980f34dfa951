"""Weights by ranking against their equation, and against aLRP Loss."""

import pytest
import torch

from rs_d2.losses import alrp_loss, ranking_weights


def by_hand(logits, targets, delta, delta_loc):
    """The equation in float64 loops."""
    logits = logits.double()
    positives, negatives = (targets > 0).nonzero().squeeze(1), (targets == 0).nonzero().squeeze(1)

    def step(x, width):
        return float(x >= 0) if width == 0 else float((x / (2 * width) + 0.5).clamp(0, 1))

    in_ranks = delta if delta_loc is None else delta_loc
    rank = {}
    for k in positives.tolist():
        others = [j for j in positives.tolist() if j != k] + negatives.tolist()
        rank[k] = 1 + sum(step(logits[j] - logits[k], in_ranks) for j in others)
    weights = []
    for i in positives.tolist():
        total = 1 / rank[i]
        total += sum(step(logits[i] - logits[k], delta_loc or 0) / rank[k] for k in rank if k != i)
        weights.append(total / len(rank))
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("delta_loc", [None, 0.0, 0.5, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_those_of_the_equation(delta_loc, dtype):
    logits = torch.randn(60, dtype=dtype)
    targets = torch.randint(-1, 2, (60,)).to(dtype)
    found = ranking_weights(logits, targets, 0.5, delta_loc)
    assert found.dtype == dtype
    expected = by_hand(logits, targets, 0.5, delta_loc)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_the_default_is_the_gradient_of_alrps_localisation_term():
    logits, targets = torch.randn(40), (torch.rand(40) > 0.7).float()
    errors = torch.rand(int(targets.sum()), requires_grad=True)
    alrp_loss(logits, targets, errors, delta=1.0).localization.backward()
    torch.testing.assert_close(ranking_weights(logits, targets, 1.0), errors.grad)


def test_nothing_to_rank_and_nan():
    assert ranking_weights(torch.randn(5), torch.zeros(5)).shape == (0,)
    assert ranking_weights(torch.zeros(0), torch.zeros(0)).shape == (0,)
    assert ranking_weights(torch.tensor([torch.nan, 1]), torch.ones(2)).isnan().all()


def test_a_head_weights_its_boxes_by_them():
    from rs_d2.criterion import WEIGHTS, Candidates

    logits = torch.randn(4, 3)
    classes, rows = torch.tensor([1, 3, -1, 0]), torch.tensor([0, 3])
    targets = torch.tensor([[0, 1, 0], [0, 0, 0], [-1, -1, -1], [1, 0, 0]]).float()
    found = WEIGHTS["ranking"](delta=0.5, delta_loc=1.5)(Candidates(logits, classes, rows))
    torch.testing.assert_close(
        found, ranking_weights(logits.flatten(), targets.flatten(), 0.5, 1.5)
    )
