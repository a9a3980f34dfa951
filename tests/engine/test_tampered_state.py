"""``--resume`` where the state of the training, or the folder, is not what a run leaves."""

import os
import shutil

import pytest
import torch
from helpers.toy_training import log_lines, toy_config, toy_trainer

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.utils.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampered")
    toy_trainer(toy_config(folder, folder / "out", "SOLVER.MAX_ITER", "12")).train()
    return folder


@pytest.fixture
def out(finished, tmp_path):
    shutil.copytree(finished / "out", tmp_path / "out")
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000005.pth")
    return tmp_path / "out"


def resumed(finished, out, *options):
    cfg = toy_config(finished, out, "SOLVER.MAX_ITER", "12", *options, resume=True)
    return toy_trainer(cfg, resume=True)


def loss_scalar(state):
    return state["hooks"]["RecentScalars"]["total_loss"]


def moments(state):
    return state["_trainer"]["optimizer"]["state"][0]


CHANGES = {
    "iteration text": lambda state: state.update(iteration="5"),
    "iteration true": lambda state: state.update(iteration=True),
    "iteration inf": lambda state: state.update(iteration=float("inf")),
    "seed text": lambda state: state["run"].update(seed="abc"),
    "seed None": lambda state: state["run"].update(seed=None),
    "seed huge": lambda state: state["run"].update(seed=2**70),
    "seed negative": lambda state: state["run"].update(seed=-1),
    "skipped text": lambda state: state["run"].update(skipped="x"),
    "no run": lambda state: state.update(run=[1]),
    "buffers": lambda state: state["run"].update(buffers=[{"norm.running_mean": torch.ones(3)}]),
    "scalars fewer": lambda state: loss_scalar(state).update(values=[1.0]),
    "scalars text": lambda state: loss_scalar(state).update(values=["x"] * 6),
    "scalars none": lambda state: loss_scalar(state).pop("values"),
    "optimizer shape": lambda state: moments(state).update(exp_avg=torch.ones(2, 2)),
    "optimizer groups": lambda state: state["_trainer"]["optimizer"]["param_groups"].pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_no_training_has_left_is_one_line(finished, out, change):
    path = out / "model_0000005.pth"
    content = read_checkpoint(path)
    CHANGES[change](content["trainer"])
    torch.save(content, path)
    with pytest.raises(UserError, match=r"^--resume: .*(does not fit|no state of a training)"):
        resumed(finished, out).train()


def test_other_data_and_nothing_to_train_are_told(finished, out, caplog):
    path = out / "model_0000005.pth"
    content = read_checkpoint(path)
    content["trainer"]["run"]["images"] = 99
    torch.save(content, path)
    resumed(finished, out, "SOLVER.MAX_ITER", "6")
    told = [each.getMessage() for each in caplog.records]
    assert "--resume: 99 training images before, 13 now: the order is another one" in told
    caplog.clear()
    content["trainer"]["run"]["images"] = None  # of a loader of the user's, which has no number
    torch.save(content, path)
    resumed(finished, out)
    assert not [each for each in caplog.records if "training images" in each.msg]
    nothing = "--resume: nothing is left to train: model_0000005.pth is of iteration 5"
    assert any(line.startswith(nothing) for line in told)


@pytest.mark.parametrize("name", ["last_checkpoint", "train_log.jsonl", "log.txt", "config.yaml"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_pipe_where_a_file_goes_is_told_before_the_training(out, finished, name, make):
    (out / name).unlink(missing_ok=True)
    make(out / name)
    kind = "folder" if make is os.mkdir else "pipe"
    with pytest.raises(UserError, match=f"OUTPUT_DIR: {out / name} is a {kind}"):
        toy_config(finished, out)


@pytest.mark.parametrize("name", ["", "s3://bucket/out", "https://x/y", "a\0b"])
def test_an_output_folder_that_is_none_is_told(finished, name):
    with pytest.raises(UserError, match=r"^OUTPUT_DIR: '.*' is no folder of this machine"):
        toy_config(finished, name)


@pytest.mark.parametrize("name", ["inference", "predictions"])
def test_a_file_where_a_folder_goes_is_told_before_the_training(out, finished, name):
    (out / name).touch()
    with pytest.raises(UserError, match=f"OUTPUT_DIR: {out / name} is no folder"):
        toy_config(finished, out)


@pytest.mark.parametrize("rest", [b'{"iteration": 5, "total_l', b"[" * 100_000, b"\x80\n\xff"])
def test_a_log_that_ends_within_a_line_is_mended(finished, out, rest):
    log = out / "train_log.jsonl"
    log.write_bytes(log.read_bytes() + rest)
    resumed(finished, out).train()
    assert log_lines(out) == log_lines(finished / "out")
