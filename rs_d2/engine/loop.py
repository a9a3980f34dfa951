"""Detectron2's inner loops with a look at losses and gradients before each step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm

from rs_d2.data.train_loader import TrainLoader


class Batches:
    """A loader that remembers its last batch, and one of ours starts where it is told."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.latest: Any = ()
        self.seed = loader.seed if isinstance(loader, TrainLoader) else comm.shared_random_seed()

    def start(self, seed: int, first_batch: int) -> None:
        """Say where to begin, before the first batch is asked for."""
        if isinstance(self._loader, TrainLoader):
            self._loader.seed, self._loader.first_batch = seed, first_batch

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self.latest = batch
            yield batch


class _Looking:
    """Detectron2's loops, with a look at the losses and gradients before the optimizer's step."""

    look: Any = None

    def _write_metrics(self, loss_dict: Any, *args: Any, **kwargs: Any) -> None:
        self.look(loss_dict)
        super()._write_metrics(loss_dict, *args, **kwargs)


class Loop(_Looking, SimpleTrainer):
    """In full precision."""


class AMPLoop(_Looking, AMPTrainer):
    """In mixed precision."""


def largest(numbers: torch.Tensor) -> list[int]:
    """Of each number, the largest of all processes; the host waits for a GPU once."""
    if comm.get_world_size() > 1:
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()
