"""Trained models as files that run without their code: TorchScript, ONNX, or weights and config."""

from rs_d2.export.formats import FORMATS, export_model
from rs_d2.export.runtime import Detections, ExportedDetector, load
from rs_d2.export.verify import Difference, verify

__all__ = [
    "FORMATS",
    "Detections",
    "Difference",
    "ExportedDetector",
    "export_model",
    "load",
    "verify",
]
