"""From a source of images through a model to pictures and json, each part ahead of the next."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from rs_d2.drawing.painter import paint_instances
from rs_d2.prediction.inputs import (
    Frame,
    ImageFile,
    Unreadable,
    VideoFrames,
    check_targets,
    load_images,
)
from rs_d2.prediction.predictor import Predictor
from rs_d2.prediction.result_files import Ids, ResultFiles, as_json, default_ids, result_entries
from rs_d2.utils.errors import UserError
from rs_d2.utils.terminal import is_live

_WRITERS = 2  # threads that paint and encode
_BACKLOG = 8  # images that may wait for them, besides a batch


class Summary(NamedTuple):
    """What a prediction did: images, detections, seconds; whether Ctrl-C ended it early.

    ``num_unwritten`` counts the images whose picture could not be written.
    """

    num_images: int
    num_unreadable: int
    num_unwritten: int
    num_detections: int
    seconds: float
    interrupted: bool


class _Rendered(NamedTuple):
    image: dict[str, Any]
    entries: str
    count: int
    picture: np.ndarray | None
    seconds: float | None
    problem: str | None = None  # why the picture could not be written


def predict_images(
    predictor: Predictor,
    files: Sequence[ImageFile],
    folder: Path,
    *,
    ids: Ids | None = None,
    draw: bool = True,
    batch_size: int = 1,
    num_workers: int = 2,
) -> Summary:
    """Write ``predictions.json``, ``images.json`` and a picture per image into a folder.

    Images that cannot be read are named on stderr and left out; those whose picture cannot be
    written are named, too. Ctrl-C ends it with whole files.

    Args:
        predictor: the model.
        files: of the images.
        folder: made if needed.
        ids: for the json; None: ``default_ids``.
        draw: write pictures.
        batch_size: images that the model sees together.
        num_workers: processes that read images; 0: none beside this one.

    Raises:
        UserError: The folder cannot be written, or a picture would overwrite one of the images.
    """
    if draw:
        check_targets((file.path for file in files), (folder / file.picture for file in files))
    ids = ids or default_ids(predictor)
    batches = load_images(
        files,
        predictor.prepare,
        batch_size=batch_size,
        num_workers=min(num_workers, -(-len(files) // batch_size)),
        with_pixels=draw,
    )

    def render(frame: Frame, instances: Instances) -> _Rendered:
        file = files[frame.position]
        about = {"file_name": str(file.path)} | ({"picture": file.picture} if draw else {})
        rendered = _render(predictor, ids, about, frame, instances)
        if rendered.picture is None:
            return rendered
        problem = _save(rendered.picture, folder / file.picture)
        if problem is not None:
            del rendered.image["picture"]
        return rendered._replace(picture=None, problem=problem)

    names = [str(file.path) for file in files]
    with ResultFiles(folder) as results:
        results.set_categories(ids, predictor.class_names)
        return _run(predictor, batches, len(files), render, results, names)


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
        check_targets([Path(given)], [target])
    frames = VideoFrames(given, predictor.prepare, batch_size, draw)
    ids = default_ids(predictor)

    def render(frame: Frame, instances: Instances) -> _Rendered:
        about = {"file_name": given, "frame": frame.position}
        return _render(predictor, ids, about, frame, instances)

    with ResultFiles(folder) as results, _VideoFile(target, frames.rate) as video:
        results.set_categories(ids, predictor.class_names)
        return _run(predictor, frames, frames.length, render, results, picture=video.add)


def _run(
    predictor: Predictor,
    batches: Iterable[Sequence[Frame | Unreadable]],
    total: int | None,
    render: Callable[[Frame, Instances], _Rendered],
    results: ResultFiles,
    names: Sequence[str] = (),
    picture: Callable[[np.ndarray, float | None], None] | None = None,
) -> Summary:
    """Let the model run while threads render what it has found; results keep their order."""
    start, num_images, num_unreadable, num_unwritten = time.perf_counter(), 0, 0, 0
    pending: deque[Future[_Rendered]] = deque()

    def collect(limit: int) -> None:
        nonlocal num_unwritten
        while pending and (len(pending) > limit or pending[0].done()):
            rendered = pending.popleft().result()
            results.add(rendered.image, rendered.entries, rendered.count)
            if rendered.problem is not None:
                num_unwritten += 1
                tqdm.write(f"not written: {rendered.problem}", file=sys.stderr)
            if picture is not None and rendered.picture is not None:
                picture(rendered.picture, rendered.seconds)

    interrupted = False
    bar = tqdm(total=total, unit="im", dynamic_ncols=True, disable=not is_live())
    with ThreadPoolExecutor(_WRITERS) as pool, bar:
        try:
            for batch in batches:
                frames = [entry for entry in batch if isinstance(entry, Frame)]
                for entry in batch:
                    if isinstance(entry, Unreadable):
                        num_unreadable += 1
                        _report(names[entry.position], entry.reason, results)
                found = predictor.predict([frame.inputs for frame in frames])
                for frame, instances in zip(frames, found, strict=True):
                    pending.append(pool.submit(render, frame, instances))
                    num_images += 1
                collect(limit=_BACKLOG + len(batch))
                bar.update(len(batch))
        except KeyboardInterrupt:
            interrupted = True
        collect(limit=0)
    seconds = time.perf_counter() - start
    return Summary(
        num_images, num_unreadable, num_unwritten, results.num_detections, seconds, interrupted
    )


def _render(
    predictor: Predictor, ids: Ids, about: dict[str, Any], frame: Frame, instances: Instances
) -> _Rendered:
    height, width = instances.image_size
    image_id = ids.image(frame.position)
    entries = result_entries(instances, image_id, ids)
    picture = None
    if frame.pixels is not None:
        picture = paint_instances(frame.pixels.numpy(), instances, predictor.class_names)
    image = {"id": image_id, **about, "width": width, "height": height}
    return _Rendered(image, as_json(entries), len(entries), picture, frame.seconds)


def _report(name: str, reason: str, results: ResultFiles) -> None:
    tqdm.write(f"unreadable: {name} ({reason})", file=sys.stderr)
    results.add_unreadable(name, reason)


def _save(picture: np.ndarray, path: Path) -> str | None:
    """Write a picture; returns its path and what went wrong, if anything did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Little compression of PNG: it would take longer than the painting.
        Image.fromarray(picture).save(path, quality=92, compress_level=1)
    except OSError as error:  # such as JPEG's limit of 65535 pixels
        return f"{path} ({error.strerror or error})"
    return None


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
