"""Polygons that can be rasterised without asking for all memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_REACH = 10  # images beyond the border
_LONGEST = 10_000_000  # pixels of an outline; rasterising takes some 100 bytes for each
_MARGIN = 1000  # pixels


def is_usable(polygon: Sequence[float], height: int, width: int) -> bool:
    """Whether a polygon has an area to fill, and pycocotools can do it.

    That is: at least three points, finite numbers in pairs, none further from the image than ten
    times its longer side (and 1000 pixels), and an outline of at most 10^7 pixels. Beyond,
    pycocotools takes gigabytes or ends the process.

    Args:
        polygon: x and y in turn.
        height: of the image.
        width: of the image.
    """
    if len(polygon) < 6 or len(polygon) % 2:
        return False
    low, high = min(polygon), max(polygon)
    reach = _REACH * max(height, width) + _MARGIN
    if not (-reach <= low and high <= reach and math.isfinite(sum(polygon))):
        return False
    if len(polygon) * (high - low) <= _LONGEST:
        return True
    points = np.array(polygon, dtype=float).reshape(-1, 2)
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1)
    return bool(steps.sum() <= _LONGEST)
