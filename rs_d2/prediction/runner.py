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
from rs_d2.prediction.inputs import Frame, ImageFile, Unreadable, load_images
from rs_d2.prediction.predictor import Predictor
from rs_d2.prediction.result_files import Ids, ResultFiles, as_json, default_ids, result_entries
from rs_d2.utils.outputs import check_outputs
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


class Rendered(NamedTuple):
    """What is to be written of an image: its entry, its detections as json, and its picture.

    ``seconds`` since the start, None but for a webcam; ``problem``: why the picture could not be
    written.
    """

    image: dict[str, Any]
    entries: str
    count: int
    picture: np.ndarray | None
    seconds: float | None
    problem: str | None = None


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
        pictures = (("--output", folder / file.picture) for file in files)
        check_outputs((file.path for file in files), pictures)
    ids = ids or default_ids(predictor)
    batches = load_images(
        files,
        predictor.prepare,
        batch_size=batch_size,
        num_workers=min(num_workers, -(-len(files) // batch_size)),
        with_pixels=draw,
    )

    def render(frame: Frame, instances: Instances) -> Rendered:
        file = files[frame.position]
        about = {"file_name": str(file.path)} | ({"picture": file.picture} if draw else {})
        rendered = render_frame(predictor, ids, about, frame, instances)
        if rendered.picture is None:
            return rendered
        problem = _save(rendered.picture, folder / file.picture)
        if problem is not None:
            del rendered.image["picture"]
        return rendered._replace(picture=None, problem=problem)

    names = [str(file.path) for file in files]
    with ResultFiles(folder) as results:
        results.set_categories(ids, predictor.class_names)
        return run_model(predictor, batches, len(files), render, results, names)


def run_model(
    predictor: Predictor,
    batches: Iterable[Sequence[Frame | Unreadable]],
    total: int | None,
    render: Callable[[Frame, Instances], Rendered],
    results: ResultFiles,
    names: Sequence[str] = (),
    picture: Callable[[np.ndarray, float | None], None] | None = None,
) -> Summary:
    """Let the model run while threads render what it has found; results keep their order.

    Args:
        predictor: the model.
        batches: of images that were read; those that were not are named on stderr.
        total: number of images, None if it is not known.
        render: what is to be written of an image; called in threads.
        results: open; gets every image and its detections.
        names: of the images by position, where some may be unreadable.
        picture: takes the pictures in the order of the images, with their time.
    """
    start, num_images, num_unreadable, num_unwritten = time.perf_counter(), 0, 0, 0
    pending: deque[Future[Rendered]] = deque()

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
                        name = names[entry.position]
                        tqdm.write(f"unreadable: {name} ({entry.reason})", file=sys.stderr)
                        results.add_unreadable(name, entry.reason)
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


def render_frame(
    predictor: Predictor, ids: Ids, about: dict[str, Any], frame: Frame, instances: Instances
) -> Rendered:
    """Write a frame's detections as json, and paint them where its pixels are wanted.

    Args:
        predictor: the model.
        ids: for the json.
        about: further entries of the image in ``images.json``.
        frame: the image.
        instances: what the model found in it.
    """
    height, width = instances.image_size
    image_id = ids.image(frame.position)
    entries = result_entries(instances, image_id, ids)
    picture = None
    if frame.pixels is not None:
        picture = paint_instances(frame.pixels.numpy(), instances, predictor.class_names)
    image = {"id": image_id, **about, "width": width, "height": height}
    return Rendered(image, as_json(entries), len(entries), picture, frame.seconds)


def _save(picture: np.ndarray, path: Path) -> str | None:
    """Write a picture; returns its path and what went wrong, if anything did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Little compression of PNG: it would take longer than the painting.
        Image.fromarray(picture).save(path, quality=92, compress_level=1)
    except OSError as error:  # such as JPEG's limit of 65535 pixels
        return f"{path} ({error.strerror or error})"
    return None
