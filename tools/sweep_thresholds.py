"""Choose a score threshold: AP, oLRP and images per second of a model at each, from one pass.

Examples:
    python tools/sweep_thresholds.py --config-file configs/rs_mask_rcnn_lvis.yaml \\
        --weights output/model_final.pth
    python tools/sweep_thresholds.py --config-file configs/quick/rs_mask_rcnn_own_data.yaml \\
        --weights model.pth --val-json val.json --val-images images/ \\
        --thresholds 0.01 0.05 0.1 0.2 0.3 0.4 0.5 --tolerance 0.1 --per-class thresholds.csv

The model finds its detections once, at the lowest threshold: the others' are among them. Then some
images run at every threshold, once with the early-stopping search that rs_d2 uses and once with
Detectron2's plain one; times are medians over these images, without reading them (on a CPU: CPU
time of one thread). A table, its CSV and JSON and a picture are left in the output folder, and the
largest threshold that costs no AP is named.

Exit codes: 0 done; 2 a mistake in the arguments or files, named in one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.cli import ProgramParser, check_pairs, run_program
from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.errors import UserError
from rs_d2.utils.outputs import check_outputs


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--val-json", metavar="FILE", help="your own annotations, COCO or LVIS")
    parser.add_argument("--val-images", metavar="DIR", help="their images")
    parser.add_argument(
        "--thresholds", type=_threshold, nargs="+", help="default: those of the published table"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="AP that may be lost, in percentage points"
    )
    parser.add_argument(
        "--timed-images", type=int, default=10, help="images that run at every threshold; 0: none"
    )
    parser.add_argument(
        "--per-class", type=Path, help="CSV with each class's LRP-optimal threshold"
    )
    parser.add_argument("--output", type=Path, help="default: threshold_sweep beside the weights")
    parser.add_pairs()
    args = parser.parse_args(argv)
    if args.timed_images < 0:
        raise UserError(f"--timed-images: {args.timed_images} is not at least 0")
    check_pairs(args.opts)
    args.output = args.output or Path(args.weights).parent / "threshold_sweep"
    return args


def run(args: argparse.Namespace) -> None:
    """Sweep, show the table and write the files."""
    require_detectron2()
    from rs_d2 import engine
    from rs_d2.analysis import threshold_sweep as sweep
    from rs_d2.analysis.search_times import measure
    from rs_d2.checkpoint.loading import load_for_evaluation
    from rs_d2.config import score_thresh_key

    files = [("--output", path) for path in sweep.sweep_files(args.output).values()]
    files += [("--output", args.output / name) for name in engine.RUN_FILES]
    files += [("--per-class", args.per_class)]
    check_outputs((args.config_file, args.weights, args.val_json), files)
    opts = [*args.opts, "MODEL.WEIGHTS", args.weights, "OUTPUT_DIR", str(args.output)]
    cfg, notes = engine.prepare(args.config_file, opts, engine.OwnData.of(args), eval_only=True)
    engine.start_process(cfg, args, notes)
    model = engine.RSTrainer.build_model(cfg)
    load_for_evaluation(cfg, model)
    model.eval()
    thresholds = sorted(set(args.thresholds or sweep.THRESHOLDS))
    evaluator, timed = sweep.collect_detections(cfg, model, thresholds[0], args.timed_images)
    truth, detections = evaluator.ground_truth, evaluator.detections()
    tasks = evaluator.tasks[::-1]  # the main one first: masks, where there are any
    rows = sweep.sweep(truth, detections, thresholds, tasks, cfg.TEST.EVALUATOR_ENGINE)
    for row, times in zip(rows, measure(model, timed, thresholds), strict=True):
        row.update(times)
    best = sweep.recommend(rows, args.tolerance)
    about = {"config": args.config_file, "weights": args.weights, "data": cfg.DATASETS.TEST[0]}
    about |= {"timed images": len(timed), "device": cfg.MODEL.DEVICE}
    paths = sweep.write_sweep(args.output, rows, recommended=best["threshold"], **about)
    _show(rows, best, sweep.main_metric(rows), args.tolerance, score_thresh_key(cfg))
    if args.per_class is not None:
        from rs_d2.report.per_class import write_per_class

        main = sweep.evaluate_at(truth, detections, thresholds[0], tasks[:1])[tasks[0]]
        write_per_class(args.per_class, main)
        paths["per class"] = args.per_class
    print("written:", *paths.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


def _show(rows: list[dict], best: dict, metric: str, tolerance: float, key: str) -> None:
    from tabulate import tabulate

    print(tabulate(rows, headers="keys", floatfmt=("g", *[".1f"] * len(rows[0]))))
    print(f"\nlargest threshold that loses at most {tolerance:g} {metric}:\n")
    print(f"{key} {best['threshold']:g}\n")


def _threshold(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


if __name__ == "__main__":
    sys.exit(main())
