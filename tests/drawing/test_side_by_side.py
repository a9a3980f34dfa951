import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPO
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from rs_d2 import add_rs_config
from rs_d2.data import register_custom
from rs_d2.drawing.side_by_side import draw_predictions

SIZE = 80  # pixels; enlarged five times


class Copycat(nn.Module):
    """Predicts one given box, with a mask if asked to, whatever it sees."""

    def __init__(self, scores, masks=False):
        super().__init__()
        self.scores = scores
        self.masks = masks
        self.sizes = []

    def forward(self, inputs):
        height, width = inputs[0]["height"], inputs[0]["width"]
        self.sizes.append((height, width))
        count = len(self.scores)
        instances = Instances((height, width))
        box = torch.tensor([[0.1, 0.1, 0.5, 0.5]]) * torch.tensor([width, height] * 2)
        instances.pred_boxes = Boxes(box.repeat(count, 1))
        instances.scores = torch.tensor(self.scores)
        instances.pred_classes = torch.zeros(count, dtype=torch.long)
        if self.masks:
            instances.pred_masks = torch.zeros(count, height, width, dtype=torch.bool)
            instances.pred_masks[:, : height // 2] = True
        return [{"instances": instances}]


@pytest.fixture
def data(tmp_path):
    """Three images of one object each: a polygon, run lengths, and a crowd beside a polygon."""
    corners = [[8.0, 8.0, 40.0, 8.0, 40.0, 40.0]]
    runs = {"size": [SIZE, SIZE], "counts": [640, 1600, SIZE * SIZE - 2240]}
    box = {"bbox": [8, 8, 32, 32], "area": 500.0, "category_id": 3, "iscrowd": 0}
    annotations = [
        {"id": 1, "image_id": 1, "segmentation": corners, **box},
        {"id": 2, "image_id": 2, "segmentation": runs, **box},
        {"id": 3, "image_id": 3, "segmentation": corners, **box},
        {"id": 4, "image_id": 3, **box, "segmentation": runs, "iscrowd": 1},
    ]
    images = []
    for i in (1, 2, 3):
        Image.new("RGB", (SIZE, SIZE), "white").save(tmp_path / f"image{i}.png")
        images.append({"id": i, "file_name": f"image{i}.png", "height": SIZE, "width": SIZE})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 3, "name": "thing"}]
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_custom("drawn", str(tmp_path / "val.json"), str(tmp_path))
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.DATASETS.TEST, cfg.MODEL.DEVICE = ("drawn",), "cpu"
    return cfg


@pytest.mark.parametrize("masks", [False, True])
def test_a_picture_per_image_and_an_overview(data, tmp_path, masks):
    files = draw_predictions(data, Copycat([0.9], masks), tmp_path / "out")
    assert [file.name for file in files] == [
        "00_image1.png",
        "01_image2.png",
        "02_image3.png",
        "overview.png",
    ]
    assert all(file.is_file() for file in files)


def test_the_number_of_pictures_is_bounded(data, tmp_path):
    data.TEST.DRAW_IMAGES = 2
    names = [file.name for file in draw_predictions(data, Copycat([0.9]), tmp_path / "out")]
    assert names == ["00_image1.png", "01_image3.png", "overview.png"]  # evenly spread
    data.TEST.DRAW_IMAGES = 0
    assert draw_predictions(data, Copycat([0.9]), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_small_images_are_enlarged_and_predicted_at_that_size(data, tmp_path):
    model = Copycat([0.9])
    files = draw_predictions(data, model, tmp_path / "out")
    assert model.sizes == [(400, 400)] * 3
    assert Image.open(files[0]).size == (808, 428)


def test_ground_truth_is_left_and_predictions_are_right(data, tmp_path):
    files = draw_predictions(data, Copycat([]), tmp_path / "out")  # no prediction at all
    picture = np.asarray(Image.open(files[0]).convert("RGB"))[28:]
    left, right = picture[:, :400], picture[:, 408:]
    assert (left < 200).any()
    assert (right == 255).all()


def test_masks_of_the_ground_truth_are_drawn_whole_and_crowds_not_at_all(data, tmp_path):
    files = draw_predictions(data, Copycat([]), tmp_path / "out")
    pictures = [np.asarray(Image.open(file).convert("RGB"))[28:, :400] for file in files[:3]]
    marked = [(picture != 255).any(-1) for picture in pictures]
    rows, columns = np.mgrid[45:195, 45:195]
    for i in (0, 2):  # a triangle of polygons, right of and above the diagonal
        part = marked[i][45:195, 45:195]
        assert part[columns > rows + 5].all()
        assert not part[columns < rows - 5].any()
        assert not marked[i][210:].any()
    assert marked[1][210:, 45:135].all()  # a column of run lengths goes on beyond its box
    assert not marked[1][210:, 145:].any()


def test_pictures_need_no_opencv():
    code = "import sys; sys.modules['cv2'] = None; import rs_d2.engine, rs_d2.drawing.side_by_side"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=REPO)


def test_as_many_predictions_are_drawn_as_there_are_objects(data, tmp_path):
    few = draw_predictions(data, Copycat([0.9]), tmp_path / "few")[0]
    many = draw_predictions(data, Copycat([0.9, 0.2, 0.1]), tmp_path / "many")[0]
    assert Image.open(few).tobytes() == Image.open(many).tobytes()


def test_the_mode_of_the_model_is_left_as_it_was(data, tmp_path):
    model = Copycat([0.9]).train()
    draw_predictions(data, model, tmp_path / "out")
    assert model.training
