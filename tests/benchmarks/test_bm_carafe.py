"""The benchmark of content-aware upsampling runs and compares like with like."""

import json

import bm_carafe
import pytest
import torch


def test_it_writes_a_row_per_level_and_pass(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bm_carafe, "LEVELS", {"tiny": (3, 4)})
    output, threads = tmp_path / "carafe.json", torch.get_num_threads()
    bm_carafe.main(["--output", str(output)])
    torch.set_num_threads(threads)
    rows = json.loads(output.read_text())["rows"]
    assert [(row["level"], row["pass"]) for row in rows] == [("tiny", "forward"), ("tiny", "both")]
    for row in rows:
        assert row["unfold / ours"] == pytest.approx(row["unfold ms"] / row["ours ms"], rel=1e-3)
    assert "unfold / ours" in capsys.readouterr().out


def test_a_method_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setitem(bm_carafe.METHODS, "taps", lambda x, z: bm_carafe.by_einsum(x, z) * 1.01)
    monkeypatch.setitem(bm_carafe.LEVELS, "tiny", (3, 4))
    with pytest.raises(AssertionError, match="taps differs"):
        bm_carafe.compare("tiny", "cpu")
