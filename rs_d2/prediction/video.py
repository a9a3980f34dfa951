"""Prediction on a video file or a webcam: frames in, one annotated video out."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances

from rs_d2.prediction.inputs import Frame, read_frame
from rs_d2.prediction.predictor import InputMaker, Predictor
from rs_d2.prediction.result_files import ResultFiles, default_ids
from rs_d2.prediction.runner import Rendered, Summary, render_frame, run_model
from rs_d2.utils.errors import UserError
from rs_d2.utils.outputs import check_outputs

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

_WEBCAM = re.compile(r"webcam(?::(\d+))?")
_FALLBACK_RATE = 25.0  # frames/s of a camera or file that states none


def is_video(given: str) -> bool:
    """Whether an input is a video file or a webcam."""
    return bool(_WEBCAM.fullmatch(given)) or given.lower().endswith(VIDEO_ENDINGS)


def predict_video(
    predictor: Predictor,
    given: str,
    folder: Path,
    *,
    draw: bool = True,
    batch_size: int = 1,
) -> Summary:
    """Write ``predictions.json``, ``images.json`` and one annotated video into a folder.

    Image ids are frame numbers from 1. A webcam runs until Ctrl-C; its video keeps the camera's
    time, however slow the model is.

    Args:
        predictor: the model.
        given: a file, or "webcam" or "webcam:INDEX".
        folder: made if needed.
        draw: write the video, as ``NAME.mp4``.
        batch_size: frames that the model sees together.

    Raises:
        UserError: The source cannot be opened, or the video not written, or it would overwrite the
            source.
    """
    target = folder / f"{Path(given.replace(':', '_')).stem}.mp4"
    if draw:
        check_outputs([given], [("--output", target)])
    frames = VideoFrames(given, predictor.prepare, batch_size, draw)
    ids = default_ids(predictor)

    def render(frame: Frame, instances: Instances) -> Rendered:
        about = {"file_name": given, "frame": frame.position}
        return render_frame(predictor, ids, about, frame, instances)

    with ResultFiles(folder) as results, _VideoFile(target, frames.rate) as video:
        results.set_categories(ids, predictor.class_names)
        return run_model(predictor, frames, frames.length, render, results, picture=video.add)


class VideoFrames:
    """The frames of a video file or webcam in batches, read in a thread ahead of their use.

    Attributes:
        rate: frames per second.
        length: number of frames as the file states it; None of a webcam.
    """

    def __init__(self, given: str, prepare: InputMaker, batch_size: int, with_pixels: bool) -> None:
        """Open a file, or the webcam of "webcam" or "webcam:INDEX".

        Raises:
            UserError: It cannot be opened, or OpenCV is missing.
        """
        try:
            import cv2
        except ImportError as error:
            raise UserError(f"INPUT: {given} needs OpenCV (pip install opencv-python)") from error
        webcam = _WEBCAM.fullmatch(given)
        if Path(given).is_fifo():
            raise UserError(f"INPUT: {given} is a pipe; write its content to a file")
        self._is_live = webcam is not None
        self._capture = cv2.VideoCapture(int(webcam[1] or 0) if webcam else given)
        if not self._capture.isOpened():
            raise UserError(f"INPUT: {given} cannot be opened as a video")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else _FALLBACK_RATE
        stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = None if self._is_live or stated < 1 else stated
        self._prepare, self._batch_size, self._with_pixels = prepare, batch_size, with_pixels

    def __iter__(self) -> Iterator[list[Frame]]:
        return _ahead(self._batches(), size=2)

    def _batches(self) -> Iterator[list[Frame]]:
        batch: list[Frame] = []
        try:
            for frame in self._frames():
                batch.append(frame)
                if len(batch) == self._batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch
        finally:
            self._capture.release()

    def _frames(self) -> Iterator[Frame]:
        start, position = time.perf_counter(), 0
        while True:
            there, pixels = self._capture.read()
            if not there:
                return
            seconds = time.perf_counter() - start if self._is_live else None
            yield read_frame(
                position, self._prepare.from_bgr(pixels), self._prepare, self._with_pixels, seconds
            )
            position += 1


class _VideoFile:
    """An mp4 file that is opened with its first picture."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: Any = None
        self._count = 0

    def __enter__(self) -> _VideoFile:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._writer is not None:
            self._writer.release()

    def add(self, picture: np.ndarray, seconds: float | None) -> None:
        """Add a picture; one with a time as often as the rate asks for until then."""
        import cv2

        if self._writer is None:
            size = picture.shape[1::-1]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, size)
            if not self._writer.isOpened():
                raise UserError(f"--output: {self._path} cannot be written as a video")
        due = self._count + 1 if seconds is None else round(seconds * self._rate) + 1
        for _ in range(self._count, due):
            self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
        self._count = max(self._count, due)


def _ahead(iterator: Iterator[Any], size: int) -> Iterator[Any]:
    """Run an iterator in a thread, at most ``size`` items ahead; its errors come out here."""
    items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(size)
    stop, end = threading.Event(), object()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                items.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in iterator:
                put(item)
                if stop.is_set():
                    break
            put(end)
        except BaseException as error:
            put(end, error)
        finally:
            iterator.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (entry := items.get())[0] is not end:
            yield entry[0]
        if entry[1] is not None:
            raise entry[1]
    finally:
        stop.set()
        thread.join()
