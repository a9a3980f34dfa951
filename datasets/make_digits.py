#!/usr/bin/env python
"""Make the embedded digits set: handwritten digits in three colours, long-tailed, LVIS v1 form.

Usage: python datasets/make_digits.py [--output datasets/digits] [--num-train 600] [--seed 0]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

from rs_d2.data.digits.digits import make_digits
from rs_d2.utils.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set and print where it is; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default="datasets/digits", help="folder of the set")
    parser.add_argument("--num-train", type=int, default=600, help="training images")
    parser.add_argument("--num-val", type=int, default=120, help="validation images")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    args = parser.parse_args(argv)
    try:
        files = make_digits(args.output, args.num_train, args.num_val, args.size, args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {args.output}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"train  {files.train_json}\nval    {files.val_json}\nimages {files.image_root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
