"""Trained models as files that run without their code: TorchScript, ONNX, or weights and config."""

from importlib import import_module
from typing import Any

from rs_d2.export.runtime import ExportedDetections, ExportedDetector, load

# What makes and checks files needs Detectron2, what runs them does not.
_MAKERS = {
    "FORMATS": "rs_d2.export.formats",
    "export_model": "rs_d2.export.formats",
    "Difference": "rs_d2.export.comparison",
    "verify": "rs_d2.export.comparison",
}

__all__ = ["ExportedDetections", "ExportedDetector", "load", *_MAKERS]


def __getattr__(name: str) -> Any:
    if name in _MAKERS:
        return getattr(import_module(_MAKERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
