"""What one ranking over several processes costs: collectives, bytes and CPU time of a step.

    python benchmarks/bm_processes.py               # two processes that talk through gloo
    python benchmarks/bm_processes.py --processes 4

Each process holds the candidates of one GPU, with two images in place of the published four: with
twice the processes the ranking is over as many images as published. `own`: every process ranks its
own; `joined`: `CRITERION.GLOBAL True`. Both in turn in every round, median of the CPU time of the
first process; a step is the loss, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import common
import torch
import torch.distributed as dist
from bm_losses import make_input

from rs_d2.losses import across_processes, rank_sort_loss
from rs_d2.utils.launch import launch

SIZES = {  # positives and negatives of a process with two images
    "RPN": (80, 534_000),
    "R-CNN, COCO": (145, 160_000),
    "R-CNN, LVIS": (230, 2_400_000),
}
COLUMNS = ("head", "P", "N", "collectives", "bytes sent", "own ms", "joined ms", "joined / own")


class Traffic:
    """Counts what a process sends while the ``with`` block runs."""

    def __init__(self) -> None:
        self.calls, self.bytes = 0, 0
        self._patches = [
            mock.patch.object(dist, name, self._counted(getattr(dist, name), argument))
            for name, argument in (("all_gather", 1), ("all_reduce", 0))
        ]

    def __enter__(self) -> Traffic:
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for patch in self._patches:
            patch.stop()

    def _counted(self, call: Any, argument: int) -> Any:
        def counted(*args: Any) -> Any:
            self.calls += 1
            self.bytes += args[argument].nbytes
            return call(*args)

        return counted


def step(logits: torch.Tensor, targets: torch.Tensor, joined: bool) -> None:
    """One loss, forward and backward."""
    logits = logits.detach().requires_grad_()
    with across_processes(joined):
        loss = sum(rank_sort_loss(logits, targets))
    loss.backward()


def work(folder: str, rounds: int) -> None:
    """Every size, in one of the processes."""
    torch.set_num_threads(1)
    rows = []
    for head, (num_pos, num_neg) in SIZES.items():
        batch = make_input(num_pos, num_neg, "early", "cpu")
        with Traffic() as traffic:
            step(*batch, joined=True)
        timings = common.measure(
            {"own": partial(step, *batch, False), "joined": partial(step, *batch, True)}, rounds
        )
        own, joined = timings["own"].median_ms, timings["joined"].median_ms
        rows.append(
            {
                "head": head,
                "P": num_pos,
                "N": num_neg,
                "collectives": traffic.calls,
                "bytes sent": traffic.bytes,
                "own ms": own,
                "joined ms": joined,
                "joined / own": joined / own,
            }
        )
    if dist.get_rank() == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON; default: results/processes_cpu.json")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        launch(work, args.processes, args=(folder, args.rounds))
        rows = json.loads(Path(folder, "rows.json").read_text())
    print(common.table(rows, COLUMNS))
    path = common.write_results("processes_cpu", rows, args.output, processes=args.processes)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
