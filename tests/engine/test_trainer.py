import pytest
import torch
from conftest import shared
from helpers.tiny import own_data, write_config

from rs_d2 import engine
from rs_d2.engine.progress import LoaderWithBar
from rs_d2.utils.errors import UserError


@pytest.fixture
def cfg(tmp_path):
    arguments = ["--config-file", write_config(tmp_path)]
    arguments += own_data(shared("data/nuts/train.json"), shared("data/nuts/val.json"))
    options = ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1"]
    cfg, _ = engine.setup(engine.parse_args([*arguments, *options, "SOLVER.IMS_PER_BATCH", "1"]))
    return cfg


def stepped(cfg):
    """A trainer whose optimizer has done one step."""
    trainer = engine.RSTrainer(cfg)
    for param in trainer.model.parameters():
        param.grad = torch.ones_like(param)
    trainer.optimizer.step()
    return trainer


def test_the_optimizer_is_part_of_a_checkpoint(cfg):
    trainer = stepped(cfg)
    trainer.iter = 6
    state = trainer.state_dict()
    other = engine.RSTrainer(cfg)
    other.load_state_dict(state)
    assert other.iter == 6
    first, second = (x.optimizer.state_dict()["state"] for x in (trainer, other))
    assert len(first) > 0
    assert all(torch.equal(first[i]["exp_avg"], second[i]["exp_avg"]) for i in first)


def test_a_checkpoint_without_optimizer_is_accepted(cfg):
    trainer = engine.RSTrainer(cfg)
    trainer.load_state_dict({"iteration": 4})
    assert trainer.iter == 4


def test_an_unknown_scheduler_is_named(cfg):
    cfg.defrost()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmUp"
    with pytest.raises(UserError, match=r"^SOLVER.LR_SCHEDULER_NAME: .*WarmUp"):
        engine.RSTrainer(cfg)


def test_an_unknown_sampler_is_named(cfg):
    cfg.defrost()
    cfg.DATALOADER.SAMPLER_TRAIN = "BestSampler"
    with pytest.raises(UserError, match=r"^DATALOADER.SAMPLER_TRAIN: .*BestSampler"):
        engine.RSTrainer.build_train_loader(cfg)


def test_the_test_loader_reads_every_image_once(cfg):
    loader = engine.RSTrainer.build_test_loader(cfg, "own_val")
    names = [batch[0]["file_name"] for batch in loader]
    assert len(names) == len(set(names)) == len(loader) == 6


def test_augmented_results_stand_beside_the_plain_ones(cfg, monkeypatch):
    def test(cls, cfg, model, evaluators=None):
        return {"bbox": {"AP": 1.0 if evaluators is None else 2.0}}

    monkeypatch.setattr("rs_d2.engine.trainer.DefaultTrainer.test", classmethod(test))
    monkeypatch.setattr("rs_d2.engine.trainer.GeneralizedRCNNWithTTA", lambda cfg, model: model)
    assert engine.RSTrainer.test(cfg, None) == {"bbox": {"AP": 1.0}}
    cfg.defrost()
    cfg.TEST.AUG.ENABLED = True
    results = engine.RSTrainer.test(cfg, None)
    assert results == {"bbox": {"AP": 1.0}, "bbox_TTA": {"AP": 2.0}}


def test_a_bar_changes_nothing_of_what_is_read(monkeypatch, capsys):
    monkeypatch.setattr("rs_d2.engine.progress.is_live", lambda: True)
    assert list(LoaderWithBar([1, 2, 3], "numbers")) == [1, 2, 3]
    assert "numbers" in capsys.readouterr().err


def test_prints_appear_above_the_bars_line_by_line(monkeypatch, capsys):
    monkeypatch.setattr("rs_d2.engine.progress.is_live", lambda: True)
    with engine.console_above_bars():
        print("one", "two")
        print("three")
    assert capsys.readouterr().out == "one two\nthree\n"


def test_alrps_balance_looks_back_on_an_epoch_of_the_training_set(cfg):
    cfg.defrost()
    cfg.MODEL.RPN.CRITERION.LOSS = cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS = "alrp"
    cfg.SOLVER.IMS_PER_BATCH = 2
    trainer = engine.RSTrainer(cfg)
    num_images = engine.RSTrainer.build_train_loader(cfg).num_images
    tasks = [
        trainer.model.proposal_generator.criterion.tasks["box"],
        trainer.model.roi_heads.box_predictor.criterion.tasks["box"],
    ]
    assert [task.balancer.period for task in tasks] == [-(-num_images // 2)] * 2


def test_alrps_balance_needs_a_period_with_a_loader_that_does_not_tell_its_length(cfg):
    class Trainer(engine.RSTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return iter([])

    cfg.defrost()
    cfg.MODEL.RPN.CRITERION.LOSS = "alrp"
    with pytest.raises(UserError, match=r"^CRITERION\.BALANCE: epoch .* CRITERION\.BALANCE_PERIOD"):
        Trainer(cfg)
    cfg.MODEL.RPN.CRITERION.BALANCE_PERIOD = 9
    balancer = Trainer(cfg).model.proposal_generator.criterion.tasks["box"].balancer
    assert balancer.period == 9


def test_a_long_training_remembers_a_bounded_number_of_values(cfg, monkeypatch):
    monkeypatch.setattr("rs_d2.utils.d2_compat.LONGEST_WINDOW", 2)
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 4
    trainer = engine.RSTrainer(cfg)
    trainer.train()
    losses = trainer.storage.history("total_loss")
    assert [iteration for _, iteration in losses.values()] == [2, 3]
    assert losses.global_avg() != losses.avg(2)  # of all four
