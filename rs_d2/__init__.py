"""Rank & Sort Loss for Detectron2: importing the package registers its components.

The pure half (``losses``, ``targets``, ``balancing``, ``criterion``, ``ops``) also works where
Detectron2 is not installed; then nothing is registered.
"""

import warnings
from importlib.util import find_spec

from rs_d2.config import add_rs_config
from rs_d2.version import __version__

if find_spec("detectron2") is not None:
    with warnings.catch_warnings():  # Detectron2 scripts functions, which new torch deprecates
        warnings.simplefilter("ignore", FutureWarning)
        from rs_d2 import modeling  # noqa: F401  registers the components
    from rs_d2.data import register_builtin

    register_builtin()

__all__ = ["__version__", "add_rs_config"]
