"""``torchrun train_net.py``: one training of several processes, which survives a death."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

from helpers.tiny import write_config

pytestmark = pytest.mark.slow

# The program, in which rank 1 ends without a word before the third iteration of its first start.
PROGRAM = """
import os, sys, time
import train_net
from rs_d2 import engine

step = engine.RSTrainer.run_step

def die_once(trainer):
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    print(f"restart {restarts} iteration {trainer.iter}", flush=True)
    if trainer.iter == 2 and os.environ["RANK"] == "1" and restarts == "0":
        while not os.path.exists("output/last_checkpoint"):  # the other one still writes it
            time.sleep(0.05)
        os._exit(9)
    step(trainer)

engine.RSTrainer.run_step = die_once
sys.exit(train_net.main())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in an old folder, whose second process dies once."""
    if torch.cuda.is_available():
        pytest.skip("processes of a GPU machine need a GPU each")
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "output").mkdir()
    (folder / "output" / "last_checkpoint").write_text("model_final.pth")  # of an older run
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"),
        *("--nproc-per-node", "2", "program.py", "--config-file", write_config(folder)),
        *("OUTPUT_DIR", "output", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
        *("SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return folder / "output", done


def test_a_restart_goes_on_from_the_last_checkpoint_of_this_run(run):
    output, done = run
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if line.startswith("restart ")]
    first = [f"restart 0 iteration {iteration}" for iteration in (0, 0, 1, 1, 2, 2)]
    second = [f"restart 1 iteration {iteration}" for iteration in (2, 2, 3, 3)]
    assert sorted(steps) == first + second  # two processes train together, each iteration once
    assert (output / "last_checkpoint.before").read_text() == "model_final.pth"
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(output / "model_final.pth")["iteration"] == 3


def test_the_death_is_told_once_with_the_checkpoint_that_is_left(run):
    (line,) = [line for line in run[1].stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 1 of 2 (process ")
    assert "died without a word: killed, or out of memory; the last checkpoint is" in line
    assert "model_0000001.pth" in line
