"""The benchmark of the assigners runs and compares like with like."""

import json
from functools import partial

import bm_assign
import pytest
import torch

SMALL = (128, 160)


def test_it_writes_a_row_per_number_of_objects(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn's fits are one of the methods")
    monkeypatch.setattr(bm_assign, "OBJECTS", (1, 3))
    small = partial(bm_assign.compare_atss, image=SMALL)
    monkeypatch.setattr(bm_assign, "compare_atss", small)
    output, threads = tmp_path / "assign.json", torch.get_num_threads()
    bm_assign.main(["--output", str(output)])
    torch.set_num_threads(threads)
    content = json.loads(output.read_text())
    for rows in (content["rows"], content["separation"]):
        assert [row["G"] for row in rows] == [1, 3]
    for row in content["rows"]:
        assert row["ours / loop"] == pytest.approx(row["ours ms"] / row["loop ms"], rel=1e-3)
    assert "ours / sklearn" in capsys.readouterr().out


@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.parametrize("other", ["loop", "dense"])
def test_the_other_ways_assign_the_same(other, number):
    batch = bm_assign.make_anchors(SMALL), bm_assign.make_objects(number, SMALL)
    expected = bm_assign.atss_ours(*batch)
    assert (expected >= 0).any()
    torch.testing.assert_close(bm_assign.ATSS[other](*batch), expected)


def test_a_hundred_thousand_anchors():
    assert sum(level[..., 0].numel() for level in bm_assign.make_anchors()) > 100_000


def test_no_table_is_made_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(bm_assign, "DENSE_LIMIT", 1000)
    assert "dense ms" not in bm_assign.compare_atss(2, SMALL)


def test_a_method_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setitem(bm_assign.ATSS, "loop", lambda a, g: bm_assign.atss_ours(a, g) + 1)
    with pytest.raises(AssertionError, match="loop differs"):
        bm_assign.compare_atss(2, SMALL)
