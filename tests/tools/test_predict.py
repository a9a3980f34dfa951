"""tools/predict.py on a small untrained model: images, folders, video, webcam, mistakes, Ctrl-C."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO
from PIL import Image

pytest.importorskip("detectron2")

from helpers.tiny import write_checkpoint

from rs_d2 import Predictor

sys.path.insert(0, str(REPO / "tools"))
import evaluate
import predict

NAMES = tuple(f"thing {i}" for i in range(30))
FEW = ("TEST.DETECTIONS_PER_IMAGE", "3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), *FEW, class_names=NAMES)


@pytest.fixture
def images(tmp_path):
    """Four images, two of one name; of 48 x 64 pixels, one larger."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name in ("a.png", "b.jpg", "deep/a.png", "deep/big.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((640, 480) if "big" in name else (64, 48)).save(folder / name)
    return folder


def run(*argv):
    return predict.main([str(word) for word in argv])


def read(output, name="predictions.json"):
    return json.loads((output / name).read_text())


def common(weights, output, *more):
    return ["--weights", weights, "--output", output, "--num-workers", "0", *more]


def test_a_folder_gives_pictures_and_json(weights, images, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(*common(weights, output, images, "MODEL.DEVICE", "cpu")) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 images, 12 detections, ")
    assert shown.endswith(f"images/s; written to {output}\n")
    index = read(output, "images.json")
    assert [image["id"] for image in index["images"]] == [1, 2, 3, 4]
    assert [image["picture"] for image in index["images"]] == [
        *("a.png", "b.jpg", "deep/a.png", "deep/big.png")
    ]
    assert index["categories"][29] == {"id": 30, "name": "thing 29"}
    sizes = [Image.open(output / image["picture"]).size for image in index["images"]]
    assert sizes == [(512, 384)] * 3 + [(640, 480)]
    results = read(output)
    assert sorted({entry["image_id"] for entry in results}) == [1, 2, 3, 4]
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert results[-1]["segmentation"]["size"] == [480, 640]


def test_results_are_those_of_the_predictor(weights, images, tmp_path):
    run(*common(weights, tmp_path / "out", images / "a.png", "--no-draw"))
    found = Predictor(weights)(images / "a.png")
    results = read(tmp_path / "out")
    assert [entry["score"] for entry in results] == pytest.approx(found.scores.tolist(), abs=1e-5)
    corners = found.pred_boxes.tensor
    sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    assert torch.allclose(torch.tensor([entry["bbox"] for entry in results]), sides, atol=1e-2)
    assert [entry["category_id"] - 1 for entry in results] == found.pred_classes.tolist()


def test_files_of_one_name_do_not_overwrite_each_other(weights, images, tmp_path):
    output = tmp_path / "out"
    assert run(*common(weights, output, images / "a.png", images / "deep" / "a.png")) == 0
    assert {path.name for path in output.glob("*.png")} == {"a.png", "a_2.png"}


def test_batches_and_workers_change_nothing_of_the_order(weights, images, tmp_path):
    argv = ["--weights", weights, images, "--no-draw", "--batch-size", 3, "--num-workers", 2]
    assert run(*argv, "--output", tmp_path / "out") == 0
    index = read(tmp_path / "out", "images.json")
    names = [Path(image["file_name"]).relative_to(images).as_posix() for image in index["images"]]
    assert names == ["a.png", "b.jpg", "deep/a.png", "deep/big.png"]
    assert not list((tmp_path / "out").rglob("*.png"))


def test_unreadable_images_are_named_skipped_and_counted(weights, images, tmp_path, capsys):
    (images / "aa.png").write_text("words")
    (images / "c.jpg").write_bytes((images / "b.jpg").read_bytes()[:200])
    assert run(*common(weights, tmp_path / "out", images)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert f"unreadable: {images / 'aa.png'} (not an image)" in lines
    assert lines[-1] == "2 images could not be read"
    index = read(tmp_path / "out", "images.json")
    assert [image["id"] for image in index["images"]] == [1, 3, 5, 6]  # by position
    assert [Path(entry["file_name"]).name for entry in index["unreadable"]] == ["aa.png", "c.jpg"]


def test_every_image_may_be_unreadable(weights, tmp_path):
    (tmp_path / "a.png").write_text("words")
    assert run(*common(weights, tmp_path / "out", tmp_path / "a.png")) == 1
    assert read(tmp_path / "out") == []


@pytest.mark.parametrize("inputs", [".", "*.*", "a.png b.jpg", "link/a.png", "more/../a.png"])
def test_pictures_never_overwrite_an_input(weights, images, monkeypatch, capsys, inputs):
    monkeypatch.chdir(images)
    (images / "more").mkdir()
    (images / "link").symlink_to(images)
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    argv = [*inputs.split(), "--num-workers", "0"]
    assert run("--weights", weights, "--output", "more/..", *argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --output: ")
    assert "would overwrite the input" in line
    assert line.endswith("a.png; choose another --output")
    after = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    assert after == before
    assert run("--weights", weights, "--output", ".", *argv, "--no-draw") == 0


def test_the_ground_truth_is_not_overwritten(weights, images, tmp_path, capsys):
    truth = ground_truth(images, tmp_path).rename(tmp_path / "images.json")
    before = truth.read_bytes()
    assert run(*common(weights, tmp_path, images / "a.png", "--gt-json", truth)) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert truth.read_bytes() == before


def test_a_second_run_finds_the_same_images(weights, images):
    argv = common(weights, images / ".." / "images" / "out", images)
    assert run(*argv) == run(*argv) == 0
    assert len(read(images / "out", "images.json")["images"]) == 4


def test_a_strip_and_a_hidden_file_end_nothing(weights, images, tmp_path):
    Image.new("RGB", (250, 1)).save(images / "strip.jpg")
    (images / "._a.png").write_text("no image")
    assert run(*common(weights, tmp_path / "out", images)) == 0
    with Image.open(tmp_path / "out" / "strip.jpg") as picture:
        assert picture.size == (4000, 16)


@pytest.mark.parametrize("error", [OSError("encoder error -2"), OSError(28, "No space left")])
def test_a_picture_that_cannot_be_written_costs_no_results(
    weights, images, tmp_path, monkeypatch, capsys, error
):
    real = Image.Image.save

    def save(self, path, **options):
        if path.name == "b.jpg":
            raise error
        real(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    output = tmp_path / "out"
    assert run(*common(weights, output, images)) == 1
    shown = capsys.readouterr()
    reason = error.strerror or "encoder error -2"
    assert f"not written: {output / 'b.jpg'} ({reason})" in shown.err.splitlines()
    assert shown.err.splitlines()[-1] == "1 pictures could not be written"
    assert shown.out.startswith("4 images, 12 detections, ")
    pictures = [image.get("picture") for image in read(output, "images.json")["images"]]
    assert pictures == ["a.png", None, "deep/a.png", "deep/big.png"]
    assert {entry["image_id"] for entry in read(output)} == {1, 2, 3, 4}


def ground_truth(images, tmp_path):
    entries = [
        {"id": 70 + i, "file_name": name, "height": 48, "width": 64}
        for i, name in enumerate(("deep/a.png", "a.png", "b.jpg"))
    ]
    categories = [{"id": 100 - i, "name": name} for i, name in enumerate(NAMES)]
    note = {"id": 1, "image_id": 70, "category_id": 90, "bbox": [5, 5, 20, 20], "area": 400}
    content = {"images": entries, "categories": categories}
    content["annotations"] = [{**note, "iscrowd": 0}]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return tmp_path / "gt.json"


def test_results_with_the_ids_of_a_ground_truth_can_be_evaluated(weights, images, tmp_path):
    truth = ground_truth(images, tmp_path)
    inputs = [images / "a.png", images / "b.jpg", images / "deep" / "a.png"]
    output = tmp_path / "out"
    assert run(*common(weights, output, *inputs, "--gt-json", truth, "--no-draw")) == 0
    assert [image["id"] for image in read(output, "images.json")["images"]] == [71, 72, 70]
    argv = ["--gt", truth, "--results", output / "predictions.json", "--format", "coco"]
    argv += ["--iou-type", "bbox", "--output", tmp_path / "scores.json"]
    assert evaluate.main([str(word) for word in argv]) == 0
    assert read(tmp_path, "scores.json")["AP"] is not None


def test_an_image_outside_the_ground_truth_is_named(weights, images, tmp_path, capsys):
    truth = ground_truth(images, tmp_path)
    assert run(*common(weights, tmp_path / "out", images, "--gt-json", truth)) == 2
    assert "1 of 4 images are not in it, first" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files_of_what_is_done(weights, images, tmp_path, monkeypatch, capsys):
    real, calls = Predictor.predict, []

    def interrupted(self, inputs):
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, inputs)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert run(*common(weights, tmp_path / "out", images)) == 130
    assert capsys.readouterr().out.startswith("2 images, 6 detections, ")
    assert len(read(tmp_path / "out")) == 6
    assert len(read(tmp_path / "out", "images.json")["images"]) == 2


def test_ctrl_c_before_the_first_image_is_one_line(weights, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "run", interrupted)
    assert run("--weights", weights, "x", "--output", "y") == 130
    assert capsys.readouterr().err == "interrupted before the first image\n"


def test_an_error_while_painting_is_not_lost(weights, images, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("rs_d2.prediction.runner.paint_instances", broken)
    with pytest.raises(ZeroDivisionError):
        run(*common(weights, tmp_path / "out", images))


def write_video(path, count=4):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 8, (64, 48))
    for i in range(count):
        writer.write(np.full((48, 64, 3), 50 * i, np.uint8))
    writer.release()
    return path


def frames_of(path):
    cv2 = pytest.importorskip("cv2")
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (entry := capture.read())[0]:
        frames.append(entry[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_a_video_gives_a_video(weights, tmp_path):
    clip, output = write_video(tmp_path / "clip.mp4"), tmp_path / "out"
    assert run(*common(weights, output, clip, "--batch-size", 3)) == 0
    frames, rate = frames_of(output / "clip.mp4")
    assert (len(frames), rate) == (4, 8)
    assert frames[0].shape == (384, 512, 3)
    images = read(output, "images.json")["images"]
    assert [(image["id"], image["frame"]) for image in images] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert {entry["image_id"] for entry in read(output)} == {1, 2, 3, 4}


def test_a_video_is_not_written_over_itself(weights, tmp_path, capsys):
    clip = write_video(tmp_path / "clip.mp4")
    before = clip.read_bytes()
    assert run(*common(weights, tmp_path, clip)) == 2
    assert "clip.mp4 would overwrite the input" in capsys.readouterr().err
    assert clip.read_bytes() == before


class Webcam:
    """Three frames, then Ctrl-C; as ``cv2.VideoCapture``, but for nothing there."""

    opened: list = []  # noqa: RUF012

    def __init__(self, index):
        self.opened.append(index)
        self.count = 0

    def isOpened(self):
        return True

    def get(self, _):
        return 0.0

    def read(self):
        self.count += 1
        if self.count > 3:
            raise KeyboardInterrupt
        return True, np.full((48, 64, 3), 50 * self.count, np.uint8)

    def release(self):
        self.count = None


def test_a_webcam_runs_until_ctrl_c(weights, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", Webcam)
    monkeypatch.setattr(Webcam, "opened", [])
    for _ in range(2):  # a second time over the first video
        assert run(*common(weights, tmp_path / "out", "webcam:2")) == 0
    assert Webcam.opened == [2, 2]
    monkeypatch.undo()
    assert len(read(tmp_path / "out", "images.json")["images"]) == 3
    frames, rate = frames_of(tmp_path / "out" / "webcam_2.mp4")
    assert rate == 25
    assert 1 <= len(frames) <= 50  # as long as the recording took


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        (["nowhere"], "INPUT: nowhere does not exist"),
        (["*.nothing"], "INPUT: *.nothing: no image found"),
        (["a.mp4", "b.png"], "INPUT: a.mp4 must be the only input"),
        (["a.mp4", "--gt-json", "gt.json"], "--gt-json is for images"),
        ([], "the following arguments are required: INPUT"),
        (["MODEL.DEVICE", "cpu"], "INPUT: no image, folder or video is given"),
        (["IMAGES", "MODEL.DEVICE"], "KEY VALUE pairs: 'MODEL.DEVICE' has no partner"),
        (["IMAGES", "MODEL.DEVISE", "cpu"], "MODEL.DEVISE is not a config key"),
        (["IMAGES", "INPUT.FORMAT", "L"], "INPUT.FORMAT: 'L' is neither BGR nor RGB"),
        (["IMAGES", "--batch-size", "0"], "argument --batch-size: 0 is not at least 1"),
        (["IMAGES", "--num-workers", "-1"], "--num-workers: -1 is not at least 0"),
        (["IMAGES", "--score-thresh", "2"], "score_thresh: 2.0 is not in [0, 1)"),
        (["IMAGES", "--config-file", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["IMAGES", "--gt-json", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_a_mistake_is_one_line(weights, images, tmp_path, capsys, argv, culprit):
    words = [images if word == "IMAGES" else word for word in argv]
    assert run("--weights", weights, "--output", tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert culprit in line


def test_missing_weights_are_one_line(images, tmp_path, capsys):
    assert run("--weights", "nowhere.pth", images, "--output", tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: nowhere.pth does not exist\n"
