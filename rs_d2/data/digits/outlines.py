"""Binary masks as polygons along pixel borders, exact under COCO's rasteriser.

LVIS files hold polygons only, and the polygons of one object are joined, so that one cannot punch a
hole into another. A shape with holes (0, 6, 8, 9) is therefore cut at a pixel column into pieces
without holes; the pieces share a border and together give back the mask, pixel by pixel.
"""

import numpy as np

Point = tuple[int, int]

# Clockwise directions (y points down) from an edge's start; the inside is at the right hand.
_RIGHT_TURN = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace a mask as polygons that rasterise to exactly this mask.

    Args:
        mask: boolean [H, W].

    Returns:
        One flat list ``[x0, y0, x1, y1, ...]`` per piece, absolute pixels; pixel (x, y) covers
        [x, x + 1] x [y, y + 1]. Floats, because coordinates are scaled in place by augmentations
        and integers would be truncated. An empty mask gives an empty list.
    """
    loops = _boundary_loops(mask)
    hole = next((loop for loop in loops if _signed_area(loop) < 0), None)
    if hole is None:
        return [_corners(loop).ravel().astype(float).tolist() for loop in loops]
    cut = int(hole[:, 0].min() + hole[:, 0].max() + 1) // 2
    left, right = mask.copy(), mask.copy()
    left[:, cut:] = False
    right[:, :cut] = False
    return mask_to_polygons(left) + mask_to_polygons(right)


def mask_to_box(mask: np.ndarray) -> list[float]:
    """Tight box ``[x, y, width, height]`` in absolute pixels of a non-empty boolean mask [H, W]."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(xs[0]), int(ys[0])
    return [float(x), float(y), float(xs[-1] + 1 - x), float(ys[-1] + 1 - y)]


def _boundary_loops(mask: np.ndarray) -> list[np.ndarray]:
    """All closed borders [P, 2], one point per pixel; outer ones clockwise, holes the other way."""
    steps = _boundary_steps(mask)
    loops = []
    while steps:
        start, directions = next(iter(steps.items()))
        point, direction = start, directions[0]
        loop = []
        while True:
            loop.append(point)
            steps[point].remove(direction)
            if not steps[point]:
                del steps[point]
            point = (point[0] + direction[0], point[1] + direction[1])
            options = steps.get(point)
            turn = _RIGHT_TURN[direction]
            if not options or (point == start and turn not in options):
                break
            # Where two pixels touch at a corner only, stay with the one we walk along.
            direction = turn if len(options) > 1 else options[0]
        loops.append(np.array(loop))
    return loops


def _boundary_steps(mask: np.ndarray) -> dict[Point, list[Point]]:
    """Unit steps along pixel borders, keyed by their start, with the inside at the right hand."""
    steps: dict[Point, list[Point]] = {}
    if not mask.any():
        return steps
    left, top, width, height = (int(c) for c in mask_to_box(mask))
    padded = np.pad(mask[top : top + height, left : left + width].astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # neighbour outside; start of the step relative to the pixel; direction
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    for neighbour, (dx, dy), direction in sides:
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            steps.setdefault((left + x + dx, top + y + dy), []).append(direction)
    return steps


def _signed_area(loop: np.ndarray) -> int:
    """Twice the enclosed area of a loop [P, 2]; positive for a clockwise one (y points down)."""
    following = np.roll(loop, -1, axis=0)
    return int((loop[:, 0] * following[:, 1] - following[:, 0] * loop[:, 1]).sum())


def _corners(loop: np.ndarray) -> np.ndarray:
    """The points of a loop [P, 2] where it turns."""
    step = np.roll(loop, -1, axis=0) - loop
    return loop[(step != np.roll(step, 1, axis=0)).any(axis=1)]
