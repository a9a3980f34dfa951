"""Masks survive the way through polygons, pixel by pixel."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rs_d2.data.digits.outlines import mask_to_box, mask_to_polygons


def rasterised(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    """The mask that COCO's and LVIS's tools make of polygons."""
    height, width = shape
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(
        bool
    )


@pytest.mark.parametrize("fill", [0.02, 0.3, 0.5, 0.8, 0.99])
def test_random_masks_come_back_exactly(fill):
    rng = np.random.RandomState(0)
    for _ in range(20):
        mask = rng.rand(*rng.randint(2, 40, 2)) < fill
        mask[0, 0] = True
        assert np.array_equal(rasterised(mask_to_polygons(mask), mask.shape), mask)


def test_nested_rings_come_back_exactly():
    ys, xs = np.mgrid[0:41, 0:50] - 20
    mask = (np.hypot(ys, xs).astype(int) // 4) % 2 == 0
    assert np.array_equal(rasterised(mask_to_polygons(mask), mask.shape), mask)


def test_a_ring_becomes_two_polygons_whose_areas_add_up():
    mask = np.zeros((9, 9), dtype=bool)
    mask[1:8, 1:8] = True
    mask[3:6, 3:6] = False
    polygons = mask_to_polygons(mask)
    areas = []
    for polygon in polygons:
        x, y = polygon[::2], polygon[1::2]
        areas.append(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
    assert len(polygons) == 2
    assert sum(areas) == mask.sum() == 40


def test_pixels_touching_at_a_corner_become_two_polygons():
    assert len(mask_to_polygons(np.eye(2, dtype=bool))) == 2
    assert len(mask_to_polygons(np.eye(2, dtype=bool)[::-1])) == 2


def test_only_corners_are_kept():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 1:7] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(1, 2), (1, 5), (7, 2), (7, 5)]
    assert all(isinstance(c, float) for c in polygon)


def test_an_empty_mask_has_no_polygons():
    assert mask_to_polygons(np.zeros((4, 4), dtype=bool)) == []


def test_the_box_spans_pixel_borders():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 1:7] = True
    assert mask_to_box(mask) == [1.0, 2.0, 6.0, 3.0]
