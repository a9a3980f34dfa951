"""aLRP Loss against the recorded reference and a literal loop."""

import numpy as np
import pytest
import torch
from helpers import ranking, reference

from rs_d2.losses import alrp_loss
from rs_d2.losses.kernel.device_dispatch import device_path


def run(logits, targets, errors, delta=1.0, weights=(1.0, 1.0)):
    logits, errors = (x.detach().clone().requires_grad_() for x in (logits, errors))
    loss = alrp_loss(logits, targets, errors, delta)
    (loss.classification * weights[0] + loss.localization * weights[1]).backward()
    return loss.classification.item(), loss.localization.item(), logits.grad, errors.grad


def random_case(num_pos, num_neg, seed=0, **kwargs):
    logits, targets = ranking.random_case(num_pos, num_neg, seed=seed, **kwargs)
    return logits, targets, torch.rand(num_pos, dtype=logits.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_equals_the_recorded_reference(dtype, tolerance):
    cases = ranking.golden_cases("alrp")
    for case in cases:
        logits, targets, errors = (
            torch.tensor(case[key], dtype=dtype)
            for key in ("logits", "targets", "regression_losses")
        )
        classification, _, grad, errors_grad = run(logits, targets, errors)
        assert classification == pytest.approx(float(case["loss64"]), abs=tolerance), case["name"]
        own, expected = grad.double().numpy(), case["grad64"]
        own = own[case["index"]] if "index" in case else own
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(own - expected) <= tolerance * scale + 1e-15, case["name"]

        order = np.argsort(logits[targets > 0].numpy(), kind="stable")
        influence = np.empty(len(order))
        influence[order] = np.cumsum(1 / case["position_rank64"][order]) / len(order)
        np.testing.assert_allclose(errors_grad.numpy(), influence, rtol=tolerance)
    assert len(cases) >= 18


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 0), (1, 5), (7, 0), (6, 30), (25, 3)])
def test_equals_the_literal_loop(sizes, ties, delta):
    logits, targets, errors = random_case(*sizes, seed=sum(sizes), ties=ties)
    expected = reference.alrp(logits, targets, errors, delta)
    classification, localization, grad, errors_grad = run(logits, targets, errors, delta)
    assert classification == pytest.approx(expected.classification, abs=1e-13)
    assert localization == pytest.approx(expected.localization, abs=1e-13)
    np.testing.assert_allclose(grad.numpy(), expected.gradient, atol=1e-13)
    np.testing.assert_allclose(errors_grad.numpy(), expected.errors_gradient, atol=1e-13)


def test_the_published_example():
    logits = torch.tensor([3.0, 2, 1, 0, -1, -2, -3, -4])
    targets = torch.tensor([1.0, 1, 0, 0, 1, 0, 1, 0])
    errors = torch.tensor([0.1, 0.6, 0.2, 0.9])
    classification, localization, grad, errors_grad = run(logits, targets, errors)
    assert classification == pytest.approx(0.207143, abs=1e-6)
    assert localization == pytest.approx(0.221786, abs=1e-6)
    expected = [0, 0, 0.113929, 0.113929, -0.135, 0.046429, -0.139286, 0]
    np.testing.assert_allclose(grad.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        errors_grad.numpy(), [0.460714, 0.210714, 0.085714, 0.035714], atol=1e-6
    )


def test_each_output_scales_its_own_gradient():
    case = random_case(9, 60)
    _, _, grad, errors_grad = run(*case)
    _, _, tripled, unscaled = run(*case, weights=(3.0, 1.0))
    torch.testing.assert_close(tripled, 3 * grad)
    torch.testing.assert_close(unscaled, errors_grad)
    _, _, unscaled, tripled = run(*case, weights=(1.0, 3.0))
    torch.testing.assert_close(tripled, 3 * errors_grad)
    torch.testing.assert_close(unscaled, grad)


def test_localization_is_differentiable_in_the_errors():
    logits, targets, errors = random_case(6, 20)
    errors.requires_grad_()
    torch.autograd.gradcheck(lambda e: alrp_loss(logits, targets, e).localization, (errors,))


def test_without_positives_both_are_zeros_attached_to_both_inputs():
    logits, errors = torch.randn(3, requires_grad=True), torch.zeros(0, requires_grad=True)
    loss = alrp_loss(logits, torch.tensor([0.0, -1.0, 0.0]), errors)
    assert (loss.classification.item(), loss.localization.item()) == (0, 0)
    for part in loss:
        (grad,) = torch.autograd.grad(part, logits, retain_graph=True)
        assert (grad == 0).all()
    loss.localization.backward()
    assert errors.grad is not None


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_nan_error_makes_the_localization_and_the_gradient_nan(deterministic):
    logits, targets, errors = random_case(3, 5)
    errors[1] = torch.nan
    torch.use_deterministic_algorithms(deterministic)
    try:
        with device_path():
            _, localization, grad, _ = run(logits, targets, errors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert np.isnan(localization)
    assert grad.isnan().any()


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        (torch.zeros(3), "each of the 2 positives, got 3"),
        (torch.zeros(2, 1), r"shape \[P\], got torch.float32 of shape \(2, 1\)"),
        (torch.zeros(2, dtype=torch.int64), "floating-point"),
    ],
)
def test_wrong_errors_are_named(errors, message):
    with pytest.raises(ValueError, match=f"alrp_loss: localization_errors .*{message}"):
        alrp_loss(torch.zeros(3), torch.tensor([1.0, 1.0, 0.0]), errors)
