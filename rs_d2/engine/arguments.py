"""The command line of ``train_net.py``: Detectron2's arguments and the user's own annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rs_d2.utils.cli import ProgramParser, check_pairs, positive_int
from rs_d2.utils.place import check_arguments, check_machines, place_from_environment

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

  the same with torchrun, which says how many processes there are (docs/distributed.md):
    torchrun --standalone --nproc-per-node 8 train_net.py --config-file FILE

Config files are looked up here first, then among those of the package. KEY VALUE pairs come last.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: arguments without the program's name; ``None`` takes those of this process.

    Returns:
        The arguments; ``place`` is this process's, where torchrun or the like has started it, and
        ``resume`` is true in one that it has started anew.

    Raises:
        UserError: An argument is wrong, or a key has no value.
    """
    parser = ProgramParser("Train or evaluate a detector with Rank & Sort Loss.", epilog=_EXAMPLES)
    parser.add_argument("--config-file", default="", metavar="FILE", help="of this or the package")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="train nothing")
    own = parser.add_argument_group("your own data (COCO or LVIS json)")
    own.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    own.add_argument(
        "--train-images", metavar="DIR", help="their images; default: the json's folder"
    )
    own.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    own.add_argument("--val-images", metavar="DIR", help="their images; default: the json's folder")
    own.add_argument(
        "--absolute-paths",
        action="store_true",
        help="image names may be absolute; without it they stay below the image folder",
    )
    processes = parser.add_argument_group("processes")
    processes.add_argument(
        "--num-gpus", type=positive_int, metavar="N", help="of each machine; default: 1"
    )
    processes.add_argument("--num-machines", type=positive_int, metavar="N", help="default: 1")
    processes.add_argument("--machine-rank", type=int, metavar="N", help="of this machine, from 0")
    processes.add_argument(
        "--dist-url", metavar="URL", help="tcp://HOST:PORT of the first machine; auto: a free port"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys; they come last"
    )
    args = parser.parse_args(argv)
    check_pairs(args.opts)
    _settle_processes(args)
    return args


def _settle_processes(args: argparse.Namespace) -> None:
    """Take the processes from torchrun's environment, or from the arguments."""
    args.place = place = place_from_environment()
    if place is None:
        args.num_gpus, args.num_machines = args.num_gpus or 1, args.num_machines or 1
        check_machines(args.num_machines, args.machine_rank, args.dist_url)
        return
    check_arguments(place, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    args.num_gpus, args.num_machines = place.num_local, place.num_machines
    args.machine_rank = place.machine
    if place.restarts and not args.eval_only:
        args.resume = True
