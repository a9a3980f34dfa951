"""YOLACT's assignment against a literal loop and its corner cases."""

import pytest
import torch

from rs_d2.targets.assign_yolact import assign_yolact


def iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    inter = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inter / (areas - inter)


def literal(anchors, gt_boxes):
    """One anchor after the other, then one ground truth after the other."""
    table = [[iou(gt, anchor) for anchor in anchors] for gt in gt_boxes]
    matched = []
    for column in zip(*table, strict=True):
        best = max(column)
        matched.append(column.index(best) if best >= 0.5 else -1 if best < 0.4 else -2)
    for g, row in enumerate(table):
        if max(row) > 0:
            matched[row.index(max(row))] = g
    return matched


def some_boxes(count, generator):
    corner = torch.randint(0, 12, (count, 2), generator=generator).double()
    return torch.cat([corner, corner + torch.randint(1, 9, (count, 2), generator=generator)], dim=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 3, 20])
def test_equals_the_literal_loop(count, seed):
    generator = torch.Generator().manual_seed(seed)
    anchors, gt_boxes = some_boxes(60, generator), some_boxes(count, generator)  # with ties
    levels = [anchors[:48].view(4, 4, 3, 4), anchors[48:].view(2, 2, 3, 4)]
    found = assign_yolact(levels, gt_boxes)
    assert [level.shape for level in found] == [(4, 4, 3), (2, 2, 3)]
    together = torch.cat([level.flatten() for level in found])
    assert together.tolist() == literal(anchors.tolist(), gt_boxes.tolist())


def test_an_object_that_no_anchor_touches_claims_none():
    anchors = [torch.tensor([[0.0, 0, 4, 4], [8, 8, 12, 12]]).view(1, 2, 1, 4)]
    gt_boxes = torch.tensor([[20.0, 20, 24, 24], [0, 0, 2, 2]])
    assert assign_yolact(anchors, gt_boxes)[0].flatten().tolist() == [1, -1]


def test_the_later_of_two_claims_wins():
    anchors = [torch.tensor([[0.0, 0, 4, 4]]).view(1, 1, 1, 4)]
    gt_boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 1, 1]])
    assert assign_yolact(anchors, gt_boxes)[0].tolist() == [[[1]]]


def test_nothing_to_match():
    anchors = [torch.zeros(2, 3, 3, 4), torch.zeros(0, 0, 3, 4)]
    found = assign_yolact(anchors, torch.zeros(0, 4))
    assert [level.shape for level in found] == [(2, 3, 3), (0, 0, 3)]
    assert (found[0] == -1).all()
    assert assign_yolact([torch.zeros(0, 4, 3, 4)], torch.ones(1, 4))[0].shape == (0, 4, 3)
