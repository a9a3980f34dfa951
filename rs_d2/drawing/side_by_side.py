"""Pictures of predictions beside the ground truth, and one sheet that shows them all.

Rank & Sort Loss trains scores to be ordered, not to be probabilities, so no fixed score separates
what to draw. Drawn are the best-scored predictions of all pictures together, as many as these
images have ground-truth objects: one threshold for all, where false and missed detections balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rs_d2.config import architecture_of

_SHORT_SIDE = 400  # smaller images are enlarged to it, in pixels
_SHEET_CELL = 300  # height of a picture on the sheet, in pixels
_STRIP = 28  # height of the line of titles, in pixels
_SPACE = 8


class _Objects(NamedTuple):
    """What to draw on one image, in its enlarged pixels."""

    boxes: np.ndarray  # [N, 4], XYXY
    masks: list[Any] | None  # per object: polygons, or a bitmap [H, W]
    classes: list[int]
    scores: list[float] | None


def draw_predictions(cfg: CfgNode, model: nn.Module, folder: Path) -> list[Path]:
    """Draw ``TEST.DRAW_IMAGES`` images of the first test set, evenly spread over it.

    Args:
        cfg: config.
        model: trained model; its mode is left as it was.
        folder: made if needed; gets a picture per image and ``overview.png`` with all of them.

    Returns:
        The files written, the overview last; empty if nothing is to be drawn.
    """
    if cfg.TEST.DRAW_IMAGES < 1 or not cfg.DATASETS.TEST:
        return []
    name = cfg.DATASETS.TEST[0]
    chosen = spread_images(DatasetCatalog.get(name), cfg.TEST.DRAW_IMAGES)
    return draw_images(cfg, model, chosen, MetadataCatalog.get(name).thing_classes, folder)


def draw_images(
    cfg: CfgNode,
    model: nn.Module,
    chosen: Sequence[dict],
    class_names: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Draw images of a data set as ``draw_predictions`` does.

    Args:
        cfg: config.
        model: trained model; its mode is left as it was.
        chosen: Detectron2's dicts of the images, at least one.
        class_names: by contiguous class.
        folder: made if needed.

    Returns:
        The files written, the overview last.
    """
    targets = [_read_targets(entry) for entry in chosen]
    predictions = _predict(cfg, model, chosen)
    threshold = _threshold(predictions, sum(len(target.classes) for target in targets))
    predictions = [_at_least(entry, threshold) for entry in predictions]
    titles = ("ground truth", f"{architecture_of(cfg).title(cfg)}, score >= {threshold:.2f}")
    folder.mkdir(parents=True, exist_ok=True)
    pairs, files = [], []
    for entry, target, prediction in zip(chosen, targets, predictions, strict=True):
        image = _read_enlarged(entry)
        pair = _beside([_overlay(image, objects, class_names) for objects in (target, prediction)])
        pairs.append(pair)
        files.append(folder / f"{len(files):02d}_{Path(entry['file_name']).stem}.png")
        _with_titles(pair, titles).save(files[-1])
    files.append(folder / "overview.png")
    _sheet(pairs, titles).save(files[-1])
    return files


def spread_images(dataset_dicts: Sequence[dict], count: int) -> list[dict]:
    """Pick ``count`` images at even distances, of those with objects if there are any."""
    candidates = [entry for entry in dataset_dicts if entry.get("annotations")] or dataset_dicts
    places = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    return [candidates[round(place)] for place in places]


def _predict(cfg: CfgNode, model: nn.Module, dataset_dicts: Sequence[dict]) -> list[_Objects]:
    """Run the model image by image; it pastes boxes and masks at the enlarged size."""
    if isinstance(model, DistributedDataParallel):  # the other processes take no part
        model = model.module
    mapper = DatasetMapper(cfg, is_train=False)
    predictions = []
    with inference_context(model), torch.no_grad():
        for entry in dataset_dicts:
            height, width = _enlarged_size(entry)
            inputs = {**mapper(entry), "height": height, "width": width}
            predictions.append(_from_instances(model([inputs])[0]["instances"].to("cpu")))
    return predictions


def _from_instances(instances: Instances) -> _Objects:
    masks = list(instances.pred_masks.numpy()) if instances.has("pred_masks") else None
    return _Objects(
        instances.pred_boxes.tensor.numpy(),
        masks,
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
    )


