"""Image files that a json refers to: named, found and measured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rs_d2.utils.errors import UserError

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


def file_name(image: Mapping[str, Any]) -> str:
    """The name of an image of a json: its `file_name`, else its `coco_url`; else empty."""
    return str(image.get("file_name") or image.get("coco_url") or "")


def locate_images(images: Iterable[dict], root: Path, source: Path) -> dict[Any, str]:
    """Find the file of every image.

    An image is `root / file_name`; where that is not there, the last two parts, then the last part,
    of `coco_url` below `root`.

    Args:
        images: entries of a json's `images`.
        root: folder of the images.
        source: the json, for the message.

    Returns:
        Path by image id.

    Raises:
        UserError: The folder or any file is missing; names the first and counts the others.
    """
    if not root.is_dir():
        raise UserError(f"{source}: its image folder {root} does not exist")
    found, missing = {}, []
    for image in images:
        names = [image["file_name"]] if image.get("file_name") else []
        if image.get("coco_url"):
            parts = image["coco_url"].split("/")
            names += ["/".join(parts[-2:]), parts[-1]]
        candidates = [os.path.join(root, name) for name in names]
        path = next((c for c in candidates if os.path.isfile(c)), None)
        if path is None:
            missing.append(candidates[0])
        found[image["id"]] = path
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(found)} image files are missing, first {missing[0]}"
        )
    return found


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
    for image in images[:: -(-len(images) // 100)]:
        path = paths[image["id"]]
        stated = (image["width"], image["height"])
        try:
            with Image.open(path) as opened:
                turned = opened.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
                actual = opened.size[::-1] if turned else opened.size
        except OSError:
            raise UserError(f"{source}: {path} is not an image that can be read") from None
        if actual != stated:
            raise UserError(
                f"{source}: image {image['id']}: {stated[0]} x {stated[1]} pixels are stated, "
                f"but {path} has {actual[0]} x {actual[1]}"
            )
