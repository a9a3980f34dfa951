"""Task balancers: they scale a task's loss to the ranking loss, so that no weight needs tuning.

They are modules so that a balancer with a history keeps it in buffers, hence in checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# A box loss below this belongs to boxes that are perfect to the last bit: nothing to balance, and
# the quotient would turn its rounding errors into a gradient.
_SMALLEST_LOSS = 1e-6


class ValueBalancer(nn.Module):
    """Scale a loss to the value of the ranking loss: times ``(L_rank + L_sort) / L``, detached."""

    def forward(self, loss: Tensor, reference: Tensor) -> Tensor:
        """The balanced loss.

        Args:
            loss: scalar, not negative.
            reference: scalar, the ranking and sorting losses' sum; no gradient flows into it.

        Returns:
            A scalar of the reference's value and the loss's gradient direction. A loss below 1e-6
            is returned as it is; a NaN in either makes it NaN.
        """
        value = loss.detach()
        too_small = value < _SMALLEST_LOSS
        factor = reference.detach() / value.masked_fill(too_small, 1.0)
        return loss * torch.where(too_small, torch.ones_like(factor), factor)


class ConstantBalancer(nn.Module):
    """Leave the loss as it is."""

    def forward(self, loss: Tensor, reference: Tensor) -> Tensor:
        """The loss itself; ``reference`` is not read."""
        return loss


BALANCERS: dict[str, type[nn.Module]] = {"value": ValueBalancer, "constant": ConstantBalancer}
