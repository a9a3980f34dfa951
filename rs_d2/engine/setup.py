"""What happens before the first iteration: config, device, data sets, log, seeds."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from rs_d2.config import is_dense, lookup, num_classes_key
from rs_d2.config.check import check_config
from rs_d2.config.load import find_config, load_config
from rs_d2.data import check_datasets, check_num_classes
from rs_d2.engine.checkpointer import check_weights
from rs_d2.engine.own_data import (
    OWN_TRAIN,
    OWN_VAL,
    count_epochs,
    register_own_data,
    use_own_data,
)
from rs_d2.engine.solver import check_batch, scale_solver
from rs_d2.utils.errors import UserError


def setup(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """Build and check everything that can go wrong before any process is started.

    Args:
        args: as ``parse_args`` returns them; ``config_file`` becomes the path that was found.

    Returns:
        The frozen config, and lines for the log about what was decided here.

    Raises:
        UserError: The first mistake found.
    """
    args.config_file = find_config(args.config_file)
    cfg, named = load_config(args.config_file, args.opts)
    given = set(args.opts[0::2])
    world_size = args.num_gpus * args.num_machines
    notes = resolve_device(cfg, explicit="MODEL.DEVICE" in named, num_processes=args.num_gpus)
    notes += use_own_data(cfg, args, given)
    check_config(cfg)
    notes += check_batch(cfg, world_size)
    notes += scale_solver(cfg, given)
    notes += [] if args.eval_only else count_epochs(cfg)
    _check_data(cfg, args.eval_only)
    check_weights(cfg, resume=args.resume, eval_only=args.eval_only)
    _make_output_dir(cfg)
    cfg.freeze()
    return cfg, notes


def start_process(cfg: CfgNode, args: argparse.Namespace, notes: list[str]) -> None:
    """Prepare this process: log, seed, data sets.

    Args:
        cfg: config from ``setup``.
        args: arguments from ``parse_args``.
        notes: lines from ``setup``, logged once.
    """
    silence_torch()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rs_d2")
    if not {OWN_TRAIN, OWN_VAL}.intersection(DatasetCatalog.keys()):  # a process started anew
        register_own_data(args)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_own_line)
    for note in notes:
        logging.getLogger(__name__).info(note)


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


def silence_torch() -> None:
    """Silence two remarks about Detectron2's code that no user can act on."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA_HOME on a CPU
    warnings.filterwarnings("ignore", message="torch.meshgrid")


def _cpu_line(gpu_found: bool, num_processes: int) -> str:
    reason = "MODEL.DEVICE is cpu" if gpu_found else "no GPU found"
    crew = f" in {num_processes} processes that talk through gloo" if num_processes > 1 else ""
    return f"{reason}: running on the CPU{crew}"


def _check_data(cfg: CfgNode, eval_only: bool) -> None:
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: give --config-file or --val-json (see --help)")
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: give --config-file or --train-json (see --help)")
    names = cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_datasets(names)
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" or is_dense(cfg):
        key = num_classes_key(cfg)
        check_num_classes(names, lookup(cfg, key), key)


def _make_output_dir(cfg: CfgNode) -> None:
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} cannot be made ({error.strerror})"
        ) from error


def _has_own_line(record: logging.LogRecord) -> bool:
    """Drop the trace Detectron2 logs for what ``train_net.py`` reports in one line."""
    expected = (UserError, FloatingPointError)
    return not (record.exc_info and isinstance(record.exc_info[1], expected))
