"""Detectors without proposals."""

from rs_d2.modeling.dense.anchor_detector import AnchorDenseDetector
from rs_d2.modeling.dense.atss import ATSS
from rs_d2.modeling.dense.detector import RSDenseDetector
from rs_d2.modeling.dense.paa import PAA
from rs_d2.modeling.dense.solov2 import SOLOv2

__all__ = ["ATSS", "PAA", "AnchorDenseDetector", "RSDenseDetector", "SOLOv2"]
