"""Assignment by IoU against a literal loop and its corner cases."""

import pytest
import torch

from rs_d2.targets.assign_iou import match_by_iou

THRESHOLDS, LABELS = (0.3, 0.7), (0, -1, 1)


def literal(iou, min_iou):
    """One anchor after the other, then one ground truth after the other."""
    index, label = [], []
    for column in iou.T.tolist():
        best = max(column)
        index.append(column.index(best))
        label.append(0 if best < 0.3 else -1 if best < 0.7 else 1)
    for g, row in enumerate(iou.tolist()):
        if max(row) >= min_iou:
            for a, value in enumerate(row):
                if value == max(row):
                    index[a], label[a] = g, 1
    return index, label


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (5, 3), (7, 40)])
def test_equals_the_literal_loop(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    iou = (torch.rand(shape, generator=generator, dtype=torch.float64) * 10).round() / 10  # ties
    index, label = match_by_iou(iou, THRESHOLDS, LABELS, 0.3)
    assert (index.tolist(), label.tolist()) == literal(iou, 0.3)


def test_thresholds_belong_to_the_upper_interval():
    iou = torch.tensor([[0.2999, 0.3, 0.6999, 0.7, 0.9]])
    _, label = match_by_iou(iou, THRESHOLDS, LABELS, 1.0)
    assert label.tolist() == [0, -1, -1, 1, 1]


def test_a_claim_takes_the_candidate_from_a_better_ground_truth():
    iou = torch.tensor([[0.8, 0.9], [0.5, 0.2]])
    index, label = match_by_iou(iou, THRESHOLDS, LABELS, 0.3)
    assert index.tolist() == [1, 0]
    assert label.tolist() == [1, 1]


def test_no_claim_below_the_minimum():
    iou = torch.tensor([[0.0, 0.0, 0.0], [0.29, 0.1, 0.0]])
    _, label = match_by_iou(iou, THRESHOLDS, LABELS, 0.3)
    assert label.tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_to_match_is_negative(shape):
    index, label = match_by_iou(torch.zeros(shape), THRESHOLDS, LABELS, 0.3)
    assert index.tolist() == [0] * shape[1]
    assert label.tolist() == [0] * shape[1]
    assert label.dtype == torch.int8
