"""Random numbers that depend on where a run is, never on how it came there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and torch, all devices, from whole numbers >= 0."""
    seeds = _seed_cpu(key)
    torch.manual_seed(seeds[2])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed what draws on the CPU inside the ``with`` block, and leave it as it was before.

    Args:
        key: whole numbers >= 0; equal ones give equal draws.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(_seed_cpu(key)[2])  # no device is touched
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_cpu(key: tuple[int, ...]) -> list[int]:
    """Seed Python and NumPy; the third seed is left for torch."""
    seeds = [int(seed) for seed in np.random.SeedSequence(key).generate_state(3)]
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    return seeds
