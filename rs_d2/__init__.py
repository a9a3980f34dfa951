"""Rank & Sort Loss for Detectron2: importing the package registers its components.

The pure half (``losses``, ``targets``, ``balancing``, ``criterion``, ``ops``) also works where
Detectron2 is not installed or does not work; then nothing is registered, and the programs say how
to install it.
"""

import warnings

from rs_d2._compat import Detectron2MissingError, require_detectron2
from rs_d2.config import add_rs_config
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

__all__ = ["__version__", "add_rs_config"]
