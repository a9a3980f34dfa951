"""Time and memory of Rank & Sort Loss, forward and backward, beside other ways to compute it.

    python benchmarks/bm_losses.py                  # all sizes; about ten minutes on a CPU
    python benchmarks/bm_losses.py --quick          # the small ones; a minute
    python benchmarks/bm_losses.py --device cuda

All methods run in turn in one process, on one thread, on the same logits: medians of CPU time on a
CPU, of wall time on a GPU. `early`: nearly all negatives lie above the lowest positive, as in the
first epoch; `late`: few do. Read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import common
import loss_baselines
import torch
from operation_count import count_operations
from torch import Tensor
from tqdm import tqdm

from rs_d2.losses.kernel.device_dispatch import device_path
from rs_d2.losses.rank_sort import rank_sort_terms

SIZES = [  # positives, negatives
    (50, 10_000),
    (300, 80_000),  # RPN, 2 small images
    (500, 80_000),  # COCO, 1,000 RoIs
    (290, 320_000),  # R-CNN on COCO, 4 images
    (2_000, 270_000),
    (160, 1_070_000),  # RPN, 4 images
    (500, 1_200_000),  # LVIS, 1,000 RoIs
    (5_000, 2_400_000),
    (460, 4_800_000),  # LVIS, 4 images
]
QUICK_SIZES = SIZES[:3]
REGIMES = {"early": (-1.0, 1.0, -1.5, 1.0), "late": (2.0, 1.5, -6.0, 1.5)}
METHODS = ("ours", "loop", "dense", "sort", "bce", "focal")
LARGEST_TABLE = 600_000_000  # elements of a P x N table
COLUMNS = ("P", "N", "regime", *(f"{name} ms" for name in METHODS))
COLUMNS += ("ours / sort", "loop / ours", "ours / bce", "bytes per logit", "largest spread")


def make_input(num_pos: int, num_neg: int, regime: str, device: str) -> tuple[Tensor, Tensor]:
    """Logits and targets in a random order; qualities even in [0.5, 1]."""
    rng = torch.Generator().manual_seed(0)
    pos_mean, pos_std, neg_mean, neg_std = REGIMES[regime]
    positives = torch.randn(num_pos, generator=rng) * pos_std + pos_mean
    negatives = torch.randn(num_neg, generator=rng) * neg_std + neg_mean
    targets = torch.cat([torch.rand(num_pos, generator=rng) / 2 + 0.5, torch.zeros(num_neg)])
    order = torch.randperm(num_pos + num_neg, generator=rng)
    return torch.cat([positives, negatives])[order].to(device), targets[order].to(device)


def compare(num_pos: int, num_neg: int, regime: str, device: str) -> dict[str, Any]:
    """One row: every method on one input."""
    logits, targets = make_input(num_pos, num_neg, regime, device)
    names = [n for n in METHODS if n != "dense" or num_pos * num_neg <= LARGEST_TABLE]
    methods = {name: partial(getattr(loss_baselines, name), logits, targets) for name in names}
    _check_agreement(methods)
    slow = num_pos * num_neg > 1e8
    times = common.measure(methods, rounds=3 if slow else 9, warmup=0 if slow else 1, device=device)
    ours, sort = times["ours"].median_ms, times["sort"].median_ms
    peak = common.peak_memory(methods["ours"], device)
    return {
        "P": num_pos,
        "N": num_neg,
        "regime": regime,
        **{f"{name} ms": time.median_ms for name, time in times.items()},
        "ours / sort": ours / sort,
        "loop / ours": times["loop"].median_ms / ours,
        "ours / bce": ours / times["bce"].median_ms,
        "bytes per logit": peak and peak / len(logits),
        "largest spread": max(time.max_ms / time.min_ms for time in times.values()),
        "range ms": {name: time.spread_ms for name, time in times.items()},
    }


def count_device_operations() -> list[dict[str, Any]]:
    """What the form for devices launches and reads back, counted on the CPU."""
    rows = []
    for num_pos in (50, 500, 4_000, 20_000):
        logits, targets = make_input(num_pos, 100_000, "early", "cpu")
        with device_path():
            # The body of the operator: a mode that counts does not look into an operator.
            count = count_operations(partial(rank_sort_terms._init_fn, logits, targets, 0.5, 1e-10))
        rows.append({"P": num_pos, "operations": count[0], "reads back": count[1]})
    return rows


def _check_agreement(methods: dict[str, Any]) -> None:
    """A method that computes something else would be compared in vain."""
    expected = methods["ours"]()
    for name in ("loop", "dense"):
        if name in methods:
            error = (methods[name]() - expected).norm() / expected.norm()
            assert error < 1e-3, f"{name} differs by {error:.1e}"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its tables and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="the three small sizes only")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/losses_DEVICE.json"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cases = [
        (*size, regime) for size in (QUICK_SIZES if args.quick else SIZES) for regime in REGIMES
    ]
    rows = [compare(*case, args.device) for case in tqdm(cases, desc="losses")]
    counts = count_device_operations()
    print(common.table(rows, COLUMNS), common.table(counts, tuple(counts[0])), sep="\n\n")
    name = f"losses_{args.device}"
    output = args.output or common.RESULTS / f"{name}{'_quick' if args.quick else ''}.json"
    print("written:", common.write_results(name, rows, output, device_operations=counts))


if __name__ == "__main__":
    main()
