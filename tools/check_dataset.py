"""Check a COCO or LVIS json and its images before training on them.

Examples:
    python tools/check_dataset.py --train-json train.json --train-images images/
    python tools/check_dataset.py --train-json train.json --train-images images/ \\
        --val-json val.json --val-images images/ --images --output findings.json
    python tools/check_dataset.py --train-json train.json --train-images images/ --fix

Found are: what stops a training, what a training leaves out, and what is perhaps a mistake. The
head of every image file is read; --images decodes all of them, in several processes, and looks for
validation images that the training set has, too. --fix writes what a training would use beside the
json, as NAME.fixed.json; the json itself is never changed.

Exit codes: 0 nothing found, or only what is perhaps a mistake; 1 findings; 2 a json that cannot be
read, or a mistake in the arguments, named in one line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.atomic_write import write_json
from rs_d2.utils.cli import ProgramParser, positive_int, run_program
from rs_d2.utils.errors import UserError
from rs_d2.utils.outputs import check_outputs


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("--train-json", type=Path, metavar="FILE", help="annotations, COCO or LVIS")
    parser.add_argument(
        "--train-images", type=Path, metavar="DIR", help="their images; default: the json's folder"
    )
    parser.add_argument("--val-json", type=Path, metavar="FILE", help="annotations to evaluate on")
    parser.add_argument(
        "--val-images", type=Path, metavar="DIR", help="their images; default: the json's folder"
    )
    parser.add_argument("--images", action="store_true", help="decode every image")
    parser.add_argument("--absolute-paths", action="store_true", help="image names may be absolute")
    parser.add_argument(
        "--jobs", type=positive_int, default=os.cpu_count() or 1, help="processes that open images"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="json to write all findings to")
    parser.add_argument("--fix", action="store_true", help="write NAME.fixed.json beside each json")
    args = parser.parse_args(argv)
    if args.train_json is None and args.val_json is None:
        raise UserError("give --train-json, --val-json or both")
    check_outputs((args.train_json, args.val_json), [("--output", args.output)])
    return args


def run(args: argparse.Namespace) -> int:
    """Check, print and write; returns the exit code."""
    from rs_d2.analysis.dataset_check import (
        as_json,
        as_text,
        check_dataset,
        compare_sets,
        write_fixed,
    )

    checks = [
        check_dataset(
            json_file,
            images,
            decode=args.images,
            absolute_paths=args.absolute_paths,
            num_jobs=args.jobs,
        )
        for json_file, images in (
            (args.train_json, args.train_images),
            (args.val_json, args.val_images),
        )
        if json_file is not None
    ]
    images = (path for check in checks for path in check.image_files)
    check_outputs(images, [("--output", args.output)])
    if len(checks) == 2:
        checks[1].findings += compare_sets(*checks)
    print(as_text(checks).encode(errors="backslashreplace").decode())
    if args.output is not None:
        write_json(args.output, as_json(checks), indent=2)
    for check in checks if args.fix else ():
        written = write_fixed(check)
        print(f"{check.path}: " + ("nothing to fix" if written is None else f"wrote {written}"))
    return 0 if all(check.is_sound for check in checks) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
