import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from rs_d2.engine.checkpointer import (
    RSCheckpointer,
    check_weights,
    last_checkpoint_line,
    load_for_evaluation,
)
from rs_d2.errors import UserError


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def save(path, state):
    torch.save({"model": state}, path)
    return str(path)


def test_what_was_saved_is_loaded(model, tmp_path):
    path = save(tmp_path / "a.pth", model.state_dict())
    other = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    checkpointer = RSCheckpointer(other)
    checkpointer.load(path)
    assert checkpointer.unset == {}
    assert all(torch.equal(other.state_dict()[k], v) for k, v in model.state_dict().items())


def test_a_head_of_another_class_count_is_skipped_for_training(model, tmp_path):
    state = {**model.state_dict(), "1.weight": torch.zeros(5, 3), "1.bias": torch.zeros(5)}
    checkpointer = RSCheckpointer(model)
    checkpointer.load(save(tmp_path / "a.pth", state))
    assert checkpointer.unset == {"1.weight": (5, 3), "1.bias": (5,)}


def test_a_head_of_another_class_count_is_an_error_for_evaluation(model, cfg, tmp_path):
    cfg.MODEL.WEIGHTS = save(
        tmp_path / "a.pth", {**model.state_dict(), "1.weight": torch.zeros(5, 3)}
    )
    with pytest.raises(UserError, match=r"1.weight is \(5, 3\) in the file but \(2, 3\)"):
        load_for_evaluation(cfg, model, resume=False)


def test_a_missing_head_is_an_error_for_evaluation(model, cfg, tmp_path):
    state = {name: value for name, value in model.state_dict().items() if name[0] == "0"}
    cfg.MODEL.WEIGHTS = save(tmp_path / "a.pth", state)
    with pytest.raises(UserError, match=r"1.weight is not in the file"):
        load_for_evaluation(cfg, model, resume=False)


def test_a_checkpoint_that_shares_nothing_is_named(model, tmp_path):
    path = save(tmp_path / "foreign.pth", {"foreign": torch.zeros(1)})
    with pytest.raises(UserError, match=r"no tensor of .*foreign.pth fits this model"):
        RSCheckpointer(model).load(path)


@pytest.mark.parametrize(
    "content", [b"", b"words", b"PK\x03\x04 truncated", b"\x80\x02]q\x00."], ids=len
)
def test_a_file_that_is_no_checkpoint_is_named(model, tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken.pth is not a checkpoint"):
        RSCheckpointer(model).load(str(path))


def test_a_checkpoint_of_something_else_is_named(model, tmp_path):
    path = save(tmp_path / "words.pth", {"0.weight": "a word"})
    with pytest.raises(UserError, match=r"words.pth is not a checkpoint"):
        RSCheckpointer(model).load(path)


def test_missing_weights_are_named_before_the_run(cfg):
    cfg.MODEL.WEIGHTS = "nowhere.pth"
    with pytest.raises(UserError, match=r"^MODEL.WEIGHTS: nowhere.pth does not exist$"):
        check_weights(cfg, resume=False, eval_only=False)


def test_an_address_is_left_to_the_download(cfg):
    cfg.MODEL.WEIGHTS = "detectron2://some/where.pkl"
    check_weights(cfg, resume=False, eval_only=True)


def test_training_may_start_without_weights_but_evaluation_may_not(cfg):
    check_weights(cfg, resume=False, eval_only=False)
    check_weights(cfg, resume=True, eval_only=False)
    with pytest.raises(UserError, match=r"^--eval-only: nothing to evaluate"):
        check_weights(cfg, resume=True, eval_only=True)


def test_resume_needs_the_checkpoint_it_is_pointed_to(cfg, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match=r"--resume: .*model_0000009.pth.* is missing"):
        check_weights(cfg, resume=True, eval_only=False)
    (tmp_path / "model_0000009.pth").touch()
    cfg.MODEL.WEIGHTS = "not-looked-at.pth"
    check_weights(cfg, resume=True, eval_only=False)


def test_the_last_checkpoint_is_told(tmp_path):
    assert last_checkpoint_line(str(tmp_path)) == "no checkpoint has been written yet"
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert str(tmp_path / "model_0000009.pth") in last_checkpoint_line(str(tmp_path))
