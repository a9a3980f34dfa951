"""A resumed run does what the uninterrupted one does, wherever it was interrupted."""

import random

import pytest
import torch
from helpers.toy_training import ToyTrainer, log_lines, toy_config, toy_trainer

from rs_d2.checkpoint.files import read_checkpoint


class Killed(BaseException):
    """As a kill: nobody gets to save anything."""


def interrupted(cfg, monkeypatch, at_iteration=None, at_write=None, resume=True):
    """Run until an iteration, or into a write, whichever number is given; True if it came there."""
    trainer = toy_trainer(cfg, resume)
    with monkeypatch.context() as patch:
        if at_iteration is not None:
            step = ToyTrainer.run_step

            def run_step(self):
                if self.iter == at_iteration:
                    raise Killed
                step(self)

            patch.setattr(ToyTrainer, "run_step", run_step)
        else:
            save, writes = torch.save, []

            def broken_save(content, file):
                writes.append(1)
                if len(writes) == at_write:
                    file.write(b"PK\x03\x04 half")
                    raise Killed
                save(content, file)

            patch.setattr(torch, "save", broken_save)
        patch.setattr(ToyTrainer, "after_train", lambda self: None)  # nor does a hook get to run
        try:
            trainer.train()
        except Killed:
            return trainer
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


def uninterrupted(folder, name, *options):
    trainer = toy_trainer(toy_config(folder, folder / name, *options))
    trainer.train()
    return trainer, log_lines(folder / name)


def test_twenty_kills_leave_no_trace(folder, monkeypatch):
    whole, lines = uninterrupted(folder, "whole")
    assert [line["iteration"] for line in lines] == [19, 39, 44]
    rng, cfg = random.Random(0), toy_config(folder, folder / "killed")
    seen, kills, resume = {}, 0, False
    while kills < 20:
        if kills % 2:
            died = interrupted(cfg, monkeypatch, at_write=rng.randint(1, 2), resume=resume)
        else:
            first = max(seen, default=0)
            died = interrupted(cfg, monkeypatch, first + rng.randint(1, 4), resume=resume)
        resume = True
        if died is None:  # came to its end before it was killed: from the middle again
            (folder / "killed" / "last_checkpoint").write_text("model_0000017.pth")
            seen = {i: losses for i, losses in seen.items() if i <= 17}
            continue
        kills += 1
        seen |= died.seen
    last = toy_trainer(cfg, resume=True)
    last.train()
    seen |= last.seen
    assert seen == whole.seen
    assert log_lines(folder / "killed") == lines
    first, second = (x.model.state_dict() for x in (whole, last))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "options",
    [
        ["DATALOADER.NUM_WORKERS", "2"],
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        [
            *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
            *("DATALOADER.REPEAT_ROUNDING", "stochastic"),
        ],
        ["DATALOADER.ASPECT_RATIO_GROUPING", "False", "SOLVER.IMS_PER_BATCH", "3"],
        ["SOLVER.OPTIMIZER", "sgd", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
        ["SEED", "-1"],
        ["INPUT.AUGMENTATION", "ssd", "INPUT.MIN_SIZE_TRAIN", "(12,)"],
    ],
    ids=["workers", "ceil", "stochastic", "ungrouped", "cosine", "no seed", "ssd"],
)
def test_every_order_and_schedule_goes_on(folder, options, monkeypatch, request):
    name = request.node.callspec.id
    cfg = toy_config(folder, folder / name, *options, "SOLVER.MAX_ITER", "26")
    died = interrupted(cfg, monkeypatch, at_iteration=23, resume=False)
    if name == "no seed":
        seed = read_checkpoint(folder / name / "model_0000017.pth")["trainer"]["run"]["seed"]
        monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: seed)
    whole, lines = uninterrupted(folder, f"{name} whole", *options, "SOLVER.MAX_ITER", "26")
    monkeypatch.undo()
    resumed = toy_trainer(cfg, resume=True)
    resumed.train()
    assert min(resumed.seen) == 18
    assert died.seen | resumed.seen == whole.seen
    assert log_lines(folder / name) == lines


def test_workers_change_nothing(folder):
    options = ("SOLVER.MAX_ITER", "8", "DATALOADER.NUM_WORKERS")
    seen = [uninterrupted(folder, f"{n} workers", *options, str(n))[0].seen for n in (0, 2)]
    assert seen[0] == seen[1]
