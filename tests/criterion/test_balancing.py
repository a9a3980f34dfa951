"""Hand numbers for the task balancers."""

import pytest
import torch

from rs_d2.criterion.balancing import ConstantBalancer, ValueBalancer


def test_value_balance_gives_the_references_value_and_a_scaled_gradient():
    loss = torch.tensor(0.25, requires_grad=True)
    reference = torch.tensor(0.75, requires_grad=True)
    balanced = ValueBalancer()(loss, reference)
    balanced.backward()
    assert balanced == 0.75
    assert loss.grad == 3  # the factor is a constant
    assert reference.grad is None


@pytest.mark.parametrize("value", [0.0, 1e-9])
def test_a_loss_of_nothing_stays_finite(value):
    loss = torch.tensor(value, requires_grad=True)
    balanced = ValueBalancer()(loss, torch.tensor(0.5))
    balanced.backward()
    assert balanced == value
    assert loss.grad == 1


@pytest.mark.parametrize(("loss", "reference"), [(torch.nan, 0.5), (0.5, torch.nan)])
def test_nan_stays_nan(loss, reference):
    assert ValueBalancer()(torch.tensor(loss), torch.tensor(reference)).isnan()


def test_a_reference_of_zero_silences_the_task():
    assert ValueBalancer()(torch.tensor(0.3), torch.tensor(0.0)) == 0


def test_constant_balance_changes_nothing():
    assert ConstantBalancer()(torch.tensor(0.3), torch.tensor(5.0)) == torch.tensor(0.3)
