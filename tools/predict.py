"""Detect objects in images, a video or a webcam: pictures and json in COCO's form.

Examples:
    python tools/predict.py --weights output/demo/model_final.pth images/ --output predicted
    python tools/predict.py --weights model.pth --score-thresh 0.5 a.jpg "more/**/*.png" \\
        --output predicted --batch-size 4
    python tools/predict.py --weights model.pth clip.mp4 --output predicted
    python tools/predict.py --weights model.pth webcam:0 --output predicted
    python tools/predict.py --weights model.pth val/ --gt-json val.json --no-draw --output predicted
    python tools/evaluate.py --gt val.json --results predicted/predictions.json --format coco \\
        --iou-type bbox --output scores.json

The output folder gets the pictures (or one mp4), predictions.json (a list of results) and
images.json (which image an image_id stands for, and what the category ids mean). The config is the
one in the checkpoint, unless --config-file names another. KEY VALUE pairs come last.

Exit codes: 0 done; 1 some images could not be read, or pictures not written; 2 a mistake in the
arguments or files, no image found, or a picture would overwrite an input, named in one line;
130 interrupted, with whole files of what was done.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.cli import ProgramParser, check_pairs, positive_int, run_program
from rs_d2.utils.d2_compat import require_detectron2, silence_torch
from rs_d2.utils.errors import UserError
from rs_d2.utils.outputs import check_outputs

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+")  # of a config


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(
        __doc__,
        usage="%(prog)s --weights FILE INPUT ... --output FOLDER [options] [KEY VALUE ...]",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images, folders and patterns; or a video file; or webcam[:INDEX]",
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--config-file", metavar="FILE", help="default: the checkpoint's own")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--score-thresh", type=float, metavar="X", help="default: the config's")
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N")
    parser.add_argument(
        "--num-workers",
        type=int,
        default=min(4, max(1, (os.cpu_count() or 1) // 2)),
        metavar="N",
        help="processes that read images; 0: none beside this one (default: %(default)s)",
    )
    parser.add_argument("--no-draw", action="store_true", help="write json only")
    parser.add_argument(
        "--gt-json", type=Path, metavar="FILE", help="take image and category ids from this json"
    )
    args = parser.parse_intermixed_args(argv)
    args.inputs, args.opts = _split(args.inputs)
    if args.num_workers < 0:
        raise UserError(f"--num-workers: {args.num_workers} is not at least 0")
    return args


def run(args: argparse.Namespace) -> int:
    """Predict, and say what was done; returns the exit code."""
    require_detectron2()
    from rs_d2.prediction.inputs import find_images
    from rs_d2.prediction.predictor import Predictor
    from rs_d2.prediction.result_files import INDEX, RESULTS
    from rs_d2.prediction.runner import predict_images
    from rs_d2.prediction.video import is_video, predict_video

    silence_torch()
    video = _only_video(args, is_video)
    files = [] if video else find_images(args.inputs, args.output)
    read = [*(file.path for file in files), args.weights, args.config_file, args.gt_json]
    check_outputs(read, [("--output", args.output / name) for name in (RESULTS, INDEX)])
    device = dict(zip(args.opts[0::2], args.opts[1::2], strict=True)).get("MODEL.DEVICE")
    predictor = Predictor(
        args.weights,
        config=args.config_file,
        score_thresh=args.score_thresh,
        device=device,
        overrides=args.opts,
    )
    options = {"draw": not args.no_draw, "batch_size": args.batch_size}
    if video:
        summary = predict_video(predictor, video, args.output, **options)
    else:
        options |= {"ids": _ids(args, predictor, files), "num_workers": args.num_workers}
        summary = predict_images(predictor, files, args.output, **options)
    return _tell(args, summary, live=bool(video) and video.startswith("webcam"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    try:
        return run_program(lambda: run(parse_args(argv)))
    except KeyboardInterrupt:
        print("interrupted before the first image", file=sys.stderr)
        return 130


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Inputs, and the KEY VALUE pairs that follow them."""
    keys = (i for i, word in enumerate(words) if _KEY.fullmatch(word) and not Path(word).exists())
    first = next(keys, len(words))
    inputs, opts = words[:first], words[first:]
    if not inputs:
        raise UserError("INPUT: no image, folder or video is given")
    check_pairs(opts)
    return inputs, opts


def _only_video(args: argparse.Namespace, is_video: Any) -> str | None:
    videos = [given for given in args.inputs if is_video(given)]
    if videos and len(args.inputs) > 1:
        raise UserError(f"INPUT: {videos[0]} must be the only input")
    if videos and args.gt_json is not None:
        raise UserError("--gt-json is for images")
    return videos[0] if videos else None


def _ids(args: argparse.Namespace, predictor: Any, files: Sequence[Any]) -> Any:
    if args.gt_json is None:
        return None
    from rs_d2.coco.json_files import read_json
    from rs_d2.prediction.result_files import ids_of_ground_truth

    paths = [file.path for file in files]
    return ids_of_ground_truth(read_json(args.gt_json), str(args.gt_json), predictor, paths)


def _tell(args: argparse.Namespace, summary: Any, *, live: bool) -> int:
    rate = summary.num_images / summary.seconds if summary.seconds else 0.0
    print(
        f"{summary.num_images} images, {summary.num_detections} detections,"
        f" {rate:.1f} images/s; written to {args.output}"
    )
    if summary.num_unreadable:
        print(f"{summary.num_unreadable} images could not be read", file=sys.stderr)
    if summary.num_unwritten:
        print(f"{summary.num_unwritten} pictures could not be written", file=sys.stderr)
    if summary.interrupted and not live:  # a webcam has no other end
        return 130
    return 1 if summary.num_unreadable or summary.num_unwritten else 0


if __name__ == "__main__":
    sys.exit(main())
