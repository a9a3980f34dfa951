"""A mistake costs one line and exit code 2, never a trace; stops and divergence have their own."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

from helpers.tiny import own_data, run, write_config

import train_net
from rs_d2 import engine
from rs_d2.utils.children import ProcessFailed

TWO = {  # what torchrun says to two processes
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def blank(tmp_path):
    """A folder with one grey image and a COCO json of one object in it, boxes only."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "images" / "grey.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 40, 40], "area": 1600}
    content = {
        "images": [{"id": 1, "file_name": "grey.png", "height": 64, "width": 64}],
        "annotations": [{**annotation, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def error_line(capfd):
    """The one line that a mistake may leave on stderr."""
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (
            ["SOLVER.BASE_LRR", "1.0"],
            "SOLVER.BASE_LRR is not a config key; did you mean SOLVER.BASE",
        ),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER: many is not of the type"),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no partner"),
        (["SOLVER.MAX_ITER", "1", "--eval-only"], "--eval-only must stand before"),
        (["MODEL.RPN.CRITERION.LOSS", "rank_sorted"], "'rank_sorted' is not one of rank_sort,"),
        (
            ["MODEL.RPN.CRITERION.GLOBAL", "True", "MODEL.RPN.CRITERION.LOSS", "cross_entropy"],
            "MODEL.RPN.CRITERION.GLOBAL: MODEL.RPN.CRITERION.LOSS cross_entropy ranks nothing",
        ),
        (["MODEL.META_ARCHITECTURE", "RCNN"], "MODEL.META_ARCHITECTURE: 'RCNN' is not registered"),
        (["MODEL.ROI_HEADS.NAME", "RSROIHead"], "did you mean RSROIHeads?"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RSRPM"], "did you mean RSRPN?"),
        (["MODEL.WEIGHTS", "missing.pth"], "MODEL.WEIGHTS: missing.pth does not exist"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE: 'gpu' is not a device"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "max"], "'max' is not one of value, norm, full_model"),
        (
            ["DATASETS.TRAIN", "('digits_trian',)"],
            "digits_trian is not known; did you mean digits_train?",
        ),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH: 0 cannot be split"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(arguments, culprit, config, capfd):
    assert run("--config-file", config, *arguments) == 2
    assert culprit in error_line(capfd)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("MODEL.MASK_ON", "masks"),
        ("MODEL.KEYPOINT_ON", "keypoints"),
        ("TEST.AUG.ENABLED", "prediction from several views"),
    ],
)
def test_what_a_dense_detector_cannot_do_is_said_before_the_training(key, what, capfd):
    assert run("--config-file", "configs/quick/rs_atss_digits.yaml", key, "True") == 2
    assert f"{key}: ATSS has no {what}" in error_line(capfd)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ([], "DATASETS.TRAIN is empty: give --config-file or --train-json"),
        (["--eval-only"], "DATASETS.TEST is empty: give --config-file or --val-json"),
        (["--config-file", "rs_mask_rcnn_lvs.yaml"], "did you mean rs_mask_rcnn_lvis.yaml?"),
        (["--num-gpus", "two"], "argument --num-gpus: invalid int value: 'two'"),
        (["--num-gpus", "0"], "--num-gpus: 0 is not at least 1"),
        (["--num-machines", "0"], "--num-machines: 0 is not at least 1"),
        (["--machine-rank", "1"], "--machine-rank 1 must be below --num-machines 1"),
        (["--num-machines", "2"], "--num-machines above 1 needs --dist-url"),
        (["--dist-url", "localhost:1"], "--dist-url: 'localhost:1' is not tcp://HOST:PORT"),
        (["--train-images", "images"], "--train-images needs --train-json"),
        (["--val-json", "val.json"], "--val-json needs --train-json"),
        (["--train-json", "missing.json"], "missing.json"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments, culprit, capfd):
    assert run(*arguments) == 2
    assert culprit in error_line(capfd)


def test_what_torchrun_says_may_not_be_contradicted(monkeypatch, capfd):
    for name, value in {**TWO, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run("--num-gpus", "4") == 2
    assert "--num-gpus 4 contradicts the environment (torchrun?), which says 2" in error_line(capfd)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("--num-gpus", "4") == 2
    assert capfd.readouterr().err == ""  # the first process has told


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("MODEL: [unclosed", "line 1"),
        ("just words", "is not a mapping"),
        ("", "is not a mapping"),
        ("SOLVR: {BASE_LR: 0.1}", "SOLVR is not a config key; did you mean SOLVER"),
        ("_BASE_: absent.yaml", "absent.yaml"),
    ],
)
def test_a_broken_config_file_is_named_in_one_line(text, culprit, tmp_path, capfd):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert run("--config-file", str(path)) == 2
    line = error_line(capfd)
    assert culprit in line
    assert "broken.yaml" in line


def test_a_class_count_that_the_json_contradicts_is_named(config, blank, capfd):
    data = own_data(blank / "boxes.json")
    assert run("--config-file", config, *data, "MODEL.ROI_HEADS.NUM_CLASSES", "77") == 2
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 77, but own_train has" in error_line(capfd)


def test_verified_negatives_need_a_data_set_with_lists(config, blank, capfd):
    key, options = "MODEL.ROI_BOX_HEAD.CRITERION.NEGATIVES", ["OUTPUT_DIR", str(blank / "output")]
    data = own_data(blank / "boxes.json")
    assert run("--config-file", config, *data, key, "verified", *options) == 2
    line, image = error_line(capfd), blank / "images" / "grey.png"
    assert line.startswith(f"error: {key}: verified needs neg_category_ids, which {image} of ")
    assert line.endswith("DATASETS.TRAIN own_train lacks")


@pytest.mark.parametrize("choice", ["verified", "sampled"])
def test_a_training_with_the_negatives_of_a_federated_data_set(choice, config, blank):
    content = json.loads((blank / "boxes.json").read_text())
    content["categories"].append({"id": 9, "name": "other", "frequency": "r"})
    content["images"][0] |= {"neg_category_ids": [9], "not_exhaustive_category_ids": []}
    (blank / "lvis.json").write_text(json.dumps(content))
    options = ["MODEL.ROI_BOX_HEAD.CRITERION.NEGATIVES", choice, "SOLVER.MAX_ITER", "1"]
    options += ["OUTPUT_DIR", str(blank / "output"), "SOLVER.IMS_PER_BATCH", "1"]
    assert run("--config-file", config, *own_data(blank / "lvis.json"), *options) == 0


def test_several_processes_need_a_batch_they_can_share(config, blank, capfd):
    data = own_data(blank / "boxes.json")
    assert run("--config-file", config, *data, "--num-gpus", "3") == 2
    assert "SOLVER.IMS_PER_BATCH: 4 cannot be split over 3 processes" in error_line(capfd)


def test_evaluation_needs_weights(config, blank, capfd):
    arguments = ["--val-json", str(blank / "boxes.json"), "--val-images", str(blank / "images")]
    output = ["OUTPUT_DIR", str(blank / "output")]
    assert run("--config-file", config, *arguments, "--eval-only", *output) == 2
    assert "--eval-only: nothing to evaluate" in error_line(capfd)


def test_an_asked_for_gpu_that_is_not_there_is_an_error(config, blank, capfd):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    data = own_data(blank / "boxes.json")
    assert run("--config-file", config, *data, "MODEL.DEVICE", "cuda") == 2
    assert "MODEL.DEVICE: 'cuda' was asked for but no GPU is there" in error_line(capfd)


def test_weights_that_are_no_checkpoint_are_named(config, blank, capfd):
    data = own_data(blank / "boxes.json")
    options = ["OUTPUT_DIR", str(blank / "output"), "MODEL.WEIGHTS", str(blank / "boxes.json")]
    assert run("--config-file", config, *data, *options) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: MODEL.WEIGHTS: {blank / 'boxes.json'} is not a checkpoint")


def test_a_loss_that_is_not_finite_stops_with_the_iteration_and_the_loss(config, blank, capfd):
    data = own_data(blank / "boxes.json")
    options = ["OUTPUT_DIR", str(blank / "output"), "SOLVER.CHECKPOINT_PERIOD", "1"]

    def with_nan(trainer):
        predictor = trainer.model.roi_heads.box_predictor
        named = predictor.named_losses

        def broken(output):
            losses = named(output)
            return {**losses, "loss_sort": losses["loss_sort"] * float("nan")}

        if trainer.iter == 1:
            predictor.named_losses = broken
        step(trainer)

    step = engine.RSTrainer.run_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.RSTrainer, "run_step", with_nan)
        assert run("--config-file", config, *data, *options, "SOLVER.IMS_PER_BATCH", "1") == 1
    streams = capfd.readouterr()
    line = streams.err.splitlines()[-1]
    assert line.startswith("error: training diverged at iteration 1: ")
    assert "loss_sort is nan" in line
    assert "model_0000000.pth" in line
    assert "Traceback" not in streams.out + streams.err


