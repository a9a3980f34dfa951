"""What the terminal can show."""

from __future__ import annotations

import sys

import torch.distributed as dist


def is_live() -> bool:
    """Whether this process may draw bars: the first one, and a person is watching."""
    is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    return is_first and sys.stderr is not None and sys.stderr.isatty()
