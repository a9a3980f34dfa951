"""What is a video, how its frames are read, and how they are read ahead."""

import builtins
import os
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

from rs_d2 import add_rs_config
from rs_d2.prediction.predictor import InputMaker
from rs_d2.prediction.video import VideoFrames, _ahead, is_video
from rs_d2.utils.errors import UserError


@pytest.fixture
def prepare():
    cfg = get_cfg()
    add_rs_config(cfg)
    return InputMaker(cfg)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("clip.mp4", True), ("CLIP.AVI", True), ("webcam", True), ("webcam:12", True)]
    + [("webcam.jpg", False), ("image.png", False), ("folder", False), ("webcams", False)],
)
def test_videos_and_webcams_are_told_from_images(given, expected):
    assert is_video(given) == expected


def test_a_pipe_is_no_video(tmp_path, prepare):
    pytest.importorskip("cv2")
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"a.mp4 is a pipe"):
        VideoFrames(str(tmp_path / "a.mp4"), prepare, 1, False)


def write_video(path, count=5):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(count):
        writer.write(np.full((48, 64, 3), (40 * i, 0, 200), np.uint8))  # BGR
    writer.release()
    return str(path)


def test_a_video_is_read_in_order_and_in_rgb(tmp_path, prepare):
    frames = VideoFrames(write_video(tmp_path / "clip.mp4"), prepare, 2, with_pixels=True)
    assert (frames.rate, frames.length) == (10, 5)
    batches = list(frames)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    flat = [frame for batch in batches for frame in batch]
    assert [frame.position for frame in flat] == list(range(5))
    blue = [frame.pixels[..., 2].float().mean().item() for frame in flat]
    assert blue == pytest.approx([0, 40, 80, 120, 160], abs=12)
    assert flat[0].pixels[..., 0].float().mean() > 180
    assert flat[0].seconds is None


def test_what_is_no_video_is_named(tmp_path, prepare):
    pytest.importorskip("cv2")
    (tmp_path / "clip.mp4").write_text("words")
    with pytest.raises(UserError, match=r"clip.mp4 cannot be opened as a video"):
        VideoFrames(str(tmp_path / "clip.mp4"), prepare, 1, with_pixels=False)


def test_without_opencv_a_video_is_one_line(tmp_path, prepare, monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("no cv2")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"clip.mp4 needs OpenCV \(pip install opencv-python\)"):
        VideoFrames("clip.mp4", prepare, 1, with_pixels=False)


def test_items_are_made_ahead_but_not_without_bound():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    ahead = _ahead(items(), size=2)
    assert next(ahead) == 0
    time.sleep(0.2)
    assert 1 < len(made) <= 5
    assert list(ahead) == list(range(1, 20))


def test_an_error_of_the_thread_comes_out_and_the_thread_ends():
    def items():
        yield 1
        raise ValueError("broken")

    before = threading.active_count()
    ahead = _ahead(items(), size=2)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    assert threading.active_count() == before


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    ahead = _ahead(iter_forever(), size=1)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before


def iter_forever():
    number = 0
    while True:
        yield number
        number += 1
