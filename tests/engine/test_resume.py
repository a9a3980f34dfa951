"""A resumed run does what the uninterrupted one does, wherever it was interrupted."""

import random

import pytest
import torch
from helpers.toy_training import ToyTrainer, log_lines, toy_config, toy_trainer
from torch import nn

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.criterion import (
    BOX_LOSSES,
    LABELS,
    RANKINGS,
    WEIGHTS,
    Candidates,
    Criterion,
    Task,
    find_positives,
)
from rs_d2.criterion.balancing import EPOCH_START, EpochBalancer


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


def test_a_kill_after_the_last_iteration_leaves_no_trace(tmp_path, monkeypatch):
    data = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "6"]
    whole = uninterrupted(tmp_path, "whole", *data)[1]
    cfg = toy_config(tmp_path, tmp_path / "killed", *data)
    trainer = toy_trainer(cfg)
    trainer.train()
    assert trainer.iter == 6
    again = toy_trainer(cfg, resume=True)
    again.train()  # the results of the final evaluation get its number
    assert again.start_iter == again.iter == again.storage.iter == 6
    assert log_lines(tmp_path / "killed") == whole


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


class Ranked(nn.Module):
    """Four candidates of each image, the first a positive, trained by aLRP Loss and its balance."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 20)
        box_loss = BOX_LOSSES["giou"]
        self.criterion = Criterion(
            ranking=RANKINGS["alrp"](num_classes=1, box_loss=box_loss),
            label=LABELS["iou"],
            weight=WEIGHTS["score"],
            tasks={"box": Task(box_loss, EpochBalancer(), outputs="pred_deltas")},
        )

    def forward(self, batch):
        means = torch.stack([each["image"].float().flatten(1).mean(1) / 255 for each in batch])
        logits, deltas = self.linear(means).view(-1, 5).split([1, 4], dim=1)
        gt_classes = torch.tensor([0, 1, 1, 1] * len(batch))
        gt_boxes = torch.stack([each["instances"].gt_boxes.tensor[0] for each in batch])
        positives = find_positives(gt_classes, 1)
        deltas = deltas[positives]
        return self.criterion(
            Candidates(logits, gt_classes, positives, gt_boxes + deltas, gt_boxes, deltas)
        ).losses


def test_alrps_balance_goes_on_in_the_middle_of_an_epoch(folder, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "build_model", classmethod(lambda cls, cfg: seeded_model()))
    options = ("SOLVER.MAX_ITER", "20")  # epochs of 7 iterations, a checkpoint after every 6
    whole, _ = uninterrupted(folder, "alrp whole", *options)
    cfg = toy_config(folder, folder / "alrp", *options)
    died = interrupted(cfg, monkeypatch, at_iteration=16, resume=False)
    resumed = toy_trainer(cfg, resume=True)
    resumed.train()
    assert min(resumed.seen) == 12  # in the second epoch
    assert died.seen | resumed.seen == whole.seen
    balancer = whole.model.criterion.tasks["box"].balancer
    assert (balancer.period, int(balancer.count)) == (7, 20 - 2 * 7)
    assert balancer.factor != EPOCH_START
    first, second = (x.model.state_dict() for x in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def seeded_model():
    torch.manual_seed(1)
    return Ranked()


def test_workers_change_nothing(folder):
    options = ("SOLVER.MAX_ITER", "8", "DATALOADER.NUM_WORKERS")
    seen = [uninterrupted(folder, f"{n} workers", *options, str(n))[0].seen for n in (0, 2)]
    assert seen[0] == seen[1]
