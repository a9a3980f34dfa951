"""The command line of ``train_net.py``: Detectron2's arguments plus the user's own annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

from rs_d2.utils.errors import UserError

_EXAMPLES = """
examples:
  the embedded digits, on a laptop:
    python train_net.py --config-file configs/quick/rs_mask_rcnn_digits.yaml

  your own images, with COCO or LVIS annotations (class names and count are taken from them):
    python train_net.py \\
        --config-file configs/COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x.yaml \\
        --train-json train.json --train-images images/ --val-json val.json --val-images images/ \\
        SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 2000

  LVIS on 8 GPUs, then again from the last checkpoint:
    python train_net.py --config-file configs/rs_mask_rcnn_lvis.yaml --num-gpus 8
    python train_net.py --config-file configs/rs_mask_rcnn_lvis.yaml --num-gpus 8 --resume

  evaluation only:
    python train_net.py --config-file configs/rs_mask_rcnn_lvis.yaml --eval-only \\
        MODEL.WEIGHTS output/model_final.pth

  two machines (run each line on one of them):
    python train_net.py --config-file FILE --num-gpus 8 --num-machines 2 --machine-rank 0 \\
        --dist-url tcp://FIRST_MACHINE:PORT
    python train_net.py --config-file FILE --num-gpus 8 --num-machines 2 --machine-rank 1 \\
        --dist-url tcp://FIRST_MACHINE:PORT

Config files are looked up here first, then among those of the package. KEY VALUE pairs come last.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: arguments without the program's name; ``None`` takes those of this process.

    Raises:
        UserError: An argument is wrong, or arguments do not go together.
    """
    parser = default_argument_parser(epilog=_EXAMPLES)
    parser.description = "Train or evaluate a detector with Rank & Sort Loss."
    own = parser.add_argument_group("your own data (COCO or LVIS json)")
    own.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    own.add_argument(
        "--train-images", metavar="DIR", help="their images; default: the json's folder"
    )
    own.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    own.add_argument("--val-images", metavar="DIR", help="their images; default: the json's folder")
    parser.set_defaults(dist_url="auto")  # a free port, so that two runs can share a machine
    parser.error = _raise_user_error
    args = parser.parse_args(argv)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    if args.train_images and not args.train_json:
        raise UserError("--train-images needs --train-json")
    if args.val_images and not args.val_json:
        raise UserError("--val-images needs --val-json")
    if args.val_json and not args.train_json and not args.eval_only:
        raise UserError("--val-json needs --train-json, or --eval-only")
    for name in ("num_gpus", "num_machines"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option}: {getattr(args, name)} is not at least 1")
    late = next((word for word in args.opts if word.startswith("--")), None)
    if late is not None:
        raise UserError(f"{late} must stand before the KEY VALUE pairs")
    if len(args.opts) % 2:
        raise UserError(
            f"KEY VALUE pairs: '{args.opts[-1]}' has no partner in {' '.join(args.opts)}"
        )


def _raise_user_error(message: str) -> None:
    raise UserError(message)
