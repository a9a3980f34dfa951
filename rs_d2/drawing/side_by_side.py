"""Pictures of predictions beside the ground truth, and one sheet that shows them all.

Rank & Sort Loss trains scores to be ordered, not to be probabilities, so no fixed score separates
what to draw. Drawn are the best-scored predictions of all pictures together, as many as these
images have ground-truth objects: one threshold for all, where false and missed detections balance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode, Instances
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rs_d2.coco.pixels import open_image
from rs_d2.coco.rle import to_rle
from rs_d2.config import architecture_of
from rs_d2.data.mapper import BadImage, ImageMapper
from rs_d2.drawing.painter import MaskPart, class_color, paint, paint_instances
from rs_d2.utils.atomic_write import atomic_write

_logger = logging.getLogger(__name__)

_SHORT_SIDE = 400  # smaller images are enlarged to it, in pixels
_SHEET_CELL = 300  # height of a picture on the sheet, in pixels
_STRIP = 28  # height of the line of titles, in pixels
_SPACE = 8


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
        The files written, the overview last; empty if none of the images can be read.
    """
    mapper = ImageMapper(cfg, is_train=False)
    inputs, readable = [], []
    for entry in chosen:
        try:
            inputs.append(mapper(entry))
            readable.append(entry)
        except BadImage as error:
            _logger.warning("%s; not drawn", error)
    if not readable:
        return []
    chosen = readable
    predictions = _predict(model, inputs, chosen)
    threshold = _threshold(predictions, sum(len(_objects(entry)) for entry in chosen))
    titles = ("ground truth", f"{architecture_of(cfg).title(cfg)}, score >= {threshold:.2f}")
    folder.mkdir(parents=True, exist_ok=True)
    pairs, files = [], []
    for entry, found in zip(chosen, predictions, strict=True):
        image = _read_enlarged(entry)
        found = found[found.scores >= threshold]
        right = Image.fromarray(paint_instances(np.asarray(image), found, class_names))
        _paint_objects(image, entry, class_names)
        pairs.append(_beside(image, right))
        files.append(folder / f"{len(files):02d}_{Path(entry['file_name']).stem}.png")
        _save(_with_titles(pairs[-1], titles), files[-1])
    files.append(folder / "overview.png")
    _save(_sheet(pairs, titles), files[-1])
    return files


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as file:
        picture.save(file, "PNG")


def spread_images(dataset_dicts: Sequence[dict], count: int) -> list[dict]:
    """Pick ``count`` images at even distances, of those with objects if there are any."""
    candidates = [entry for entry in dataset_dicts if entry.get("annotations")] or dataset_dicts
    indices = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    return [candidates[round(index)] for index in indices]


def _predict(
    model: nn.Module, inputs: Sequence[dict], dataset_dicts: Sequence[dict]
) -> list[Instances]:
    """Run the model image by image; it pastes boxes and masks at the enlarged size."""
    if isinstance(model, DistributedDataParallel):  # the other processes take no part
        model = model.module
    predictions = []
    with inference_context(model), torch.no_grad():
        for image, entry in zip(inputs, dataset_dicts, strict=True):
            width, height = _enlarged_size(entry)
            enlarged = {**image, "height": height, "width": width}
            predictions.append(model([enlarged])[0]["instances"].to("cpu"))
    return predictions


def _threshold(predictions: Sequence[Instances], count: int) -> float:
    """Score of the ``count``-th best prediction of all images together; 0 if there are fewer."""
    scores = sorted((s for found in predictions for s in found.scores.tolist()), reverse=True)
    return scores[count - 1] if 0 < count <= len(scores) else 0.0


def _objects(entry: dict) -> list[dict]:
    """Annotations of an image, crowds left out."""
    return [note for note in entry.get("annotations", ()) if not note.get("iscrowd", 0)]


def _paint_objects(picture: Image.Image, entry: dict, class_names: Sequence[str]) -> None:
    """Paint the ground truth of an image into its enlarged picture, the smallest on top."""
    scale = np.array(picture.size) / (entry["width"], entry["height"])
    notes = _objects(entry)
    boxes = [BoxMode.convert(note["bbox"], note["bbox_mode"], BoxMode.XYXY_ABS) for note in notes]
    boxes = np.array(boxes, dtype=float).reshape(-1, 4) * np.tile(scale, 2)
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")
    notes, classes = [notes[i] for i in order], [notes[i]["category_id"] for i in order]
    paint(
        picture,
        boxes[order],
        [class_color(k) for k in classes],
        [(class_names[k],) for k in classes],
        [_enlarged_mask(note.get("segmentation"), scale, picture.size) for note in notes],
    )


def _enlarged_mask(segmentation: Any, scale: np.ndarray, size: tuple[int, int]) -> MaskPart | None:
    """A mask of polygons or run lengths, grown to a width and height; None where there is none."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        mask = Image.fromarray(mask_util.decode(to_rle(segmentation, *segmentation["size"])))
        return MaskPart(np.asarray(mask.resize(size, Image.Resampling.NEAREST)) > 0, 0, 0)
    polygons = [(np.reshape(polygon, (-1, 2)) * scale).ravel().tolist() for polygon in segmentation]
    return MaskPart(mask_util.decode(to_rle(polygons, *size[::-1])) > 0, 0, 0)


def _enlarged_size(entry: dict) -> tuple[int, int]:
    """Width and height."""
    factor = max(1.0, _SHORT_SIDE / min(entry["height"], entry["width"]))
    return round(entry["width"] * factor), round(entry["height"] * factor)


def _read_enlarged(entry: dict) -> Image.Image:
    image = open_image(entry["file_name"]).convert("RGB")
    return image.resize(_enlarged_size(entry), Image.Resampling.BICUBIC)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
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
