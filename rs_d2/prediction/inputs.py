"""The images that prediction is given: files, folders and patterns."""

from __future__ import annotations

import glob
import os
import signal
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


class _ImageFiles(Dataset):
    def __init__(self, files: Sequence[ImageFile], prepare: InputMaker, with_pixels: bool) -> None:
        self._files, self._prepare, self._with_pixels = files, prepare, with_pixels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> Frame | Unreadable:
        try:
            pixels = self._prepare.read(self._files[position].path)
            return read_frame(position, pixels, self._prepare, self._with_pixels)
        except Exception as error:  # whatever a broken file makes its decoder raise
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "not an image"
            return Unreadable(position, reason)


def read_frame(
    position: int,
    pixels: np.ndarray,
    prepare: InputMaker,
    with_pixels: bool,
    seconds: float | None = None,
) -> Frame:
    """A frame of pixels in the model's channel order; a copy of them is kept for a picture."""
    kept = torch.from_numpy(prepare.to_rgb(pixels).copy()) if with_pixels else None
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
    elif path.is_file():
        yield path, PurePath(path.name)
    elif path.exists():
        raise UserError(f"INPUT: {given} is neither a regular file nor a folder")
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


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the main process, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