def stopped_by(error, monkeypatch, config, blank):
    def launch(*_, **__):
        raise error

    monkeypatch.setattr(train_net, "launch", launch)
    output = ["OUTPUT_DIR", str(blank / "output")]
    return run("--config-file", config, *own_data(blank / "boxes.json"), *output)


def test_an_interrupt_names_the_last_checkpoint(config, blank, monkeypatch, capfd):
    (blank / "output").mkdir()
    (blank / "output" / "last_checkpoint").write_text("model_0000009.pth")
    assert stopped_by(KeyboardInterrupt(), monkeypatch, config, blank) == 130
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("interrupted; the last checkpoint is ")
    assert "model_0000009.pth" in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ProcessFailed("rank 1 of 2: out of memory", 1), 1, "error: rank 1 of 2: out of memory"),
        (MemoryError(), 1, "error: out of memory; no checkpoint has been written yet"),
        (SystemExit(143), 143, "stopped by SIGTERM; no checkpoint has been written yet"),
    ],
)
def test_a_run_that_dies_says_why_in_one_line(error, code, line, config, blank, monkeypatch, capfd):
    assert stopped_by(error, monkeypatch, config, blank) == code
    assert capfd.readouterr().err.splitlines()[-1] == line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(1)])
def test_what_is_no_mistake_of_the_user_keeps_its_trace(error, config, blank, monkeypatch):
    with pytest.raises(type(error)):
        stopped_by(error, monkeypatch, config, blank)


