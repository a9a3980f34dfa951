"""What all ranking losses have in common: laws, precision, determinism, bad input."""

from functools import partial

import pytest
import torch
from helpers.ranking import random_case
from operation_count import count_operations

from rs_d2.losses import alrp_loss, average_precision_loss, rank_sort_loss
from rs_d2.losses.alrp import alrp_terms
from rs_d2.losses.ap import average_precision_terms
from rs_d2.losses.kernel.device_dispatch import device_path
from rs_d2.losses.rank_sort import rank_sort_terms


def sum_of_rank_sort(logits, targets, delta):
    return sum(rank_sort_loss(logits, targets, delta))


def sum_of_alrp(logits, targets, delta):
    errors = torch.linspace(0.1, 0.9, int((targets > 0).sum()), dtype=torch.float64)
    return sum(alrp_loss(logits, targets, errors.to(logits), delta))


LOSSES = {
    "rank_sort_loss": sum_of_rank_sort,
    "alrp_loss": sum_of_alrp,
    "average_precision_loss": average_precision_loss,
}
# The operators behind them: a mode that counts operations does not look into an operator.
TERMS = {
    "rank_sort_loss": lambda x, t: rank_sort_terms._init_fn(x, t, 0.5, 1e-10),
    "alrp_loss": lambda x, t: alrp_terms._init_fn(x, t, x[: t.count_nonzero()].abs(), 1.0, 1e-5),
    "average_precision_loss": lambda x, t: average_precision_terms._init_fn(x, t, 1.0),
}
PATHS = ("cpu", "device")


@pytest.fixture(params=LOSSES)
def loss(request):
    """Each loss as a function of (logits, targets, delta) that gives one scalar."""
    return LOSSES[request.param]


@pytest.fixture(params=PATHS)
def on_both_paths(request):
    if request.param == "cpu":
        yield
        return
    with device_path():
        yield


def run(loss, logits, targets, delta=0.5, scale=1.0):
    logits = logits.detach().requires_grad_()
    value = loss(logits, targets, delta)
    (value * scale).backward()
    return value.item(), logits.grad


@pytest.mark.parametrize("delta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("sizes", [(1, 0, 0), (1, 1, 0), (40, 0, 3), (30, 500, 20), (400, 90, 1)])
def test_both_paths_agree(loss, sizes, delta):
    for ties in (False, True):
        logits, targets = random_case(*sizes, ties=ties)
        value, grad = run(loss, logits, targets, delta)
        with device_path():
            other_value, other_grad = run(loss, logits, targets, delta)
        assert other_value == pytest.approx(value, abs=1e-12)
        torch.testing.assert_close(other_grad, grad, rtol=0, atol=1e-13)


def test_gradients_sum_to_zero(loss, on_both_paths):
    logits, targets = random_case(20, 300, 10)
    _, grad = run(loss, logits, targets)
    assert grad.abs().sum() > 0.1
    assert grad.sum().item() == pytest.approx(0, abs=1e-13)
    assert (grad[targets < 0] == 0).all()


def test_permuting_the_candidates_permutes_the_gradient():
    logits, targets = random_case(10, 100)
    order = torch.randperm(len(logits))
    for loss in (sum_of_rank_sort, average_precision_loss):  # aLRP's errors would move too
        value, grad = run(loss, logits, targets)
        moved_value, moved = run(loss, logits[order], targets[order])
        assert moved_value == pytest.approx(value, abs=1e-14)
        torch.testing.assert_close(moved, grad[order], rtol=0, atol=1e-15)


def test_a_constant_added_to_all_logits_changes_nothing(loss):
    logits, targets = random_case(10, 100)
    value, grad = run(loss, logits, targets)
    shifted_value, shifted = run(loss, logits + 8, targets)
    assert shifted_value == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(shifted, grad, rtol=0, atol=1e-12)


def test_negatives_below_every_window_get_exactly_zero(loss, on_both_paths):
    logits, targets = random_case(5, 50)
    far = (targets == 0) & (logits < 0)
    logits = torch.where(far, logits - 100, logits)
    _, grad = run(loss, logits, targets)
    assert far.any()
    assert (grad[far] == 0).all()


@pytest.mark.parametrize("targets", [[], [0.0, 0.0, -1.0], [-1.0]])
def test_no_positives_give_a_zero_attached_to_the_logits(loss, targets, on_both_paths):
    logits = torch.full((len(targets),), torch.inf)
    value, grad = run(loss, logits, torch.tensor(targets))
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_that_takes_part_makes_loss_and_gradient_nan(loss, place, on_both_paths):
    logits, targets = torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.7, 0.0, -1.0])
    poisoned = logits.clone()
    poisoned[place] = torch.nan
    value, grad = run(loss, poisoned, targets)
    assert value != value
    assert grad.isnan().any()


@pytest.mark.parametrize("sizes", [(3, 20, 2), (3, 2, 900)])
def test_a_nan_that_is_ignored_changes_nothing(loss, sizes, on_both_paths):
    logits, targets = random_case(*sizes)
    expected = run(loss, logits, targets)
    logits[targets < 0] = torch.nan
    value, grad = run(loss, logits, targets)
    assert value == expected[0]
    assert torch.equal(grad, expected[1])


@pytest.mark.parametrize("huge", [torch.inf, 3e38, 1e20])
def test_huge_negatives_count_as_one_and_spoil_nothing(loss, huge, on_both_paths):
    targets = torch.tensor([0.7, 0.4, 0.0, 0.0, 0.0])
    expected = run(loss, torch.tensor([0.3, 0.1, 0.2, 50.0, -50.0]), targets)
    value, grad = run(loss, torch.tensor([0.3, 0.1, 0.2, huge, -huge]), targets)
    assert value == expected[0]
    torch.testing.assert_close(grad, expected[1])


