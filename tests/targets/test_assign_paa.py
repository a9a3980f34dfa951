"""PAA's two passes against their literal loops, and the laws that they obey."""

import pytest
import torch
from helpers import reference_assign
from helpers.scenes import ANCHOR_COUNTS, SCENES, boxes, grid, pyramid
from hypothesis import given
from hypothesis import strategies as st
from operation_count import count_operations

from rs_d2.targets import assign_paa
from rs_d2.targets.assign_paa import assign_by_iou, separate_by_loss


def check_candidates(levels, gt_boxes, min_iou=0.1):
    """In float64, as the loop: rounding makes and breaks ties."""
    levels, gt_boxes = [level.double() for level in levels], gt_boxes.double()
    matched = assign_by_iou(levels, gt_boxes, min_iou)
    expected = reference_assign.paa_candidates(
        [level.tolist() for level in levels], gt_boxes.tolist(), min_iou
    )
    assert [x.flatten().tolist() for x in matched] == expected
    assert [x.shape for x in matched] == [x.shape[:-1] for x in levels]
    assert all(x.dtype == torch.int64 for x in matched)


@pytest.mark.parametrize("per_cell", ANCHOR_COUNTS)
@pytest.mark.parametrize("scene", SCENES)
def test_candidates_equal_the_literal_loop(scene, per_cell):
    check_candidates(pyramid(per_cell), SCENES[scene])


def test_candidates_of_a_thousand_objects():
    gt_boxes = boxes(torch.rand(1000, 2) * 64, torch.rand(1000, 2) * 30 + 2)
    check_candidates(pyramid(1, [(8, 8, 8), (4, 4, 16), (2, 2, 32)]), gt_boxes)


COORDINATES = st.integers(-40, 200).map(lambda v: v / 4)
SIDES = st.integers(0, 160).map(lambda v: v / 4)
OBJECTS = st.lists(st.tuples(COORDINATES, COORDINATES, SIDES, SIDES), max_size=6)
SHAPES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3)


@given(OBJECTS, SHAPES, st.integers(1, 3), st.sampled_from([0.1, 0.3, 1.0]))
def test_candidates_of_any_scene_equal_the_literal_loop(objects, shapes, per_cell, min_iou):
    levels = [grid(*shape, 8 * 2**i, per_cell) for i, shape in enumerate(shapes)]
    corners = [(x, y, x + width, y + height) for x, y, width, height in objects]
    check_candidates(levels, torch.tensor(corners).view(-1, 4), min_iou)


@pytest.mark.parametrize("scene", ["none", "outside", "no area"])
def test_objects_that_nothing_overlaps_claim_nothing(scene):
    assert all((matched == -1).all() for matched in assign_by_iou(pyramid(3), SCENES[scene]))


def test_an_object_below_the_minimum_claims_its_best_anchor():
    gt_boxes = torch.tensor([[3.0, 3.0, 5.0, 4.0]])
    matched = torch.cat([x.flatten() for x in assign_by_iou(pyramid(1), gt_boxes)])
    assert (matched == 0).sum() == 9  # all that contain it


def test_the_later_of_two_equal_objects_claims():
    gt_boxes = pyramid(1)[2].reshape(-1, 4)[[5, 5]]
    assert assign_by_iou(pyramid(1), gt_boxes)[2].flatten()[5] == 1


@pytest.mark.parametrize("elements", [1, 1000, 10_000])
def test_the_size_of_a_table_does_not_matter(elements, monkeypatch):
    expected = assign_by_iou(pyramid(3), SCENES["crowd"])
    monkeypatch.setattr(assign_paa, "TABLE_ELEMENTS", elements)
    torch.testing.assert_close(assign_by_iou(pyramid(3), SCENES["crowd"]), expected)


def test_permuted_objects_give_permuted_candidates():
    gt_boxes, order = SCENES["apart"], torch.randperm(len(SCENES["apart"]))
    permuted = assign_by_iou(pyramid(3), gt_boxes[order])
    expected = assign_by_iou(pyramid(3), gt_boxes)
    torch.testing.assert_close([order[p].where(p >= 0, -1) for p in permuted], expected)


def test_candidates_of_a_thousand_objects_need_no_table():
    levels = pyramid(3, [(100, 160, 8), (50, 80, 16), (25, 40, 32)])
    gt_boxes = boxes(torch.rand(1000, 2) * 800, torch.rand(1000, 2) * 200 + 5)
    count = count_operations(lambda: assign_by_iou(levels, gt_boxes))
    num_anchors = sum(level[..., 0].numel() for level in levels)
    assert count.largest_bytes < num_anchors * 1000 / 4


def random_losses(number, num_objects, num_levels, seed, scale=1.0):
    """Two kinds of anchors, so that there is something to separate."""
    rng = torch.Generator().manual_seed(seed)
    bad = torch.rand(number, generator=rng) < 0.6
    losses = scale * (torch.rand(number, generator=rng, dtype=torch.float64) + bad)
    gt_index = torch.randint(num_objects, (number,), generator=rng) * 3 + 2
    return losses, gt_index, torch.randint(num_levels, (number,), generator=rng)


