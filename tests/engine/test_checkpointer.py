import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from helpers.made_detections import SIDE, made
from helpers.tiny import own_data, run, write_config
from PIL import Image
from torch import nn

from rs_d2 import Predictor, add_rs_config
from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.loading import RSCheckpointer, load_for_evaluation
from rs_d2.checkpoint.metadata import ENTRY, read_metadata
from rs_d2.engine.checkpointer import TrainingCheckpointer, check_weights, last_checkpoint_line
from rs_d2.engine.results import flat_metrics
from rs_d2.utils.errors import UserError


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
    save(tmp_path / "model_0000009.pth", {"a": torch.ones(1)})
    cfg.MODEL.WEIGHTS = "not-looked-at.pth"
    check_weights(cfg, resume=True, eval_only=False)


def test_the_last_checkpoint_is_told(tmp_path):
    assert last_checkpoint_line(str(tmp_path)) == "no checkpoint has been written yet"
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert str(tmp_path / "model_0000009.pth") in last_checkpoint_line(str(tmp_path))


@pytest.fixture
def training(model, cfg):
    """A checkpointer as training makes it, of a registered data set with two classes."""
    add_rs_config(cfg)
    cfg.DATASETS.TRAIN = ("checkpointed",)
    MetadataCatalog.get("checkpointed").thing_classes = ["cat", "dog"]
    yield TrainingCheckpointer(cfg, model)
    MetadataCatalog.remove("checkpointed")


def metadata(path):
    return read_metadata(read_checkpoint(path), str(path))


def test_a_training_checkpoint_says_what_its_model_is(training, cfg, tmp_path):
    training.save("some", iteration=3)
    about = metadata(tmp_path / "some.pth")
    assert about.class_names == ("cat", "dog")
    assert about.config == cfg.dump()
    assert about.metrics == {}
    assert read_checkpoint(tmp_path / "some.pth")["iteration"] == 3


def test_only_results_of_these_weights_are_stored(training, tmp_path):
    results = {"bbox": {"AP": 12.5, "APl": float("nan")}, "segm": {"AP": None}}
    training.save("best", results=results)
    training.save("later")
    assert metadata(tmp_path / "best.pth").metrics == {"bbox/AP": 12.5}
    assert metadata(tmp_path / "later.pth").metrics == {}


def test_results_are_added_to_a_file_and_change_nothing_else(training, model, tmp_path):
    training.save("model_final", iteration=9)
    training.add_results("model_final", {"own": {"bbox": {"AP": 1.0}}})
    content = read_checkpoint(tmp_path / "model_final.pth")
    assert content[ENTRY]["metrics"] == {"own/bbox/AP": 1.0}
    assert content["iteration"] == 9
    assert all(torch.equal(content["model"][k], v) for k, v in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_final.pth",
    ]


def test_results_are_added_to_a_file_of_an_older_version(training, model, tmp_path):
    save(tmp_path / "model_final.pth", model.state_dict())
    training.add_results("model_final", {"bbox": {"AP": 1.0}})
    assert metadata(tmp_path / "model_final.pth").class_names == ("cat", "dog")
    training.add_results("never_written", {"bbox": {"AP": 1.0}})


def test_a_process_that_does_not_save_writes_nothing(training, tmp_path):
    training.save_to_disk = False
    training.save("some")
    training.add_results("some", {})
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_is_not_registered_has_no_names(training, cfg, tmp_path):
    cfg.DATASETS.TRAIN = ("elsewhere",)
    training.save("some")
    assert metadata(tmp_path / "some.pth").class_names == ()


def test_a_trained_file_predicts_at_once_and_resumes(tmp_path, capfd):
    content, _ = made("coco", num_images=4)
    (tmp_path / "images").mkdir()
    for image in content["images"]:
        Image.new("RGB", (SIDE, SIDE), "grey").save(tmp_path / "images" / image["file_name"])
    (tmp_path / "own.json").write_text(json.dumps(content))
    output = tmp_path / "out"
    arguments = ["--config-file", write_config(tmp_path)]
    arguments += own_data(tmp_path / "own.json", tmp_path / "own.json")
    options = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "TEST.DRAW_IMAGES", "0"]
    options += ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.MAX_ITER"]
    assert run(*arguments, *options, "2") == 0
    about = metadata(output / "model_final.pth")
    assert about.class_names == tuple(f"class {i}" for i in range(1, 13))
    assert about.metrics == flat_metrics(json.loads((output / "metrics.json").read_text()))
    assert about.metrics
    assert metadata(output / "model_0000000.pth").metrics == {}
    predictor = Predictor(output / "model_final.pth", device="cpu")
    predictor(tmp_path / "images" / content["images"][0]["file_name"])
    assert predictor.class_names == about.class_names

    old = read_checkpoint(output / "model_final.pth")
    del old[ENTRY]  # as an older version wrote it
    torch.save(old, output / "model_final.pth")
    capfd.readouterr()
    assert run(*arguments, "--resume", *options, "3") == 0
    assert "Starting training from iteration 2" in "".join(capfd.readouterr())
    assert metadata(output / "model_final.pth").metrics


def test_a_save_that_fails_leaves_the_checkpoint_before_and_the_tag(
    training, tmp_path, monkeypatch
):
    training.save("model_best", iteration=1)

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"model_best.pth cannot be written \(No space left"):
        training.save("model_best", iteration=2)
    assert read_checkpoint(tmp_path / "model_best.pth")["iteration"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_best.pth"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(model, cfg, tmp_path, value):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["1.bias"][1] = value
    cfg.MODEL.WEIGHTS = save(tmp_path / "a.pth", state)
    line = r"^MODEL.WEIGHTS: .*a.pth has a NaN or an infinite value in 1.bias"
    with pytest.raises(UserError, match=line):  # evaluation, Predictor, publish and export
        load_for_evaluation(cfg, model)
    with pytest.raises(UserError, match=line):  # the start of a training
        RSCheckpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
