"""``train_net.py`` in two processes, one of which fails: both end, and one line says why.

The processes are forked and not spawned, which saves their start-up; all else is the program's.
"""

import multiprocessing
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm
from helpers.toy_training import Toy, ToyTrainer, toy_arguments, toy_config, toy_trainer
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train_net
from rs_d2 import engine
from rs_d2.utils import children

fork = multiprocessing.get_context("fork")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="processes without a GPU")
OPTIONS = ("SOLVER.MAX_ITER", "20", "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "1")


def nan(starter):
    forward = Toy.forward

    def spoilt(model, batch):
        losses = forward(model, batch)
        return {**losses, "loss_a": losses["loss_a"] * float("nan")}

    Toy.forward = spoilt


def worker_killed(starter):
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)


def starter_stopped(starter):
    os.kill(starter, signal.SIGTERM)
    time.sleep(0.3)


class EventfulTrainer(ToyTrainer):
    """Meets the event in iteration 9 of the second process."""

    event = None

    def run_step(self):
        if self.iter == 9 and comm.get_rank() == 1:
            Path(f"{self.cfg.OUTPUT_DIR}-event").write_text(str(time.time()))
            EventfulTrainer.event()
        super().run_step()


def program(arguments, pids):
    Path(pids, str(os.getpid())).touch()
    sys.exit(train_net.main(arguments))


def under_torchrun(arguments, folder):
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
        monitor_interval=0.1,
    )
    elastic_launch(config, program)(arguments, folder)


def with_num_gpus(arguments, folder):
    children.mp = SimpleNamespace(get_context=lambda _: fork)
    program(["--num-gpus", "2", *arguments], folder)


WAYS = {"--num-gpus": with_num_gpus, "torchrun": under_torchrun}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with data; what a training imports is imported."""
    folder = tmp_path_factory.mktemp("forked")
    toy_trainer(toy_config(folder, folder / "warm", "SOLVER.MAX_ITER", "1")).train()
    return folder


def run(way, event, data, folder):
    """Exit code, lines on stderr, and seconds from the event to the end."""
    config, fixed, own = toy_arguments(data, folder / "out", *OPTIONS)
    arguments = ["--config-file", config, "--train-json", own.train_json]
    arguments += ["--train-images", own.train_images, *fixed]
    (folder / "pids").mkdir()

    def start():
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o666), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        engine.RSTrainer = EventfulTrainer
        EventfulTrainer.event = staticmethod(partial(event, os.getpid()))
        WAYS[way](arguments, folder / "pids")

    starter = fork.Process(target=start)
    starter.start()
    starter.join(60)
    seconds = time.time() - float((folder / "out-event").read_text())
    left = [pid for pid in os.listdir(folder / "pids") if os.path.exists(f"/proc/{pid}")]
    lines = (folder / "stderr").read_text().splitlines()
    if starter.exitcode is None or left:
        os.killpg(starter.pid, signal.SIGKILL)
    assert not left, lines
    return starter.exitcode, lines, seconds


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("event", "code", "beginning", "checkpoint"),
    [
        (nan, 1, "error: training diverged at iteration 9: in process 1: loss_a is nan", 5),
        (worker_killed, 1, "error: rank 1 of 2: a data-loader worker died", 5),
        (starter_stopped, 143, "stopped by SIGTERM", 9),
    ],
)
def test_both_end_and_one_line_says_why(data, tmp_path, way, event, code, beginning, checkpoint):
    found, lines, seconds = run(way, event, data, tmp_path)
    assert found == (code if way == "--num-gpus" else 1), lines  # torchrun's own is always 1
    assert seconds < 10
    (line,) = [line for line in lines if line.startswith(("error: ", "stopped "))]
    assert line.startswith(beginning)
    assert f"the last checkpoint is {tmp_path}/out/model_{checkpoint:07d}.pth" in line
    assert not [line for line in lines if "Traceback" in line and way == "--num-gpus"]