def _threshold(predictions: Sequence[_Objects], count: int) -> float:
    """Score of the ``count``-th best prediction of all images together; 0 if there are fewer."""
    scores = sorted((score for entry in predictions for score in entry.scores), reverse=True)
    return scores[count - 1] if 0 < count <= len(scores) else 0.0


def _at_least(objects: _Objects, threshold: float) -> _Objects:
    kept = [i for i, score in enumerate(objects.scores) if score >= threshold]
    return _Objects(
        objects.boxes[kept],
        None if objects.masks is None else [objects.masks[i] for i in kept],
        [objects.classes[i] for i in kept],
        [objects.scores[i] for i in kept],
    )


def _read_targets(entry: dict) -> _Objects:
    """Read the ground truth of an image, crowds left out, and enlarge it with the image."""
    height, width = _enlarged_size(entry)
    scale = np.array([width / entry["width"], height / entry["height"]])
    objects = [note for note in entry.get("annotations", ()) if not note.get("iscrowd", 0)]
    boxes = [BoxMode.convert(note["bbox"], note["bbox_mode"], BoxMode.XYXY_ABS) for note in objects]
    masks = None
    if objects and all("segmentation" in note for note in objects):
        masks = [_enlarge_mask(note["segmentation"], scale, (height, width)) for note in objects]
    return _Objects(
        np.array(boxes, dtype=float).reshape(-1, 4) * np.tile(scale, 2),
        masks,
        [note["category_id"] for note in objects],
        None,
    )


def _enlarge_mask(segmentation: Any, scale: np.ndarray, size: tuple[int, int]) -> Any:
    if isinstance(segmentation, dict):  # run lengths
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        bitmap = mask_util.decode(segmentation)
        return cv2.resize(bitmap, size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return [(np.reshape(polygon, (-1, 2)) * scale).reshape(-1) for polygon in segmentation]


def _enlarged_size(entry: dict) -> tuple[int, int]:
    factor = max(1.0, _SHORT_SIDE / min(entry["height"], entry["width"]))
    return round(entry["height"] * factor), round(entry["width"] * factor)


def _read_enlarged(entry: dict) -> np.ndarray:
    image = read_image(entry["file_name"], format="RGB")
    return cv2.resize(image, _enlarged_size(entry)[::-1], interpolation=cv2.INTER_CUBIC)


def _overlay(image: np.ndarray, objects: _Objects, class_names: Sequence[str]) -> np.ndarray:
    palette = colormap(rgb=True, maximum=1)
    labels = [class_names[label] for label in objects.classes]
    if objects.scores is not None:
        labels = [
            f"{label} {score:.2f}" for label, score in zip(labels, objects.scores, strict=True)
        ]
    drawn = Visualizer(image).overlay_instances(
        boxes=objects.boxes,
        masks=objects.masks,
        labels=labels,
        assigned_colors=[palette[label % len(palette)] for label in objects.classes],
        alpha=0.3,
    )
    return drawn.get_image()


def _beside(images: Sequence[np.ndarray]) -> Image.Image:
    left, right = (Image.fromarray(image) for image in images)
    pair = Image.new("RGB", (left.width + _SPACE + right.width, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + _SPACE, 0))
    return pair


def _with_titles(picture: Image.Image, titles: Sequence[str], columns: int = 1) -> Image.Image:
    """Put a strip with one title over each half of each column."""
    titled = Image.new("RGB", (picture.width, picture.height + _STRIP), "white")
    titled.paste(picture, (0, _STRIP))
    pen, font = ImageDraw.Draw(titled), ImageFont.load_default(size=18)
    part = picture.width / (columns * len(titles))
    for i, title in enumerate([*titles] * columns):
        pen.text((part * (i + 0.5), _STRIP / 2), title, fill="black", font=font, anchor="mm")
    return titled


def _sheet(pairs: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Lay pairs out in two columns, each pair shrunk or grown to the height of a cell."""
    columns = min(2, len(pairs))
    cells = [
        pair.resize((round(pair.width * _SHEET_CELL / pair.height), _SHEET_CELL)) for pair in pairs
    ]
    width = max(cell.width for cell in cells) + 2 * _SPACE
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (_SHEET_CELL + _SPACE)), "white")
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        left = column * width + (width - cell.width) // 2
        sheet.paste(cell, (left, row * (_SHEET_CELL + _SPACE)))
    return _with_titles(sheet, titles, columns)
