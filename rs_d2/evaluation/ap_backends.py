"""The average precision of every class, by the package that computes it.

Every engine gets its images, classes and objects under ids that we number from 1, so any id will do
in the user's file: strings, zero, gaps.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from rs_d2.coco.records import Detections, GroundTruth
from rs_d2.evaluation.top_k import cap_per_image
from rs_d2.utils.d2_compat import patch_numpy_for_lvis
from rs_d2.utils.errors import UserError

ENGINES = ("auto", "hotcoco", "reference")

_IGNORED_AREA = 1e11  # out of every range: how an engine is told to ignore an object
_MODULES = {"coco": "pycocotools", "lvis": "lvis"}


@dataclass(frozen=True)
class Precision:
    """What an engine gives; -1 where there is no object.

    Attributes:
        precision: [10, 101, K, A] by IoU threshold (0.5 to 0.95), recall level, class and area.
        recall: [10, K, A], the largest recall that is reached.
    """

    precision: np.ndarray
    recall: np.ndarray


def choose_engine(engine: str, style: str) -> str:
    """What "auto" means here: hotcoco where 1.3 or newer is installed, else the reference.

    Args:
        engine: one of ``ENGINES``.
        style: "coco" or "lvis".

    Raises:
        UserError: The engine is unknown or not installed.
    """
    if engine not in ENGINES:
        raise UserError(f"evaluator engine: '{engine}' is not one of {', '.join(ENGINES)}")
    installed = _version("hotcoco")
    fits = installed is not None and re.match(r"1\.([3-9]|\d\d)", installed) is not None
    if engine == "auto":
        engine = "hotcoco" if fits else "reference"
    if engine == "hotcoco" and not fits:
        found = f"hotcoco {installed}" if installed else "no hotcoco"
        raise UserError(f"evaluator engine: {found} is installed: pip install 'hotcoco>=1.3,<2'")
    if engine == "reference" and _version(_MODULES[style]) is None:
        module = _MODULES[style]
        raise UserError(f"evaluator engine: no {module} is installed: pip install {module}")
    return engine


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def average_precision(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    engine: str,
    max_dets: float,
) -> Precision:
    """Precision and recall of all classes.

    Args:
        ground_truth: objects; its style decides whose rules hold.
        detections: boxes or masks.
        iou_type: "bbox" or "segm".
        engine: "hotcoco" or "reference".
        max_dets: cap of an image ("lvis") or of an image and class ("coco"); ``inf`` for none.
    """
    compute = _ENGINES[engine, ground_truth.style]
    precision, recall = compute(ground_truth, detections, iou_type, max_dets)
    num_classes = ground_truth.num_categories
    return Precision(precision.reshape(10, 101, num_classes, 4), recall.reshape(10, num_classes, 4))


def _hotcoco_coco(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: float
) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    truth, found = _hotcoco_data(ground_truth, detections, iou_type)
    evaluation = hotcoco.COCOeval(truth, found, iou_type)
    evaluation.params.max_dets = _coco_caps(detections, max_dets)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


def _hotcoco_lvis(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: float
) -> tuple[np.ndarray, np.ndarray]:
    import hotcoco

    detections = detections.select(cap_per_image(detections, max_dets))
    known = ground_truth.is_known(detections.images, detections.categories)
    truth, found = _hotcoco_data(ground_truth, detections.select(known), iou_type)
    # capped already, so the engine's own caps of 300 (of an image; of an image and class, which
    # LVIS does not have) must not apply
    evaluation = hotcoco.LVISEval(truth, found.cap_detections_per_image(None), iou_type)
    evaluation.params.max_dets = [max(1, len(detections))]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _hotcoco_data(
    ground_truth: GroundTruth, detections: Detections, iou_type: str
) -> tuple[Any, Any]:
    import hotcoco

    truth = hotcoco.COCO(_dataset(ground_truth, iou_type))
    columns = (detections.images + 1, detections.boxes, detections.scores)
    table = np.column_stack([*columns, detections.categories + 1]).astype(float)
    if iou_type == "bbox":
        return truth, truth.load_res(table)
    found = truth.load_res(table, segmentation=list(detections.rles))
    if len(detections):  # with boxes given, it would take their area
        ids = np.arange(1, len(detections) + 1)
        found.update_anns(ids=ids, area=detections.areas("segm"))
    return truth, found


def _pycocotools(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: float
) -> tuple[np.ndarray, np.ndarray]:
    evaluation = run_pycocotools(ground_truth, detections, iou_type, max_dets)
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]


def run_pycocotools(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: float
) -> Any:
    """The `COCOeval` of pycocotools after its work; ids are indices plus one."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = _dataset(ground_truth, iou_type)
        truth.createIndex()
        found.dataset = {**truth.dataset, "annotations": _results(detections, iou_type)}
        found.createIndex()
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.params.maxDets = _coco_caps(detections, max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _lvis(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: float
) -> tuple[np.ndarray, np.ndarray]:
    evaluation = run_lvis(ground_truth, detections, iou_type, max_dets)
    return evaluation.eval["precision"], evaluation.eval["recall"]


def run_lvis(
    ground_truth: GroundTruth, detections: Detections, iou_type: str, max_dets: float
) -> Any:
    """The `LVISEval` of lvis after its work; ids are indices plus one, unless it caps."""
    patch_numpy_for_lvis()
    from lvis import LVIS, LVISEval, LVISResults

    logging.getLogger("lvis.results").setLevel(logging.ERROR)
    truth = LVIS.__new__(LVIS)  # its constructor takes a file
    truth.logger = logging.getLogger("lvis.lvis")
    truth.dataset = _dataset(ground_truth, iou_type)
    truth._create_index()
    results = _results(detections, iou_type)
    if results:
        found = LVISResults(truth, results, -1 if math.isinf(max_dets) else int(max_dets))
    else:  # which its constructor does not accept
        found = LVISResults.__new__(LVISResults)
        found.logger = truth.logger
        found.dataset = {**truth.dataset, "annotations": []}
        found._create_index()
    evaluation = LVISEval(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _coco_caps(detections: Detections, max_dets: float) -> list[int]:
    return [max(1, len(detections)) if math.isinf(max_dets) else int(max_dets)]


def _dataset(ground_truth: GroundTruth, iou_type: str) -> dict[str, Any]:
    """The ground truth as an engine reads it; ids are indices plus one."""
    return {
        "info": {},
        "images": _image_entries(ground_truth),
        "categories": [
            {"id": k + 1, "name": name, "frequency": frequency or "f"}
            for k, (name, frequency) in enumerate(
                zip(ground_truth.names, ground_truth.frequencies.tolist(), strict=True)
            )
        ],
        "annotations": _object_entries(ground_truth, iou_type),
    }


def _image_entries(ground_truth: GroundTruth) -> list[dict[str, Any]]:
    images = [
        {"id": i + 1, "height": height, "width": width, "file_name": ""}
        for i, (height, width) in enumerate(ground_truth.image_sizes.tolist())
    ]
    if ground_truth.style == "lvis":
        known = ground_truth.known
        if known is None:
            known = np.arange(len(images) * ground_truth.num_categories)
        # an image's objects may be listed as absent: the engines look at both lists together
        lists = {
            "neg_category_ids": known,
            "not_exhaustive_category_ids": ground_truth.not_exhaustive,
        }
        for key, pairs in lists.items():
            for image in images:
                image[key] = []
            every = np.divmod(pairs, ground_truth.num_categories)
            for i, k in zip(every[0].tolist(), every[1].tolist(), strict=True):
                images[i][key].append(k + 1)
    return images


def _object_entries(ground_truth: GroundTruth, iou_type: str) -> list[dict[str, Any]]:
    lvis = ground_truth.style == "lvis"
    areas = np.where(ground_truth.ignored & lvis, _IGNORED_AREA, ground_truth.areas)
    columns = (
        ground_truth.images + 1,
        ground_truth.categories + 1,
        ground_truth.boxes,
        areas,
        ground_truth.crowd.astype(int),
    )
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    entries = [{"id": g + 1, **dict(zip(names, row, strict=True))} for g, row in enumerate(rows)]
    if iou_type == "segm":
        for entry, rle in zip(entries, ground_truth.rles, strict=True):
            entry["segmentation"] = rle
    return entries


def _results(detections: Detections, iou_type: str) -> list[dict[str, Any]]:
    """A fresh list of results, for engines that read dicts and change them."""
    columns = (
        detections.images + 1,
        detections.categories + 1,
        detections.scores,
        detections.areas(iou_type),
    )
    names = ("image_id", "category_id", "score", "area")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    results = [dict(zip(names, row, strict=True)) for row in rows]
    key, values = "bbox", detections.boxes.tolist()
    if iou_type == "segm":
        key, values = "segmentation", [dict(rle) for rle in detections.rles]
    for index, (result, value) in enumerate(zip(results, values, strict=True)):
        result.update({"id": index + 1, "iscrowd": 0, key: value})
    return results


_ENGINES = {
    ("hotcoco", "coco"): _hotcoco_coco,
    ("hotcoco", "lvis"): _hotcoco_lvis,
    ("reference", "coco"): _pycocotools,
    ("reference", "lvis"): _lvis,
}
