"""State laws of the ranking losses on whatever logits hypothesis thinks of, on both paths."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rs_d2.losses import alrp_loss, average_precision_loss, rank_sort_loss
from rs_d2.losses.kernel.device_dispatch import device_path

LOGITS = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e30, -1e30, 3e38, -3e38, 1e-40]),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
TARGETS = st.sampled_from([0.0, 0.0, -1.0, 1.0, 0.5, 0.25, 1e-7])
BATCHES = st.lists(st.tuples(LOGITS, TARGETS), max_size=25)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
DELTAS = st.sampled_from([0.0, 0.5, 1.0])


def rank_sort(logits, targets, delta):
    return rank_sort_loss(logits, targets, delta)


def average_precision(logits, targets, delta):
    return (average_precision_loss(logits, targets, delta),)


def alrp(logits, targets, delta):
    errors = torch.linspace(0, 1, int((targets > 0).sum()), dtype=logits.dtype)
    return alrp_loss(logits, targets, errors, delta)


LOSSES = {"rank_sort": rank_sort, "ap": average_precision, "alrp": alrp}


def value_and_gradient(name, logits, targets, delta):
    logits = logits.clone().requires_grad_()
    parts = LOSSES[name](logits, targets, delta)
    (gradient,) = torch.autograd.grad(sum(parts), logits, allow_unused=True)
    return [part.item() for part in parts], gradient


@pytest.mark.parametrize("on_device", [False, True], ids=["cpu", "device"])
@pytest.mark.parametrize("name", LOSSES)
@given(batch=BATCHES, dtype=DTYPES, delta=DELTAS, seed=st.integers(0, 100))
def test_losses_are_finite_bounded_and_balanced(name, on_device, batch, dtype, delta, seed):
    wide = torch.tensor(batch, dtype=torch.float64).reshape(-1, 2).T
    largest = torch.finfo(dtype).max
    logits, targets = wide[0].clamp(-largest, largest).to(dtype), wide[1].to(dtype)
    if on_device:
        with device_path():
            values, gradient = value_and_gradient(name, logits, targets, delta)
    else:
        values, gradient = value_and_gradient(name, logits, targets, delta)
    assert all(math.isfinite(value) and -1e-3 <= value <= 1.02 for value in values)
    assert gradient is not None
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    if logits.numel() and logits.abs().max() > 1e9:
        return  # sums of such logits have no digits left for a window of 1
    ignored = targets < 0
    assert not gradient[ignored].any()
    rounding = 64 * torch.finfo(dtype).eps
    assert abs(gradient.double().sum().item()) <= rounding + 1e-6  # what one loses another gains
    assert (gradient[targets == 0].double() >= -rounding).all()  # a negative is never raised
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    if name != "alrp":  # whose errors go by position
        other, _ = value_and_gradient(name, logits[order], targets[order], delta)
        assert other == pytest.approx(values, abs=rounding + 1e-6)
