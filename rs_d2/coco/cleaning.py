"""Leave out single annotations that nobody can train or evaluate on; plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NO_AREA = "boxes without area"
NOT_FINITE = "boxes that are not finite"
OUTSIDE = "boxes outside their image"
NO_MASK = "annotations without a mask"
BAD_POLYGON = "polygons with fewer than 3 points, an odd count or a number that is not finite"
BAD_RUNS = "run-length masks of another size than their image"
MINORITY = "masks in a file that mostly has none"


class LeftOut:
    """Counts what was left out, kind by kind, with the first culprit of each kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, list] = {}

    def add(self, kind: str, annotation_id: Any) -> None:
        """Count one more of a kind."""
        entry = self._kinds.setdefault(kind, [0, annotation_id])
        entry[0] += 1

    def __str__(self) -> str:
        """All kinds in one line; empty if nothing was left out."""
        return "; ".join(
            f"{kind} ({count}, first: annotation {first})"
            for kind, (count, first) in self._kinds.items()
        )


def mostly_masks(annotations: Iterable[dict]) -> bool:
    """Whether more than half of the annotations, crowds aside, have a segmentation."""
    single = [a for a in annotations if not a.get("iscrowd")]
    return 2 * sum(bool(a.get("segmentation")) for a in single) > len(single)


def clean_annotations(
    annotations: Iterable[dict],
    sizes: Mapping[Any, tuple[int, int]],
    has_masks: bool,
    left_out: LeftOut,
) -> list[dict]:
    """Keep the annotations that have a box with area in the image and, with masks, a mask.

    Boxes that reach over the border stay as they are: training clips them, and the numbers of
    official files stay the official ones. Broken pieces of a segmentation are left out.

    Args:
        annotations: entries with `id`, `image_id`, `bbox` (XYWH, pixels) of the right types.
        sizes: (width, height) by image id.
        has_masks: every annotation must have a mask; otherwise masks are not looked at.
        left_out: counts what is dropped.

    Returns:
        The entries, copied where changed.
    """
    kept = []
    for annotation in annotations:
        width, height = sizes[annotation["image_id"]]
        problem = _box_problem(annotation["bbox"], width, height)
        if problem:
            left_out.add(problem, annotation["id"])
        elif has_masks:
            annotation = _clean_mask(annotation, width, height, left_out)
            kept += [annotation] if annotation else []
        else:
            if annotation.get("segmentation"):
                left_out.add(MINORITY, annotation["id"])
            kept.append(annotation)
    return kept


def _box_problem(bbox: list[float], width: int, height: int) -> str | None:
    x, y, w, h = bbox
    if not all(map(math.isfinite, bbox)):
        return NOT_FINITE
    if w <= 0 or h <= 0:
        return NO_AREA
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return OUTSIDE
    return None


def _clean_mask(annotation: dict, width: int, height: int, left_out: LeftOut) -> dict | None:
    """The annotation with the usable part of its mask, or None."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        left_out.add(NO_MASK, annotation["id"])
        return None
    if isinstance(segmentation, dict):
        if _runs_fit(segmentation, width, height):
            return annotation
        left_out.add(BAD_RUNS, annotation["id"])
        return None
    polygons = [piece for piece in segmentation if _is_polygon(piece)]
    if len(polygons) == len(segmentation):
        return annotation
    left_out.add(BAD_POLYGON, annotation["id"])
    return {**annotation, "segmentation": polygons} if polygons else None


def _runs_fit(mask: dict, width: int, height: int) -> bool:
    counts = mask["counts"]
    whole = isinstance(counts, str) or sum(counts) == width * height
    return whole and mask["size"] == [height, width]


def _is_polygon(piece: list[float]) -> bool:
    return len(piece) >= 6 and len(piece) % 2 == 0 and math.isfinite(sum(piece))
