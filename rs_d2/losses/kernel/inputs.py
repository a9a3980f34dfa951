"""Checks of the ranking losses' arguments, and the one look at the data that they need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rs_d2.losses.kernel.device_dispatch import takes_cpu_path
from rs_d2.losses.kernel.processes import are_joined, gather_rows

_MAX_DELTA = 1e12
_ROUNDING = 1e-6  # an IoU of 1 computed in float32 may lie this far above it


class Survey(NamedTuple):
    """What the host must know of a batch.

    ``num_positives``: P of this process; ``has_nan``: some logit that takes part is NaN, in any
    process of the ranking; ``counts``: P of each of these processes.
    """

    num_positives: int
    has_nan: bool
    counts: tuple[int, ...]

    @property
    def is_trivial(self) -> bool:
        """Whether there is nothing to rank, or nothing that can be ranked."""
        return self.has_nan or sum(self.counts) == 0


def check_arguments(loss: str, logits: Tensor, targets: Tensor, delta: float) -> None:
    """Raise a ``ValueError`` that names the wrong argument; looks at no value of a tensor."""
    if not logits.is_floating_point():
        raise ValueError(f"{loss}: logits must be floating-point, got {logits.dtype}")
    if logits.dim() != 1:
        raise ValueError(
            f"{loss}: logits must be one-dimensional [N], got shape {tuple(logits.shape)}; "
            "flatten them"
        )
    if targets.shape != logits.shape:
        raise ValueError(
            f"{loss}: targets must have the logits' shape {tuple(logits.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    if targets.device != logits.device:
        raise ValueError(
            f"{loss}: logits and targets must be on one device, "
            f"got {logits.device} and {targets.device}"
        )
    if not 0 <= delta <= _MAX_DELTA:
        raise ValueError(f"{loss}: delta must be in [0, {_MAX_DELTA:g}], got {delta}")


def survey(loss: str, logits: Tensor, targets: Tensor) -> Survey:
    """Count the positives and look for invalid values, with one read from the device.

    Raises:
        ValueError: a target is NaN or above 1.
    """
    largest_target, num_positives, has_nan = 0.0, 0, False
    if len(logits):
        look = _look_on_cpu if takes_cpu_path(logits) else _look_on_device
        largest_target, num_positives, has_nan = look(logits, targets)
    is_wrong = not largest_target <= 1 + _ROUNDING
    rows = [[num_positives, has_nan, is_wrong]]
    if are_joined():  # all must know before one raises, or the others would wait for it
        rows = gather_rows(rows[0], logits.device)
    if is_wrong:
        raise ValueError(f"{loss}: targets must be at most 1, {_describe_wrong(targets)}")
    if any(row[2] for row in rows):
        rank = next(i for i, row in enumerate(rows) if row[2])
        raise ValueError(f"{loss}: targets must be at most 1, process {rank} has others")
    counts = tuple(int(row[0]) for row in rows)
    return Survey(num_positives, any(row[1] for row in rows), counts)


def index_positives(targets: Tensor, num: int) -> Tensor:
    """Ascending positions of the ``num`` targets above 0, int64 [num], without a host read."""
    if takes_cpu_path(targets):
        return nonzero_on_cpu(targets.numpy() > 0)
    positive = targets > 0
    slot = positive.cumsum(0).sub_(1).masked_fill_(~positive, num)  # the others share a last one
    index = slot.new_empty(num + 1)
    return index.scatter_(0, slot, torch.arange(len(slot), device=slot.device))[:num]


def nonzero_on_cpu(mask: np.ndarray) -> Tensor:
    """Ascending index of the true elements; numpy's masks cost a tenth of torch's on the CPU."""
    return torch.from_numpy(np.flatnonzero(mask))


def _look_on_cpu(logits: Tensor, targets: Tensor) -> tuple[float, int, bool]:
    """Largest target, number of positives, whether a logit that takes part is NaN."""
    logits_np, targets_np = logits.numpy(), targets.numpy()
    has_nan = bool(np.isnan(logits_np.max()))  # a maximum without NaN settles it in one pass
    if has_nan:
        has_nan = bool((np.isnan(logits_np) & (targets_np >= 0)).any())
    return float(targets_np.max()), int(np.count_nonzero(targets_np > 0)), has_nan


def _look_on_device(logits: Tensor, targets: Tensor) -> tuple[float, int, bool]:
    count = (targets > 0).sum(dtype=torch.float64)
    has_nan = (logits.isnan() & (targets >= 0)).any().double()
    found = torch.stack([targets.max().double(), count, has_nan]).tolist()
    return found[0], int(found[1]), bool(found[2])


def _describe_wrong(targets: Tensor) -> str:
    wrong = ~(targets <= 1 + _ROUNDING)
    first = int(wrong.nonzero()[0])
    return f"got {float(targets[first])} at index {first} ({int(wrong.sum())} such values)"
