"""tools/publish_model.py: what it leaves out, what it says, and that equal content is equal."""

import json
import sys

import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

from helpers.tiny import write_checkpoint

from rs_d2 import Predictor
from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.metadata import read_metadata
from rs_d2.model_zoo.api import short_hash

sys.path.insert(0, str(REPO / "tools"))
import publish_model

NAMES = tuple(f"thing {i}" for i in range(30))
METRICS = {"bbox/AP": 33.44, "bbox/oLRP": 73.4, "segm/AP": 32.2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return write_checkpoint(folder, class_names=NAMES, metrics=METRICS)


def publish(capsys, *argv):
    assert publish_model.main([str(argument) for argument in argv]) == 0
    row, python, written = capsys.readouterr().out.splitlines()
    return row, python, written.removeprefix("written: ")


def test_weights_and_metadata_are_kept_and_training_state_is_not(checkpoint, tmp_path, capsys):
    row, python, path = publish(capsys, checkpoint, tmp_path, "--name", "quick/demo")
    before, after = read_checkpoint(checkpoint), read_checkpoint(path)
    assert set(after) == {"model", "rs_d2"}
    assert set(after["model"]) == set(before["model"])
    assert all(torch.equal(value, before["model"][name]) for name, value in after["model"].items())
    about = read_metadata(after, path)
    assert (about.class_names, about.revision) == (NAMES, "abc1234")
    assert about.metrics == METRICS
    assert row.startswith("| demo | digits_train | 30 iterations of 4 images | box AP 33.4, oLRP")
    assert python.startswith("Measurement(config='demo.yaml', data='digits_train', ")
    assert python.endswith("box AP 33.4, oLRP 73.4; mask AP 32.2'),")


def test_the_file_is_named_by_its_hash_and_can_be_used(checkpoint, tmp_path, capsys):
    *_, path = publish(capsys, checkpoint, tmp_path, "--name", "quick/demo")
    (file,) = (tmp_path / "quick").iterdir()  # nothing is left beside it
    assert str(file) == path
    assert file.name == f"demo-{short_hash(file)}.pth"
    assert Predictor(file, device="cpu").class_names == NAMES


def test_equal_content_gives_equal_bytes(checkpoint, tmp_path, capsys):
    *_, first = publish(capsys, checkpoint, tmp_path / "a", "--name", "demo")
    *_, second = publish(capsys, first, tmp_path / "b", "--name", "demo")
    assert first.replace("/a/", "/b/") == second


def test_other_content_gives_another_name(checkpoint, tmp_path, capsys):
    *_, first = publish(capsys, checkpoint, tmp_path, "--name", "demo")
    renamed = ["--class-names", *(f"other {i}" for i in range(30))]
    *_, second = publish(capsys, checkpoint, tmp_path, "--name", "demo", *renamed)
    assert first != second


def test_paths_of_this_machine_are_left_out(tmp_path, capsys):
    private = tmp_path / "private"
    private.mkdir()
    path = write_checkpoint(private, "OUTPUT_DIR", str(private))
    *_, path = publish(capsys, path, tmp_path / "out", "--name", "demo")
    assert "private" not in read_metadata(read_checkpoint(path), path).config


def test_metrics_of_a_run_are_flattened(checkpoint, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps({"bbox": {"AP": 50.0, "APl": None}}))
    row, _, path = publish(capsys, checkpoint, tmp_path, "--name", "demo", "--metrics", file)
    assert read_metadata(read_checkpoint(path), path).metrics == {"bbox/AP": 50.0}
    assert "| box AP 50.0 |" in row


def test_a_shipped_name_gives_its_row(tmp_path, capsys):
    path = write_checkpoint(tmp_path, config="quick/rs_mask_rcnn_digits.yaml")
    row, python, _ = publish(capsys, path, tmp_path, "--name", "quick/rs_mask_rcnn_digits")
    assert row.startswith("| quick/rs_mask_rcnn_digits | ")
    assert "config='quick/rs_mask_rcnn_digits.yaml'" in python
    assert "not evaluated" in row


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        (["--config-file", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--config-file", "quick/rs_mask_rcnn_digits.yaml"], "in this model"),
        (["--metrics", "nowhere.json"], "nowhere.json: no such file"),
        (["--class-names", "one"], "has 30 classes, but 1 names are given"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(checkpoint, tmp_path, capsys, more, culprit):
    argv = [checkpoint, str(tmp_path / "out"), "--name", "demo", *more]
    assert publish_model.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert culprit in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/../x", "/x", "q.pth", "q.pth.yaml", "quick/", "quick/."],
)
def test_a_name_that_is_none_is_refused(name, checkpoint, tmp_path, capsys):
    assert publish_model.main([checkpoint, str(tmp_path / "out"), "--name", name]) == 2
    assert f"--name: '{name}' is no name below OUT_FOLDER" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pth"))


def test_the_ending_of_the_config_is_no_part_of_the_name(checkpoint, tmp_path, capsys):
    _, _, path = publish(capsys, checkpoint, tmp_path, "--name", "quick/demo.yaml")
    assert path.startswith(str(tmp_path / "quick" / "demo-"))


@pytest.mark.parametrize(
    "content",
    [
        {"images": [1, 2]},
        {"bbox": {"AP": "x"}},
        {"bbox": {"AP": 10**400}},
        {"AP": 1},
        {"bbox": {"AP": None}},
        [1],
    ],
)
def test_a_file_that_holds_no_metrics_is_named(content, checkpoint, tmp_path, capsys):
    (tmp_path / "m.json").write_text(json.dumps(content))
    argv = [checkpoint, str(tmp_path / "out"), "--name", "x", "--metrics", str(tmp_path / "m.json")]
    assert publish_model.main(argv) == 2
    assert "m.json: expected metrics by task" in capsys.readouterr().err


def test_weights_under_the_name_of_another_model_are_refused(checkpoint, tmp_path, capsys):
    name = "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x"
    assert publish_model.main([checkpoint, str(tmp_path), "--name", name]) == 2
    message = capsys.readouterr().err
    assert f"--name: the weights do not fit {name} (backbone." in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.rglob("*.pth"))
