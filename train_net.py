#!/usr/bin/env python
"""Train or evaluate a detector with Rank & Sort Loss; ``--help`` shows examples.

Exit codes: 0 done; 1 the training diverged or missed ``TEST.EXPECTED_RESULTS``; 2 a mistake in the
arguments, config or data, named in one line; 130 interrupted; 143 stopped by SIGTERM, 138 by
SIGUSR1, with a checkpoint of the iteration then done (``--resume`` goes on from it).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from rs_d2.utils.cli import run_program, stop
from rs_d2.utils.d2_compat import require_detectron2
from rs_d2.utils.launch import launch
from rs_d2.utils.stopping import TrainingStopped, passed_on_to_children

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

    args = engine.parse_args(argv)
    cfg, notes = engine.setup(args)
    try:
        with passed_on_to_children() if args.num_gpus > 1 else nullcontext():
            launch(
                work,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(cfg, args, notes),
            )
    except TrainingStopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return stop(f"interrupted; {engine.last_checkpoint_line(cfg.OUTPUT_DIR)}", 130)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn what a user can mend into one line; anything else keeps its trace."""
    try:
        return run_program(lambda: run(argv))
    except FloatingPointError as error:
        return stop(f"error: {error}", 1)
    except ProcessRaisedException as error:  # from one of several processes
        diverged = re.search(r"^[\w.]+\.TrainingDiverged: (.*)$", str(error), re.MULTILINE)
        if diverged is None:
            raise
        return stop(f"error: {diverged[1]}", 1)
    except ProcessExitedException as error:
        if error.signal_name is not None:  # killed
            raise
        return error.exit_code
    except KeyboardInterrupt:
        return stop("interrupted before the first iteration", 130)


if __name__ == "__main__":
    sys.exit(main())