def train_net_elsewhere(folder, *arguments):
    """Run the program itself in another working directory."""
    command = [sys.executable, str(REPO / "train_net.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_program_itself_reports_a_mistake_in_one_line(tmp_path):
    config = "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml"
    done = train_net_elsewhere(tmp_path, "--config-file", config, "NO.KEY", "1")
    assert done.returncode == 2
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]
    assert "NO.KEY is not a config key" in done.stderr


def test_help_shows_examples_and_own_data(tmp_path):
    done = train_net_elsewhere(tmp_path, "--help")
    assert done.returncode == 0
    for word in ("--train-json", "--val-images", "--eval-only", "examples:", "MODEL.WEIGHTS"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_mistake_that_shows_in_every_process_is_reported_once(config, blank):
    if torch.cuda.is_available():
        pytest.skip("processes of a GPU machine need a GPU each")
    torch.save({"model": {"foreign": torch.ones(1)}}, blank / "foreign.pth")
    done = train_net_elsewhere(
        blank,
        *("--config-file", config, *own_data(blank / "boxes.json"), "--num-gpus", "2"),
        *("OUTPUT_DIR", "output", "MODEL.WEIGHTS", "foreign.pth"),
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: MODEL.WEIGHTS: no tensor of foreign.pth fits this model; is it a checkpoint of"
        " another config?"
    ]
    assert "Traceback" not in done.stderr
