"""What a kill, a signal and a full disk leave of the program, in one and in two processes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPO
from detectron2.utils import comm
from helpers.tiny import write_config
from helpers.toy_training import Toy, ToyTrainer, log_lines, toy_config, toy_data, toy_trainer

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.last import tagged_checkpoint
from rs_d2.engine import TrainingDiverged
from rs_d2.utils.launch import launch
from rs_d2.utils.stopping import TrainingStopped

OPTIONS = ("SOLVER.MAX_ITER", "20")


def program(folder, output, processes, event, *options):
    """Run it; returns the process and its last line on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOY_EVENT": event}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPO), str(REPO / "tests")])
    command = [sys.executable, "-W", "ignore", str(REPO / "tests" / "helpers" / "toy_program.py")]
    command += [str(folder), str(output), str(processes), event, *OPTIONS, *options]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    return done, [line for line in done.stderr.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    toy_data(folder)
    write_config(folder)  # two processes would write it at once
    return folder


def seen(folder, name):
    found = {}
    for path in sorted(folder.glob(f"{name}-seen-*.json")):
        found |= json.loads(path.read_text())
    return found


def test_a_real_kill_leaves_a_run_that_goes_on(folder):
    out = folder / "killed"
    done, _ = program(folder, out, 1, "kill", "DATALOADER.NUM_WORKERS", "2")
    assert done.returncode == -9
    assert (out / "run.lock").exists()
    assert tagged_checkpoint(out).name == "model_0000005.pth"
    done, _ = program(folder, out, 1, "resume", "DATALOADER.NUM_WORKERS", "2")
    assert done.returncode == 0
    assert not (out / "run.lock").exists()
    done, _ = program(folder, folder / "whole", 1, "none")
    assert done.returncode == 0
    assert log_lines(out) == log_lines(folder / "whole")
    whole = seen(folder, "whole")
    assert {i: whole[i] for i in map(str, range(6, 20))} == seen(folder, "killed")


def whole_stopped_and_resumed(folder):
    """In each of two processes: a whole run, one that a signal to the second stops, its rest."""
    options = ("SOLVER.MAX_ITER", "20", "SOLVER.IMS_PER_BATCH", "4")
    whole = toy_trainer(toy_config(folder, folder / "two whole", *options))
    whole.train()
    cfg = toy_config(folder, folder / "two", *options)
    stopped, step = toy_trainer(cfg), ToyTrainer.run_step

    def signalled(self):
        if self.iter == 9 and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    ToyTrainer.run_step = signalled
    with pytest.raises(TrainingStopped):
        stopped.train()
    ToyTrainer.run_step = step
    assert tagged_checkpoint(folder / "two").name == "model_0000009.pth"
    buffers = read_checkpoint(folder / "two" / "model_0000009.pth")["trainer"]["run"]["buffers"]
    assert len(buffers) == 2
    assert buffers[0]["balancer.factor"] != buffers[1]["balancer.factor"]
    resumed = toy_trainer(cfg, resume=True)
    resumed.train()
    if comm.is_main_process():
        assert min(resumed.seen) == 10
        assert 9 not in stopped.seen  # its checkpoint was written, then the run stopped
        assert stopped.seen | resumed.seen | {9: whole.seen[9]} == whole.seen
        assert log_lines(folder / "two") == log_lines(folder / "two whole")
    state, other = resumed.checkpointer.model.state_dict(), whole.checkpointer.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.items())
    spoil_a_loss_of_the_second()
    with pytest.raises(TrainingDiverged, match=r"process 1: loss_a is nan") as error:
        toy_trainer(toy_config(folder, folder / "spoilt", *options)).train()
    assert "process 0" not in str(error.value)
    skipping = (*options, "SOLVER.ON_NONFINITE", "skip")
    toy_trainer(toy_config(folder, folder / "skipped", *skipping)).train()
    content = read_checkpoint(folder / "skipped" / "model_final.pth")
    assert content["trainer"]["run"]["skipped"] == 1
    (folder / f"done-{comm.get_rank()}").touch()


def spoil_a_loss_of_the_second():
    forward, step, now = Toy.forward, ToyTrainer.run_step, {}

    def run_step(self):
        now["iteration"] = self.iter
        step(self)

    def spoilt(self, batch):
        losses = forward(self, batch)
        if comm.get_rank() == 1 and now["iteration"] == 7:
            losses["loss_a"] = losses["loss_a"] * float("nan")
        return losses

    ToyTrainer.run_step, Toy.forward = run_step, spoilt


def test_two_processes_stop_together_and_go_on(folder):
    if torch.cuda.is_available():
        pytest.skip("processes of a GPU machine need a GPU each")
    launch(whole_stopped_and_resumed, 2, args=(folder,))
    assert (folder / "done-0").exists()
    assert (folder / "done-1").exists()


def test_a_signal_to_every_process_of_a_job_and_then_a_full_disk(folder):
    out = folder / "stopped"
    done, lines = program(folder, out, 1, "term", "DATALOADER.NUM_WORKERS", "2")
    assert done.returncode == 143, done.stderr
    assert lines == [
        f"stopped by SIGTERM; the last checkpoint is {out}/model_0000009.pth"
        " (--resume continues from it)"
    ]
    out = folder / "full"
    done, lines = program(folder, out, 1, "full")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "cannot be written" in lines[0]
    assert "model_0000005.pth" in lines[0]
    assert read_checkpoint(tagged_checkpoint(out))["iteration"] == 5
