"""Compare losses, samplers, weights ...: variants of a detector trained alike, in one table.

Examples:
    the published tables, and one of them on the digits set (nine rows, half an hour on two cores):
    python tools/ablate.py --list
    python tools/ablate.py --table S8

    three seeds of some rows, with a shorter training:
    python tools/ablate.py --table S8 --rows 'rs_*,focal_none_none' --seeds 3 --iterations 300

    on your own images, COCO or LVIS form:
    python tools/ablate.py --table S8 --train-json train.json --train-images images/ \\
        --val-json val.json --val-images images/

    variants of your own, as pairs or as yaml files, over a base that you name:
    python tools/ablate.py --config-file configs/quick/rs_atss_digits.yaml \\
        --variant 'plain=' --variant 'AP loss=MODEL.DENSE_HEAD.CRITERION.LOSS ap' \\
        --variant mine.yaml --output output/mine SOLVER.BASE_LR 0.0005

All variants have the same base config, data, order of images, budget and seeds; a variant is only
the MODEL lines of its file, or its pairs. The output folder gets ablation.md (the table, in the
publication's layout), ablation.csv (a line for each run), ablation.json (every number, mean and
spread), curves.png and final.png. Runs are kept one by one: the same command, after Ctrl-C or a
kill, does what is missing. A run that fails is named in one line, and the others go on.

Exit codes: 0 done; 1 a run failed; 2 a mistake in the arguments, config or data, named in one line;
130 interrupted; 143, 138 stopped by SIGTERM, SIGUSR1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.cli import ProgramParser, check_pairs, positive_int, run_program, stop
from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.errors import UserError, did_you_mean


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", metavar="NAME", help="a table of the publication, such as S8")
    what.add_argument(
        "--variant",
        action="append",
        metavar="FILE or NAME=KEY VALUE,...",
        help="a variant of your own; may be repeated",
    )
    what.add_argument("--list", action="store_true", help="show the tables and their rows")
    parser.add_argument(
        "--rows", default="", metavar="NAME,...", help="train these rows only; may have wildcards"
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="base of all variants; default: small"
    )
    own = parser.add_argument_group("your own data (COCO or LVIS json); default: the digits set")
    own.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    own.add_argument("--train-images", metavar="DIR", help="their images")
    own.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    own.add_argument("--val-images", metavar="DIR", help="their images")
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N", help="1 to N")
    parser.add_argument(
        "--iterations", type=positive_int, metavar="N", help="of each run; default: the base's"
    )
    parser.add_argument(
        "--evaluations", type=positive_int, default=4, metavar="N", help="of each run; default: 4"
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        metavar="N",
        help="runs side by side, which share the cores; default: the number of GPUs, or of cores",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: output/ablations and the table's name"
    )
    parser.add_pairs()
    args = parser.parse_args(argv)
    check_pairs(args.opts)
    if args.iterations:
        args.opts += ["SOLVER.MAX_ITER", str(args.iterations)]
    if args.output is None:
        name = args.table or "custom"
        args.output = Path("output/ablations") / (f"{name}_own_data" if args.train_json else name)
    return args


def run(args: argparse.Namespace) -> int:
    """Compare; returns the exit code."""
    require_detectron2()
    from rs_d2 import engine
    from rs_d2.analysis import ablation

    if args.list:
        return _list(ablation.TABLES)
    variants = None
    if args.table is not None:
        if args.table not in ablation.TABLES:
            hint = did_you_mean(args.table, ablation.TABLES)
            hint = hint or f"; there are {', '.join(ablation.TABLES)}"
            raise UserError(f"--table: {args.table} is not known{hint}")
        table = ablation.TABLES[args.table]
    else:
        variants = [ablation.variant_of(text) for text in args.variant]
        table = ablation.custom_table(variants)
    try:
        with engine.console_above_bars():
            outcome = ablation.ablate(
                table,
                args.output,
                variants=variants,
                rows=[name.strip() for name in args.rows.split(",") if name.strip()],
                base=args.config_file,
                overrides=args.opts,
                data=engine.OwnData.of(args),
                seeds=args.seeds,
                jobs=args.jobs,
                evaluations=args.evaluations,
            )
    except (KeyboardInterrupt, SystemExit) as stopped:
        code = 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
        kept = f"finished runs are in {args.output}; the same command goes on"
        return stop(f"{'interrupted' if code == 130 else 'stopped'}: {kept}", code)
    print(f"\n{outcome.markdown}")
    print("written:", *(path for path in outcome.files.values() if path.exists()))
    if outcome.num_failed:
        return stop(f"error: {outcome.num_failed} run(s) failed, see above", 1)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


def _list(tables: dict) -> int:
    for table in tables.values():
        print(f"{table.name}  {table.title}")
        for row in table.rows:
            note = "  (published numbers only)" if row.is_other_data else ""
            print(f"      {row.name:<32}{' / '.join(row.labels)}{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
