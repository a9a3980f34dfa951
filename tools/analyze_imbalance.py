"""Print how many negatives stand against one positive in training, for any config.

Examples:
    python tools/analyze_imbalance.py --config-file configs/quick/rs_mask_rcnn_digits.yaml
    python tools/analyze_imbalance.py --config-file FILE --train-json train.json \\
        --train-images images/ --iterations 50 MODEL.WEIGHTS output/model_final.pth

Nothing is trained: batches of the training set go through the model, and positives and negatives
are counted where the losses see them. The anchors' ratio does not depend on the weights;
the regions' does, so give the weights of a trained model for numbers like the published ones.

Exit codes: 0 done; 2 a mistake in the arguments, config or data, named in one line.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.cli import ProgramParser, positive_int, run_program
from rs_d2.utils.d2_compat import require_detectron2


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--train-json", metavar="FILE", help="your own annotations, COCO or LVIS")
    parser.add_argument("--train-images", metavar="DIR", help="their images")
    parser.add_argument("--iterations", type=positive_int, default=20, help="batches to count in")
    parser.add_pairs()
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Count and print."""
    require_detectron2()
    from rs_d2.analysis.imbalance import imbalance_table, measure_imbalance
    from rs_d2.engine import OwnData, prepare

    logging.disable(logging.WARNING)
    cfg, _ = prepare(args.config_file, args.opts, OwnData.of(args))
    print(imbalance_table([measure_imbalance(cfg, args.iterations)]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    try:
        return run_program(lambda: run(parse_args(argv)))
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
