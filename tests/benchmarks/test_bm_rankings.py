"""The benchmark of the rankings runs, and gives all of them the same to do."""

import argparse

import bm_rankings


def test_each_ranking_has_a_row_and_ranks_the_same_candidates(monkeypatch):
    names = ("rank_sort", "sigmoid_cross_entropy", "cross_entropy")
    monkeypatch.setattr(bm_rankings, "RANKINGS", names)
    rows = bm_rankings.compare("digits", argparse.Namespace(images=1, size=64, rounds=1))
    assert [row["ranking"] for row in rows] == list(names)
    assert rows[0]["candidates"] == rows[1]["candidates"] < rows[2]["candidates"]  # a background
    assert len({row["positives"] for row in rows}) == 1
    assert rows[0]["positives"] > 0
    assert (rows[2]["step ratio"], rows[2]["loss adds"]) == (1, "0.0%")
