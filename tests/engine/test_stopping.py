"""Signals, broken numbers, broken files and folders: one line, and a checkpoint that is good."""

import os
import shutil
import signal

import pytest
import torch
from helpers.toy_training import (
    Toy,
    ToyTrainer,
    log_lines,
    toy_arguments,
    toy_config,
    toy_trainer,
)

from rs_d2 import engine
from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.last import resumable_checkpoint, tagged_checkpoint
from rs_d2.engine.progress import LoaderWithBar
from rs_d2.utils.errors import UserError
from rs_d2.utils.stopping import TrainingStopped, stop_signals


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with data and the output of a run to its end: checkpoints 5, 11, 17 and the last."""
    folder = tmp_path_factory.mktemp("finished")
    toy_trainer(toy_config(folder, folder / "out", "SOLVER.MAX_ITER", "20")).train()
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_of_its_iteration(finished, tmp_path, number, monkeypatch):
    cfg = toy_config(finished, tmp_path, "SOLVER.MAX_ITER", "20")
    step = ToyTrainer.run_step

    def signalled(self):
        if self.iter == 9:
            os.kill(os.getpid(), number)
        step(self)

    monkeypatch.setattr(ToyTrainer, "run_step", signalled)
    with pytest.raises(TrainingStopped) as stopped:
        toy_trainer(cfg).train()
    assert stopped.value.code == 128 + number
    assert tagged_checkpoint(tmp_path).name == "model_0000009.pth"
    monkeypatch.undo()
    resumed = toy_trainer(cfg, resume=True)
    resumed.train()
    assert min(resumed.seen) == 10
    assert log_lines(tmp_path) == log_lines(finished / "out")


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end():
    with stop_signals():
        batches = iter(LoaderWithBar([1, 2, 3], "images"))
        assert next(batches) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TrainingStopped):
            next(batches)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def poison(monkeypatch, iterations, where="loss"):
    """Make a loss, an output, or a gradient of some iterations NaN."""
    forward, step = Toy.forward, ToyTrainer.run_step
    now = {}

    def run_step(self):
        now["bad"] = self.iter in iterations
        step(self)

    def poisoned(self, batch):
        if now["bad"] and where == "output":
            handle = self.linear.register_forward_hook(
                lambda *args: args[-1] * float("nan"), prepend=True
            )
        losses = forward(self, batch)
        if now["bad"] and where == "output":
            handle.remove()
        if now["bad"] and where == "loss":
            losses["loss_a"] = losses["loss_a"] * float("inf")
        if now["bad"] and where == "gradient":  # finite itself
            weight = self.linear.weight
            losses["loss_a"] = losses["loss_a"] + (weight - weight.detach()).abs().sqrt().sum()
        return losses

    monkeypatch.setattr(ToyTrainer, "run_step", run_step)
    monkeypatch.setattr(Toy, "forward", poisoned)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("loss", r"loss_a is inf; the first output that is not finite is that of Toy; images: "),
        ("output", r"loss_a is nan, loss_b is nan; the first .* is that of linear; images: "),
        ("gradient", r"the gradient of linear.weight is not finite; images: "),
    ],
)
def test_what_is_not_finite_is_traced_to_its_images_and_module(
    finished, tmp_path, monkeypatch, where, line
):
    cfg = toy_config(finished, tmp_path)
    poison(monkeypatch, {8}, where)
    with pytest.raises(engine.TrainingDiverged, match=f"diverged at iteration 8: {line}") as error:
        toy_trainer(cfg).train()
    assert "\n" not in str(error.value)
    assert "model_0000005.pth" in str(error.value)
    left = read_checkpoint(tmp_path / "nonfinite_0000008.pth")
    assert left["iteration"] == 8
    assert len(left["files"]) == 2
    assert all(file in str(error.value) for file in left["files"])
    assert left["batch"][0]["image"].shape[0] == 3
    assert left["batch"][0]["instances"]["gt_boxes"].shape == (1, 4)
    assert left["weights"]["linear.weight"]["finite"]


def test_weights_that_were_broken_before_are_named(finished, tmp_path, monkeypatch):
    trainer = toy_trainer(toy_config(finished, tmp_path))
    trainer.checkpointer.model.linear.bias.data[0] = float("nan")
    with pytest.raises(engine.TrainingDiverged, match=r"weight linear.bias was not finite before"):
        trainer.train()


def test_skipped_iterations_change_nothing_and_are_counted(finished, tmp_path, monkeypatch):
    cfg = toy_config(finished, tmp_path, "SOLVER.ON_NONFINITE", "skip", "SOLVER.MAX_ITER", "12")
    trainer, state = toy_trainer(cfg), {}
    poison(monkeypatch, {0, 7, 8}, "output")
    step = ToyTrainer.run_step

    def compared(self):
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        step(self)
        state[self.iter] = all(
            torch.equal(before[name], value)
            for name, value in self.model.state_dict().items()
            if "num_batches" not in name
        )

    monkeypatch.setattr(ToyTrainer, "run_step", compared)
    trainer.train()
    assert [i for i, same in state.items() if same] == [0, 7, 8]
    assert read_checkpoint(tmp_path / "model_final.pth")["trainer"]["run"]["skipped"] == 3
    assert trainer.storage.latest()["nonfinite/skipped"][0] == 3


def test_skipping_gives_up_after_the_limit(finished, tmp_path, monkeypatch):
    options = ["SOLVER.ON_NONFINITE", "skip", "SOLVER.NONFINITE_LIMIT", "2"]
    poison(monkeypatch, range(7, 99))
    with pytest.raises(engine.TrainingDiverged, match=r"iteration 9 after 2 in a row: loss_a is"):
        toy_trainer(toy_config(finished, tmp_path, *options)).train()


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint_that_diverges_is_not_written(finished, tmp_path, monkeypatch, part):
    step = ToyTrainer.run_step

    def broken(self):
        step(self)
        if self.iter == 11:
            if part == "model":
                self.checkpointer.model.linear.weight.data[0] = float("inf")
            else:
                next(iter(self.optimizer.state.values()))["exp_avg"].fill_(float("nan"))

    monkeypatch.setattr(ToyTrainer, "run_step", broken)
    named = "linear.weight" if part == "model" else r"trainer._trainer.optimizer.state.0.exp_avg"
    with pytest.raises(engine.TrainingDiverged, match=f"{named} is not finite, .*0000011.pth is"):
        toy_trainer(toy_config(finished, tmp_path)).train()
    assert tagged_checkpoint(tmp_path).name == "model_0000005.pth"
    assert not (tmp_path / "model_0000011.pth").exists()


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "NaN":
        content = read_checkpoint(path)
        content["model"]["linear.bias"][0] = float("nan")
        torch.save(content, path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "words": b"a"}[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "words", "missing", "NaN"])
def test_a_broken_checkpoint_is_replaced_by_the_one_before(copied, how, caplog):
    damage(copied / "out" / "model_final.pth", how)
    damage(copied / "out" / "model_0000017.pth", how)
    trainer = toy_trainer(toy_config(copied, copied / "out", resume=True), resume=True)
    assert trainer.start_iter == 12
    warnings = [each.getMessage() for each in caplog.records if "--resume" in each.getMessage()]
    assert len(warnings) == (1 if how == "missing" else 2)  # nobody knew of the second
    assert all("going on from model_0000011.pth" in each for each in warnings)


def test_later_checkpoints_of_an_earlier_run_are_left_alone(copied):
    (copied / "out" / "last_checkpoint").write_text("model_0000011.pth")
    damage(copied / "out" / "model_0000011.pth", "empty")
    assert resumable_checkpoint(copied / "out").path.name == "model_0000005.pth"


BROKEN_TAGS = [b"", b"  \n", b"\x80\x00\xff", b"model\x00.pth", b"a\nb", b"x" * 5000]
OUTSIDE = [b"../out/model_final.pth", b"/dev/zero", b"."]


@pytest.mark.parametrize("tag", [*BROKEN_TAGS, *OUTSIDE])
def test_a_broken_tag_is_one_line(copied, tag):
    (copied / "out" / "last_checkpoint").write_bytes(tag)
    found = resumable_checkpoint(copied / "out")
    assert found.path.name == "model_0000017.pth"
    assert found.problems == (f"{copied / 'out' / 'last_checkpoint'} names no checkpoint",)
    for path in (copied / "out").glob("*.pth"):
        path.unlink()
    with pytest.raises(UserError, match=r"^--resume: .*last_checkpoint names no checkpoint$"):
        toy_config(copied, copied / "out", resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.META_ARCHITECTURE", "ProposalNetwork"), ("SOLVER.OPTIMIZER", "sgd")],
)
def test_another_architecture_is_not_resumed(copied, key, value):
    cfg = toy_config(copied, copied / "out").clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    if key.startswith("MODEL"):
        cfg.MODEL.MASK_ON = False
    with pytest.raises(UserError, match=f"^--resume: .*was trained with {key} .*, not {value};"):
        toy_trainer(cfg, resume=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda content: content.pop("trainer"), "holds no state of a training"),
        (lambda content: content.update(trainer="a word"), "holds no state of a training"),
        (lambda content: content["trainer"].update(iteration=-7), "holds no state of a training"),
        (
            lambda content: content["trainer"].update(run={"seed": "x"}),
            "training state does not fit",
        ),
        (lambda content: content["trainer"].update(_trainer=[]), "training state does not fit"),
        (
            lambda content: content["trainer"]["_trainer"]["optimizer"].update(param_groups=[]),
            "training state does not fit",
        ),
    ],
)
def test_a_checkpoint_without_a_training_is_not_resumed(copied, change, line):
    path = copied / "out" / "model_final.pth"
    content = read_checkpoint(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=f"^--resume: .*{line}"):
        toy_trainer(toy_config(copied, copied / "out"), resume=True)


def test_a_checkpoint_of_an_older_version_is_resumed(copied):
    path = copied / "out" / "model_0000011.pth"
    content = read_checkpoint(path)
    del content["trainer"]["run"], content["trainer"]["hooks"]["RecentScalars"]
    torch.save(content, path)
    (path.parent / "last_checkpoint").write_text(path.name)
    resumed = toy_trainer(toy_config(copied, path.parent, "SOLVER.MAX_ITER", "20"), resume=True)
    resumed.train()
    assert min(resumed.seen) == 12


def test_a_layer_of_another_shape_is_not_resumed(copied, monkeypatch):
    def other(cls, cfg):
        model = Toy()
        model.linear = torch.nn.Linear(6, 3)
        return model

    monkeypatch.setattr(ToyTrainer, "build_model", classmethod(other))
    with pytest.raises(UserError, match=r"^--resume: .*does not fit this config: linear.weight"):
        toy_trainer(toy_config(copied, copied / "out"), resume=True)


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [
        ("SOLVER.MAX_ITER", "0", 1),
        ("SOLVER.MAX_ITER", "-5", 1),
        ("SOLVER.CHECKPOINT_PERIOD", "0", 1),
        ("SOLVER.NONFINITE_LIMIT", "-1", 0),
        ("DATALOADER.NUM_WORKERS", "-1", 0),
        ("TEST.EVAL_PERIOD", "-1", 0),
    ],
)
def test_a_number_that_makes_no_sense_is_named(finished, tmp_path, key, value, least):
    with pytest.raises(UserError, match=f"^{key}: {value} is not at least {least}$"):
        toy_config(finished, tmp_path, key, value)


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        ("bbox/mAP", "'bbox/mAP' is no result of this evaluation; did you mean bbox/"),
        ("AP", "'AP' is no result"),
        ("segm", "'segm' is no result"),
        ("own_val/bbox/AP", "'own_val/bbox/AP' is no result"),
        ("bbox/AP_fixed", "'bbox/AP_fixed' is no result"),
    ],
)
def test_a_mistyped_metric_is_found_before_the_training(finished, tmp_path, metric, line):
    config, options, data = toy_arguments(finished, tmp_path, "TEST.BEST_METRIC", metric)
    with pytest.raises(UserError, match=r"DATASETS.TEST is empty"):
        engine.prepare(config, options, data)
    data = data._replace(val_json=data.train_json, val_images=data.train_images)
    with pytest.raises(UserError, match=f"^TEST.BEST_METRIC: {line}"):
        engine.prepare(config, options, data)
    engine.prepare(config, [*options, "TEST.BEST_METRIC", "bbox/oLRPs"], data)
