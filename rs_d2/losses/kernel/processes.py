"""One ranking over the candidates of all processes, by exchanging a few kilobytes.

A ranking loss needs of the others' candidates only the positives (logit, label, error) and, per
bucket between the positives' windows, the number of negatives and the sum of their places. Inside
:func:`across_processes` the losses exchange just that. Every process then has the loss of the
concatenated batch as its value. Its gradients are those of that loss times the number of processes
``W``, because ``DistributedDataParallel`` averages over them.

All processes must take part in every loss, also those without positives or without candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_active: ContextVar[bool] = ContextVar("across_processes", default=False)


@contextmanager
def across_processes(wanted: bool = True) -> Iterator[None]:
    """Let the losses inside the ``with`` block rank over all processes, if there are several."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    token = _active.set(wanted and several)
    try:
        yield
    finally:
        _active.reset(token)


def are_joined() -> bool:
    """Whether losses are exchanged with other processes at this point."""
    return _active.get()


def num_joined() -> int:
    """``W``: the number of processes that share a ranking, 1 for a process of its own."""
    return dist.get_world_size() if are_joined() else 1


def gather_rows(row: Sequence[float], device: torch.device) -> list[list[float]]:
    """The numbers of every process, in the order of their ranks."""
    return torch.stack(_gather(torch.tensor(row, dtype=torch.float64, device=device))).tolist()


def gather_columns(columns: Tensor, counts: Sequence[int]) -> Tensor:
    """Columns [C, P] of every process side by side, [C, sum of P], in the order of their ranks.

    Args:
        columns: this process's own.
        counts: P of each process.
    """
    padded = columns.new_zeros(len(columns), max(counts))  # all must send as much
    padded[:, : columns.shape[1]] = columns
    parts = zip(_gather(padded), counts, strict=True)
    return torch.cat([part[:, :count] for part, count in parts], dim=1)


def _gather(values: Tensor) -> list[Tensor]:
    everyone = [torch.empty_like(values) for _ in range(num_joined())]
    dist.all_gather(everyone, values.contiguous())
    return everyone


def reduce_(values: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    dist.all_reduce(values)
    return values


def total(share: Tensor) -> Tensor:
    """The sum of every process's share; its gradient in the own share is ``W``, as DDP asks."""
    return _Total.apply(share) if are_joined() else share


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        ctx.num_processes = num_joined()
        return reduce_(share.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.num_processes
