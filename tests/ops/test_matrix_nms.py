"""Matrix NMS against its literal form, and the suppression of neighbouring cells."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_d2.ops.matrix_nms import DECAYS, matrix_nms, points_nms


def literal(scores, masks, classes, kernel, sigma):
    """Equation 4 of the paper, one pair after the other."""

    def iou(i, j):
        if classes[i] != classes[j]:
            return 0.0
        union = int((masks[i] | masks[j]).sum())
        return int((masks[i] & masks[j]).sum()) / union if union else 0.0

    def f(x):
        return math.exp(-sigma * x * x) if kernel == "gaussian" else 1 - x

    decayed = []
    for j, score in enumerate(scores):
        factors = [1.0]
        for i in range(j):
            already = f(max((iou(k, i) for k in range(i)), default=0.0))
            factors.append(f(iou(i, j)) / already if already > 0 else math.inf)
        decayed.append(score * min(factors))
    return decayed


@pytest.mark.parametrize("kernel", DECAYS)
@settings(max_examples=50)
@given(st.integers(0, 9), st.integers(1, 3), st.integers(0, 1000), st.sampled_from([0.5, 2.0]))
def test_equals_the_literal_form(kernel, count, num_classes, seed, sigma):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 3, 4, generator=generator) < 0.4  # small: many are equal or empty
    scores = torch.rand(count, generator=generator, dtype=torch.float64).sort(descending=True)[0]
    classes = torch.randint(num_classes, (count,), generator=generator)
    found = matrix_nms(scores, masks, classes, kernel, sigma)
    expected = literal(scores.tolist(), masks, classes.tolist(), kernel, sigma)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kernel", DECAYS)
def test_a_copy_decays_and_another_class_does_not(kernel):
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
    found = matrix_nms(scores, masks, classes, kernel, 2.0)
    assert found[[0, 2]].tolist() == scores[[0, 2]].tolist()
    assert float(found[1]) == pytest.approx(0.8 * math.exp(-2) if kernel == "gaussian" else 0)


def test_a_cell_gives_way_to_a_better_one_above_or_left():
    scores = torch.rand(2, 3, 5, 5)
    found = points_nms(scores)
    for n, k, y, x in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        around = scores[n, k, max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1]
        best = scores[n, k, y, x] == around.max()
        assert found[n, k, y, x] == (scores[n, k, y, x] if best else 0)
