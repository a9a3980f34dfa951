"""Optimal Localisation-Recall-Precision error (oLRP) of every class and area range.

Of the detections of a class, best score first, down to any of them

    LRP = (sum over TP of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN),   FN = objects - TP,

and oLRP is the smallest; its parts are those of the first detection that reaches it. Oksuz et al.,
"One Metric to Measure them All: Localisation Recall Precision (LRP) for Evaluating Visual Detection
Tasks", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rs_d2.coco.records import AREAS
from rs_d2.evaluation.matching import Matches


@dataclass(frozen=True)
class OptimalLRP:
    """oLRP and its parts, [A, K] each, as fractions; NaN where undefined.

    A class without objects is NaN in all. With objects, but no true positive among its detections,
    ``olrp`` and ``false_negatives`` are 1 and the rest is NaN.

    Attributes:
        olrp: in [0, 1].
        localisation: mean 1 - IoU of the true positives, in [0, 1 - tau].
        false_positives: share of the detections, 1 - precision.
        false_negatives: share of the objects, 1 - recall.
        thresholds: score of the last detection that is kept.
    """

    olrp: np.ndarray
    localisation: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    thresholds: np.ndarray

    def mean(self, area: str = "all", classes: np.ndarray | None = None) -> dict[str, float]:
        """Means over the classes that define each number, in percent, NaN over none.

        Since the parts are undefined for more classes than oLRP is, their means do not recombine
        into its mean.

        Args:
            area: one of ``AREAS``.
            classes: [K] bool, classes to average; None for all.

        Returns:
            ``oLRP``, ``oLRP_Loc``, ``oLRP_FP``, ``oLRP_FN``.
        """
        row = AREAS.index(area)
        chosen = slice(None) if classes is None else classes
        return {
            "oLRP": _percent(self.olrp[row, chosen]),
            "oLRP_Loc": _percent(self.localisation[row, chosen]),
            "oLRP_FP": _percent(self.false_positives[row, chosen]),
            "oLRP_FN": _percent(self.false_negatives[row, chosen]),
        }


def optimal_lrp(matches: Matches, iou_thresh: float = 0.5) -> OptimalLRP:
    """OLRP of matches.

    Args:
        matches: matches at ``iou_thresh``.
        iou_thresh: tau, in [0, 1).
    """
    num_areas, num_classes = matches.num_objects.shape
    values = np.full((5, num_areas, num_classes), np.nan)
    values[[0, 3]] = np.where(matches.num_objects > 0, 1, np.nan)
    bounds = np.searchsorted(matches.categories, np.arange(num_classes + 1))
    for area in range(num_areas):
        tp, fp = matches.true_positives(area), matches.false_positives(area)
        errors = np.where(tp, 1 - matches.ious[area], 0)
        found = np.bincount(matches.categories[tp], minlength=num_classes)
        for k in np.flatnonzero((found > 0) & (matches.num_objects[area] > 0)).tolist():
            part = slice(bounds[k], bounds[k + 1])
            num_objects = matches.num_objects[area, k]
            last, *at_best = _best(tp[part], fp[part], errors[part], num_objects, iou_thresh)
            values[:, area, k] = *at_best, matches.scores[part][last]
    return OptimalLRP(*values)


def _best(
    tp: np.ndarray, fp: np.ndarray, errors: np.ndarray, num_objects: int, iou_thresh: float
) -> tuple[int, float, float, float, float]:
    """Index of the last detection to keep of one class, and oLRP, Loc, FP and FN down to it."""
    num_tp, num_fp = np.cumsum(tp), np.cumsum(fp)
    num_fn = num_objects - num_tp
    localisation = np.cumsum(errors)
    lrp = (localisation / (1 - iou_thresh) + num_fp + num_fn) / (num_tp + num_fp + num_fn)
    last = int(np.argmin(lrp))  # of equal minima the first
    hits, wrong = num_tp[last], num_fp[last]
    return (
        last,
        lrp[last],
        localisation[last] / hits if hits else np.nan,
        wrong / (hits + wrong) if hits + wrong else np.nan,
        num_fn[last] / num_objects,
    )


def _percent(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if len(values) else float("nan")