def check_separation(losses, gt_index, levels, topk):
    pytest.importorskip("sklearn", reason="scikit-learn is the authority on its mixtures")
    stays = separate_by_loss(losses, gt_index, levels, topk)
    expected = reference_assign.paa_separation(
        losses.tolist(), gt_index.tolist(), levels.tolist(), topk
    )
    assert stays.tolist() == expected
    assert stays.dtype == torch.bool


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_separation_equals_one_fit_after_the_other(seed, scale):
    check_separation(*random_losses(600, 20, 5, seed, scale), topk=9)


@given(
    st.integers(0, 120),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 999),
    st.sampled_from([0.003, 0.1, 1.0, 5.0, 100.0]),
)
def test_any_separation_equals_one_fit_after_the_other(number, objects, levels, topk, seed, scale):
    check_separation(*random_losses(number, objects, levels, seed, scale), topk)


def test_separation_of_many_objects():
    losses, gt_index, levels = random_losses(1800, 200, 3, seed=0)
    check_separation(losses.float().double(), gt_index, levels, topk=4)


def zeros(number):
    return torch.zeros(number, dtype=torch.int64)


def test_two_clusters_are_told_apart():
    losses = torch.tensor([2.0, 0.1, 0.12, 2.1, 0.11, 1.9])
    stays = separate_by_loss(losses, zeros(6), zeros(6))
    assert not stays[[0, 3, 5]].any()
    assert stays[1]


def test_an_object_with_one_candidate_has_no_positives():
    gt_index = torch.tensor([0, 1, 1])
    stays = separate_by_loss(torch.tensor([0.1, 0.1, 0.9]), gt_index, zeros(3))
    assert stays.tolist() == [False, True, False]


def test_of_equal_losses_the_first_stays():
    assert separate_by_loss(torch.ones(5), zeros(5), zeros(5)).tolist() == [True] + [False] * 4


def test_of_two_losses_around_their_mean_the_lower_stays():
    """Their likelihoods are the same but for rounding."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        good = torch.rand(2, generator=rng, dtype=torch.float64) / 10
        losses = torch.cat([good, good.new_tensor([2.0, 2.2, 2.5])])
        stays = separate_by_loss(losses, zeros(5), zeros(5))
        assert stays.nonzero().flatten().tolist() == [int(good.argmin())]


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9])
def test_an_object_of_nearly_equal_losses_keeps_a_positive(spread):
    """Both components are the same but for rounding."""
    for number in (2, 3, 20):
        losses = 0.3 + spread * torch.rand(number, dtype=torch.float64)
        assert separate_by_loss(losses, zeros(number), zeros(number)).any()


def test_the_first_of_equal_losses_are_the_candidates():
    """Positions 0 and 1 of level 0 and 3 and 4 of level 1: two per level."""
    losses = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.9, 0.9])
    levels = torch.tensor([0, 0, 0, 1, 1, 1])
    expected = separate_by_loss(losses[[0, 1, 3, 4]], zeros(4), levels[[0, 1, 3, 4]], topk=2)
    stays = separate_by_loss(losses, zeros(6), levels, topk=2)
    assert stays[[0, 1, 3, 4]].tolist() == expected.tolist()
    assert not stays[[2, 5]].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_loss_that_is_not_finite_counts_as_absent(value):
    losses, gt_index, levels = random_losses(200, 6, 3, seed=5)
    absent = torch.arange(200) % 7 == 0
    absent |= gt_index == 5
    stays = separate_by_loss(losses.masked_fill(absent, value), gt_index, levels)
    expected = separate_by_loss(losses[~absent], gt_index[~absent], levels[~absent])
    assert not stays[absent].any()
    torch.testing.assert_close(stays[~absent], expected)


def test_a_batch_equals_its_images():
    batch = [random_losses(150, 5, 4, seed) for seed in range(4)]
    alone = torch.cat([separate_by_loss(*image) for image in batch])
    shifted = [(losses, gt + 100 * i, levels) for i, (losses, gt, levels) in enumerate(batch)]
    together = separate_by_loss(*(torch.cat(part) for part in zip(*shifted, strict=True)))
    torch.testing.assert_close(together, alone)


def test_the_order_of_positives_does_not_matter():
    losses, gt_index, levels = random_losses(300, 10, 4, seed=7)
    order = torch.randperm(300)
    shuffled = separate_by_loss(losses[order], gt_index[order], levels[order])
    torch.testing.assert_close(shuffled, separate_by_loss(losses, gt_index, levels)[order])


def test_no_positives_stay_none():
    stays = separate_by_loss(torch.zeros(0), zeros(0), zeros(0))
    assert stays.shape == (0,)
    assert stays.dtype == torch.bool


def test_losses_keep_their_gradient_to_themselves():
    losses, gt_index, levels = random_losses(50, 2, 2, seed=1)
    assert not separate_by_loss(losses.requires_grad_(), gt_index, levels).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scene", SCENES)
def test_candidates_on_cuda_match_the_cpu(scene):
    levels, gt_boxes = pyramid(3), SCENES[scene]
    matched = assign_by_iou([level.cuda() for level in levels], gt_boxes.cuda())
    torch.testing.assert_close([x.cpu() for x in matched], assign_by_iou(levels, gt_boxes))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_separation_on_cuda_matches_the_cpu():
    batch = random_losses(600, 20, 5, seed=0)
    stays = separate_by_loss(*(part.cuda() for part in batch))
    torch.testing.assert_close(stays.cpu(), separate_by_loss(*batch))
