"""Training and evaluation: from a command line to weights, metrics and pictures."""

from rs_d2.checkpoint.loading import RSCheckpointer, load_for_evaluation
from rs_d2.engine.arguments import parse_args
from rs_d2.engine.checkpointer import last_checkpoint_line
from rs_d2.engine.progress import console_above_bars
from rs_d2.engine.results import finish
from rs_d2.engine.setup import setup, start_process
from rs_d2.engine.solver import build_optimizer, scale_solver
from rs_d2.engine.trainer import RSTrainer, TrainingDiverged
from rs_d2.prediction.predictor import Predictor

__all__ = [
    "Predictor",
    "RSCheckpointer",
    "RSTrainer",
    "TrainingDiverged",
    "build_optimizer",
    "console_above_bars",
    "finish",
    "last_checkpoint_line",
    "load_for_evaluation",
    "parse_args",
    "scale_solver",
    "setup",
    "start_process",
]
