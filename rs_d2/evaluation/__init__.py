"""Evaluators in Detectron2's interface, and the arithmetic behind them."""

from rs_d2.coco.ground_truth import ground_truth_from, read_ground_truth
from rs_d2.coco.records import Detections, GroundTruth
from rs_d2.coco.results import detections_from
from rs_d2.evaluation.build import build_evaluator
from rs_d2.evaluation.coco import RSCOCOEvaluator
from rs_d2.evaluation.evaluate import (
    METRICS,
    SUMMARY,
    Evaluation,
    evaluate_detections,
    evaluate_fixed_ap,
)
from rs_d2.evaluation.lvis import RSLVISEvaluator

__all__ = [
    "METRICS",
    "SUMMARY",
    "Detections",
    "Evaluation",
    "GroundTruth",
    "RSCOCOEvaluator",
    "RSLVISEvaluator",
    "build_evaluator",
    "detections_from",
    "evaluate_detections",
    "evaluate_fixed_ap",
    "ground_truth_from",
    "read_ground_truth",
]
