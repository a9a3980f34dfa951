"""What happens before the first iteration: config, device, data sets, log, seeds."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from rs_d2.checkpoint.files import read_pickle
from rs_d2.config import architecture_of, lookup
from rs_d2.config.check import check_config
from rs_d2.config.load import find_config, load_config
from rs_d2.data import check_datasets, check_num_classes
from rs_d2.engine.checkpointer import check_weights, last_checkpoint_line, set_last_aside
from rs_d2.engine.own_data import OWN_TRAIN, OWN_VAL, OwnData, count_epochs, use_own_data
from rs_d2.engine.solver import check_batch, scale_solver
from rs_d2.evaluation import SUMMARY
from rs_d2.evaluation.build import EVALUATORS
from rs_d2.utils.atomic_write import NotWritten, atomic_write
from rs_d2.utils.cli import as_pairs
from rs_d2.utils.d2_compat import silence_torch
from rs_d2.utils.errors import UserError, did_you_mean
from rs_d2.utils.folders import make_folder
from rs_d2.utils.outputs import check_outputs, same_file
from rs_d2.utils.run_lock import locked_folder

CONFIG_COPY = "config.yaml"  # Detectron2's name for it
RUN_FILES = (  # what every run may write into its output folder, checkpoints aside
    *("metrics.json", "train_log.jsonl", "model_best.json", "imbalance.json"),
    *("last_checkpoint", "log.txt"),
)
_RUN_FOLDERS = ("inference", "inference_TTA", "predictions", "training_images")
# What the user can mend, of all that writing a file may fail of.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}


def prepare(
    config: str | PathLike = "",
    overrides: Mapping[str, Any] | Sequence[Any] = (),
    data: OwnData | None = None,
    *,
    eval_only: bool = False,
    resume: bool = False,
    num_gpus: int = 1,
    num_machines: int = 1,
) -> tuple[CfgNode, list[str]]:
    """Build and check everything that can go wrong before a run is started.

    Example::

        data = OwnData("train.json", "images/", "val.json", "images/")
        cfg, notes = prepare("quick/rs_mask_rcnn_own_data", {"SOLVER.MAX_ITER": 200}, data)
        trainer = RSTrainer(cfg)
        trainer.resume_or_load()
        trainer.train()

    Args:
        config: path of a config file, or name of a packaged one; empty: Detectron2's defaults.
        overrides: config keys and values, as a mapping or in turn.
        data: the user's own; its class count goes to the key that the detector reads it from.
        eval_only: nothing is trained.
        resume: the run goes on from the last checkpoint of its output folder.
        num_gpus: processes on a machine.
        num_machines: number of machines.

    Returns:
        The frozen config, and lines for the log about what was decided here. The output folder is
        there, and the data is registered with Detectron2.

    Raises:
        UserError: The first mistake found.
    """
    opts, data = as_pairs(overrides), data or OwnData()
    data.check(eval_only=eval_only)
    cfg, named = load_config(find_config(str(config)), opts)
    given = set(opts[0::2])
    notes = resolve_device(cfg, explicit="MODEL.DEVICE" in named, num_processes=num_gpus)
    notes += use_own_data(cfg, data, given)
    check_config(cfg)
    notes += check_batch(cfg, num_gpus * num_machines)
    notes += scale_solver(cfg, given)
    notes += [] if eval_only else count_epochs(cfg)
    _check_data(cfg, eval_only)
    _check_best_metric(cfg)
    check_weights(cfg, resume=resume, eval_only=eval_only)
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR or "\0" in cfg.OUTPUT_DIR:
        raise UserError(f"OUTPUT_DIR: '{cfg.OUTPUT_DIR}' is no folder of this machine")
    _check_folder(make_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR"))
    cfg.freeze()
    return cfg, notes


def setup(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """Prepare a run of ``train_net.py``: :func:`prepare` with what ``parse_args`` returned.

    Raises:
        UserError: Also where the run would overwrite one of its inputs.
    """
    cfg, notes = prepare(
        args.config_file,
        args.opts,
        OwnData.of(args),
        eval_only=args.eval_only,
        resume=args.resume,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
    )
    _check_outputs(cfg, args)
    return cfg, notes


@contextmanager
def output_folder(cfg: CfgNode) -> Iterator[None]:
    """Keep the output folder for this run in the ``with`` block; to be entered in every process.

    Raises:
        UserError: Another run has the folder, or it cannot be written (any more).
    """
    raises, logging.raiseExceptions = logging.raiseExceptions, False  # of a log file on a full disk
    hook = threading.excepthook
    # tensorboard's thread: what fails there is raised in the next call, too
    threading.excepthook = lambda args: None if _is_no_room(args.exc_value) else hook(args)
    try:
        with locked_folder(cfg.OUTPUT_DIR) if comm.is_main_process() else nullcontext():
            yield
    except NotWritten as error:
        raise UserError(f"{error}; {last_checkpoint_line(cfg.OUTPUT_DIR)}") from error
    except OSError as error:
        if not _is_no_room(error) and Path(cfg.OUTPUT_DIR).is_dir():
            raise
        where = error.filename or cfg.OUTPUT_DIR
        raise UserError(
            f"{where} cannot be written ({error.strerror}); {last_checkpoint_line(cfg.OUTPUT_DIR)}"
        ) from error
    finally:
        logging.raiseExceptions, threading.excepthook = raises, hook
        _close_full_logs()


def _is_no_room(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def start_process(cfg: CfgNode, args: argparse.Namespace, notes: list[str]) -> None:
    """Start a process of a run: log, seed, data sets.

    Args:
        cfg: config from ``prepare``.
        args: of the program, with ``config_file`` and, by their names, own data; for the log.
        notes: lines from ``prepare``, logged once.
    """
    silence_torch()
    found = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
    own = Path(cfg.OUTPUT_DIR) / CONFIG_COPY
    is_input = comm.is_main_process() and same_file(found.config_file, own)
    with _kept(own) if is_input else nullcontext():
        default_setup(cfg, found)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rs_d2")
    if not {OWN_TRAIN, OWN_VAL}.intersection(DatasetCatalog.keys()):  # a process started anew
        OwnData.of(args).register()
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_own_line)
    for note in notes:
        logging.getLogger(__name__).info(note)
    place = getattr(args, "place", None)
    if place is not None and place.may_restart and not (args.resume or args.eval_only):
        set_last_aside(cfg.OUTPUT_DIR)


@contextmanager
def _kept(own: Path) -> Iterator[None]:
    """Keep a run's own config that is given again: Detectron2 would write this run's over it.

    It gets a copy to read and to write over. Whatever happens, the file itself is not touched.
    """
    aside, text = own.with_name(f".{own.name}.given"), own.read_bytes()
    os.replace(own, aside)
    try:
        with atomic_write(own) as file:
            file.write(text)
        yield
    finally:
        os.replace(aside, own)


def _check_folder(folder: Path) -> None:
    """Check that nothing stands where a run would fail to write, or wait for ever, after days."""
    for path in (folder / name for name in (*RUN_FILES, CONFIG_COPY)):
        if path.is_dir() or path.is_fifo():
            raise UserError(f"OUTPUT_DIR: {path} is a {'folder' if path.is_dir() else 'pipe'}")
    for path in (folder / name for name in _RUN_FOLDERS):
        if path.exists() and not path.is_dir():
            raise UserError(f"OUTPUT_DIR: {path} is no folder")


def _check_outputs(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check that the run's files are none of its inputs; its own old config is left as it is."""
    names = list(RUN_FILES)
    weights = cfg.MODEL.WEIGHTS
    if not args.eval_only:
        period, last = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER
        numbers = {*range(period - 1, last, period), last - 1} if period > 0 else ()
        names += [f"model_{each}.pth" for each in ("final", "best", *map("{:07d}".format, numbers))]
        if args.resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists():
            weights = None  # it goes on from that one
    files = [("OUTPUT_DIR", Path(cfg.OUTPUT_DIR) / name) for name in names]
    check_outputs([weights, args.train_json, args.val_json], files)


