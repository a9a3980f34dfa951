"""The images with most mistakes, drawn with what was found, missed and made up."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor
from pycocotools import mask as mask_util

from rs_d2.coco.image_files import is_inside
from rs_d2.coco.pixels import open_image
from rs_d2.drawing.painter import paint
from rs_d2.evaluation.evaluate import Evaluation

FOUND, WRONG, MISSED = "#1e8449", "#c0392b", "#2471a3"
_LONG_SIDE = 720  # pixels, of which the page shows as many as fit
_BLANK = "#e6e6e6"


@dataclass(frozen=True)
class Mistakes:
    """Mistakes in one image, of detections above the LRP-optimal thresholds of their classes.

    ``found`` and ``wrong`` are indices of detections, ``missed`` of objects.
    """

    image: int
    found: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray


def worst_images(evaluation: Evaluation, count: int) -> Iterator[Mistakes]:
    """The images with most false positives and missed objects together, the worst first.

    Detections of classes without an optimal threshold (nothing found) do not count, or they all
    would be mistakes. Images without a mistake are left out.
    """
    truth, matches = evaluation.ground_truth, evaluation.matches
    kept = matches.scores >= evaluation.lrp.thresholds[0][matches.categories]  # False for NaN
    found = kept & matches.true_positives()
    wrong = kept & matches.false_positives()
    hit = np.zeros(len(truth.images), dtype=bool)
    hit[matches.objects[0, kept & (matches.objects[0] >= 0)]] = True
    missed = ~hit & ~truth.ignored
    image_of = evaluation.detections.images[matches.detections]
    mistakes = np.bincount(image_of[wrong], minlength=len(truth.image_ids))
    mistakes = mistakes + np.bincount(truth.images[missed], minlength=len(truth.image_ids))
    for image in np.argsort(-mistakes, kind="stable")[:count].tolist():
        if not mistakes[image]:
            return
        here = image_of == image
        yield Mistakes(
            image,
            matches.detections[found & here],
            matches.detections[wrong & here],
            np.flatnonzero(missed & (truth.images == image)),
        )


def draw(evaluation: Evaluation, mistakes: Mistakes, image_root: Path | None) -> str:
    """A picture as the data of an `img` element; on a blank one where the file is not there."""
    truth = evaluation.ground_truth
    height, width = truth.image_sizes[mistakes.image].tolist()
    picture = _read(truth.file_names[mistakes.image], image_root) or Image.new(
        "RGB", (width, height), _BLANK
    )
    scale = _LONG_SIDE / max(height, width)
    picture = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    detections = evaluation.detections
    layers = (
        (MISSED, mistakes.missed, truth.boxes, truth.categories),
        (WRONG, mistakes.wrong, _boxes(evaluation), detections.categories),
        (FOUND, mistakes.found, _boxes(evaluation), detections.categories),
    )
    for color, chosen, boxes, categories in layers:
        corners = np.hstack([boxes[chosen, :2], boxes[chosen, :2] + boxes[chosen, 2:]]) * scale
        colors = [ImageColor.getrgb(color)] * len(chosen)
        paint(picture, corners, colors, [(truth.names[k],) for k in categories[chosen]])
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _boxes(evaluation: Evaluation) -> np.ndarray:
    """[N, 4]; those of the masks where results hold only masks."""
    detections = evaluation.detections
    if evaluation.iou_type == "bbox" or detections.boxes.any():
        return detections.boxes
    return np.array([mask_util.toBbox(rle) for rle in detections.rles]).reshape(-1, 4)


def _read(name: str, image_root: Path | None) -> Image.Image | None:
    """The image below the folder, by its name or the last parts of its address."""
    if image_root is None or not name:
        return None
    parts = Path(name).parts
    names = (name, str(Path(*parts[-2:])), parts[-1])
    for path in (image_root / name for name in names if is_inside(name)):
        if path.is_file():
            try:
                return open_image(path).convert("RGB")
            except Exception:  # whatever a broken file makes its decoder raise
                return None
    return None
