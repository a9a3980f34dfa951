"""The benchmarks of the losses run, compare like with like, and write what they measured."""

import json

import bm_losses
import common
import loss_baselines
import pytest
import torch


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bm_losses, "SIZES", [(5, 200)])
    monkeypatch.setattr(bm_losses, "count_device_operations", lambda: [{"P": 5, "operations": 1}])


def test_it_writes_a_row_per_size_and_regime(tiny, tmp_path, capsys):
    output = tmp_path / "losses.json"
    threads = torch.get_num_threads()
    bm_losses.main(["--output", str(output)])
    torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert [(row["P"], row["regime"]) for row in result["rows"]] == [(5, "early"), (5, "late")]
    for row in result["rows"]:
        assert row["loop / ours"] == pytest.approx(row["loop ms"] / row["ours ms"], rel=1e-3)
    assert torch.__version__.startswith(result["metadata"]["torch"])
    assert "| 5 | 200 | early |" in capsys.readouterr().out


@pytest.mark.parametrize("regime", bm_losses.REGIMES)
@pytest.mark.parametrize("baseline", [loss_baselines.loop, loss_baselines.dense])
def test_the_baselines_compute_the_same_gradient(baseline, regime):
    batch = bm_losses.make_input(20, 500, regime, "cpu")
    torch.testing.assert_close(baseline(*batch), loss_baselines.ours(*batch), rtol=0, atol=1e-6)


def test_methods_take_turns():
    calls = []
    methods = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = common.measure(methods, rounds=2, warmup=1)
    assert calls == list("ababab")
    assert times["a"].min_ms <= times["a"].median_ms <= times["a"].max_ms


def test_peak_memory_sees_what_is_freed_again():
    peak = common.peak_memory(lambda: torch.ones(20_000_000).sum())
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 60e6 < peak < 200e6
