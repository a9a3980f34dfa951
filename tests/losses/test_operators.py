"""The ranking losses inside compiled code, autocast and loss scaling."""

import pytest
import torch
from helpers.ranking import random_case
from torch import nn

from rs_d2.losses import alrp_loss, average_precision_loss, rank_sort_loss


def head_loss(head, features, targets, errors):
    logits = head(features).flatten()
    ranking, sorting = rank_sort_loss(logits * 1.5, targets)
    average_precision = average_precision_loss(logits - 0.5, targets)
    classification, localization = alrp_loss(logits, targets, errors)
    return ranking + 0.5 * sorting + average_precision + 0.1 * (classification + localization)


def head_case():
    _, targets = random_case(12, 200, 8, dtype=torch.float32)
    errors = torch.rand(12, requires_grad=True)
    return nn.Linear(4, 10), torch.randn(22, 4), targets, errors


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiling_changes_nothing(backend):
    head, features, targets, errors = head_case()
    loss = head_loss(head, features, targets, errors)
    expected = torch.autograd.grad(loss, [head.weight, errors])
    torch._dynamo.reset()
    compiled = torch.compile(head_loss, backend=backend, fullgraph=True)
    compiled_loss = compiled(head, features, targets, errors)
    actual = torch.autograd.grad(compiled_loss, [head.weight, errors])
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_code_takes_another_delta_and_size(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda logits, targets, delta: sum(rank_sort_loss(logits, targets, delta)),
        backend="aot_eager",
        fullgraph=True,
        dynamic=dynamic,
    )
    for num_neg, delta in ((100, 0.5), (100, 0.25), (130, 0.25)):
        logits, targets = random_case(9, num_neg)
        expected = sum(rank_sort_loss(logits, targets, delta))
        torch.testing.assert_close(compiled(logits, targets, delta), expected)


def test_the_operators_keep_their_promises_to_the_compiler():
    logits, targets = random_case(5, 40, dtype=torch.float32)
    for targets_of_batch in (targets, targets.clamp(max=0)):
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(
            torch.ops.rs_d2.rank_sort, (logits, targets_of_batch, 0.5, 1e-10), test_utils=checks
        )
        torch.library.opcheck(
            torch.ops.rs_d2.average_precision, (logits, targets_of_batch, 1.0), test_utils=checks
        )
        num = int((targets_of_batch > 0).sum())
        torch.library.opcheck(
            torch.ops.rs_d2.alrp,
            (logits, targets_of_batch, torch.rand(num), 1.0, 1e-5),
            test_utils=checks,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(dtype):
    head, features, targets, _ = head_case()
    with torch.autocast("cpu", dtype=dtype):
        logits = head(features)
        assert logits.dtype == dtype
        inside = rank_sort_loss(logits.flatten(), targets)
    outside = rank_sort_loss(logits.flatten(), targets)
    assert inside.ranking.dtype == torch.float32
    assert inside == outside
    sum(inside).backward()
    assert head.weight.grad.abs().sum() > 0


def test_a_gradient_scaler_gives_the_unscaled_step():
    head, features, targets, errors = head_case()
    start = head.weight.detach().clone()
    steps = []
    for scaling in (False, True):
        head.load_state_dict({"weight": start, "bias": torch.zeros(10)})
        head.zero_grad()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaling)
        scaler.scale(head_loss(head, features, targets, errors)).backward()
        scaler.step(optimizer)
        scaler.update()
        steps.append(head.weight.detach() - start)
    assert steps[0].abs().sum() > 0
    torch.testing.assert_close(steps[1], steps[0])


def test_a_second_derivative_is_refused():
    logits, targets = random_case(3, 9)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = rank_sort_loss(logits.requires_grad_(), targets).ranking * weight
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
