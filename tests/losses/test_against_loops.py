"""Whatever hypothesis thinks of, the losses equal the literal loops, on both paths."""

import numpy as np
import pytest
import torch
from helpers import reference
from hypothesis import given
from hypothesis import strategies as st

from rs_d2.losses import alrp_loss, average_precision_loss, rank_sort_loss
from rs_d2.losses.kernel.device_dispatch import device_path

LOGITS = st.one_of(
    st.floats(-3, 3),
    st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]),  # ties, and logits a window apart
    st.floats(-1e3, 1e3),
)
TARGETS = st.one_of(st.just(0.0), st.just(-1.0), st.sampled_from([0.25, 0.5, 1.0]), st.floats(0, 1))
BATCHES = st.lists(st.tuples(LOGITS, TARGETS), min_size=1, max_size=30).filter(
    lambda batch: any(target > 0 for _, target in batch)
)
DELTAS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 7.0])


def tensors(batch):
    logits, targets = torch.tensor(batch, dtype=torch.float64).T
    return logits.clone().requires_grad_(), targets.clone()


def on_both_paths(loss):
    yield loss()
    with device_path():
        yield loss()


@given(BATCHES, DELTAS)
def test_rank_sort_loss(batch, delta):
    logits, targets = tensors(batch)
    expected = reference.rank_sort(logits, targets, delta)
    for loss in on_both_paths(lambda: rank_sort_loss(logits, targets, delta)):
        assert loss.ranking.item() == pytest.approx(expected.ranking, abs=1e-9)
        assert loss.sorting.item() == pytest.approx(expected.sorting, abs=1e-9)
        for part, gradient in (
            (loss.ranking, expected.ranking_gradient),
            (loss.sorting, expected.sorting_gradient),
        ):
            (grad,) = torch.autograd.grad(part, logits, retain_graph=True)
            np.testing.assert_allclose(grad.numpy(), gradient, atol=1e-9)


@given(BATCHES, DELTAS)
def test_average_precision_loss(batch, delta):
    logits, targets = tensors(batch)
    value, gradient = reference.average_precision(logits, targets, delta)
    for loss in on_both_paths(lambda: average_precision_loss(logits, targets, delta)):
        (grad,) = torch.autograd.grad(loss, logits)
        # Where errors are equal but for rounding, either of two is the running minimum.
        assert loss.item() == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose(grad.numpy(), gradient, atol=1e-9)


@given(BATCHES, DELTAS, st.integers(0, 2**32 - 1))
def test_alrp_loss(batch, delta, seed):
    logits, targets = tensors(batch)
    rng = torch.Generator().manual_seed(seed)
    num = int((targets > 0).sum())
    errors = torch.rand(num, generator=rng, dtype=torch.float64).requires_grad_()
    expected = reference.alrp(logits, targets, errors, delta, eps=1e-10)
    for loss in on_both_paths(lambda: alrp_loss(logits, targets, errors, delta, eps=1e-10)):
        assert loss.classification.item() == pytest.approx(expected.classification, abs=1e-9)
        assert loss.localization.item() == pytest.approx(expected.localization, abs=1e-9)
        grad, errors_grad = torch.autograd.grad(sum(loss), [logits, errors])
        np.testing.assert_allclose(grad.numpy(), expected.gradient, atol=1e-9)
        np.testing.assert_allclose(errors_grad.numpy(), expected.errors_gradient, atol=1e-9)
