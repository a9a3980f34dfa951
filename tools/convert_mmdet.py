"""Convert a checkpoint of mmdetection for a config of this package, or back.

Examples:
    python tools/convert_mmdet.py --config-file COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml \\
        epoch_12.pth converted.pth --check docs/images/demo.jpg
    python tools/convert_mmdet.py --config-file COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml \\
        output/model_final.pth mmdet.pth --to-mmdet MODEL.ROI_HEADS.NUM_CLASSES 3

IN is a checkpoint of mmdetection, as trained or as published; only its `state_dict` and class names
are used, and nothing in it is executed. OUT loads by `MODEL.WEIGHTS`.

Exit codes: 0 done; 2 a mistake in the arguments or files, or a tensor of the file or the model
without its counterpart: all of them are listed, and OUT is not written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from torch import Tensor

from rs_d2.checkpoint.files import read_checkpoint, write_checkpoint
from rs_d2.checkpoint.mmdet import Conversion, describe, to_detectron2, to_mmdet
from rs_d2.utils.cli import ProgramParser, check_pairs, run_program
from rs_d2.utils.d2_compat import require_detectron2, silence_torch
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import config_dir
from rs_d2.utils.outputs import check_outputs

_WRAPPER = "module."  # of a model that was saved in its distributed wrapper


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = ProgramParser(__doc__)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("source", metavar="IN.pth", type=Path, help="checkpoint to read")
    parser.add_argument("target", metavar="OUT.pth", type=Path, help="checkpoint to write")
    parser.add_argument("--check", metavar="IMAGE", help="run the model on an image first")
    parser.add_argument("--to-mmdet", action="store_true", help="IN is Detectron2's, OUT mmdet's")
    parser.add_pairs()
    args = parser.parse_intermixed_args(argv)
    check_pairs(args.opts)
    return args


def run(args: argparse.Namespace) -> None:
    """Read, convert, try, write."""
    require_detectron2()
    silence_torch()
    from rs_d2.checkpoint.smoke_run import model_shapes
    from rs_d2.config.check import check_config
    from rs_d2.config.load import find_config, load_config

    cfg, _ = load_config(find_config(args.config_file), args.opts)
    check_config(cfg)
    _check_target(args)
    image = None if args.check is None else _read_image(args.check, cfg)
    content = read_checkpoint(args.source)
    state = _state(content, args.source, args.to_mmdet)
    convert = to_mmdet if args.to_mmdet else to_detectron2
    done = convert(state, model_shapes(cfg))
    if not done.complete:
        print(describe(done), file=sys.stderr)
        raise UserError(
            f"{args.source} does not fit {args.config_file}{_fits(state, convert)};"
            f" {args.target} is not written"
        )
    names = _class_names(content, cfg, args)
    if image is not None:
        _show_detections(cfg, state if args.to_mmdet else done.state, image, names, args.check)
    write_checkpoint(_packed(done.state, names, cfg, args.to_mmdet), args.target)
    dropped = f", {len(done.dropped)} batch counters left out" if done.dropped else ""
    print(f"{args.target}: {len(done.state)} tensors, {len(names)} class names{dropped}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line."""
    return run_program(lambda: run(parse_args(argv)))


def _check_target(args: argparse.Namespace) -> None:
    target = args.target
    if not target.parent.is_dir():
        raise UserError(f"{target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise UserError(f"{target} is a folder")
    check_outputs((args.source, args.config_file, args.check), [("OUT.pth", target)])


def _read_image(path: str, cfg: Any) -> Any:
    from detectron2.data.detection_utils import convert_PIL_to_numpy

    from rs_d2.coco.pixels import open_image

    try:
        return convert_PIL_to_numpy(open_image(path), cfg.INPUT.FORMAT)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"--check: {path} cannot be read as an image ({error})") from error