@pytest.mark.parametrize("huge", [torch.inf, 3e38, 1e20])
def test_huge_positives_are_the_first_and_the_last_and_spoil_nothing(loss, huge, on_both_paths):
    targets = torch.tensor([0.7, 0.9, 0.4, 0.3, 0.0, 0.0, 0.0])
    ordinary = [0.3, 0.1, 0.2, -0.1]
    expected = run(loss, torch.tensor([70.0, -70.0, *ordinary, 60.0]), targets)
    value, grad = run(loss, torch.tensor([huge, -huge, *ordinary, 1e15]), targets)
    assert value == pytest.approx(expected[0], abs=1e-6)
    torch.testing.assert_close(grad, expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    logits, targets = random_case(20, 1000, dtype=torch.float32)
    logits, targets = logits.to(dtype), targets.to(dtype)
    value, grad = run(loss, logits, targets)
    expected_value, expected = run(loss, logits.float(), targets.float())
    assert value == pytest.approx(expected_value, abs=1e-6 if loss is not sum_of_alrp else 1e-2)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.float(), expected.to(dtype).float(), rtol=1e-2, atol=1e-9)


def test_the_gradient_is_scaled_before_it_is_rounded_to_half(loss):
    logits, targets = random_case(3, 5000, dtype=torch.float32)
    _, scaled = run(loss, logits.half(), targets, scale=65536.0)
    _, exact = run(loss, logits.half().float(), targets)
    torch.testing.assert_close(scaled.float() / 65536, exact, rtol=2e-3, atol=1e-12)


def test_inputs_may_be_strided_and_stay_as_they_were(loss, on_both_paths):
    logits, targets = random_case(5, 70)
    table = torch.stack([logits, targets], dim=1)
    copy = table.clone()
    value, grad = run(loss, table[:, 0], table[:, 1])
    assert torch.equal(table, copy)
    expected_value, expected = run(loss, logits, targets)
    assert value == expected_value
    assert torch.equal(grad, expected)


def test_two_runs_agree_to_the_bit(loss):
    logits, targets = random_case(700, 20000, dtype=torch.float32)
    value, grad = run(loss, logits, targets)
    again_value, again = run(loss, logits, targets)
    assert value == again_value
    assert torch.equal(grad, again)


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_result_and_repeats_it_to_the_bit(loss):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    logits, targets = random_case(700, 20000, dtype=torch.float32)
    value, grad = run(loss, logits, targets)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [run(loss, logits.cuda(), targets.cuda()) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert runs[0][0] == runs[1][0] == pytest.approx(value, abs=1e-6)
    assert torch.equal(runs[0][1], runs[1][1])
    torch.testing.assert_close(runs[0][1].cpu(), grad, rtol=0, atol=1e-7)


def test_integer_scans_give_the_same_under_deterministic_algorithms(loss):
    logits, targets = random_case(300, 5000)
    value, grad = run(loss, logits, targets)
    torch.use_deterministic_algorithms(True)
    try:
        with device_path():
            exact_value, exact = run(loss, logits, targets)
    finally:
        torch.use_deterministic_algorithms(False)
    assert exact_value == pytest.approx(value, abs=1e-11)
    torch.testing.assert_close(exact, grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("logits", "targets", "delta", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2, 1), 0.5, r"logits .* got shape \(2, 1\)"),
        (torch.zeros(2), torch.zeros(3), 0.5, r"targets .* shape \(2,\), got \(3,\)"),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2), 0.5, "logits .* got torch.int64"),
        (torch.zeros(2), torch.zeros(2), -0.1, "delta .* got -0.1"),
        (torch.zeros(2), torch.zeros(2), float("nan"), "delta .* got nan"),
        (torch.zeros(2), torch.zeros(2), 1e300, r"delta .* got 1e\+300"),
        (torch.zeros(2), torch.tensor([0.0, 1.5]), 0.5, "targets .* got 1.5 at index 1"),
        (torch.zeros(2), torch.tensor([torch.nan, 0]), 0.5, "targets .* got nan at index 0"),
    ],
)
def test_wrong_arguments_are_named(name, logits, targets, delta, message):
    call = {
        "rank_sort_loss": rank_sort_loss,
        "alrp_loss": partial(alrp_loss, localization_errors=torch.zeros(0)),
        "average_precision_loss": average_precision_loss,
    }[name]
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        call(logits, targets, delta=delta)


def test_double_precision_tells_logits_beyond_float32_apart(loss, on_both_paths):
    targets = torch.tensor([0.9, 0.0, 0.3, 0.0])
    value, _ = run(loss, torch.tensor([1e300, 1e250, 1e200, -1e300], dtype=torch.float64), targets)
    expected, _ = run(loss, torch.tensor([9.0, 6.0, 3.0, -9.0], dtype=torch.float64), targets)
    assert value == pytest.approx(expected, abs=1e-9)


def test_a_quality_of_one_may_be_rounded_up(loss):
    logits, targets = torch.tensor([0.3, 0.1]), torch.tensor([1.0000001, 0.0])
    value, grad = run(loss, logits, targets)
    expected_value, expected = run(loss, logits, targets.clamp(max=1))
    assert value == expected_value
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_device_path_neither_waits_nor_grows_with_the_positives(name):
    terms = TERMS[name]
    counts = []
    for num_pos in (50, 500):
        logits, targets = random_case(num_pos, 3000, dtype=torch.float32)
        with device_path():
            counts.append(count_operations(partial(terms, logits, targets)))
    few, many = counts
    assert few[:2] == many[:2]
    assert few.operations <= 200
    assert few.host_reads == 1
