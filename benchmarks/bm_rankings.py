"""Time of a training step with each ranking, over the same step with cross-entropy.

    python benchmarks/bm_rankings.py                 # about 10 minutes on a CPU
    python benchmarks/bm_rankings.py --rounds 2 --models digits

Per model, one detector for each ranking with equal weights takes steps on one batch in turn,
without samplers, so that all rank the same anchors and regions; medians of CPU time. "loss adds" is
the time inside the criteria (targets, weights, box loss) beyond that of cross-entropy, as a share
of its step. It is far steadier than the ratio of the steps, nearly all of whose time are
convolutions. The backward pass is not in it, which favours cross-entropy: a ranking has its
gradient by then.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import torch
from bm_train_step import build, make_batch, rcnn_config, time_losses
from tqdm import tqdm

from rs_d2.criterion import RANKINGS

BASELINE = "cross_entropy"
MODELS = {
    "Faster R-CNN R-50": "configs/COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml",
    "digits": "configs/quick/rs_mask_rcnn_digits.yaml",
}
COLUMNS = ("model", "ranking", "candidates", "positives", "step ms", "loss ms", "step ratio")
COLUMNS += ("loss adds",)


def compare(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each ranking, on one model and batch."""
    models = {ranking: build(rcnn_config(MODELS[name], ranking), "cpu") for ranking in RANKINGS}
    batch = make_batch(args.images, args.size, num_classes=models[BASELINE].roi_heads.num_classes)
    times, clocks, loss_ms = time_losses(models, batch, args.rounds, "cpu")
    base = times[BASELINE].median_ms
    return [
        {
            "model": name,
            "ranking": ranking,
            "candidates": clocks[ranking].candidates // args.rounds,
            "positives": clocks[ranking].positives // args.rounds,
            "step ms": times[ranking].median_ms,
            "loss ms": loss_ms[ranking],
            "step ratio": times[ranking].median_ms / base,
            "loss adds": f"{(loss_ms[ranking] - loss_ms[BASELINE]) / base:.1%}",
            "range ms": times[ranking].spread_ms,
        }
        for ranking in models
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its table and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=320, help="side of an image, pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="default: results/rankings_cpu.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for name in tqdm(args.models, desc="models") for row in compare(name, args)]
    print(common.table(rows, COLUMNS))
    setting = {"images": args.images, "size": args.size, "rounds": args.rounds}
    print("written:", common.write_results("rankings_cpu", rows, args.output, setting=setting))


if __name__ == "__main__":
    main()
