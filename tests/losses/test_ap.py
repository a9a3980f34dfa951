"""AP Loss against the recorded reference and a literal loop."""

import numpy as np
import pytest
import torch
from helpers import ranking, reference

from rs_d2.losses import average_precision_loss


def run(logits, targets, delta=1.0):
    logits = logits.detach().requires_grad_()
    loss = average_precision_loss(logits, targets, delta)
    loss.backward()
    return loss.item(), logits.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_equals_the_recorded_reference(dtype, tolerance):
    cases = ranking.golden_cases("ap")
    for case in cases:
        logits, targets = (torch.tensor(case[key], dtype=dtype) for key in ("logits", "targets"))
        loss, grad = run(logits, targets)
        assert loss == pytest.approx(float(case["loss64"]), abs=tolerance), case["name"]
        own, expected = grad.double().numpy(), case["grad64"]
        own = own[case["index"]] if "index" in case else own
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(own - expected) <= tolerance * scale + 1e-15, case["name"]
    assert len(cases) >= 18


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 0, 0), (1, 5, 2), (7, 0, 1), (6, 30, 4), (25, 3, 0)])
def test_equals_the_literal_loop(sizes, ties, delta):
    logits, targets = ranking.random_case(*sizes, seed=sum(sizes), ties=ties)
    expected_loss, expected = reference.average_precision(logits, targets, delta)
    loss, grad = run(logits, targets, delta)
    assert loss == pytest.approx(expected_loss, abs=1e-13)
    np.testing.assert_allclose(grad.numpy(), expected, atol=1e-13)


def test_the_published_example():
    logits = torch.tensor([3.0, 2, 1, 0, -1, -2, -3, -4])
    loss, grad = run(logits, torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 0]))
    assert loss == pytest.approx(0.207143, abs=1e-6)
    expected = [0, 0, 0.085714, 0.085714, -0.1, 0.035714, -0.107143, 0]
    np.testing.assert_allclose(grad.numpy(), expected, atol=1e-6)


def test_the_hard_step_gives_one_minus_the_interpolated_average_precision():
    logits, targets = ranking.random_case(8, 40)
    order = logits.argsort(descending=True)
    hits = (targets[order] > 0).double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    interpolated = precision.flip(0).cummax(0).values.flip(0)[hits > 0]
    assert run(logits, targets, 0.0)[0] == pytest.approx(1 - interpolated.mean().item(), abs=1e-13)
