"""Evaluators in Detectron2's interface, and the arithmetic behind them."""

from rs_d2.evaluation.build import build_evaluator
from rs_d2.evaluation.lvis import RSLVISEvaluator, evaluate_lvis

__all__ = ["RSLVISEvaluator", "build_evaluator", "evaluate_lvis"]
