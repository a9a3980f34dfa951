"""``train_net.py`` from annotations to metrics on small real data, boxes only and with masks."""

import json
import math
import shutil
from pathlib import Path
from statistics import mean

import pytest
import torch
from conftest import shared

pytest.importorskip("detectron2")

from detectron2.utils import comm
from helpers.tiny import own_data, run, write_config

from rs_d2 import engine
from rs_d2.utils.launch import launch

pytestmark = pytest.mark.slow


def train(arguments, folder):
    """Run a training; returns the exit code and the (iteration, loss) pairs it went through."""
    history = []
    step = engine.RSTrainer.run_step

    def recording_step(trainer):
        step(trainer)
        history.append((trainer.iter, trainer.storage.latest()["total_loss"][0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.RSTrainer, "run_step", recording_step)
        code = run("--config-file", write_config(folder.parent), *arguments)
    return code, history


def falls(history):
    losses = [loss for _, loss in history]
    return mean(losses[-5:]) < 0.75 * mean(losses[:5])


def first_images(json_file, count, target):
    """Write the first images of a json with their annotations and return the path."""
    content = json.loads(json_file.read_text())
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    target.write_text(json.dumps(content))
    return str(target)


def results(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Thirty iterations on blood cells, which have no masks."""
    data = shared("data/bccd")
    folder = tmp_path_factory.mktemp("boxes") / "output"
    arguments = own_data(data / "train.json", data / "val.json")
    code, history = train([*arguments, "OUTPUT_DIR", str(folder)], folder)
    assert code == 0
    yield folder, history, arguments
    shutil.rmtree(folder)  # a quarter of a gigabyte


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Thirty iterations on four photographs in LVIS form, which are learnt by heart."""
    data = shared("data/coco100")
    folder = tmp_path_factory.mktemp("masks") / "output"
    few = first_images(data / "lvis_v1_train.json", 4, folder.parent / "few.json")
    images = str(data / "images")
    arguments = ["--train-json", few, "--train-images", images]
    arguments += ["--val-json", few, "--val-images", images]
    options = ["OUTPUT_DIR", str(folder), "INPUT.RANDOM_FLIP", "none"]
    code, history = train([*arguments, *options], folder)
    assert code == 0
    yield folder, history, arguments
    shutil.rmtree(folder)


@pytest.fixture
def copy(boxes, tmp_path):
    """An output folder as the training on boxes leaves it, as far as a resumed run needs it."""
    folder = tmp_path / "output"
    folder.mkdir()
    for name in ("last_checkpoint", "model_final.pth"):
        shutil.copy(boxes[0] / name, folder)
    yield folder
    shutil.rmtree(folder)


def test_the_loss_falls_on_boxes(boxes):
    assert falls(boxes[1])


def test_the_loss_falls_on_masks(masks):
    assert falls(masks[1])


def test_a_run_leaves_checkpoints_events_and_pictures(boxes):
    folder = boxes[0]
    assert (folder / "model_0000019.pth").is_file()
    assert (folder / "model_final.pth").is_file()
    assert list(folder.glob("events.out.tfevents.*"))
    assert len(list((folder / "predictions").glob("*.png"))) == 3  # two images and the overview


def test_the_log_of_iterations_is_not_the_file_of_results(boxes):
    lines = (boxes[0] / "train_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [19, 29, 30]


def test_box_results_are_finite_percentages(boxes):
    metrics = results(boxes[0])
    assert list(metrics) == ["bbox"]
    for name in ("AP", "AP50", "AP75"):
        assert 0 <= metrics["bbox"][name] <= 100
    assert metrics["bbox"]["AP50"] > 1  # it has learnt something


def test_mask_results_have_the_groups_of_lvis(masks):
    metrics = results(masks[0])
    assert list(metrics) == ["bbox", "segm"]
    for values in metrics.values():
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"} <= set(values)
        assert math.isfinite(values["AP"])


def test_the_log_ends_with_the_table_and_the_paths(masks):
    log = (masks[0] / "log.txt").read_text()
    ending = log[log.index("Results\n") :]
    for word in ("bbox", "segm", "APr", "model_final.pth", "metrics.json", "predictions"):
        assert word in ending


def test_resume_continues_after_the_last_iteration(boxes, copy):
    own = boxes[2][:4]  # no evaluation
    options = ["OUTPUT_DIR", str(copy), "SOLVER.MAX_ITER", "32"]
    code, history = train([*own, "--resume", *options], copy)
    assert code == 0
    assert [iteration for iteration, _ in history] == [30, 31]
    assert history[0][1] < 0.75 * boxes[1][0][1]  # from trained weights


def test_resume_of_a_finished_run_only_evaluates_again(boxes, copy):
    options = ["OUTPUT_DIR", str(copy), "TEST.DRAW_IMAGES", "0"]
    code, history = train([*boxes[2], "--resume", *options], copy)
    assert (code, history) == (0, [])
    assert results(copy)["bbox"] == pytest.approx(results(boxes[0])["bbox"], abs=0.1)


def test_evaluation_of_given_weights_repeats_the_results(boxes, tmp_path):
    weights = str(boxes[0] / "model_final.pth")
    val_only = boxes[2][4:]
    options = ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", weights]
    code, history = train([*val_only, "--eval-only", *options], tmp_path / "output")
    assert (code, history) == (0, [])
    assert results(tmp_path)["bbox"] == pytest.approx(results(boxes[0])["bbox"], abs=0.1)


def test_two_processes_end_with_the_same_parameters(tmp_path):
    data = shared("data/nuts")
    arguments = [
        *("--config-file", write_config(tmp_path), "--num-gpus", "2"),
        *own_data(data / "train.json"),
        *("OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu"),
    ]
    args = engine.parse_args(arguments)
    cfg, notes = engine.setup(args)
    if torch.cuda.is_available():
        pytest.skip("processes of a GPU machine talk through NCCL")
    launch(_train_and_save, 2, args=(cfg, args, notes, str(tmp_path)))
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    assert first["images"] != second["images"]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


def _train_and_save(cfg, args, notes, folder):
    engine.start_process(cfg, args, notes)
    trainer = engine.RSTrainer(cfg)
    images = []
    trainer.model.register_forward_pre_hook(
        lambda _, inputs: images.extend(image["file_name"] for image in inputs[0])
    )
    trainer.train()
    state = {"model": trainer.model.module.state_dict(), "images": images}
    torch.save(state, Path(folder) / f"rank{comm.get_rank()}.pth")
