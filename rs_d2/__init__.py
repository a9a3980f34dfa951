"""Rank & Sort Loss for Detectron2: importing the package registers its components.

The pure half (``losses``, ``targets``, ``balancing``, ``criterion``, ``ops``) also works where
Detectron2 is not installed or does not work; then nothing is registered, and the programs say how
to install it.
"""

import warnings
from typing import Any

from rs_d2.config import add_rs_config
from rs_d2.utils.d2_compat import Detectron2MissingError, require_detectron2
from rs_d2.version import __version__

with warnings.catch_warnings():  # Detectron2 scripts functions, which new torch deprecates
    warnings.simplefilter("ignore", FutureWarning)
    try:
        require_detectron2()
    except Detectron2MissingError:
        pass
    else:
        from rs_d2 import modeling  # noqa: F401  registers the components
        from rs_d2.data import register_builtin

        register_builtin()

__all__ = ["Predictor", "__version__", "add_rs_config"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # its import needs Detectron2 and takes seconds
        from rs_d2.prediction.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
