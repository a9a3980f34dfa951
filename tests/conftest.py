"""Fixtures and helpers shared by every test."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share two cores
# The same kernels on every x86 processor: recordings of whole models are compared closely.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"

torch.set_num_threads(1)


def shared(path: str) -> Path:
    """A file or folder of the reference material beside the checkout; skips the test without it."""
    full = SHARED / path
    if not full.exists():
        pytest.skip(f"reference material ../shared/{path} is not here")
    return full


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)
