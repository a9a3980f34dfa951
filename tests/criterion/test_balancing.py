"""Hand numbers for the task balancers."""

import pytest
import torch

from rs_d2.criterion.balancing import (
    ConstantBalancer,
    EpochBalancer,
    Gradients,
    MagnitudeBalancer,
    ValueBalancer,
    set_epochs,
)
from rs_d2.utils.errors import UserError


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


def test_constant_balance_multiplies_by_its_weight():
    loss = torch.tensor(0.3)
    assert ConstantBalancer()(loss, torch.tensor(5.0)) == loss
    assert ConstantBalancer(weight=2.0)(loss, torch.tensor(5.0)) == 2 * loss


def magnitude_case():
    logits = torch.randn(4, 3, requires_grad=True)
    outputs = torch.randn(2, 4, requires_grad=True)
    return logits, outputs, (logits.square() * 0.5).sum(), outputs.pow(3).sum()


def test_magnitude_balance_equals_the_gradients_norms_written_out():
    logits, outputs, ranking, loss = magnitude_case()
    balanced = MagnitudeBalancer()(loss, ranking.detach(), Gradients(ranking, logits, outputs))
    factor = logits.abs().sum() / (3 * outputs.square()).sum()
    torch.testing.assert_close(balanced, loss * factor)
    (ranking + balanced).backward()  # the graph is still there
    torch.testing.assert_close(outputs.grad.abs().sum(), logits.grad.abs().sum())


def test_magnitude_balance_without_a_graph_leaves_the_loss_unchanged():
    logits, outputs, *_ = magnitude_case()
    with torch.no_grad():
        loss, ranking = outputs.sum(), logits.sum()
        gradients = Gradients(ranking, logits, outputs)
        assert MagnitudeBalancer()(loss, ranking, gradients) == loss


def test_magnitude_balance_of_a_head_without_raw_outputs_is_one_line():
    logits, _, ranking, loss = magnitude_case()
    with pytest.raises(UserError, match=r"^CRITERION\.BALANCE: magnitude needs"):
        MagnitudeBalancer()(loss, ranking.detach(), Gradients(ranking, logits, None))


def run(balancer, losses, references):
    pairs = zip(losses, references, strict=True)
    return [float(balancer(torch.tensor(a), torch.tensor(b))) for a, b in pairs]


LOSSES, REFERENCES = [0.1, 0.3, 0.2, 0.4, 0.8], [0.9, 0.7, 0.5, 0.6, 0.2]


def test_epoch_balance_starts_at_50_and_renews_its_factor_within_the_last_iteration():
    first = (0.1 + 0.3 + 0.9 + 0.7) / (0.1 + 0.3)
    second = (0.2 + 0.4 + 0.5 + 0.6) / (0.2 + 0.4)
    factors = [50, first, first, second, second]
    expected = [factor * loss for factor, loss in zip(factors, LOSSES, strict=True)]
    assert run(EpochBalancer(period=2), LOSSES, REFERENCES) == pytest.approx(expected)


def test_epoch_balance_resumes_to_the_bit():
    whole = run(EpochBalancer(period=3), LOSSES * 2, REFERENCES * 2)
    first, second = EpochBalancer(period=3), EpochBalancer(period=3)
    start = run(first, LOSSES[:4], REFERENCES[:4])
    second.load_state_dict(first.state_dict())
    rest = run(second, (LOSSES * 2)[4:], (REFERENCES * 2)[4:])
    assert start + rest == whole


def test_epoch_balance_counts_in_training_only_and_never_divides_by_zero():
    balancer = EpochBalancer(period=1)
    balancer.eval()
    assert run(balancer, [0.5], [0.5]) == [25]
    balancer.train()
    assert run(balancer, [0.0, 0.5], [0.5, 0.5]) == [0, 1]


def test_balancers_are_told_the_length_of_an_epoch_unless_they_know_it():
    model = torch.nn.ModuleList([EpochBalancer(), EpochBalancer(period=7)])
    set_epochs(model, 120)
    assert [balancer.period for balancer in model] == [120, 7]


def test_an_epoch_of_unknown_length_is_one_line():
    model = torch.nn.ModuleList([EpochBalancer(period=7), ValueBalancer()])
    set_epochs(model, None)
    assert [balancer.period for balancer in model] == [7, 0]
    with pytest.raises(UserError, match=r"^CRITERION\.BALANCE: epoch .* CRITERION\.BALANCE_PERIOD"):
        set_epochs(model.append(EpochBalancer()), None)


def test_weights_without_a_history_load_and_let_it_start_anew():
    balancer = EpochBalancer(period=2)
    torch.nn.Module.load_state_dict(torch.nn.ModuleDict({"balancer": balancer}), {})
    assert balancer.factor == 50
