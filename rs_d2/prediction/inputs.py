"""Where prediction takes its images from: files, folders, patterns, a video or a webcam."""

from __future__ import annotations

import glob
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from rs_d2.prediction.predictor import InputMaker
from rs_d2.utils.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

_WEBCAM = re.compile(r"webcam(?::(\d+))?")
_FALLBACK_RATE = 25.0  # frames/s of a camera or file that states none


class ImageFile(NamedTuple):
    """An image and the name of its picture, relative to the output folder; no two share one."""

    path: Path
    picture: str


class Frame(NamedTuple):
    """An image that was read.

    ``position`` counts from 0; ``pixels`` is a uint8 tensor [H, W, 3], RGB, None where no picture
    is wanted; ``inputs`` is for the model; ``seconds`` since the start, None but for a webcam.
    """

    position: int
    pixels: torch.Tensor | None
    inputs: dict[str, Any]
    seconds: float | None = None


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    position: int
    reason: str


def find_images(inputs: Sequence[str], output: Path) -> list[ImageFile]:
    """Find the images that files, folders and patterns stand for, in their order.

    Folders are searched with all they contain, in the order of the names, but for hidden files and
    folders. In folders and patterns an output folder below them is left out. A file that is named
    twice, by whatever path or link, counts once.

    Raises:
        UserError: An input does not exist, or holds no image.
    """
    found: dict[Path, tuple[Path, PurePath]] = {}
    for given in inputs:
        pairs = list(_expand(given, output))
        if not pairs:
            raise UserError(f"INPUT: {given}: no image found")
        for path, name in pairs:
            found.setdefault(path.resolve(), (path.absolute(), name))
    taken: set[str] = set()
    return [ImageFile(path, _picture_name(name, taken)) for path, name in found.values()]


def check_targets(inputs: Iterable[Path], targets: Iterable[Path]) -> None:
    """Check that no file to be written is one that is read, by whatever path or link.

    Raises:
        UserError: The first that is.
    """
    known = {identity: path for path in inputs if (identity := _identity(path)) is not None}
    for target in targets:
        if (path := known.get(_identity(target))) is not None:
            raise UserError(
                f"--output: {target} would overwrite the input {path}; choose another --output"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Of a file on this machine; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_video(given: str) -> bool:
    """Whether an input is a video file or a webcam."""
    return bool(_WEBCAM.fullmatch(given)) or given.lower().endswith(VIDEO_ENDINGS)


def load_images(
    files: Sequence[ImageFile],
    prepare: InputMaker,
    *,
    batch_size: int,
    num_workers: int,
    with_pixels: bool,
) -> Iterable[list[Frame | Unreadable]]:
    """Read images in other processes, ahead of their use.

    Args:
        files: of the images.
        prepare: the model's.
        batch_size: at most so many together.
        num_workers: processes; 0: this one.
        with_pixels: for pictures.
    """
    return DataLoader(
        _ImageFiles(files, prepare, with_pixels),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_ignore_interrupts,
    )


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
            yield _frame(
                position, self._prepare.from_bgr(pixels), self._prepare, self._with_pixels, seconds
            )
            position += 1


class _ImageFiles(Dataset):
    def __init__(self, files: Sequence[ImageFile], prepare: InputMaker, with_pixels: bool) -> None:
        self._files, self._prepare, self._with_pixels = files, prepare, with_pixels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> Frame | Unreadable:
        try:
            pixels = self._prepare.read(self._files[position].path)
            return _frame(position, pixels, self._prepare, self._with_pixels)
        except Exception as error:  # whatever a broken file makes its decoder raise
            return Unreadable(position, _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split())[:120] or type(error).__name__


def _frame(
    position: int,
    pixels: np.ndarray,
    prepare: InputMaker,
    with_pixels: bool,
    seconds: float | None = None,
) -> Frame:
    kept = None
    if with_pixels:
        kept = torch.from_numpy(prepare.to_rgb(pixels).copy())
    return Frame(position, kept, prepare.of_pixels(pixels), seconds)


def _expand(given: str, output: Path) -> Iterator[tuple[Path, PurePath]]:
    """Yield the images of one input with their names for the output."""
    path = Path(given)
    if path.is_dir():
        is_output = _below(output, path)
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            hidden = any(part.startswith(".") for part in name.parts)  # as patterns have it
            if not hidden and _is_image(file) and not is_output(file):
                yield file, name
    elif path.exists():
        yield path, PurePath(path.name)
    elif glob.has_magic(given):
        is_output = _below(output, _fixed_part(given))
        for file in map(Path, sorted(glob.glob(given, recursive=True))):
            if _is_image(file) and not is_output(file):
                yield file, PurePath(file.name)
    else:
        raise UserError(f"INPUT: {given} does not exist")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS and path.is_file()


def _fixed_part(pattern: str) -> Path:
    """The folder that all matches of a pattern are in."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return Path(folder)


def _below(output: Path, searched: Path) -> Callable[[Path], bool]:
    """Whether a file is of the output, if that is a folder below the one that is searched.

    The folder itself or one around it is not left out: nothing would remain.
    """
    excluded = output.resolve()
    if searched.resolve() not in excluded.parents:
        return lambda file: False
    return lambda file: excluded in file.resolve().parents


def _picture_name(name: PurePath, taken: set[str]) -> str:
    """A name that no other picture has, where upper and lower case count as equal."""
    if name.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        name = name.with_name(f"{name.name}.png")
    chosen, count = name, 1
    while chosen.as_posix().lower() in taken:
        count += 1
        chosen = name.with_name(f"{name.stem}_{count}{name.suffix}")
    taken.add(chosen.as_posix().lower())
    return chosen.as_posix()


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


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the main process, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
