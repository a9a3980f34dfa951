"""Export a trained model to TorchScript, to ONNX, or to one checkpoint with its config.

Examples:
    python tools/export_model.py --format onnx --weights output/demo/model_final.pth
    python tools/export_model.py --format torchscript --weights model.pth --image street.jpg \\
        --output street.ts MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.5

The file takes images of any size and holds thresholds, class names and all that is needed to run it
(`rs_d2.export.load(FILE)(IMAGE)`). It is then compared with the model on the image in three shapes,
and on noise. Without --image noise is all there is; give an image with objects. The config is the
one in the checkpoint, unless --config-file names another. KEY VALUE pairs come last.

Exit codes: 0 done; 1 the file finds something else than the model; 2 a mistake in the arguments or
files, or a model that cannot be exported, named in one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

import numpy as np

from rs_d2.utils.cli import ProgramParser, check_pairs, run_program
from rs_d2.utils.d2_compat import require_detectron2, silence_torch
from rs_d2.utils.errors import UserError
from rs_d2.utils.outputs import check_outputs

_SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", "torch": ".export.pth"}
_NOISE_SHAPE = (480, 640, 3)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("--format", required=True, choices=_SUFFIXES)
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE", help="checkpoint")
    parser.add_argument("--config-file", metavar="FILE", help="default: the checkpoint's own")
    parser.add_argument("--image", metavar="FILE", help="to compare on; best with objects")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the weights")
    parser.add_pairs()
    args = parser.parse_intermixed_args(argv)
    check_pairs(args.opts)
    args.output = args.output or args.weights.with_suffix(_SUFFIXES[args.format])
    _check_output(args)
    return args


def run(args: argparse.Namespace) -> int:
    """Export, compare, and say how it went; returns the exit code."""
    require_detectron2()
    from rs_d2.export import export_model, verify
    from rs_d2.prediction.predictor import Predictor

    silence_torch()
    predictor = Predictor(args.weights, config=args.config_file, device="cpu", overrides=args.opts)
    pixels = _read(args.image, predictor)
    image = predictor.prepare(pixels)["image"].float()
    names = predictor.about.class_names
    export_model(predictor.model, predictor.cfg, image, args.output, args.format, names)
    rows = verify(args.output, predictor, pixels)
    _show(args.output, rows)
    return 0 if all(row.acceptable for row in rows) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


def _read(path: str | None, predictor: Any) -> np.ndarray:
    """Pixels in BGR."""
    if path is None:
        rng = np.random.default_rng(0)
        return rng.integers(256, size=_NOISE_SHAPE, dtype=np.uint8)
    from rs_d2.export import images

    try:
        return images.read(path, "BGR")
    except OSError as error:
        raise UserError(f"--image: {path} cannot be read as an image ({error})") from error


def _check_output(args: argparse.Namespace) -> None:
    suffix = Path(f"x{_SUFFIXES[args.format]}").suffix
    if args.output.suffix != suffix:
        raise UserError(f"--output: {args.output} must end in {suffix}")
    if not args.output.parent.is_dir():
        raise UserError(f"--output: the folder {args.output.parent} does not exist")
    check_outputs((args.weights, args.config_file, args.image), [("--output", args.output)])


def _show(path: Path, rows: Sequence[Any]) -> None:
    from tabulate import tabulate

    header = ("image", "detections", "boxes, px", "scores", "masks", "same")
    lines = [
        (
            f"{row.size[1]} x {row.size[0]}",
            f"{row.found}" if row.found == row.expected else f"{row.found}, not {row.expected}",
            f"{row.boxes:.1e}",
            f"{row.scores:.1e}",
            f"{row.masks:.1%}",
            "yes" if row.acceptable else "NO",
        )
        for row in rows
    ]
    print(f"{path}: largest differences from the model\n")
    print(tabulate(lines, headers=header))


if __name__ == "__main__":
    sys.exit(main())
