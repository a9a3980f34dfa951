"""The evaluation benchmark compares like with like."""

import json

import bm_evaluation
import pytest


@pytest.mark.parametrize("set_name", ["COCO boxes", "LVIS boxes"])
def test_every_method_of_a_set_finds_the_same(set_name):
    rows = [bm_evaluation.run_row(set_name, method, 250) for method in bm_evaluation.METHODS]
    precision = [row["AP"] for row in rows if row["AP"] is not None]
    errors = [row["oLRP"] for row in rows if row["oLRP"] is not None]
    assert precision == pytest.approx([precision[0]] * 4, abs=1e-9)
    assert errors == pytest.approx([errors[0]] * 3, abs=1e-9)
    assert all(row["cpu_s"] > 0 for row in rows)


def test_rows_are_written_with_their_ratios(tmp_path):
    output = tmp_path / "out.json"
    argv = ["--scale", "500", "--sets", "COCO masks", "--output", str(output)]
    assert bm_evaluation.main([*argv, "--methods", "reference package", "AP"]) == 0
    content = json.loads(output.read_text())
    assert content["scale"] == 500
    first, second = content["rows"]
    assert first["times_faster"] == 1
    assert second["times_faster"] == pytest.approx(first["cpu_s"] / second["cpu_s"], rel=1e-3)
