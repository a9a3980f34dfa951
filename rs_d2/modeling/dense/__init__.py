"""Detectors without proposals."""

from rs_d2.modeling.dense.anchor_detector import AnchorDenseDetector
from rs_d2.modeling.dense.atss import ATSS
from rs_d2.modeling.dense.detector import RSDenseDetector
from rs_d2.modeling.dense.paa import PAA
from rs_d2.modeling.dense.solov2 import SOLOv2
from rs_d2.modeling.dense.yolact import YOLACT

__all__ = ["ATSS", "PAA", "YOLACT", "AnchorDenseDetector", "RSDenseDetector", "SOLOv2"]