def resolve_device(cfg: CfgNode, *, explicit: bool, num_processes: int) -> list[str]:
    """Fall back to the CPU where there is no GPU, unless the user asked for one.

    Args:
        cfg: its ``MODEL.DEVICE`` may change.
        explicit: the key stands in the config file or on the command line.
        num_processes: processes on this machine.

    Returns:
        A line for the log if the CPU is used in place of GPUs; else empty.

    Raises:
        UserError: The device is not there or not known, or cannot serve that many processes.
    """
    try:
        kind = torch.device(cfg.MODEL.DEVICE).type
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE: '{cfg.MODEL.DEVICE}' is not a device") from error
    found = torch.cuda.is_available()
    if kind == "cpu" and found and num_processes > 1:
        raise UserError(
            f"--num-gpus {num_processes} with MODEL.DEVICE cpu: hide the GPUs from the processes"
            " with CUDA_VISIBLE_DEVICES="
        )
    if kind == "cuda" and not found:
        if explicit:
            raise UserError(f"MODEL.DEVICE: '{cfg.MODEL.DEVICE}' was asked for but no GPU is there")
        cfg.MODEL.DEVICE = kind = "cpu"
    if kind != "cpu":
        return []
    if cfg.SOLVER.AMP.ENABLED:
        cfg.SOLVER.AMP.ENABLED = False
        return [_cpu_line(found, num_processes) + "; SOLVER.AMP.ENABLED needs a GPU and is off"]
    return [] if found else [_cpu_line(found, num_processes)]


