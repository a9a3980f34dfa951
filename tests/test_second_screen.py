"""The README's second screen: convert, predict, export, in three commands, as they stand there."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import REPO
from helpers.doc_blocks import commands, run_command
from PIL import Image

pytest.importorskip("detectron2")
pytest.importorskip("onnxruntime")

from detectron2.modeling import build_model

import rs_d2.export
from rs_d2 import Predictor, model_zoo
from rs_d2.checkpoint.mmdet import to_mmdet

# The one change: the model that the first command converts is small, and takes any score, since
# random weights are sure of nothing. The other two take the config from the file.
SMALLER = (
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.001", "TEST.DETECTIONS_PER_IMAGE", "10"),
)
NUM_IMAGES = 3


def screen():
    """The three commands of the section, each as its words."""
    section = (REPO / "README.md").read_text().split("## A published model, today\n")[1]
    return commands(re.search(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1])


def after(words, option):
    return words[words.index(option) + 1]


def write_published(path, config):
    """Write random weights under mmdetection's names, as its training leaves them."""
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list(list(SMALLER))
    torch.manual_seed(0)
    state = build_model(cfg).state_dict()
    converted = to_mmdet(state, {name: value.shape for name, value in state.items()})
    assert converted.complete
    names = tuple(f"thing {index}" for index in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    torch.save({"meta": {"CLASSES": names, "epoch": 12}, "state_dict": converted.state}, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where the three commands have run."""
    folder = tmp_path_factory.mktemp("second_screen")
    convert, predict, export = screen()
    write_published(folder / convert[-2], after(convert, "--config-file"))
    images = folder / predict[-3]
    images.mkdir()
    for index in range(NUM_IMAGES):
        pixels = np.random.default_rng(index).integers(256, size=(90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    for words in ([*convert, *SMALLER], predict, export):
        run_command(words, folder)
    return folder


def test_the_commands_are_convert_predict_export():
    tools = [words[:2] for words in screen()]
    names = ("convert_mmdet", "predict", "export_model")
    assert tools == [["python", f"tools/{name}.py"] for name in names]


def test_the_converted_file_is_a_whole_model(folder):
    predictor = Predictor(folder / screen()[0][-1], device="cpu")
    assert predictor.class_names[:2] == ("thing 0", "thing 1")
    assert len(predictor.class_names) == predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES


def test_every_image_is_predicted_and_drawn(folder):
    output = folder / after(screen()[1], "--output")
    found = json.loads((output / "predictions.json").read_text())
    assert {result["image_id"] for result in found} == set(range(1, NUM_IMAGES + 1))
    assert len(list(output.rglob("*.png"))) == NUM_IMAGES


def test_the_exported_file_finds_what_the_model_finds(folder):
    weights = folder / after(screen()[2], "--weights")
    image = next((folder / screen()[1][-3]).iterdir())
    exported = rs_d2.export.load(weights.with_suffix(".onnx"))(image)
    instances = Predictor(weights, device="cpu")(image)
    assert len(instances) > 0
    assert exported.classes.tolist() == instances.pred_classes.tolist()
    np.testing.assert_allclose(exported.boxes, instances.pred_boxes.tensor.numpy(), atol=1e-3)
