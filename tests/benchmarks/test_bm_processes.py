"""The benchmark of joined rankings counts what is sent."""

import bm_processes
import torch
import torch.distributed as dist


def test_traffic_counts_calls_and_bytes(monkeypatch):
    for name in ("all_gather", "all_reduce"):
        monkeypatch.setattr(dist, name, lambda *args: None)
    with bm_processes.Traffic() as traffic:
        dist.all_reduce(torch.zeros(4))
        dist.all_gather([torch.zeros(2), torch.zeros(2)], torch.zeros(2, dtype=torch.float64))
    dist.all_reduce(torch.zeros(100))
    assert (traffic.calls, traffic.bytes) == (2, 32)


def test_a_step_gives_every_logit_a_gradient_in_both_ways():
    logits, targets = bm_processes.make_input(5, 50, "early", "cpu")
    for joined in (False, True):  # alone, both are the same
        bm_processes.step(logits, targets, joined)
