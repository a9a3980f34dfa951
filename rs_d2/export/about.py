"""What an exported file tells about itself; it travels inside the file, as json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from rs_d2.checkpoint.metadata import portable_config
from rs_d2.utils.errors import UserError
from rs_d2.version import __version__

ENTRY = "rs_d2"
# Name of the output with masks that span the image; "masks" are those inside boxes.
IMAGE_MASKS = "image_masks"


class About(NamedTuple):
    """All that is needed to run the graph on an image, and where it comes from.

    ``outputs``: names of the graph's outputs; ``pixel_format``: "BGR" or "RGB"; ``min_size``,
    ``max_size``: pixels of the short and the long side to resize to, as in ``INPUT.*_SIZE_TEST``;
    ``square``: both sides are resized to ``min_size``; ``mask_stride``: image masks have a value
    every so many pixels of the padded image, 0: they span the image; ``boxes_from_masks``: boxes
    are those around the masks;
    ``class_names``: in the order of the classes, empty if they are not known; ``config``: yaml.
    """

    outputs: tuple[str, ...]
    pixel_format: str
    min_size: int
    max_size: int
    class_names: tuple[str, ...] = ()
    config: str = ""
    revision: str = ""
    version: str = __version__
    square: bool = False
    mask_stride: int = 0
    boxes_from_masks: bool = False

    def to_text(self) -> str:
        """The same as json."""
        return json.dumps(self._asdict())


def about_model(cfg: Any, graph: Any, class_names: Sequence[str], revision: str) -> About:
    """What a config and its model's graph say, for the file that the graph is written to."""
    return About(
        outputs=tuple(graph.outputs),
        pixel_format=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        class_names=tuple(class_names),
        config=portable_config(cfg),
        revision=revision,
        square=cfg.INPUT.SQUARE,
        mask_stride=graph.mask_stride,
        boxes_from_masks=graph.boxes_from_masks,
    )


def read_about(text: str | None, filename: str) -> About:
    """The reverse of :meth:`About.to_text`.

    Raises:
        UserError: There is no text, or it is not an exported model's.
    """
    try:
        content = json.loads(text or "")
        about = About(**content)
        return about._replace(outputs=tuple(about.outputs), class_names=tuple(about.class_names))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{filename} was not written by tools/export_model.py") from error
