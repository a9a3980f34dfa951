"""Processes of ``tools/ablate.py``: one that fails costs no other, and none is left behind."""

import os
import signal
import threading
import time

import pytest

pytest.importorskip("detectron2")

from helpers import toy_runs

from rs_d2.analysis.ablation import jobs


@pytest.fixture
def do_runs(tmp_path, monkeypatch):
    """``jobs.do_runs`` of runs with these deeds; returns what it returns and the lines told."""
    monkeypatch.setattr(jobs, "work", toy_runs.work)
    monkeypatch.setattr(jobs.torch, "get_num_threads", lambda: 4)

    def do(*deeds, side_by_side=2):
        lines, counts = [], []
        runs = [toy_runs.ToyRun(f"{i}_{d}", tmp_path / str(i), d) for i, d in enumerate(deeds)]
        failures = jobs.do_runs(
            runs, side_by_side, label="toy", tell=lines.append, done=lambda: counts.append(1)
        )
        assert len(counts) == len(lines) == len(runs)
        return runs, {run.variant: why for run, why in failures.items()}, lines

    return do


@pytest.fixture
def ctrl_c():
    """Python's own handling of it, which a program in the background starts without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_run_that_fails_or_dies_is_told_in_a_line_and_the_others_go_on(do_runs):
    runs, failures, lines = do_runs(*("fails", "works", "killed", "works", "signalled"))
    assert failures["0_fails"] == "failed: no such file: x.json"
    assert failures["2_killed"].startswith("failed: ended by SIGKILL, perhaps because memory ran")
    assert failures["4_signalled"].startswith(f"failed: ended by signal {signal.SIGRTMIN + 2} (")
    assert len(failures) == 3
    results = [run.result() for run in runs]
    assert [result is None for result in results] == [True, False, True, False, True]
    assert {result["threads"] for result in results if result} == {2}  # four for two processes
    assert sum("bbox/AP 12.3 in 0:00:03" in line for line in lines) == 2
    assert lines[-1].endswith("(0 more, 0:00:00 left)")


def test_no_runs_are_no_work(do_runs):
    assert do_runs() == ([], {}, [])


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_what_runs_and_keeps_what_has_ended(
    number, expected, do_runs, tmp_path, ctrl_c
):
    pid = tmp_path / "1" / "pid"

    def stop():
        while not (pid.is_file() and pid.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(expected) as stopped:
        do_runs("works", "waits", "works", side_by_side=1)
    if expected is SystemExit:
        assert stopped.value.code == 143
    assert (tmp_path / "0" / "result.json").is_file()
    assert not (tmp_path / "2").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_while_a_process_starts_is_not_lost(do_runs, tmp_path, monkeypatch, ctrl_c):
    real = jobs._Process

    def interrupted(run, *args):
        process = real(run, *args)
        os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(jobs, "_Process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do_runs("waits", side_by_side=1)
    pid = tmp_path / "0" / "pid"
    if pid.is_file():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
