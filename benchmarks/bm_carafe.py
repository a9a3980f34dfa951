"""Time and memory of content-aware upsampling, forward and backward, beside plainer forms.

    python benchmarks/bm_carafe.py             # the pyramid's levels; some minutes on a CPU
    python benchmarks/bm_carafe.py --quick     # the small levels; half a minute
    python benchmarks/bm_carafe.py --device cuda

One image of 800 x 1333 pixels, 256 channels, 5 x 5 kernels, upsampling by 2, as in the "+" models.
`unfold`: gathers the 25 neighbours of every output pixel, [N, C, 25, 2H, 2W]. `einsum`: gathers
those of every cell, [N, C, 25, H, W], and contracts them. `taps`: one multiply-add per tap, with
torch's own gradients; what exported models contain. All run in turn in one process, on one thread:
medians of CPU time on a CPU, of wall time on a GPU. Memory is what a call adds at its peak.
Read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from rs_d2.ops.carafe import _upsample_by_taps, carafe_upsample

LEVELS = {"p6 to p5": (13, 21), "p5 to p4": (25, 42), "p4 to p3": (50, 84), "p3 to p2": (100, 168)}
QUICK = 2
CHANNELS, KERNEL, SCALE = 256, 5, 2
Upsample = Callable[[Tensor, Tensor], Tensor]


def by_unfolding(features: Tensor, kernel_logits: Tensor) -> Tensor:
    """The definition on whole tensors: every output pixel has its own 25 neighbours."""
    kernels = F.pixel_shuffle(kernel_logits, SCALE).softmax(1)
    gathered = F.unfold(features, KERNEL, padding=KERNEL // 2).unflatten(2, features.shape[2:])
    gathered = F.interpolate(gathered, scale_factor=SCALE, mode="nearest")
    return (gathered.unflatten(1, (-1, KERNEL**2)) * kernels[:, None]).sum(2)


def by_einsum(features: Tensor, kernel_logits: Tensor) -> Tensor:
    """Output pixels of the same cell share its 25 neighbours."""
    kernels = kernel_logits.unflatten(1, (KERNEL**2, SCALE**2)).softmax(1)
    gathered = F.unfold(features, KERNEL, padding=KERNEL // 2)
    gathered = gathered.unflatten(2, features.shape[2:]).unflatten(1, (-1, KERNEL**2))
    out = torch.einsum("nckhw,nkphw->ncphw", gathered, kernels)
    return F.pixel_shuffle(out.flatten(1, 2), SCALE)


METHODS: dict[str, Upsample] = {
    "ours": carafe_upsample,
    "taps": partial(_upsample_by_taps, kernel_size=KERNEL, scale=SCALE),
    "einsum": by_einsum,
    "unfold": by_unfolding,
}
COLUMNS = ("level", "pass", "H", "W", *(f"{name} ms" for name in METHODS))
COLUMNS += ("unfold / ours", "taps / ours", *(f"{name} MiB" for name in METHODS), "output MiB")


def forward(upsample: Upsample, features: Tensor, logits: Tensor) -> Tensor:
    """Inference."""
    with torch.no_grad():
        return upsample(features, logits)


def both(upsample: Upsample, features: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    """A step of training: the value and both gradients."""
    out = upsample(features, logits)
    return torch.autograd.grad(out, [features, logits], torch.ones_like(out))


def compare(level: str, device: str) -> list[dict[str, Any]]:
    """Two rows, inference and training: every method on one map."""
    height, width = LEVELS[level]
    rng = torch.Generator().manual_seed(0)
    shapes = [(1, CHANNELS, height, width), (1, (KERNEL * SCALE) ** 2, height, width)]
    inputs = [torch.randn(s, generator=rng).to(device).requires_grad_() for s in shapes]
    _check_agreement(inputs)
    return [_row(level, run, inputs, device) for run in (forward, both)]


def _row(level: str, run: Callable, inputs: list[Tensor], device: str) -> dict[str, Any]:
    methods = {name: partial(run, upsample, *inputs) for name, upsample in METHODS.items()}
    times = common.measure(methods, rounds=5, device=device)
    memory = {name: common.peak_memory(call, device) for name, call in methods.items()}
    ours = times["ours"].median_ms
    height, width = LEVELS[level]
    return {
        "level": level,
        "pass": run.__name__,
        "H": height,
        "W": width,
        **{f"{name} ms": time.median_ms for name, time in times.items()},
        **{f"{name} / ours": time.median_ms / ours for name, time in times.items()},
        **{f"{name} MiB": peak and peak / 2**20 for name, peak in memory.items()},
        "output MiB": CHANNELS * SCALE**2 * height * width * 4 / 2**20,
        "range ms": {name: time.spread_ms for name, time in times.items()},
    }


def _check_agreement(inputs: list[Tensor]) -> None:
    """A method that computes something else would be compared in vain."""
    expected = [carafe_upsample(*inputs), *both(carafe_upsample, *inputs)]
    for name, upsample in METHODS.items():
        for ours, theirs in zip(
            expected, [upsample(*inputs), *both(upsample, *inputs)], strict=True
        ):
            error = (ours - theirs).norm() / ours.norm()
            assert error < 1e-4, f"{name} differs by {error:.1e}"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its table and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="the two small levels only")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/carafe_DEVICE.json"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    levels = list(LEVELS)[:QUICK] if args.quick else list(LEVELS)
    rows = [row for level in tqdm(levels, desc="carafe") for row in compare(level, args.device)]
    print(common.table(rows, COLUMNS))
    name = f"carafe_{args.device}"
    output = args.output or common.RESULTS / f"{name}{'_quick' if args.quick else ''}.json"
    print("written:", common.write_results(name, rows, output))


if __name__ == "__main__":
    main()
