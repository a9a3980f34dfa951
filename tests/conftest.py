"""Fixtures and helpers shared by every test."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share two cores
# The same kernels on every x86 processor: recordings of whole models are compared closely.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

import pytest
import torch
from hypothesis import HealthCheck, settings

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"

torch.set_num_threads(1)

# RS_D2_FUZZ=nightly, as `make fuzz` sets it: many more examples, others each time.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "ci", max_examples=200, derandomize=True, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "nightly", max_examples=10_000, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("RS_D2_FUZZ", "ci"))


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
