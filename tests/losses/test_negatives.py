"""Locating the negatives: the lookup grid is exact, whatever the edges and logits are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rs_d2.losses.kernel import negatives as _negatives
from rs_d2.losses.kernel.negatives import Grid, GridNegatives, SortedNegatives, round_up
from rs_d2.losses.kernel.ranking import make_windows, spread_line, sum_steps

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NEAR = st.floats(-2, 2, width=32)


def bucket_by_grid(edges, logits):
    grid = Grid(edges, logits.dtype, len(logits))
    logits = logits.clamp(grid.floor, grid.top)
    cells = grid.locate(logits)
    exact = grid.search(logits, cells)
    return torch.where(grid.has_edge[cells], exact, grid.first_bucket[cells])


@given(
    edges=st.lists(st.one_of(FLOATS, NEAR), min_size=1, max_size=40),
    logits=st.lists(st.one_of(FLOATS, NEAR), min_size=1, max_size=40),
)
def test_the_grid_gives_the_bucket_that_a_search_gives(edges, logits):
    edges = torch.tensor(edges, dtype=torch.float64).sort().values
    logits = torch.tensor([*logits, *edges.float().tolist()], dtype=torch.float32)
    logits = logits[logits >= round_up(edges[:1], torch.float32)]
    expected = torch.bucketize(logits.double(), edges, right=True)
    assert torch.equal(bucket_by_grid(edges, logits), expected)


@pytest.mark.parametrize("num_edges", [1, 5, 3000])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 1e6])
def test_crowded_edges_are_told_apart(num_edges, spread):
    edges = (torch.randn(num_edges, dtype=torch.float64) * spread).sort().values
    edges[-1] += 1e-3  # all others may share a cell
    logits = torch.cat([edges.float(), torch.randn(500) * max(spread, 1e-3)])
    logits = logits[logits >= round_up(edges[:1], torch.float32)]
    expected = torch.bucketize(logits.double(), edges, right=True)
    assert torch.equal(bucket_by_grid(edges, logits), expected)


@given(st.lists(st.floats(allow_nan=False, min_value=-3e38, max_value=3e38), max_size=20))
def test_rounding_up_keeps_every_comparison(values):
    exact = torch.tensor(values, dtype=torch.float64)
    rounded = round_up(exact, torch.float32)
    assert (rounded.double() >= exact).all()
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    assert (below.double() < exact).all()


@pytest.mark.parametrize("relevant", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_chunks_and_forms_agree(monkeypatch, relevant, delta):
    positives = torch.randn(17, dtype=torch.float64)
    logits = torch.randn(500) + torch.where(torch.rand(500) < relevant, 0.0, -100.0)
    targets = torch.where(torch.rand(500) < 0.1, -1.0, 0.0)
    windows = make_windows(positives, delta)
    line = spread_line(torch.rand(17, dtype=torch.float64), windows)
    whole = GridNegatives(logits, targets, windows)
    monkeypatch.setattr(_negatives, "_CHUNK", 37)
    for other in (
        GridNegatives(logits, targets, windows),
        SortedNegatives(logits, targets, windows),
    ):
        torch.testing.assert_close(
            sum_steps(other.sums(), windows), sum_steps(whole.sums(), windows), rtol=0, atol=1e-11
        )
        torch.testing.assert_close(other.spread(line), whole.spread(line), rtol=0, atol=1e-6)


def test_sums_equal_the_table_of_all_pairs():
    positives = torch.randn(9, dtype=torch.float64)
    logits = torch.randn(200, dtype=torch.float64)
    windows = make_windows(positives, 0.4)
    table = (((logits[:, None] - positives) / 0.8) + 0.5).clamp(0, 1)
    negatives = GridNegatives(logits, torch.zeros(200), windows)
    torch.testing.assert_close(sum_steps(negatives.sums(), windows), table.sum(0))
    weights = torch.rand(9, dtype=torch.float64)
    torch.testing.assert_close(negatives.spread(spread_line(weights, windows)), table @ weights)
