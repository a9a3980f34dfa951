"""Which of two forms an operation takes: one for the CPU, one for devices that run ahead of it.

Both give the same result; the form for devices runs on the CPU too, where tests compare the two and
benchmarks count its operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_forms = {"device_everywhere": False}


def takes_cpu_path(tensor: Tensor) -> bool:
    """Whether the form made for the CPU is taken for this tensor."""
    return tensor.is_cpu and not _forms["device_everywhere"]


@contextmanager
def device_path() -> Iterator[None]:
    """Take the form for devices on the CPU too, in all threads, inside the ``with`` block."""
    before = _forms["device_everywhere"]
    _forms["device_everywhere"] = True
    try:
        yield
    finally:
        _forms["device_everywhere"] = before
