"""Make a training checkpoint ready to be given away: weights, config, class names and metrics.

Examples:
    python tools/publish_model.py output/demo/model_final.pth published \\
        --name quick/rs_mask_rcnn_digits
    python tools/publish_model.py model_final.pth ~/.cache/rs_d2/model_zoo \\
        --name COCO-Detection/rs_faster_rcnn_R_50_FPN_1x --metrics output/metrics.json

State of optimizer and schedule, paths of this machine and the iteration are left out. The file is
OUT_FOLDER/NAME-HASH.pth, where HASH begins its SHA-256: equal content gives an equal file. Its row
for the model zoo is shown. Config, class names and metrics are those in the checkpoint, unless an
option gives others.

Exit codes: 0 done; 2 a mistake in the arguments or files, named in one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from rs_d2.utils.cli import ProgramParser, run_program
from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.errors import UserError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="IN.pth")
    parser.add_argument("folder", type=Path, metavar="OUT_FOLDER")
    parser.add_argument(
        "--name", required=True, help="of the model, such as quick/rs_mask_rcnn_digits"
    )
    parser.add_argument("--config-file", metavar="FILE", help="default: the checkpoint's own")
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="metrics.json of its run")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="in the order of outputs")
    args = parser.parse_args(argv)
    args.name = _checked_name(args.name)
    return args


def run(args: argparse.Namespace) -> None:
    """Write the file and show its row."""
    require_detectron2()
    from rs_d2.model_zoo import list_models
    from rs_d2.model_zoo.publish import measurement, write_published

    cfg, about, state = _checked(args)
    read = (args.checkpoint, args.config_file, args.metrics)
    path = write_published(state, about, args.folder, args.name, inputs=read)
    config = args.name if args.name in list_models() else Path(args.config_file or args.name).stem
    row = measurement(cfg, about, f"{config}.yaml")
    print(f"| {' | '.join((config, *row[1:]))} |")
    print(f"{row},")
    print(f"written: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


def _checked(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Config, metadata and weights, which must fit each other."""
    from rs_d2.checkpoint.metadata import portable_config
    from rs_d2.checkpoint.revision import code_revision
    from rs_d2.prediction.predictor import Predictor

    predictor = Predictor(
        args.checkpoint, config=args.config_file, class_names=args.class_names, device="cpu"
    )
    cfg, about = predictor.cfg, predictor.about
    if args.metrics is not None:
        about = about._replace(metrics=_metrics(args.metrics))
    about = about._replace(config=portable_config(cfg), revision=about.revision or code_revision())
    state = predictor.model.state_dict()
    _check_model(args.name, cfg, state)
    return cfg, about, state


def _checked_name(name: str) -> str:
    """The name without the ending of its config."""
    stem = name.removesuffix(".yaml")
    path = Path(stem)
    parts = stem.split("/")  # Path leaves out "." and what is empty
    unclean = path.is_absolute() or ".." in parts or parts[-1].strip() in ("", ".")
    if unclean or stem.endswith(".pth"):
        raise UserError(f"--name: '{name}' is no name below OUT_FOLDER, such as quick/my_model")
    return path.as_posix()


def _metrics(path: Path) -> dict[str, float]:
    """The metrics of a run's file, by task and name."""
    from rs_d2.coco.json_files import read_json
    from rs_d2.engine.results import flat_metrics

    content = read_json(path)
    try:
        metrics = flat_metrics(content) if isinstance(content, dict) else {}
    except (TypeError, OverflowError):  # lists, texts or endless integers in place of numbers
        metrics = {}
    if not any("/" in name for name in metrics):
        raise UserError(f"{path}: expected metrics by task, as a run writes them to metrics.json")
    return metrics


def _check_model(name: str, cfg: Any, state: Mapping[str, Any]) -> None:
    """A file under the name of a shipped config must fit that config."""
    from rs_d2 import model_zoo
    from rs_d2.checkpoint.smoke_run import model_shapes

    if name not in model_zoo.list_models():
        return
    shipped = model_zoo.get_config(name)
    expected = model_shapes(shipped)
    found = {tensor: value.shape for tensor, value in state.items()}
    differing = [t for t in (*expected, *found) if expected.get(t) != found.get(t)]
    if differing or cfg.MODEL.META_ARCHITECTURE != shipped.MODEL.META_ARCHITECTURE:
        where = f"{differing[0]} differs" if differing else "another architecture"
        raise UserError(f"--name: the weights do not fit {name} ({where}); choose another name")


if __name__ == "__main__":
    sys.exit(main())
