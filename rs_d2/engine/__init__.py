"""Training: from a config to weights, metrics and pictures."""

from rs_d2.engine.arguments import parse_args
from rs_d2.engine.checkpointer import last_checkpoint_line
from rs_d2.engine.nonfinite import TrainingDiverged
from rs_d2.engine.own_data import OwnData
from rs_d2.engine.progress import console_above_bars
from rs_d2.engine.results import finish
from rs_d2.engine.setup import RUN_FILES, output_folder, prepare, setup, start_process
from rs_d2.engine.solver import build_optimizer, scale_solver
from rs_d2.engine.trainer import RSTrainer

__all__ = [
    "RUN_FILES",
    "OwnData",
    "RSTrainer",
    "TrainingDiverged",
    "build_optimizer",
    "console_above_bars",
    "finish",
    "last_checkpoint_line",
    "output_folder",
    "parse_args",
    "prepare",
    "scale_solver",
    "setup",
    "start_process",
]