def _state(content: Mapping[str, Any], path: Path, to_mmdet: bool) -> Mapping[str, Tensor]:
    """The named tensors of a checkpoint, or a file of nothing else."""
    entry, other = ("model", "state_dict") if to_mmdet else ("state_dict", "model")
    state = content.get(entry, content)
    entries = list(state.items()) if isinstance(state, Mapping) else []
    if entries and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries):
        _check_numbers(entries, path)
        wrapped = all(name.startswith(_WRAPPER) for name, _ in entries)
        return {name.removeprefix(_WRAPPER): value for name, value in entries} if wrapped else state
    if entry in content:
        raise UserError(f"{path}: its entry '{entry}' is not a mapping of names to tensors")
    advice = ""
    if other in content:
        advice = f"; it has '{other}': {'leave --to-mmdet out' if to_mmdet else 'add --to-mmdet'}?"
    raise UserError(f"{path} has no entry '{entry}' and is no mapping of names to tensors{advice}")


def _check_numbers(entries: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Counters are integers; anything else that is would be rounded or quantised weights."""
    for name, value in entries:
        if not value.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise UserError(f"{path}: {name} holds {value.dtype}, no floating-point numbers")


def _fits(state: Mapping[str, Tensor], convert: Callable[..., Conversion]) -> str:
    """Name the packaged configs whose models have just these tensors."""
    from rs_d2.checkpoint.smoke_run import model_shapes
    from rs_d2.config.load import load_config

    found = []
    for path in sorted(config_dir().glob("[A-Z]*/*.yaml")):
        if convert(state, model_shapes(load_config(str(path), [])[0])).complete:
            found.append(str(path.relative_to(config_dir())))
    return f"; it fits {' and '.join(found)}" if found else ""


def _class_names(content: Mapping[str, Any], cfg: Any, args: argparse.Namespace) -> tuple[str, ...]:
    """The file's class names, or else those of the config's data; empty where neither fit."""
    from detectron2.data import MetadataCatalog

    from rs_d2.checkpoint.metadata import read_metadata
    from rs_d2.config.architectures import lookup, num_classes_key

    candidates: list[Any] = []
    if args.to_mmdet:
        metadata = read_metadata(content, str(args.source))
        candidates += [] if metadata is None else [metadata.class_names]
    elif isinstance(content.get("meta"), Mapping):
        meta = content["meta"]
        candidates.append(meta.get("CLASSES"))
        if isinstance(meta.get("dataset_meta"), Mapping):  # of newer versions
            candidates += [meta["dataset_meta"].get(key) for key in ("classes", "CLASSES")]
    candidates += [MetadataCatalog.get(data).get("thing_classes") for data in cfg.DATASETS.TEST]
    for names in candidates:
        if isinstance(names, (list, tuple)) and len(names) == lookup(cfg, num_classes_key(cfg)):
            return tuple(map(str, names))
    return ()


def _show_detections(cfg: Any, state: Any, image: Any, names: Sequence[str], path: str) -> None:
    from rs_d2.checkpoint.smoke_run import detect_on_cpu
    from rs_d2.config.architectures import lookup, score_thresh_key

    key = score_thresh_key(cfg)
    found = detect_on_cpu(cfg, state, image)
    print(f"{path}: {len(found)} detections score above {lookup(cfg, key):g} ({key})")
    shown = found[:10]
    if not len(found):
        any_score = cfg.clone()
        any_score.merge_from_list([key, 0.0])
        shown = detect_on_cpu(any_score, state, image)[:1]
        print("  the best of the others:" if len(shown) else "  nor is there any other")
    for score, label, box in zip(
        shown.scores.tolist(), shown.pred_classes.tolist(), shown.pred_boxes, strict=True
    ):
        corners = " ".join(f"{value:.0f}" for value in box.tolist())
        print(f"  {score:.3f} {names[label] if names else f'class {label}'} [{corners}]")


def _packed(state: Mapping[str, Tensor], names: Sequence[str], cfg: Any, to_mmdet: bool) -> Any:
    if to_mmdet:
        return {"meta": {"CLASSES": tuple(names)} if names else {}, "state_dict": state}
    from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata
    from rs_d2.checkpoint.revision import code_revision

    cfg.MODEL.WEIGHTS = ""  # the weights are here
    metadata = CheckpointMetadata(cfg.dump(), tuple(names), revision=code_revision())
    return {"model": state, ENTRY: metadata.to_entry()}


if __name__ == "__main__":
    sys.exit(main())
