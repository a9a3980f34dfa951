"""Inputs that the tests of the ranking losses share."""

from __future__ import annotations

import sys
from types import ModuleType

import torch
from conftest import shared


def golden_inputs() -> ModuleType:
    """The loader that comes with the recorded reference outputs; skips where they are missing."""
    folder = shared("golden")
    sys.path.insert(0, str(folder))
    try:
        import golden_inputs
    finally:
        sys.path.pop(0)
    return golden_inputs


def golden_cases(loss: str) -> list[dict]:
    return list(golden_inputs().cases(loss))


def random_case(num_pos, num_neg, num_ignored=0, seed=0, ties=False, dtype=torch.float64):
    """Logits and targets in a random order; ``ties`` rounds both so that values repeat."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_pos + num_neg + num_ignored, generator=rng, dtype=torch.float64)
    quality = torch.rand(num_pos, generator=rng, dtype=torch.float64).clamp(min=0.01)
    if ties:
        logits, quality = (logits * 4).round() / 4, (quality * 5).ceil() / 5
    targets = torch.cat([quality, torch.zeros(num_neg), -torch.ones(num_ignored)])
    order = torch.randperm(len(targets), generator=rng)
    return logits[order].to(dtype), targets[order].to(dtype)
