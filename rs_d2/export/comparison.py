"""Whether an exported file finds what the model finds."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from PIL import Image

from rs_d2.export.runtime import ExportedDetections, load

MAX_BOX_DIFFERENCE = 1e-3  # pixels
MAX_SCORE_DIFFERENCE = 1e-5
# Sizes of the same picture, as (height, width) of the original: wide, tall, smaller.
_SHAPES = ((1.0, 1.0), (0.7, 1.0), (1.0, 0.6))


class Difference(NamedTuple):
    """How an exported file differs from the model on one image.

    ``size``: height and width; ``found``, ``expected``: detections of the file and the model;
    ``boxes`` (pixels), ``scores``: largest differences; ``masks``: largest share of an object's
    pixels that differ; ``same_classes``: whether each detection has its counterpart.
    """

    size: tuple[int, int]
    found: int
    expected: int
    boxes: float
    scores: float
    masks: float
    same_classes: bool

    @property
    def acceptable(self) -> bool:
        """Boxes within 1e-3 pixels, scores within 1e-5, the same classes."""
        return (
            self.same_classes
            and self.boxes <= MAX_BOX_DIFFERENCE
            and self.scores <= MAX_SCORE_DIFFERENCE
        )


def verify(
    path: str | PathLike, model: Callable[[np.ndarray], Instances], pixels: np.ndarray
) -> list[Difference]:
    """Compare a file with the model it came from, on a picture in three shapes and on none.

    Args:
        path: of the exported file.
        model: what it was exported from, a :class:`rs_d2.Predictor` on the CPU.
        pixels: a picture, uint8 [H, W, 3] in BGR; best one with objects.

    Returns:
        Four rows: the picture, the picture wider, the picture taller, and noise.
    """
    exported = load(path)
    height, width = pixels.shape[:2]
    pictures = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels)).resize(
                (max(round(width * across), 1), max(round(height * down), 1))
            )
        )
        for down, across in _SHAPES
    ]
    pictures.append(_noise(pixels.shape))
    return [
        compare(exported(picture), _as_arrays(model(picture)), picture.shape[:2])
        for picture in pictures
    ]


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Grey with little noise; on plain grey, a norm over its pixels would divide by nothing."""
    return np.random.default_rng(0).integers(107, 147, shape, dtype=np.uint8)


def _as_arrays(found: Instances) -> ExportedDetections:
    masks = found.pred_masks.numpy() if found.has("pred_masks") else None
    values = found.pred_boxes.tensor, found.scores, found.pred_classes
    return ExportedDetections(*(value.numpy() for value in values), masks)


def compare(
    found: ExportedDetections, expected: ExportedDetections, size: tuple[int, int]
) -> Difference:
    """The largest differences of two sets of detections, each with its nearest of its class.

    Args:
        found: by the exported file.
        expected: by the model.
        size: height and width of the image.
    """
    counts = len(found.scores), len(expected.scores)
    if counts[0] != counts[1]:
        return Difference(size, *counts, np.inf, np.inf, np.inf, same_classes=False)
    if counts[0] == 0:
        return Difference(size, 0, 0, 0.0, 0.0, 0.0, same_classes=True)
    distances = np.abs(found.boxes[:, None] - expected.boxes[None]).max(2)
    distances += np.abs(found.scores[:, None] - expected.scores[None])
    distances[found.classes[:, None] != expected.classes[None]] = np.inf
    partner = distances.argmin(1)  # equal scores may come in another order
    same = len(set(partner.tolist())) == counts[0] and bool(np.isfinite(distances.min(1)).all())
    masks = 0.0
    if found.masks is not None and expected.masks is not None:
        differing = (found.masks != expected.masks[partner]).sum((1, 2))
        masks = float((differing / expected.masks[partner].sum((1, 2)).clip(min=1)).max())
    return Difference(
        size,
        *counts,
        boxes=float(np.abs(found.boxes - expected.boxes[partner]).max()),
        scores=float(np.abs(found.scores - expected.scores[partner]).max()),
        masks=masks,
        same_classes=same,
    )
