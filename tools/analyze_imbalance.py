"""Print how many negatives stand against one positive in training, for any config.

Examples:
    python tools/analyze_imbalance.py --config-file configs/quick/rs_mask_rcnn_digits.yaml
    python tools/analyze_imbalance.py --config-file FILE --train-json train.json \\
        --train-images images/ --iterations 50 MODEL.WEIGHTS output/model_final.pth

Nothing is trained: batches of the training set go through the model as it is, and positives and
negatives are counted where the losses see them. The anchors' ratio does not depend on the weights;
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

from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.errors import exit_code


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--train-json", metavar="FILE", help="your own annotations, COCO or LVIS")
    parser.add_argument("--train-images", metavar="DIR", help="their images")
    parser.add_argument("--iterations", type=int, default=20, help="batches to count in")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys; they come last")
    args = parser.parse_args(argv)
    if args.iterations < 1:
        parser.error(f"--iterations: {args.iterations} is not at least 1")
    return args


def run(args: argparse.Namespace) -> None:
    """Count and print."""
    require_detectron2()
    import torch
    from detectron2.utils.events import EventStorage

    from rs_d2 import engine
    from rs_d2.criterion.imbalance import ImbalanceMeter, imbalance_table
    from rs_d2.engine.hooks import sampler_names, tasks_of_stages, update_from_storage

    logging.disable(logging.WARNING)
    command = ["--config-file", args.config_file]
    for name in ("train_json", "train_images"):
        if getattr(args, name):
            command += [f"--{name.replace('_', '-')}", getattr(args, name)]
    cfg, _ = engine.setup(engine.parse_args([*command, *args.opts]))
    model = engine.RSTrainer.build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        engine.RSCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    meter = ImbalanceMeter(tasks_of_stages(cfg))
    loader = iter(engine.RSTrainer.build_train_loader(cfg))
    for _ in range(args.iterations):
        with EventStorage() as storage, torch.no_grad():
            model(next(loader))
            update_from_storage(meter, storage)
    print(imbalance_table([{**sampler_names(cfg), **meter.ratios()}]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    try:
        return exit_code(lambda: run(parse_args(argv)))
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
