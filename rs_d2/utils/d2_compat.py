"""What any Detectron2 (0.6 or newer, compiled or not) needs beyond its own code.

Branches are on features, never on the version: Detectron2's main branch still calls itself 0.6.
Nothing here imports Detectron2 at module level, so the pure half of the package works without it.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from rs_d2.utils.errors import UserError

LONGEST_WINDOW = 1000  # iterations: of the time of one, for the time that is left


class Detectron2MissingError(UserError, ImportError):
    """Detectron2 is absent or cannot be used in this environment."""


def require_detectron2() -> None:
    """Make sure that Detectron2 can be imported.

    Raises:
        Detectron2MissingError: It is absent, or its import fails; says how to install it.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # no origin: merely a folder of that name
        problem = "Detectron2 is not installed"
    else:
        patch_pillow()
        try:
            importlib.import_module("detectron2.layers")
            importlib.import_module("detectron2.data")
            return
        except (ImportError, AttributeError) as error:
            problem = f"Detectron2 at {Path(spec.origin).parent} cannot be used here ({error})"
    raise Detectron2MissingError(
        f"{problem}: run `make env`, or `python tools/install_detectron2.py` in an environment of "
        "your own; see README.md, section Install"
    )


def is_compiled() -> bool:
    """Whether Detectron2's compiled operators (rotated boxes, faster COCO evaluation) are there."""
    try:
        extension = importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return hasattr(extension, "InstanceAnnotation")


def patch_numpy_for_lvis() -> None:
    """Give NumPy back the two aliases that the `lvis` package uses; call before evaluating LVIS."""
    for name, builtin in (("float", float), ("int", int)):
        if name not in vars(np):
            setattr(np, name, builtin)


def patch_pillow() -> None:
    """Give Pillow >= 10 back the name that an unedited Detectron2 0.6 uses at import."""
    from PIL import Image

    if not hasattr(Image, "LINEAR"):
        Image.LINEAR = Image.BILINEAR


def silence_torch() -> None:
    """Silence two remarks of torch about Detectron2's code that no user can act on."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA_HOME on a CPU
    warnings.filterwarnings("ignore", message="torch.meshgrid")


def our_resizing(augmentation: Any, square: bool = False) -> Any:
    """The augmentation; in place of Detectron2's resizing, one that leaves at least a pixel.

    An image of 8000 x 20 pixels shrunk to a long side of 96 is 96 x 0.24: that is 96 x 1 here.

    Args:
        augmentation: any.
        square: images become squares of the short side that they would have got.
    """
    from detectron2.data.transforms import ResizeShortestEdge

    if type(augmentation) is not ResizeShortestEdge:
        return augmentation
    upstream, ours = copy.copy(augmentation), copy.copy(augmentation)
    if square:
        upstream.max_size = sys.maxsize
    ours.get_transform = partial(_resize, upstream, square)
    return ours


def _resize(upstream: Any, square: bool, image: np.ndarray) -> Any:
    transform = upstream.get_transform(image)
    if hasattr(transform, "new_h"):  # a size of 0 asks for none
        transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        if square:
            transform.new_h = transform.new_w = min(transform.new_h, transform.new_w)
    return transform


def put_scalar(name: str, value: float) -> None:
    """Log one number of this iteration; does nothing outside a training loop."""
    from detectron2.utils.events import get_event_storage

    try:
        storage = get_event_storage()
    except AssertionError:  # a unit test or an evaluation
        return
    storage.put_scalar(name, value)


def bound_histories(storage: Any) -> None:
    """Keep the values of the last iterations only; means over all of them stay right.

    Detectron2 keeps a million values of every scalar, though it reads a thousand at most: with 40
    scalars over 270,000 iterations more than a gigabyte.

    Args:
        storage: Detectron2's EventStorage, of a training that has not begun.
    """
    from fvcore.common.history_buffer import HistoryBuffer

    storage._history.default_factory = partial(HistoryBuffer, max_length=LONGEST_WINDOW)


def create_ddp_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Detectron2's function of that name, which by itself gives a CPU model a GPU id.

    Args:
        model: Model on the device of this process.
        kwargs: Further arguments of `DistributedDataParallel`.

    Returns:
        The wrapped model, or the model itself when there is only one process.
    """
    from detectron2.engine.defaults import create_ddp_model as upstream

    if next(model.parameters()).device.type == "cpu":
        kwargs.setdefault("device_ids", None)
    return upstream(model, **kwargs)
