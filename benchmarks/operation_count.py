"""Counts what a function launches and reads back, without the device that it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result's shape the host must wait for on an asynchronous device.
DATA_DEPENDENT = {"nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
# Calls that read a value.
READS = {
    getattr(torch.Tensor, name)
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
}
# Views and bookkeeping launch nothing.
VIEWS = {"view", "unsqueeze", "squeeze", "slice", "select", "expand", "t", "transpose", "permute"}
VIEWS |= {"detach", "alias", "as_strided", "unbind", "split", "_unsafe_view", "_reshape_alias"}
NOT_LAUNCHED = VIEWS | {"empty", "empty_like", "new_empty", "scalar_tensor", "lift_fresh"}


class OperationCount(NamedTuple):
    """Launched operations, reads back to the host, and the largest tensor made, in bytes."""

    operations: int
    host_reads: int
    largest_bytes: int


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        result = func(*args, **(kwargs or {}))
        if _has_mask(name, args):
            name = "nonzero"
        if name not in NOT_LAUNCHED:
            self.names.append(name)
        made = (x for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        sizes = [tensor.untyped_storage().nbytes() for tensor in made]
        self.largest_bytes = max(self.largest_bytes, *sizes, 0)
        return result


class _Reads(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], Any]) -> OperationCount:
    """Run ``call`` once and count."""
    with _Reads() as reads, _Launches() as launches:
        call()
    waits = sum(name in DATA_DEPENDENT for name in launches.names)
    return OperationCount(len(launches.names), reads.count + waits, launches.largest_bytes)


def _has_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index is a boolean mask, whose true elements must be counted first."""
    if not name.startswith(("index", "_index")) or len(args) < 2:
        return False
    indices = args[1] if isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
