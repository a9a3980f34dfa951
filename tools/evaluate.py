"""Evaluate a file of detections: AP and oLRP by the rules of COCO or LVIS. No model is needed.

Examples:
    python tools/evaluate.py --gt val.json --results detections.json --format coco \\
        --iou-type bbox --output scores.json
    python tools/evaluate.py --gt lvis_v1_val.json --results detections.json.gz --format lvis \\
        --iou-type segm --output scores.json --per-class classes.csv --report report/ \\
        --images datasets/coco

The output is flat json in percent, null where there is nothing to average: AP AP50 AP75 APs APm APl
APr APc APf oLRP oLRP_Loc oLRP_FP oLRP_FN. Files may end in .json or .json.gz.

Exit codes: 0 done; 2 a mistake in the arguments or files, named in one line.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.atomic_write import write_json
from rs_d2.utils.cli import ProgramParser, positive_int, run_program
from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import make_folder
from rs_d2.utils.outputs import check_outputs


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("--gt", type=Path, required=True, help="ground truth, COCO or LVIS json")
    parser.add_argument("--results", type=Path, required=True, help="list of detections, json")
    parser.add_argument("--format", choices=("coco", "lvis"), required=True, help="whose rules")
    parser.add_argument("--iou-type", choices=("bbox", "segm"), required=True)
    parser.add_argument("--output", type=Path, required=True, help="json to write")
    parser.add_argument("--engine", choices=("auto", "hotcoco", "reference"), default="auto")
    parser.add_argument(
        "--max-dets",
        type=positive_int,
        help="cap of an image and class (coco, 100) or image (lvis, 300)",
    )
    parser.add_argument(
        "--fixed-ap",
        action="store_true",
        help="no cap per image; the best 10,000 detections of each class count",
    )
    parser.add_argument("--per-class", type=Path, help="CSV to write, a row for each class")
    parser.add_argument("--report", type=Path, help="folder to write report.html into")
    parser.add_argument("--train-gt", type=Path, help="training json, whose classes are counted")
    parser.add_argument("--images", type=Path, help="folder of the images, for the report")
    args = parser.parse_args(argv)
    if args.fixed_ap and args.max_dets is not None:
        raise UserError("--fixed-ap and --max-dets exclude each other")
    return args


def run(args: argparse.Namespace) -> None:
    """Evaluate, write what is asked for and show the numbers."""
    require_detectron2()
    from rs_d2.coco.ground_truth import read_ground_truth
    from rs_d2.coco.json_files import read_json
    from rs_d2.coco.reading import read_to_evaluate
    from rs_d2.coco.results import detections_from
    from rs_d2.evaluation import METRICS, evaluate_detections, evaluate_fixed_ap
    from rs_d2.report.class_counts import count_objects
    from rs_d2.report.per_class import write_per_class

    check_outputs((args.gt, args.results, args.train_gt), _outputs(args))
    truth = read_ground_truth(args.gt, args.format)
    if args.format == "lvis" and truth.known is None:
        print(f"{args.gt}: no neg_category_ids, taken as annotated throughout", file=sys.stderr)
    found = detections_from(read_json(args.results), truth, args.iou_type, str(args.results))
    if args.fixed_ap:
        evaluation = evaluate_fixed_ap(truth, found, args.iou_type, args.engine)
    else:
        evaluation = evaluate_detections(truth, found, args.iou_type, args.engine, args.max_dets)
    summary = evaluation.summary
    flat = {name: None if math.isnan(summary[name]) else summary[name] for name in METRICS}
    make_folder(args.output.parent, "--output")
    write_json(args.output, flat, indent=2)
    _show(evaluation.engine, summary)
    counts = None
    if args.train_gt is not None:
        counts = count_objects(read_to_evaluate(args.train_gt).annotations, truth)
    if args.per_class is not None:
        write_per_class(args.per_class, evaluation, counts)
    if args.report is not None:
        from rs_d2.report.page import write_report

        title = f"{args.results.name} on {args.gt.name}"
        write_report(args.report, {args.iou_type: evaluation}, title, args.images, counts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


def _outputs(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Every file that is written, and the option that asks for it."""
    named = [("--output", args.output), ("--per-class", args.per_class)]
    if args.report is None:
        return named
    report = ("report.html", f"per_class_{args.iou_type}.csv")
    return named + [("--report", args.report / name) for name in report]


def _show(engine: str, summary: dict[str, float]) -> None:
    """Print every number of the summary, those without a value left out."""
    from tabulate import tabulate

    rows = [(name, value) for name, value in summary.items() if not math.isnan(value)]
    print(tabulate(rows, (f"by {engine}", "percent"), floatfmt=".2f"))


if __name__ == "__main__":
    sys.exit(main())
