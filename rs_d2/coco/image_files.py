"""Image files that a json refers to: named, found and measured."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from rs_d2.coco.checks import Finding, Severity, is_text, label, printable
from rs_d2.coco.pixels import upright_size
from rs_d2.utils.errors import UserError

_OPENED = 100  # files whose size is compared before a training


def file_name(image: Mapping[str, Any]) -> str:
    """The name of an image of a json: its `file_name`, else its `coco_url`; else empty."""
    return str(image.get("file_name") or image.get("coco_url") or "")


def is_inside(name: str) -> bool:
    """Whether a name stays below the folder that it is joined to; links are not followed."""
    return not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] != os.pardir


def candidates(image: Mapping[str, Any]) -> list[str]:
    """Names that an image's file may have below the image folder, the likeliest first.

    That is its `file_name`, then the last two parts, then the last part, of its `coco_url`.
    """
    names = [image["file_name"]] if image.get("file_name") else []
    if is_text(image.get("coco_url")):
        parts = image["coco_url"].split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    return names


def find_image_files(
    images: Iterable[dict], root: Path, *, absolute_paths: bool = False
) -> Iterator[tuple[dict, str | None, Finding | None]]:
    """Look for the file of every image, without opening it.

    Args:
        images: entries of a json's `images`.
        root: folder of the images.
        absolute_paths: names may be absolute. Those that lead out of the folder by ".." may not.

    Yields:
        The entry, the path or None, and what is wrong: a name that leads out of the folder, or a
        file that is missing, empty or not a regular file. Neither where the name is no text, which
        ``check_content`` finds.
    """
    for index, image in enumerate(images):
        where = label(image, "images", index)
        names = candidates(image)
        if not names or not all(map(is_text, names)):
            yield image, None, None
            continue
        bad = [n for n in names if not (is_inside(n) or (absolute_paths and os.path.isabs(n)))]
        if bad:
            expected = "a name below the image folder"
            expected += "" if absolute_paths or not os.path.isabs(bad[0]) else _OPTION
            yield image, None, Finding(where, "file_name", expected, repr(bad[0]), _STOPS)
            continue
        paths = [os.path.join(root, name) for name in names]
        found = next((path for path in paths if os.path.lexists(path)), paths[0])
        try:
            status = os.stat(found)
            problem = "" if stat.S_ISREG(status.st_mode) else "is not a regular file"
            problem = problem or ("" if status.st_size else "is empty")
        except OSError:
            problem = "is missing"
        if problem:
            finding = Finding(
                where, "", "", f"{printable(found)} {problem}", _STOPS, f"files: {problem}"
            )
            yield image, None if problem == "is missing" else found, finding
        else:
            yield image, found, None


_OPTION = " (absolute paths are allowed by --absolute-paths)"
_STOPS = Severity.STOPS_TRAINING


def locate_images(
    images: Sequence[dict], root: Path, source: Path, *, absolute_paths: bool = False
) -> dict[Any, str]:
    """Find the file of every image; see ``find_image_files``.

    Args:
        images: entries of a json's `images`.
        root: folder of the images.
        source: the json, for the message.
        absolute_paths: names may be absolute.

    Returns:
        Path by image id.

    Raises:
        UserError: The folder is missing, a name leads out of it, or a file is missing or empty;
            names the first and counts the missing ones.
    """
    if not root.is_dir():
        raise UserError(f"{source}: its image folder {root} does not exist")
    paths: dict[Any, str] = {}
    missing = []
    for image, path, finding in find_image_files(images, root, absolute_paths=absolute_paths):
        if path is not None and finding is None:
            paths[image["id"]] = path
        elif finding is not None and finding.found.endswith(" is missing"):
            missing.append(finding.found.removesuffix(" is missing"))
        elif finding is not None:
            raise UserError(f"{source}: {finding}")
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(images)} image files are missing, first {missing[0]}"
        )
    return paths


def measure_file(image: Mapping[str, Any], path: str, where: str) -> Finding | None:
    """Compare an image's file, of which only the head is read, with what the json states.

    Args:
        image: its entry.
        path: of the file.
        where: name of the entry.
    """
    try:
        with Image.open(path) as opened:
            width, height = upright_size(opened)
    except Exception as error:  # whatever a broken head makes its decoder raise
        told = f"{printable(path)} is not an image that can be read{reason_of(error)}"
        return Finding(where, "", "", told, _STOPS, "files that are no images")
    stated = (image["width"], image["height"])
    if stated == (width, height):
        return None
    told = (
        f"{stated[0]} x {stated[1]} pixels are stated, but {printable(path)} has {width} x {height}"
    )
    return Finding(where, "", "", told, _STOPS, "images of another size than stated")


def reason_of(error: Exception) -> str:
    """What a decoder complained of, in brackets; empty where it only says "no image"."""
    if isinstance(error, UnidentifiedImageError):
        return ""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(told.split())[:120]
    return f" ({text or type(error).__name__})"


def check_image_sizes(images: Sequence[dict], paths: Mapping[Any, str], source: Path) -> None:
    """Compare width and height in the json with at most 100 of the files, spread over the set.

    Wrong sizes mostly come in whole sets: of pictures scaled after they were annotated, or that
    were annotated without their EXIF rotation, which training applies.

    Args:
        images: entries of a json's `images`.
        paths: file by image id.
        source: the json, for the message.

    Raises:
        UserError: A file has another size, or cannot be read as an image.
    """
    for image in images[:: -(-len(images) // _OPENED)]:
        finding = measure_file(image, paths[image["id"]], label(image, "images", 0))
        if finding is not None:
            raise UserError(f"{source}: {finding}")
