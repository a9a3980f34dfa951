#!/usr/bin/env python
"""Train or evaluate a detector with Rank & Sort Loss; ``--help`` shows examples.

Exit codes: 0 done; 1 the training diverged, missed ``TEST.EXPECTED_RESULTS``, or one of its
processes died; 2 a mistake in the arguments, config or data; each named in one line; 130
interrupted; 143 stopped by SIGTERM, 138 by SIGUSR1, with a checkpoint of the iteration then done
(``--resume`` goes on from it).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rs_d2.utils.children import ProcessFailed
from rs_d2.utils.cli import run_program, stop
from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.errors import UserError
from rs_d2.utils.launch import launch, reason_of, run_as_one_of_several
from rs_d2.utils.stopping import STOP_SIGNALS

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def work(cfg: CfgNode, args: argparse.Namespace, notes: list[str]) -> None:
    """Train or evaluate in this process, which may be one of many."""
    from rs_d2 import engine
    from rs_d2.checkpoint.loading import load_for_evaluation

    with engine.output_folder(cfg), engine.console_above_bars():
        engine.start_process(cfg, args, notes)
        if args.eval_only:
            model = engine.RSTrainer.build_model(cfg)
            load_for_evaluation(cfg, model, resume=args.resume)
            results = engine.RSTrainer.test(cfg, model)
        else:
            trainer = engine.RSTrainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            results, model = trainer.train(), trainer.model
        engine.finish(cfg, model, results)


def run(argv: Sequence[str] | None) -> int:
    """Do what the arguments say; returns the exit code."""
    require_detectron2()
    from rs_d2 import engine

    try:
        args = engine.parse_args(argv)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") != "0":  # the first one tells the same
            return 2
        raise
    folder: list[str] = []
    try:
        if args.place is None or args.place.num_processes == 1:
            cfg, notes = engine.setup(args)
            folder.append(cfg.OUTPUT_DIR)
            start_here(cfg, args, notes)
        else:
            join_others(args, folder)
    except (KeyboardInterrupt, SystemExit) as stopped:
        code, why = _why_stopped(stopped)
        if not why:
            raise
        if folder and (args.place is None or args.place.rank == 0):
            return stop(f"{why}; {engine.last_checkpoint_line(folder[0])}", code)
        return code
    except ProcessFailed as error:
        return stop(f"error: {error}", error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if reason_of(error) is None or not folder:
            raise
        left = engine.last_checkpoint_line(folder[0])
        return stop(f"error: {reason_of(error)}; {left}", 1)
    return 0


def _why_stopped(stopped: BaseException) -> tuple[int, str]:
    """Exit code of a program that a person or a batch system has stopped, and a word about it."""
    if isinstance(stopped, KeyboardInterrupt):
        return 130, "interrupted"
    for number in STOP_SIGNALS:
        if stopped.code == 128 + number:
            return stopped.code, f"stopped by {number.name}"
    return 0, ""


def start_here(cfg: CfgNode, args: argparse.Namespace, notes: list[str]) -> None:
    """Train in this process, or in those that are started here."""
    from rs_d2 import engine

    launch(
        work,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args, notes),
        left=partial(engine.last_checkpoint_line, cfg.OUTPUT_DIR),
    )


def join_others(args: argparse.Namespace, folder: list[str]) -> None:
    """Train together with the processes that torchrun started beside this one.

    Args:
        args: of the program.
        folder: takes the output folder, once that is known.
    """
    from detectron2.utils import comm

    from rs_d2 import engine

    def prepare_and_work() -> None:
        # A machine that has come anew does not know that the others were restarted.
        args.resume = any(comm.all_gather(args.resume))
        if comm.get_local_rank():  # the first process of a machine makes files that all read
            comm.synchronize()
        cfg, notes = engine.setup(args)
        folder.append(cfg.OUTPUT_DIR)
        if not comm.get_local_rank():
            comm.synchronize()
        work(cfg, args, notes)

    run_as_one_of_several(
        args.place,
        prepare_and_work,
        tell=lambda failure: stop(f"error: {failure.line}", failure.exit_code),
        left=lambda: engine.last_checkpoint_line(folder[0]) if folder else "",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line; anything else keeps its trace."""
    try:
        return run_program(lambda: run(argv))
    except FloatingPointError as error:
        return stop(f"error: {error}", 1)
    except KeyboardInterrupt:
        return stop("interrupted before the first iteration", 130)


if __name__ == "__main__":
    sys.exit(main())
