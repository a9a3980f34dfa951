"""Runs that train nothing: what a process of ``tools/ablate.py`` may do, in milliseconds."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple


class ToyRun(NamedTuple):
    """Has what ``rs_d2.analysis.ablation.jobs`` asks a run for."""

    variant: str
    folder: Path
    deed: str
    iterations: int = 3

    @property
    def title(self):
        return self.variant

    def result(self):
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None


def work(run, report, slot, num_threads):
    run.folder.mkdir(parents=True, exist_ok=True)
    report.send(("resumed", 0))
    report.send(("iteration", 1))
    if run.deed == "fails":
        report.send(("failed", "no such file: x.json"))
        sys.exit(1)
    if run.deed == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if run.deed == "signalled":
        os.kill(os.getpid(), signal.SIGRTMIN + 2)  # a number without a name
    if run.deed == "waits":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        (run.folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)  # not for ever, where a test fails
    content = {"metrics": {"bbox/AP": 12.34}, "seconds": 3, "threads": num_threads, "slot": slot}
    (run.folder / "result.json").write_text(json.dumps(content))
