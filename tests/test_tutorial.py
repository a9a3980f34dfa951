"""What docs/tutorial.md shows works as it says, from data to an exported model."""

import csv
import json

import numpy as np
import pytest
from conftest import REPO
from helpers.doc_blocks import blocks, commands, run_command
from PIL import Image

pytest.importorskip("detectron2")
pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

from helpers.tiny import reset_logging

from rs_d2 import Predictor

pytestmark = pytest.mark.slow

# All that the test changes: fewer images and iterations, and a threshold for so little training.
SMALLER = {
    "--num-train 400 --num-val 80": "--num-train 24 --num-val 10",
    "SOLVER.MAX_ITER 300": "SOLVER.MAX_ITER 12",
    "--tolerance 0.5": "--tolerance 0.5 --timed-images 2",
    "--score-thresh 0.6": "--score-thresh 0.5",
    "score_thresh=0.6": "score_thresh=0.5",
    "SCORE_THRESH_TEST 0.6": "SCORE_THRESH_TEST 0.5",
}


def steps():
    """Language and code of each block, with the changes."""
    found = blocks("tutorial.md", "bash", "python")
    for old, new in SMALLER.items():
        assert sum(code.count(old) for _, code in found) == 1, old
        found = [(language, code.replace(old, new)) for language, code in found]
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder in which all blocks have run, the names they leave, and what commands printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "configs").symlink_to(REPO / "configs")
    names, printed = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, code in steps():
            if language == "bash":
                printed += [run_command(words, folder) for words in commands(code)]
            else:
                exec(compile(code, "docs/tutorial.md", "exec"), names)
    reset_logging()
    yield folder, names, "\n".join(printed)
    for path in folder.rglob("*.pth"):
        path.unlink()  # half a gigabyte


def test_the_data_are_plain_coco(page):
    for part in ("train", "val"):
        content = json.loads((page[0] / "my_data" / f"coco_{part}.json").read_text())
        assert set(content["images"][0]) == {"id", "file_name", "width", "height"}
        assert len(content["annotations"]) > len(content["images"]) > 1
        assert len(content["categories"]) == 10


def test_training_leaves_model_report_and_pictures(page):
    output = page[0] / "output" / "my_model"
    for name in ("model_final.pth", "inference/report.html", "predictions/overview.png"):
        assert (output / name).stat().st_size > 0
    assert set(page[1]["metrics"]) == {"bbox", "segm"}


def test_the_table_of_classes_has_all_that_occur(page):
    annotations = json.loads((page[0] / "my_data" / "coco_val.json").read_text())["annotations"]
    assert len(page[1]["classes"]) == len({a["category_id"] for a in annotations})


def test_the_sweep_has_a_row_for_each_threshold_and_recommends_one(page):
    with (page[0] / "output" / "my_model" / "threshold_sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["threshold"]) for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert all(float(row["detections"]) >= 0 for row in rows)
    assert "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0." in page[2]


def test_every_image_of_the_folder_is_predicted(page):
    images = sorted((page[0] / "my_data" / "val").glob("*.png"))
    assert len(list((page[0] / "predicted").glob("*.png"))) == len(images) == 10
    results = json.loads((page[0] / "predicted" / "predictions.json").read_text())
    assert results
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(results[0])
    with Image.open(page[0] / "drawn.png") as drawn:
        assert drawn.width > 192


def test_the_published_file_is_smaller_and_finds_the_same(page):
    folder, names, _ = page
    (published,) = (folder / "published").glob("my_model-*.pth")
    trained = folder / "output" / "my_model" / "model_final.pth"
    assert published.stat().st_size < 0.5 * trained.stat().st_size
    instances = Predictor(published, score_thresh=0.5, device="cpu")(names["image"])
    np.testing.assert_array_equal(instances.scores, names["instances"].scores)


def test_the_exported_file_finds_the_same(page):
    _, names, printed = page
    found, instances = names["found"], names["instances"]
    assert len(instances) > 0
    assert found.classes.tolist() == instances.pred_classes.tolist()
    assert names["difference"] < 1e-3
    np.testing.assert_allclose(found.scores, instances.scores, atol=1e-5)
    assert printed.count("yes") == 4  # pictures on which the tool compared them
