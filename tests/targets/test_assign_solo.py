"""SOLO's cells and mask targets against literal loops and recordings of the original."""

import json
import math

import numpy as np
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from operation_count import count_operations

from rs_d2.ops.masks import shrink_masks
from rs_d2.targets.assign_solo import assign_solo, centers_of_mass

GRIDS, RANGES, SIGMA = (8, 5, 3), ((1, 24), (12, 48), (24, 96)), 0.2
SIZE = (96, 128)


def literal(boxes, centers, size, grids, ranges, sigma):
    """One object after the other, one cell after the other."""
    found = []
    for cells, (low, high) in zip(grids, ranges, strict=True):
        owner = [[-1] * cells for _ in range(cells)]
        for g, ((x1, y1, x2, y2), (cx, cy)) in enumerate(zip(boxes, centers, strict=True)):
            width, height = x2 - x1, y2 - y1
            if math.isnan(cx) or not low <= math.sqrt(width * height) <= high:
                continue
            for y in range(cells):
                for x in range(cells):
                    claimed = True
                    for cell, c, side, whole in ((x, cx, width, size[1]), (y, cy, height, size[0])):
                        start, middle, end = (
                            math.floor(v / whole * cells)
                            for v in (c - sigma * side / 2, c, c + sigma * side / 2)
                        )
                        claimed &= max(start, middle - 1) <= cell <= min(end, middle + 1)
                    if claimed and owner[y][x] < 0:
                        owner[y][x] = g
        found.append(owner)
    return found


COORDINATES = st.integers(0, 380).map(lambda v: v / 4)
OBJECTS = st.lists(
    st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES, st.booleans()), max_size=8
)


@settings(max_examples=60)
@given(OBJECTS, st.sampled_from([0.1, 0.2, 1.0]))
def test_any_scene_equals_the_literal_loop(objects, sigma):
    corners = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d, _ in objects]
    boxes = torch.tensor(corners, dtype=torch.float64).view(-1, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    centers[[empty for *_, empty in objects]] = math.nan
    found = assign_solo(boxes, centers, SIZE, GRIDS, RANGES, sigma)
    expected = literal(boxes.tolist(), centers.tolist(), SIZE, GRIDS, RANGES, sigma)
    assert [owner.tolist() for owner in found] == expected
    assert all(owner.dtype == torch.int64 for owner in found)


def test_the_first_object_keeps_a_cell():
    box = torch.tensor([[20.0, 20, 40, 40]])
    (alone,) = assign_solo(box, torch.tensor([[30.0, 30]]), (64, 64), [4], [(1, 64)], 0.2)
    (both,) = assign_solo(
        box.repeat(2, 1), torch.tensor([[30.0, 30]] * 2), (64, 64), [4], [(1, 64)], 0.2
    )
    assert alone.max() == 0
    assert torch.equal(both, alone)


def test_an_object_of_no_grids_size_and_an_image_without_objects_claim_nothing():
    for boxes in (torch.tensor([[0.0, 0, 96, 96]]), torch.zeros(0, 4)):
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        found = assign_solo(boxes, centers, SIZE, (8, 3), ((1, 24), (12, 48)), SIGMA)
        assert [owner.shape for owner in found] == [(8, 8), (3, 3)]
        assert all((owner == -1).all() for owner in found)


def test_the_work_does_not_depend_on_the_number_of_objects():
    def operations(count):
        boxes = torch.rand(count, 2).repeat(1, 2) * 60 + torch.tensor([0, 0, 30, 30])
        return count_operations(
            lambda: assign_solo(boxes, boxes[:, :2] + 15, SIZE, GRIDS, RANGES, SIGMA)
        )

    few, many = operations(3), operations(500)
    assert (few.operations, few.host_reads) == (many.operations, 0)
    assert many.host_reads == 0
    assert many.largest_bytes == 500 * 9 * 8  # nine cells of each, on one grid at a time


def test_500_masks_are_never_turned_into_numbers_together():
    masks = torch.zeros(500, 128, 160, dtype=torch.bool)
    masks[:, 40:80, 30:90] = True
    work = count_operations(lambda: (centers_of_mass(masks), shrink_masks(masks, (32, 40))))
    assert work.largest_bytes <= 1 << 24 < 4 * masks.numel()
    centers, small = centers_of_mass(masks), shrink_masks(masks, (32, 40))
    assert centers[0].tolist() == [59.5, 59.5]
    assert small.shape == (500, 32, 40)


def test_a_mask_without_pixels_has_no_centre():
    masks = torch.zeros(2, 8, 12, dtype=torch.bool)
    masks[1, 3, 7] = True
    centers = centers_of_mass(masks)
    assert centers[0].isnan().all()
    assert centers[1].tolist() == [7, 3]
    assert centers_of_mass(masks[:0]).shape == (0, 2)


def test_cells_and_masks_are_those_of_the_original():
    golden = dict(np.load(shared("golden/heads/solov2.npz")))
    about = json.loads(str(golden["meta"]))
    cases = sorted({key.split("/")[0] for key in golden} - {"meta"})
    claimed = 0
    for case in cases:
        rows, columns = golden[f"{case}/mask_features"].shape[2:]
        for image in range(len(golden[f"{case}/image_sizes"])):
            shape = golden[f"{case}/gt_masks_shape/{image}"]
            packed = golden[f"{case}/gt_masks/{image}"]
            masks = torch.from_numpy(np.unpackbits(packed)[: shape.prod()].reshape(shape)).bool()
            owners = assign_solo(
                torch.from_numpy(golden[f"{case}/gt_boxes/{image}"]),
                centers_of_mass(masks),
                (4 * rows, 4 * columns),
                about["grids"],
                about["scale_ranges"],
                about["sigma"],
            )
            small = shrink_masks(masks, (rows, columns)).numpy()
            for level, owner in enumerate(owners):
                owner = owner.flatten().numpy()
                cells = (owner >= 0).nonzero()[0]
                claimed += len(cells)
                key = f"{level}/{image}"
                assert cells.tolist() == golden[f"{case}/cells/{key}"].tolist()
                classes = golden[f"{case}/cell_classes/{key}"].flatten()
                assert (classes[cells] == golden[f"{case}/gt_classes/{image}"][owner[cells]]).all()
                packed = np.packbits(small[owner[cells]])
                assert (packed == golden[f"{case}/cell_masks/{key}"]).all()
    assert len(cases) == 4
    assert claimed == 58
