"""tools/sweep_thresholds.py on a small untrained model, and what it says to mistakes."""

import csv
import json
import sys

import pytest
import torch
from conftest import REPO
from helpers.made_detections import SIDE, made
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from helpers.tiny import reset_logging, write_config

from rs_d2.analysis.search_times import SEARCHES, measure, searching
from rs_d2.config.load import load_config
from rs_d2.utils.errors import UserError

sys.path.insert(0, str(REPO / "tools"))
import sweep_thresholds


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Config file, config, checkpoint and LVIS json of a model with random weights."""
    folder = tmp_path_factory.mktemp("sweep")
    content, _ = made("lvis", num_images=4)
    (folder / "images").mkdir()
    for image in content["images"]:
        Image.new("RGB", (SIDE, SIDE), "grey").save(folder / "images" / image["file_name"])
    (folder / "val.json").write_text(json.dumps(content))
    config = write_config(folder)
    cfg, _ = load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "12"])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder, config, model.eval()


def arguments(setting, *more):
    folder, config, _ = setting
    argv = ["--config-file", config, "--weights", folder / "model.pth", "--val-json"]
    argv += [folder / "val.json", "--val-images", folder / "images", *more]
    return [str(argument) for argument in argv]


def run(argv):
    try:
        return sweep_thresholds.main(argv)
    finally:
        reset_logging()


def test_a_sweep_leaves_a_table_a_picture_and_thresholds(setting, capsys):
    folder = setting[0]
    options = ["--timed-images", "2", "--per-class", folder / "classes.csv", "--output"]
    argv = arguments(setting, "--thresholds", "0.4", "0.0001", "0.9", *options, folder / "out")
    assert run([*argv, "DATALOADER.NUM_WORKERS", "0"]) == 0
    printed = capsys.readouterr().out
    assert "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0." in printed
    content = json.loads((folder / "out" / "sweep.json").read_text())
    assert [row["threshold"] for row in content["rows"]] == [0.0001, 0.4, 0.9]
    names = ["mask AP", "mask APr", "mask APc", "mask APf", "mask oLRP", "box AP", "detections"]
    names += [f"{what} {search}" for what in ("images/s", "search ms") for search in SEARCHES]
    assert list(content["rows"][0]) == ["threshold", *names]
    assert content["rows"][0]["detections"] == 100  # an untrained model gives everything 0.5
    assert content["rows"][2]["detections"] == 0
    assert all(row[name] > 0 for row in content["rows"] for name in names[-4:])
    assert content["timed images"] == 2
    assert (folder / "out" / "sweep.png").stat().st_size > 5000
    with (folder / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert "threshold" in rows[0]


def test_without_timed_images_the_table_has_no_times(setting, capsys):
    folder = setting[0]
    options = ["--timed-images", "0", "--output", folder / "untimed"]
    argv = arguments(setting, "--thresholds", "0.4", *options, "DATALOADER.NUM_WORKERS", "0")
    assert run(argv) == 0
    capsys.readouterr()
    (row,) = json.loads((folder / "untimed" / "sweep.json").read_text())["rows"]
    assert list(row)[-1] == "detections"


def picture():
    return [{"image": torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)}]


def test_a_search_is_put_back(setting):
    model = setting[2]
    predictor = model.roi_heads.box_predictor
    before = predictor.test_score_thresh
    with searching(model, "plain", 0.9) as spent, torch.no_grad():
        assert predictor.test_score_thresh == 0.9
        assert len(model(picture())[0]["instances"]) == 0
        assert len(spent) == 1
    assert predictor.test_score_thresh == before
    assert "inference" not in vars(predictor)


def test_the_plain_search_is_detectron2s(setting, monkeypatch):
    called = []
    stock = FastRCNNOutputLayers.inference
    monkeypatch.setattr(
        FastRCNNOutputLayers, "inference", lambda *args: called.append(args) or stock(*args)
    )
    for search, expected in zip(SEARCHES, (0, 1), strict=True):
        called.clear()
        with searching(setting[2], search, 0.4), torch.no_grad():
            setting[2](picture())
        assert len(called) == expected


def test_times_have_a_row_for_each_threshold(setting):
    rows = measure(setting[2], [picture()], [0.1, 0.9])
    assert len(rows) == 2
    assert measure(setting[2], [], [0.1, 0.9]) == [{}, {}]


def test_both_searches_find_the_same_in_a_dense_detector():
    cfg, _ = load_config(str(REPO / "configs/quick/rs_paa_digits.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image, found = picture(), {}
    for search in SEARCHES:
        with searching(model, search, 0.012) as spent, torch.no_grad():
            found[search] = model(image)[0]["instances"]
            assert model.test_score_thresh == 0.012
        assert len(spent) == 1
    assert model.test_score_thresh == 0.001
    ours, plain = found.values()
    assert len(ours) > 0
    torch.testing.assert_close(ours.scores, plain.scores)
    torch.testing.assert_close(ours.pred_boxes.tensor, plain.pred_boxes.tensor)


def test_a_model_without_a_box_predictor_is_named():
    with (
        pytest.raises(UserError, match="needs a model with one box predictor"),
        searching(torch.nn.Linear(1, 1), "plain", 0.5),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        (["--thresholds", "1.5"], "argument --thresholds: 1.5 is not in [0, 1)"),
        (["--timed-images", "-1"], "--timed-images: -1 is not at least 0"),
        (["--weights", "nowhere.pth"], "MODEL.WEIGHTS: nowhere.pth does not exist"),
        (["--config-file", "nowhere.yaml"], "--config-file: nowhere.yaml does not exist"),
        (["--val-json", "nowhere.json"], "nowhere.json"),
        (["SOLVER.MAX_ITTER", "1"], "SOLVER.MAX_ITTER is not a config key"),
    ],
)
def test_a_mistake_is_one_line(setting, capsys, more, culprit):
    assert run(arguments(setting, *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert culprit in line
