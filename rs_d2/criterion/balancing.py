"""Task balancers: they scale a task's loss to the ranking loss, so that no weight needs tuning.

A balancer is a module that gets a task's loss, the ranking loss's value and, if it asks for them,
gradients. What it remembers between iterations lies in buffers, hence in checkpoints. Add one of
your own with ``@BALANCERS.register("name")`` over a subclass of :class:`Balancer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rs_d2.losses.kernel.processes import are_joined, reduce_
from rs_d2.utils.errors import UserError
from rs_d2.utils.registry import Registry

# A loss below this belongs to boxes that are perfect to the last bit: nothing to balance, and
# the quotient would turn its rounding errors into a gradient.
_SMALLEST_LOSS = 1e-6

EPOCH_START = 50.0  # the published first factor of aLRP's balance


@dataclass(frozen=True)
class Gradients:
    """Gradients that a balancer may ask for; each question runs a part of the backward pass.

    Attributes:
        ranking: the ranking loss, a scalar with its graph.
        logits: [R, K], what it was computed from.
        outputs: the raw outputs behind the task, such as box deltas [P, 4]; None if not known.
    """

    ranking: Tensor
    logits: Tensor
    outputs: Tensor | None

    def of_ranking(self) -> Tensor:
        """Gradient of the ranking loss in the logits, as theirs in shape."""
        return torch.autograd.grad(self.ranking, self.logits, retain_graph=True)[0]

    def of_task(self, loss: Tensor) -> Tensor:
        """Gradient of the task's loss in its raw outputs, as theirs in shape.

        Raises:
            UserError: The head does not say what its raw outputs are.
        """
        if self.outputs is None:
            raise UserError(
                "CRITERION.BALANCE: magnitude needs the raw outputs behind the loss, which this "
                "head does not give"
            )
        return torch.autograd.grad(loss, self.outputs, retain_graph=True)[0]


class Balancer(nn.Module):
    """What all balancers are constructed with.

    Args:
        weight: a constant factor, for those that have one.
        period: iterations of an epoch, for those that look back on one; 0: it never ends.
    """

    def __init__(self, *, weight: float = 1.0, period: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.period = period

    def forward(
        self, loss: Tensor, reference: Tensor, gradients: Gradients | None = None
    ) -> Tensor:
        """The balanced loss.

        Args:
            loss: scalar, not negative, of a batch with positives.
            reference: scalar, detached: the value of the ranking loss.
            gradients: for those that ask.

        Returns:
            A scalar with the direction of the loss's gradient.
        """
        raise NotImplementedError


BALANCERS: Registry[type[Balancer]] = Registry("balance")


@BALANCERS.register("value")
class ValueBalancer(Balancer):
    """Scale a loss to the value of the ranking loss: times ``(L_rank + L_sort) / L``, detached.

    A loss below 1e-6 is returned unchanged; a NaN in loss or reference makes it NaN.
    """

    def forward(
        self, loss: Tensor, reference: Tensor, gradients: Gradients | None = None
    ) -> Tensor:
        """A scalar of the reference's value."""
        return loss * _quotient(reference.detach(), loss.detach())


@BALANCERS.register("magnitude")
class MagnitudeBalancer(Balancer):
    """Scale a loss to the ranking loss's gradient: times ``|dL_RS/ds|_1 / |dL/d outputs|_1``.

    ``s`` are the logits, the outputs the raw regression outputs (supplement, S2.1). Outside of
    training, where there is no graph, the loss is returned unchanged.
    """

    def forward(
        self, loss: Tensor, reference: Tensor, gradients: Gradients | None = None
    ) -> Tensor:
        """A scalar; its gradient in the outputs has the L1 norm of the ranking's in the logits."""
        if not (loss.requires_grad and gradients.ranking.requires_grad):
            return loss
        norms = torch.stack(
            [
                gradients.of_ranking().abs().sum(dtype=torch.float32),
                gradients.of_task(loss).abs().sum(dtype=torch.float32),
            ]
        )
        if are_joined():
            norms = reduce_(norms)
        return loss * _quotient(*norms)


@BALANCERS.register("constant")
class ConstantBalancer(Balancer):
    """Multiply a loss by a constant; the ranking loss is not looked at."""

    def forward(
        self, loss: Tensor, reference: Tensor, gradients: Gradients | None = None
    ) -> Tensor:
        """``weight`` times the loss."""
        return loss if self.weight == 1 else loss * self.weight


@BALANCERS.register("epoch")
class EpochBalancer(Balancer):
    """aLRP Loss's balance: times a factor that is set anew at the end of every epoch.

    The factor starts at 50. Over one period the values of the ranking loss and of the unscaled task
    loss are averaged; at its end the factor becomes ``(mean(L) + mean(L_rank)) / mean(L)``, which
    the last iteration of the period already uses. Iterations without positives are not counted.
    """

    def __init__(self, *, weight: float = 1.0, period: int = 0) -> None:
        super().__init__(weight=weight, period=period)
        # float64: sums of thousands of values; a resumed run goes on to the bit.
        for name, value in (("factor", EPOCH_START), ("sum_reference", 0.0), ("sum_loss", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Weights that were trained with another balance hold no history: it starts anew.
        if f"{prefix}factor" in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, loss: Tensor, reference: Tensor, gradients: Gradients | None = None
    ) -> Tensor:
        """The loss times the factor; in training the values are counted first."""
        if self.training:
            self._count(loss.detach(), reference.detach())
        return loss * self.factor.to(loss.dtype)

    def _count(self, loss: Tensor, reference: Tensor) -> None:
        """Count one iteration, without making the host wait for a GPU."""
        self.sum_loss += loss
        self.sum_reference += reference
        self.count += 1
        if self.period < 1:
            return
        done = self.count >= self.period
        # A sum of nothing but perfect boxes has no quotient; the factor then stays.
        renew = done & (self.sum_loss > 0)
        factor = (self.sum_loss + self.sum_reference) / self.sum_loss.where(renew, 1.0)
        self.factor.copy_(factor.where(renew, self.factor))
        for history in (self.sum_loss, self.sum_reference, self.count):
            history.masked_fill_(done, 0)


def set_epochs(model: nn.Module, iterations: int | None) -> None:
    """Tell the balancers of a model that look back on an epoch, and were not told, its length.

    Args:
        model: with balancers somewhere in it.
        iterations: of an epoch; None where nobody knows.

    Raises:
        UserError: Nobody knows, and a balancer needs it.
    """
    for module in model.modules():
        if not isinstance(module, Balancer) or module.period != 0:
            continue
        if iterations is not None:
            module.period = iterations
        elif isinstance(module, EpochBalancer):
            raise UserError(
                "CRITERION.BALANCE: epoch needs the number of training images, which this loader"
                " does not tell (num_images); set CRITERION.BALANCE_PERIOD, in iterations"
            )


def _quotient(wanted: Tensor, value: Tensor) -> Tensor:
    """``wanted / value``; 1 where there is nothing to scale."""
    too_small = value < _SMALLEST_LOSS
    return torch.where(too_small, 1.0, wanted / value.masked_fill(too_small, 1.0))
