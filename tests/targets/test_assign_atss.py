"""ATSS against its literal loop, and the laws that it obeys."""

import pytest
import torch
from helpers import reference_assign
from helpers.scenes import ANCHOR_COUNTS, SCENES, boxes, grid, pyramid
from hypothesis import given
from hypothesis import strategies as st
from operation_count import count_operations

from rs_d2.targets.assign_atss import assign_atss


def check(levels, gt_boxes, topk):
    matched = assign_atss(levels, gt_boxes, topk)
    expected = reference_assign.atss([x.tolist() for x in levels], gt_boxes.tolist(), topk)
    assert [x.flatten().tolist() for x in matched] == expected
    assert [x.shape for x in matched] == [x.shape[:-1] for x in levels]
    assert all(x.dtype == torch.int64 for x in matched)


@pytest.mark.parametrize("per_cell", ANCHOR_COUNTS)
@pytest.mark.parametrize("scene", SCENES)
def test_equals_the_literal_loop(scene, per_cell):
    check(pyramid(per_cell), SCENES[scene], 9)


@pytest.mark.parametrize("per_cell", ANCHOR_COUNTS)
def test_the_scenes_have_positives(per_cell):
    """Comparisons of nothing but negatives would prove little."""
    counts = {
        name: sum(int((x >= 0).sum()) for x in assign_atss(pyramid(per_cell), gt))
        for name, gt in SCENES.items()
    }
    assert counts.pop("none") == counts.pop("outside") == counts.pop("no area") == 0
    assert counts.pop("one pixel") == 0  # no centre inside
    assert all(counts.values()), counts


def test_a_thousand_objects():
    generator = torch.Generator().manual_seed(1)
    center = torch.rand(1000, 2, generator=generator) * 64
    gt_boxes = boxes(center, torch.rand(1000, 2, generator=generator) * 30 + 2)
    check(pyramid(1, [(8, 8, 8), (4, 4, 16), (2, 2, 32)]), gt_boxes, 9)


COORDINATES = st.integers(-40, 200).map(lambda v: v / 4)
SIDES = st.integers(0, 160).map(lambda v: v / 4)
OBJECTS = st.lists(st.tuples(COORDINATES, COORDINATES, SIDES, SIDES), max_size=6)
SHAPES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3)


@given(OBJECTS, SHAPES, st.integers(1, 3), st.integers(1, 12))
def test_any_scene_equals_the_literal_loop(objects, shapes, per_cell, topk):
    levels = [grid(*shape, 8 * 2**i, per_cell) for i, shape in enumerate(shapes)]
    corners = [(x, y, x + width, y + height) for x, y, width, height in objects]
    check(levels, torch.tensor(corners).view(-1, 4), topk)


def test_a_lone_candidate_is_its_own_threshold():
    (matched,) = assign_atss([grid(1, 1, 8, 1)], torch.tensor([[-4.0, -4.0, 4.0, 5.0]]))
    assert matched.tolist() == [[[0]]]


def test_candidates_of_equal_overlap_reach_their_threshold():
    levels = [torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(1, 1, 3, 4)]
    (matched,) = assign_atss(levels, torch.tensor([[0.0, 0.0, 7.0, 9.0]]))
    assert matched.flatten().tolist() == [0, 0, 0]


def test_of_equal_overlap_the_first_object_takes_the_anchor():
    gt_boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 40.0]])
    matched = torch.cat([x.flatten() for x in assign_atss(pyramid(3), gt_boxes)])
    assert set(matched.tolist()) == {-1, 0}


@pytest.mark.parametrize("distance", [0.0, 0.01, 0.011])
def test_a_centre_closer_than_a_hundredth_of_a_pixel_is_not_inside(distance):
    gt_boxes = torch.tensor([[-distance, -8.0, 16.0, 8.0]], dtype=torch.float64)
    (matched,) = assign_atss([grid(1, 1, 8, 1)], gt_boxes)
    assert matched.item() == (0 if distance > 0.01 else -1)


def test_permuted_objects_give_permuted_indices():
    gt_boxes, order = SCENES["crowd"], torch.randperm(60)
    for matched, permuted in zip(
        assign_atss(pyramid(3), gt_boxes), assign_atss(pyramid(3), gt_boxes[order]), strict=True
    ):
        torch.testing.assert_close(order[permuted].where(permuted >= 0, -1), matched)


def test_far_objects_do_not_disturb_each_other():
    levels = pyramid(3)
    near = torch.tensor([[0.0, 0.0, 20.0, 20.0], [5.0, 0.0, 30.0, 20.0]])
    far = near + 76
    alone, others = assign_atss(levels, near), assign_atss(levels, far)
    both = assign_atss(levels, torch.cat([near, far]))
    for a, b, c in zip(alone[:2], others[:2], both[:2], strict=True):
        torch.testing.assert_close(a.where(a >= 0, b + 2 * (b >= 0)), c)


def test_no_levels_give_none():
    assert assign_atss([], SCENES["some"]) == []


def test_levels_must_agree_in_anchors_per_cell():
    with pytest.raises(ValueError, match=r"anchors per cell: \[1, 3\]"):
        assign_atss([grid(2, 2, 8, 1), grid(2, 2, 8, 3)], SCENES["some"])


def test_topk_must_be_positive():
    with pytest.raises(ValueError, match="topk must be positive, not 0"):
        assign_atss(pyramid(1), SCENES["some"], topk=0)


def test_a_thousand_objects_need_no_table_and_no_reading_back():
    levels = pyramid(3, [(100, 160, 8), (50, 80, 16), (25, 40, 32)])
    gt_boxes = boxes(torch.rand(1000, 2) * 800, torch.rand(1000, 2) * 200 + 5)
    count = count_operations(lambda: assign_atss(levels, gt_boxes))
    num_anchors = sum(level[..., 0].numel() for level in levels)
    assert count.largest_bytes < num_anchors * 1000 / 20  # not even one of booleans
    assert count.host_reads == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scene", SCENES)
def test_cuda_matches_the_cpu(scene):
    levels, gt_boxes = pyramid(3), SCENES[scene]
    on_device = assign_atss([level.cuda() for level in levels], gt_boxes.cuda())
    for expected, matched in zip(assign_atss(levels, gt_boxes), on_device, strict=True):
        torch.testing.assert_close(matched.cpu(), expected)