def _cpu_line(gpu_found: bool, num_processes: int) -> str:
    reason = "MODEL.DEVICE is cpu" if gpu_found else "no GPU found"
    several = f" in {num_processes} processes that talk through gloo" if num_processes > 1 else ""
    return f"{reason}: running on the CPU{several}"


def _check_data(cfg: CfgNode, eval_only: bool) -> None:
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: give --config-file or --val-json (see --help)")
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: give --config-file or --train-json (see --help)")
    names = cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_datasets(names)
    if cfg.MODEL.LOAD_PROPOSALS:  # Detectron2 would execute what these pickles ask for
        for path in (*cfg.DATASETS.PROPOSAL_FILES_TRAIN, *cfg.DATASETS.PROPOSAL_FILES_TEST):
            read_pickle(PathManager.get_local_path(path))
    architecture = architecture_of(cfg)
    if architecture.checks_classes:
        key = architecture.num_classes_key
        check_num_classes(names, lookup(cfg, key), key)


def _close_full_logs() -> None:
    """Log files on a full disk; at the program's exit they would fail once more, with a trace."""
    for name in ("detectron2", "fvcore", "rs_d2"):
        for handler in logging.getLogger(name).handlers:
            stream = getattr(handler, "stream", None)
            try:
                handler.flush()
            except (OSError, ValueError):
                with suppress(OSError, ValueError):
                    stream.close()


def _check_best_metric(cfg: CfgNode) -> None:
    """A mistake in it would show at the first evaluation, which may be days away."""
    metric, tests = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    tasks = architecture_of(cfg).tasks(cfg)
    kinds = {MetadataCatalog.get(name).get("evaluator_type") for name in tests}
    if not metric:
        return
    if not tests:
        raise UserError(f"TEST.BEST_METRIC: {metric}, but DATASETS.TEST is empty")
    if not tasks or not kinds <= EVALUATORS.keys():  # numbers of evaluators that are not ours
        return
    known = []
    for name in tests:
        has_masks = MetadataCatalog.get(name).get("has_masks", True)
        dataset = f"{name}/" if len(tests) > 1 else ""
        numbers = [*SUMMARY]
        numbers += [f"{number}_fixed" for number in numbers] if cfg.TEST.FIXED_AP else []
        known += [
            f"{dataset}{task}/{number}"
            for task in tasks
            if task == "bbox" or has_masks
            for number in numbers
        ]
    if cfg.TEST.AUG.ENABLED:
        known += [f"{first}_TTA/{rest}" for first, rest in (name.split("/", 1) for name in known)]
    if metric not in known:
        hint = did_you_mean(metric, known) or f"; such as {known[0]}"
        raise UserError(f"TEST.BEST_METRIC: '{metric}' is no result of this evaluation{hint}")


def _has_own_line(record: logging.LogRecord) -> bool:
    """Drop the trace Detectron2 logs for what ``train_net.py`` reports in one line."""
    expected = (UserError, FloatingPointError, OSError)
    return not (record.exc_info and isinstance(record.exc_info[1], expected))
