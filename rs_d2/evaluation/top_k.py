"""The best detections of each image or class."""

from __future__ import annotations

import numpy as np

from rs_d2.coco.records import Detections


def cap_per_image(detections: Detections, max_dets: float) -> np.ndarray:
    """Indices, ascending, of the best ``max_dets`` detections of each image over all classes."""
    if np.bincount(detections.images, minlength=1).max() <= max_dets:
        return np.arange(len(detections))
    return best_of_each(detections.images, detections.scores, max_dets)


def best_of_each(groups: np.ndarray, scores: np.ndarray, most: float) -> np.ndarray:
    """Indices, ascending, of the ``most`` best-scored of each group; ties go to the first."""
    order = np.lexsort((-scores, groups))
    return np.sort(order[rank_in_group(groups[order]) < most])


def rank_in_group(sorted_groups: np.ndarray) -> np.ndarray:
    """Rank of each entry in its group, from 0; groups lie together, their numbers are >= 0."""
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    sizes = np.diff(starts, append=len(sorted_groups))
    return np.arange(len(sorted_groups)) - np.repeat(starts, sizes)
