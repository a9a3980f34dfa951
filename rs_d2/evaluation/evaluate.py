"""From ground truth and detections to every number: AP, oLRP and their parts, class by class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rs_d2.coco.records import AREAS, FREQUENCIES, IOU_TYPES, Detections, GroundTruth
from rs_d2.evaluation.ap_backends import Precision, average_precision, choose_engine
from rs_d2.evaluation.lrp import OptimalLRP, optimal_lrp
from rs_d2.evaluation.matching import Matches, match
from rs_d2.evaluation.top_k import best_of_each, cap_per_image
from rs_d2.utils.errors import UserError

# What tools/evaluate.py writes, in its order.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN"),
)
# All that an evaluation states.
SUMMARY = (
    *METRICS,
    *("oLRPs", "oLRPm", "oLRPl", "oLRPr", "oLRPc", "oLRPf", "AR", "ARs", "ARm", "ARl"),
)
MAX_DETS = {"coco": 100, "lvis": 300}  # of an image and class; of an image
FIXED_AP_PER_CLASS = 10_000

_AP50, _AP75 = 0, 5  # indices of IoU 0.50 and 0.75
_SIZES = tuple(enumerate(AREAS))[1:]
_GROUPS = {"r": "rare", "c": "common", "f": "frequent", "": "all"}


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one model on one data set.

    Attributes:
        ground_truth: what was compared with.
        detections: what was given.
        iou_type: "bbox" or "segm".
        precision: of the engine.
        matches: at IoU 0.5, of the detections within the cap.
        lrp: oLRP of every class and area.
        engine: "hotcoco" or "reference".
    """

    ground_truth: GroundTruth
    detections: Detections
    iou_type: str
    precision: Precision
    matches: Matches
    lrp: OptimalLRP
    engine: str

    @cached_property
    def summary(self) -> dict[str, float]:
        """``SUMMARY`` in percent; NaN where there is nothing to average.

        Beside ``METRICS`` there are ``oLRPs oLRPm oLRPl`` by size, ``oLRPr oLRPc oLRPf`` by
        frequency, and the average recall ``AR``, ``ARs ARm ARl``.
        """
        precision, groups = self.precision.precision, self.ground_truth.frequencies
        values = {
            "AP": _mean(precision[..., 0]),
            "AP50": _mean(precision[_AP50, ..., 0]),
            "AP75": _mean(precision[_AP75, ..., 0]),
        }
        values |= {f"AP{name[0]}": _mean(precision[..., a]) for a, name in _SIZES}
        values |= {f"AP{g}": _mean(precision[:, :, groups == g, 0]) for g in FREQUENCIES}
        values |= self.lrp.mean()
        values |= {f"oLRP{name[0]}": self.lrp.mean(name)["oLRP"] for _, name in _SIZES}
        values |= {f"oLRP{g}": self.lrp.mean(classes=groups == g)["oLRP"] for g in FREQUENCIES}
        recall = self.precision.recall
        values["AR"] = _mean(recall[..., 0])
        return values | {f"AR{name[0]}": _mean(recall[..., a]) for a, name in _SIZES}

    def class_ap(self, iou_index: int | None = None) -> np.ndarray:
        """[K] AP in percent over all IoU thresholds, or at one of the ten; NaN without objects."""
        chosen = slice(None) if iou_index is None else slice(iou_index, iou_index + 1)
        values = self.precision.precision[chosen, :, :, 0]
        empty = (values < 0).all(axis=(0, 1))  # an engine states a class as a whole
        return np.where(empty, np.nan, 100 * values.mean(axis=(0, 1)))

    def classes_with_objects(self) -> np.ndarray:
        """[K] bool."""
        return self.matches.num_objects[0] > 0

    def frequency_groups(self) -> dict[str, np.ndarray]:
        """[K] bool by name, of the groups that have objects; "all" are classes without a group."""
        frequencies, present = self.ground_truth.frequencies, self.classes_with_objects()
        groups = {name: present & (frequencies == key) for key, name in _GROUPS.items()}
        return {name: classes for name, classes in groups.items() if classes.any()}


def evaluate_detections(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    engine: str = "auto",
    max_dets: float | None = None,
) -> Evaluation:
    """Evaluate detections by the rules of the ground truth's style.

    "coco": the best 100 detections of each image and class count. "lvis": the best 300 of each
    image over all classes, before anything else; detections of a class that an image neither has
    nor lists as absent are left out; unmatched ones of a class that is not exhaustively annotated
    there are ignored.

    Args:
        ground_truth: from ``ground_truth_from``.
        detections: from ``detections_from``, or columns of your own. Without any, every class that
            has objects gets AP 0 and oLRP 100.
        iou_type: "bbox" or "segm".
        engine: "auto", "hotcoco" or "reference" (pycocotools, lvis).
        max_dets: another cap; ``math.inf`` for none.

    Raises:
        UserError: An unknown or missing engine; masks are asked for, but an object or the
            detections have none.
    """
    _check_masks(ground_truth, detections, iou_type)
    engine = choose_engine(engine, ground_truth.style)
    if max_dets is None:
        max_dets = MAX_DETS[ground_truth.style]
    kept = np.arange(len(detections))
    if ground_truth.style == "lvis":
        kept = cap_per_image(detections, max_dets)
        stated = ground_truth.is_known(detections.images[kept], detections.categories[kept])
        kept, max_dets = kept[stated], math.inf  # the cap has been applied
    counted = detections.select(kept)
    precision = average_precision(ground_truth, counted, iou_type, engine, max_dets)
    matches = match(ground_truth, counted, iou_type, max_dets).renumbered(kept)
    return Evaluation(
        ground_truth, detections, iou_type, precision, matches, optimal_lrp(matches), engine
    )


def evaluate_fixed_ap(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    engine: str = "auto",
    per_class: int = FIXED_AP_PER_CLASS,
) -> Evaluation:
    """Evaluate without a cap per image: the best ``per_class`` detections of each class count.

    Dave et al., "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details", 2021.
    The detections must not have been capped by the model either.
    """
    chosen = best_of_each(detections.categories, detections.scores, per_class)
    return evaluate_detections(ground_truth, detections.select(chosen), iou_type, engine, math.inf)


def stated_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The summary, without the numbers by frequency where no category has one."""
    if any(evaluation.ground_truth.frequencies):
        return dict(evaluation.summary)
    by_frequency = {f"{metric}{group}" for metric in ("AP", "oLRP") for group in FREQUENCIES}
    return {name: v for name, v in evaluation.summary.items() if name not in by_frequency}


def _check_masks(ground_truth: GroundTruth, detections: Detections, iou_type: str) -> None:
    if iou_type not in IOU_TYPES:
        raise UserError(f"IoU type '{iou_type}' is not one of {', '.join(IOU_TYPES)}")
    if iou_type == "bbox":
        return
    if detections.rles is None and len(detections):
        raise UserError("mask evaluation: the detections have no masks")
    if any(segmentation is None for segmentation in ground_truth.segmentations):
        raise UserError("mask evaluation: the ground truth has an object without a mask")


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else float("nan")
